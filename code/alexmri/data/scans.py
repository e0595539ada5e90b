"""Scans in bytes, as a server gets them: which files make one, and the volume in it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from alexmri.data import dicom, nifti
from alexmri.data.orientation import Admit
from alexmri.data.slicing import Volume
from alexmri.errors import UserError


def is_scan(data: bytes) -> bool:
    """Whether the bytes of a file are DICOM or NIfTI, and no picture."""
    return dicom.is_dicom(data) or nifti.is_nifti(data)


def _go_on() -> None:
    """Check nothing."""


def group(
    files: Sequence[bytes],
    check: Callable[[], None] = _go_on,
    alone: Callable[[], None] = _go_on,
) -> list[list[int]]:
    """Return the numbers of the files that make a volume each; DICOM files by their series.

    A damaged file stands alone: reading it tells what is wrong. `check` is called before each file,
    and `alone` before a compressed one, which may take much memory. Either may end the work by an
    exception of its own.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, data in enumerate(files):
        check()
        if dicom.is_compressed(data):
            alone()
        series = ""
        with suppress(UserError):
            series = dicom.identify(data).series if dicom.is_dicom(data) else ""
        groups[series or f"file {number}"].append(number)
    return list(groups.values())


def read_scan(
    files: Sequence[bytes],
    *,
    voi: bool = False,
    admit: Admit | None = None,
    check: Callable[[], None] = _go_on,
    seconds: int = dicom.MAX_SECONDS,
) -> Volume:
    """Return the volume in the files of a group; UserError as by `Scan.read`.

    `check` is called before each file is read, as in `group`; `seconds` is about compressed DICOM,
    as in `read_series`.
    """
    if dicom.is_dicom(files[0]):

        def checked(data: bytes) -> bytes:
            check()
            return data

        readers = [partial(checked, data) for data in files]
        return dicom.read_series(readers, voi=voi, admit=admit, seconds=seconds)
    check()
    return nifti.read_nifti(files[0], voi=voi, admit=admit)
