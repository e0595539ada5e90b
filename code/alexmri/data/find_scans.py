"""Find the scans in a folder: NIfTI files, pairs of .hdr and .img, and DICOM series."""

import fnmatch
import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alexmri.contract.inputs import is_system_name
from alexmri.data import dicom, nifti
from alexmri.data.dicom import Identity
from alexmri.data.folders import IMAGE_SUFFIXES, NOTE_SUFFIXES, files_below, refuse_undecodable
from alexmri.data.pixels import read_bytes
from alexmri.data.slicing import Volume
from alexmri.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Scan:
    """The files of one volume: a DICOM series, a NIfTI file, or a pair of .hdr and .img.

    `name` is the path of the first file below the folder of the scans, with forward slashes.
    """

    name: str
    paths: tuple[Path, ...]
    identity: Identity | None = None

    def read(self, *, voi: bool = False) -> Volume:
        """Return the volume; UserError as by `read_series` and `read_nifti`."""
        if self.identity is not None:
            files = [partial(read_bytes, path) for path in self.paths]
            return dicom.read_series(files, voi=voi)
        if len(self.paths) == 1 and self.name.lower().endswith(".hdr"):
            raise UserError("it is half of a pair: the .img file beside it is missing, or packed")
        header, *pair = (read_bytes(path) for path in self.paths)
        return nifti.read_nifti(header, pair[0] if pair else None, voi=voi)

    def state(self) -> str:
        """Return a digest that changes when a file does."""
        stats = [(path.name, path.stat()) for path in self.paths]
        lines = [f"{name}/{status.st_size}/{status.st_mtime_ns}" for name, status in stats]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def find_files(root: Path, include: str | None) -> tuple[list[Scan], list[Path]]:
    """Return the NIfTI scans below `root`, and the files that may be DICOM.

    With `include`, only files whose path below `root` matches that pattern of the shell.
    """
    scans, others = [], []
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        if is_system_name(path.name) or not fnmatch.fnmatchcase(name, include or "*"):
            continue
        refuse_undecodable(name)
        lower = path.name.lower()
        if lower.endswith((".nii", ".nii.gz")):
            scans.append(Scan(name, (path,)))
        elif lower.endswith(".hdr"):
            images = (path.with_suffix(suffix) for suffix in (".img", ".IMG"))
            pair = next((image for image in images if image.is_file()), None)
            scans.append(Scan(name, (path, pair) if pair else (path,)))
        elif path.suffix.lower() not in IMAGE_SUFFIXES | NOTE_SUFFIXES | {".img"}:
            others.append(path)
    return scans, others


def identify_files(paths: Iterable[Path]) -> list[tuple[Path, Identity | str]]:
    """Return who is in each DICOM file, or what is wrong with it; other files are passed over."""
    found: list[tuple[Path, Identity | str]] = []
    for path in paths:
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                is_dicom = dicom.is_dicom(file.read(HEAD_BYTES))
            if path.name.upper() == "DICOMDIR":
                continue
            if is_dicom or path.suffix.lower() in DICOM_SUFFIXES:
                found.append((path, dicom.identify(read_bytes(path))))
        except UserError as error:
            found.append((path, str(error).removeprefix(f"{path} ")))
        except OSError as error:
            found.append((path, f"it cannot be read: {error.strerror}"))
    return found


def series_of(root: Path, found: Iterable[tuple[Path, Identity]]) -> list[Scan]:
    """Return the DICOM series among identified files, each with its files in order of their names.

    Files of one series in several folders are one scan. A file without a series is one of its own.

    Raises:
        UserError: files of one series name two patients.
    """
    series: dict[str, list[tuple[Path, Identity]]] = defaultdict(list)
    for path, identity in found:
        series[identity.series or str(path)].append((path, identity))
    scans = []
    for members in series.values():
        members.sort(key=lambda member: member[0])
        paths = tuple(path for path, _ in members)
        first = members[0][1]
        for path, identity in members:
            if identity.patient != first.patient:
                raise UserError(
                    f"{paths[0].relative_to(root)} and {path.relative_to(root)} belong to one"
                    " series and two patients (SeriesInstanceUID, PatientID); correct or"
                    " remove them"
                )
        burned_in = any(identity.may_be_burned_in for _, identity in members)
        identity = Identity(first.series, first.study, first.patient, burned_in)
        scans.append(Scan(paths[0].relative_to(root).as_posix(), paths, identity))
    return sorted(scans, key=lambda scan: scan.name)


def hashed(value: str, salt: str, digits: int = 12) -> str:
    """Return a name for `value` that nobody can lead back to it without `salt`."""
    return hmac.new(salt.encode(), value.encode(), "sha256").hexdigest()[:digits]
