"""Read a series of DICOM files into one volume: limits first, then pixels.

Decoders: pydicom's own for uncompressed and RLE, openjpeg for JPEG 2000, GDCM for JPEG, JPEG
Lossless and JPEG-LS. No tag leaves this module but the identifiers in `Identity`.
"""

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.decoder_process import DecoderProcess
from alexmri.data.dicom_layout import MAX_FRAMES, Frame, frames_of, stack
from alexmri.data.intensities import Bounds
from alexmri.data.orientation import MAX_VOXELS, Admit, canonical
from alexmri.data.slicing import NotAScanError, Volume
from alexmri.errors import UserError

MARK_AT, MARK = 128, b"DICM"
# Without the mark, as from very old scanners: a first element of group 2 or 8, in either encoding.
UNMARKED = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|.\0\0\0)", re.DOTALL)
DEFLATED, PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
COMPRESSED, HEAD_BYTES = b"1.2.840.10008.1.2.4.", 4096
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# pydicom parses in Python: 3 reads an element, 10 microseconds each.
MAX_READS = 300_000
# A deflated file of 256 KB can hold this much, and reading it takes three times as much memory.
MAX_INFLATED = 128 << 20
# Of processor time for the compressed images of a series; 500 of JPEG 2000 take 10.
MAX_SECONDS = 600
MAX_SIDE = 16_384
# pydicom unpacks a run-length encoded frame whatever its size: 64 times as much at most.
MAX_RLE_FRAME = 8 << 20
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
NOT_DICOM = "it is not a DICOM file, or its start is damaged: it has no mark DICM"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the header of a file says about where it belongs; empty where it does not."""

    series: str
    study: str
    patient: str
    may_be_burned_in: bool


def is_dicom(data: bytes) -> bool:
    """Whether the bytes of a file begin as those of DICOM do."""
    return data[MARK_AT : MARK_AT + 4] == MARK or UNMARKED.match(data) is not None


def is_compressed(data: bytes) -> bool:
    """Whether a file names a transfer syntax that compresses; a plain one hardly does."""
    return DEFLATED in data or COMPRESSED in data[:HEAD_BYTES]


def identify(data: bytes) -> Identity:
    """Return where a file belongs.

    Raises:
        UserError: it is damaged.
    """
    with _one_sentence():
        header = _parse(data, with_pixels=False)
        burned_in = str(header.get("BurnedInAnnotation") or "").upper()
        captured = str(header.get("SOPClassUID") or "").startswith(SECONDARY_CAPTURE)
        return Identity(
            series=str(header.get("SeriesInstanceUID") or ""),
            study=str(header.get("StudyInstanceUID") or ""),
            patient=str(header.get("PatientID") or "").strip(),
            may_be_burned_in=burned_in == "YES" or (captured and burned_in != "NO"),
        )


def read_series(
    files: Sequence[Callable[[], bytes]],
    *,
    voi: bool = False,
    admit: Admit | None = None,
    seconds: int = MAX_SECONDS,
) -> Volume:
    """Return the volume in the files of one series, which may come in any order.

    Each of `files` returns the bytes of a file; it is called twice, and one file is in memory at a
    time. Rescale slope and intercept are applied. With `voi`, so is the window of each image (VOI
    LUT); values then go from 0 to 1. Colours become luma. Of several images at one place, as of
    several echoes or directions, the first is taken. Images that do not say how they lie are
    stacked as they are, as if their rows ran from the subject's right to the left.

    `admit` is called with the sides of the volume (X, Y, Z) before there are pixels, and refuses by
    an exception of its own. The process that decodes compressed images may cost `seconds` of
    processor time.

    Raises:
        NotAScanError: it holds no image, or images in several directions.
        UserError: a file is damaged, or compressed in a way that no decoder here reads; images of
            several sizes; too many voxels.
    """
    frames: list[Frame] = []
    shapes: set[tuple[int, int]] = set()
    for number, file in enumerate(files):
        data = file()
        with _one_sentence():
            header = _parse(data, with_pixels=False)
            shapes.add(_require_image(header))
            frames += frames_of(header, number)
            inverted = header.PhotometricInterpretation == "MONOCHROME1"
        if len(frames) > MAX_FRAMES:
            raise UserError(f"it has more than {MAX_FRAMES} images")
    if len(shapes) > 1:
        sizes = " and ".join(f"{columns} x {rows}" for rows, columns in sorted(shapes)[:2])
        raise NotAScanError(f"it holds images of several sizes ({sizes})")
    stacked = stack(frames)
    rows, columns = shapes.pop()
    shape = (columns, rows, len(stacked.frames))
    if columns * rows * len(stacked.frames) > MAX_VOXELS:
        raise UserError(
            f"it has {columns} x {rows} x {len(stacked.frames)} voxels; at most"
            f" {MAX_VOXELS // 10**6} million are read"
        )
    if admit is not None:
        admit(*shape)
    voxels = np.empty(shape, np.float32)
    place = {(frame.file, frame.number): k for k, frame in enumerate(stacked.frames)}
    with DecoderProcess(seconds) as decoder:
        for number, file in enumerate(files):
            wanted = [frame for frame in stacked.frames if frame.file == number]
            if not wanted:
                continue
            data = file()
            with _one_sentence():
                for frame, values_HW in _decoded(data, wanted, decoder, voi=voi):
                    voxels[:, :, place[number, frame.number]] = values_HW.T
    bounds: Bounds | None = (0.0, 1.0) if voi else None
    volume = canonical(voxels, stacked.affine, stacked.notes, uneven=stacked.is_uneven)
    return Volume(
        volume.voxels_XYZ, volume.spacing_mm, bounds, inverted, volume.uneven, volume.notes
    )


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn whatever pydicom and its decoders say to a damaged file into one sentence."""
    try:
        with warnings.catch_warnings():
            # Of what is unusual in a file, and does no harm.
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except RecursionError:
        raise UserError("its header is nested too deeply") from None
    except MemoryError:
        raise UserError("its images do not fit into memory") from None
    except Exception as error:
        text = str(error)
        if "less than expected" in text or "unexpected end" in text.lower():
            raise UserError("it ends too early; it was probably not copied whole") from None
        raise UserError("it is damaged, or no decoder here reads its pixels") from None


class _Counted(io.BytesIO):
    """The bytes of a file, of which pydicom may read so many pieces."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise UserError(f"its header has more than {MAX_READS // 3:,} elements")
        return super().read(size)


def _parse(data: bytes, *, with_pixels: bool) -> Any:
    """Return the header of a file as pydicom's Dataset, and with `with_pixels` all of it."""
    from pydicom import dcmread

    if not is_dicom(data):
        raise UserError(NOT_DICOM)
    return dcmread(_Counted(_inflated(data)), stop_before_pixels=not with_pixels, force=True)


def _inflated(data: bytes) -> bytes:
    """Return a file that is deflated as a whole as a plain one: pydicom would know no limit."""
    if DEFLATED not in data:
        return data
    start = MARK_AT + 16 + int.from_bytes(data[MARK_AT + 12 : MARK_AT + 16], "little")
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], MAX_INFLATED + 1)
    if len(inflated) > MAX_INFLATED:
        raise UserError(f"it unpacks to more than {MAX_INFLATED >> 20} MB")
    whole = data[:start].replace(DEFLATED, PLAIN) + inflated
    if DEFLATED in whole[: start + 132]:
        raise UserError(NOT_DICOM)
    return whole


def _require_image(header: Any) -> tuple[int, int]:
    """Return rows and columns of the images of a file."""
    if not all(name in header for name in ("Rows", "Columns", "BitsAllocated")):
        what = str(header.get("Modality") or "")
        raise NotAScanError(
            f"it holds no image{f' (modality {what[:16]})' if what.isalnum() else ''}"
        )
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise NotAScanError(
            "it holds all slices in one image (a Siemens mosaic); convert it to NIfTI"
        )
    rows, columns = int(header.Rows), int(header.Columns)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise UserError(
            f"its images have {columns} x {rows} pixels; a side has 1 to {MAX_SIDE:,} pixels"
        )
    return rows, columns


def _decoded(
    data: bytes, wanted: Sequence[Frame], decoder: DecoderProcess, *, voi: bool
) -> Iterator[tuple[Frame, NDArray[np.float32]]]:
    """Yield the wanted images of a file with their values (H, W)."""
    from pydicom.pixels import iter_pixels

    dataset = _parse(data, with_pixels=True)
    if not any(k in dataset for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UserError("its pixels are missing")
    frames = sorted(wanted, key=lambda frame: frame.number)
    numbers = [frame.number for frame in frames]
    if _check_compressed(dataset):
        decoded = decoder.frames(data, numbers)
    else:
        decoded = iter_pixels(dataset, indices=numbers)
    for frame, values in zip(frames, decoded, strict=True):
        yield frame, _meant(values, dataset, frame, voi=voi)


def _meant(decoded: NDArray[Any], dataset: Any, frame: Frame, *, voi: bool) -> NDArray[np.float32]:
    """Return what decoded values (H, W) or (H, W, 3) stand for."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        decoded = apply_color_lut(decoded, dataset)
    if decoded.ndim == 3:
        luma: NDArray[np.float32] = decoded[..., :3].astype(np.float32) @ LUMA
        return luma
    values: NDArray[np.float32] = decoded.astype(np.float32) * np.float32(frame.slope)
    values += np.float32(frame.intercept)
    return _windowed(values, dataset, frame) if voi else values


def _windowed(values: NDArray[np.float32], dataset: Any, frame: Frame) -> NDArray[np.float32]:
    """Return values from 0 to 1 as the window of the image wants them (DICOM PS3.3, C.11.2)."""
    source = dataset
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*each[frame.number : frame.number + 1], *shared[:1]):
        if group := item.get("FrameVOILUTSequence"):
            source = group[0]
            break
    if "VOILUTSequence" in source:
        from pydicom.pixels import apply_voi

        bits = int(source.VOILUTSequence[0].LUTDescriptor[2])
        mapped = apply_voi(np.rint(values).astype(np.int32), source)
        shown: NDArray[np.float32] = mapped.astype(np.float32) / np.float32(2**bits - 1)
        return shown
    center, width = (np.atleast_1d(source.get(f"Window{name}")) for name in ("Center", "Width"))
    if center[0] is None or width[0] is None or not float(width[0]) >= 1:
        raise UserError("it names no window of its own (VOI LUT); scale it by percentiles")
    function = str(source.get("VOILUTFunction") or "LINEAR")
    c, w = float(center[0]), float(width[0])
    if function == "SIGMOID":
        sigmoid: NDArray[np.float32] = (1 / (1 + np.exp(-4 * (values - c) / w))).astype(np.float32)
        return sigmoid
    if function == "LINEAR":
        c, w = c - 0.5, max(w - 1, 1e-6)
    linear: NDArray[np.float32] = np.clip((values - c) / w + 0.5, 0, 1).astype(np.float32)
    return linear


def _check_compressed(dataset: Any) -> bool:
    """Refuse frames that claim other sizes than the header, before a decoder believes them.

    Returns:
        Whether a decoder in C++ is needed.
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.get("TransferSyntaxUID") if "file_meta" in dir(dataset) else None
    if syntax is None or not syntax.is_compressed or "PixelData" not in dataset:
        return False
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    count = int(dataset.get("NumberOfFrames") or 1)
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        if syntax == RLELossless:
            if len(frame) > MAX_RLE_FRAME:
                raise UserError(f"one of its frames has {len(frame) >> 20} MB, run-length encoded")
            continue
        size = _codestream_size(frame)
        if size is not None and size != (rows, columns):
            raise UserError(
                f"it is damaged: its header says {columns} x {rows} pixels, its frames"
                f" {size[1]} x {size[0]}"
            )
    return bool(syntax != RLELossless)


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns as a JPEG, JPEG-LS or JPEG 2000 codestream states them."""
    at = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= at < 256:  # JPEG 2000, perhaps within the boxes of a JP2 file
        width, height, left, top = (
            int.from_bytes(frame[at + 8 + 4 * i : at + 12 + 4 * i]) for i in range(4)
        )
        return height - top, width - left
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        kind = frame[at + 1]
        if kind == 0xFF:
            at += 1
            continue
        # The markers of a frame's start: all SOF, and that of JPEG-LS.
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
        at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None
