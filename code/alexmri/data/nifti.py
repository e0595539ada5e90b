"""Read a NIfTI file, or the pair of an Analyze image, into one volume: limits first."""

import gzip
import io
import math
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.orientation import MAX_VOXELS, NO_AXES, Admit, canonical
from alexmri.data.slicing import Volume
from alexmri.errors import UserError

GZIP = b"\x1f\x8b"
HEADER_BYTES = {1: 348, 2: 540}
SINGLE, PAIRED = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")
# Between header and voxels lie extensions; usual are some KB.
MAX_OFFSET = 16 << 20


def is_nifti(data: bytes) -> bool:
    """Whether the bytes of a file begin as those of a NIfTI file do, or as a packed file."""
    return data.startswith(GZIP) or _magic(data) in SINGLE


def read_nifti(
    data: bytes, pair: bytes | None = None, *, voi: bool = False, admit: Admit | None = None
) -> Volume:
    """Return the volume in a file, packed by gzip or not; of several the first.

    `pair` are the bytes of the .img file, where `data` are those of a .hdr file. With `voi`, the
    range of values that the header names for display is returned with it. `admit` is called with
    the sides of the volume before it is unpacked, and refuses by an exception of its own.

    Raises:
        UserError: no such file, damaged, voxels that are colours or no numbers, or too many.
    """
    if not data or pair == b"":
        raise UserError("it is empty (0 bytes); it was probably not copied whole")
    start = _read(_opened(data), HEADER_BYTES[2])
    header, is_single = _header(start, paired=pair is not None)
    shape = header.get_data_shape()
    offset = float(header.get_data_offset())
    if not shape or not all(0 < side <= 2**31 for side in shape):
        raise UserError(f"its header says that it has {' x '.join(map(str, shape)) or 'no'} voxels")
    kind = header.get_data_dtype()
    if kind.kind not in "uif":
        raise UserError(
            f"its voxels are not single numbers (data type {kind}), but for example RGB"
        )
    sides = (*shape, 1, 1)[:3]
    count = math.prod(sides)
    if count > MAX_VOXELS:
        raise UserError(
            f"it has {' x '.join(map(str, sides))} voxels; at most {MAX_VOXELS // 10**6} million"
            " are read"
        )
    lowest = len(start[: HEADER_BYTES[1]]) if is_single else 0
    if not lowest <= offset <= MAX_OFFSET:
        raise UserError(f"its header claims that the voxels begin at byte {offset:.0f}")
    if admit is not None:
        admit(*sides)
    source = _opened(data if pair is None else pair)
    end = int(offset) + count * kind.itemsize
    raw = _read(source, end)
    if len(raw) < end:
        raise UserError(
            f"it ends too early, at byte {len(raw):,} of {end:,}; it was probably not copied whole"
        )
    _read(source, 1)  # reaches the checksum of a packed file
    voxels = np.frombuffer(raw, kind, count, int(offset)).reshape(sides, order="F")
    slope, intercept = header.get_slope_inter()
    with np.errstate(all="ignore"):  # what overflows becomes 0 below
        scaled = voxels.astype(np.float32)
        del voxels, raw
        if slope is not None and (slope, intercept) != (1.0, 0.0):
            scaled *= np.float32(slope)
            scaled += np.float32(intercept or 0.0)
    volume = canonical(scaled, _affine(header), _notes(header, shape))
    low, high = float(header["cal_min"]), float(header["cal_max"])
    bounds = (low, high) if voi and math.isfinite(high - low) and low < high else None
    return Volume(volume.voxels_XYZ, volume.spacing_mm, bounds, notes=volume.notes)


def _opened(data: bytes) -> io.BufferedIOBase:
    """Return a file of the bytes, unpacked as far as it is read."""
    stream = io.BytesIO(data)
    return gzip.GzipFile(fileobj=stream) if data.startswith(GZIP) else stream


def _read(source: io.BufferedIOBase, count: int) -> bytes:
    try:
        return source.read(max(count, 0))
    except (OSError, EOFError, zlib.error):
        raise UserError(
            "it is damaged, or was not copied whole: it cannot be unpacked (gzip)"
        ) from None


def _magic(start: bytes) -> bytes:
    return start[4:8] if start[4:8] in (b"n+2\0", b"ni2\0") else start[344:348]


def _header(start: bytes, *, paired: bool) -> tuple[Any, bool]:
    """Return the header that the first bytes hold, and whether the voxels follow in this file."""
    from nibabel.analyze import AnalyzeHeader
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
    from nibabel.spatialimages import HeaderDataError

    magic = _magic(start)
    kinds: dict[bytes, Any] = {
        **dict(zip(SINGLE, (Nifti1Header, Nifti2Header), strict=True)),
        **dict(zip(PAIRED, (Nifti1PairHeader, Nifti2PairHeader), strict=True)),
    }
    kind = kinds.get(magic, AnalyzeHeader if paired else None)
    is_single = magic in SINGLE
    if kind is None or is_single == paired:
        what = "this is the header of a pair" if magic in PAIRED else "there is no mark n+1"
        raise UserError(f"it is not a NIfTI file, or its start is damaged: {what}")
    size = HEADER_BYTES[2] if magic[2:3] == b"2" else HEADER_BYTES[1]
    try:
        header = kind(start[:size], check=False)
        header.get_data_dtype()
        header.get_slope_inter()
        header.get_data_shape()
        if int(header["sizeof_hdr"]) != size:
            raise HeaderDataError
    except (HeaderDataError, ValueError, KeyError, TypeError, IndexError):
        raise UserError("it cannot be read as NIfTI: its header is damaged") from None
    return header, is_single


def _affine(header: Any) -> NDArray[np.float64]:
    """Return where voxels (i, j, k) lie (RAS); signs of voxel sizes are mended as nibabel does."""
    from nibabel.spatialimages import HeaderDataError

    sizes = header["pixdim"]
    sizes[1:4] = np.abs(sizes[1:4])
    if abs(sizes[0]) != 1:
        sizes[0] = 1
    try:
        return np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError):
        raise UserError(NO_AXES) from None


def _notes(header: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    from nibabel.orientations import aff2axcodes

    notes = []
    volumes = math.prod(shape[3:])
    if volumes > 1:
        notes.append(f"it holds {volumes} volumes; the first is used")
    forms = [header.get(f"{name}form_code") for name in "sq"] if "sform_code" in header else []
    if not any(forms):
        notes.append(
            "it does not say which side is left; its first axis is taken to run from right to left"
        )
    elif all(forms):
        with suppress(ValueError, np.linalg.LinAlgError):
            if aff2axcodes(header.get_sform()) != aff2axcodes(header.get_qform()):
                notes.append("its qform says that it lies otherwise than its sform, which is used")
    return tuple(notes)
