"""Scans of made-up heads, written as NIfTI and as DICOM in any orientation."""

import gzip
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SPACING = (1.0, 2.0, 3.0)


def phantom() -> np.ndarray:
    """Return `int16` voxels (X, Y, Z) in RAS+ with a mark at the left, front and head."""
    x, y, z = np.indices((24, 20, 12))
    voxels = 100 + 3 * x + 5 * y + 11 * z
    voxels[2:6, 14:18, 8:11] = 900
    return voxels.astype(np.int16)


def nifti(
    voxels: np.ndarray, affine: np.ndarray, *, packed: bool = True, kind: Any = None
) -> bytes:
    """Return a NIfTI file of voxels that lie as `affine` says."""
    data: bytes = (kind or nibabel.Nifti1Image)(voxels, affine).to_bytes()
    if not packed:
        return data

    return gzip.compress(data, mtime=0)


def orientations() -> Iterator[np.ndarray]:
    """Yield all 48 ways to order and turn round three axes, as nibabel writes them."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.array(list(zip(order, signs, strict=True)), dtype=float)


def oriented(voxels: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same scan with other axes, and its affine."""
    affine = np.diag([*SPACING, 1.0]) @ inv_ornt_aff(orientation, voxels.shape)
    return np.ascontiguousarray(apply_orientation(voxels, orientation)), affine


# How rows and columns run (LPS) as usual: axial, coronal, sagittal, and axial from head to foot.
DICOM_ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "axial from the feet": (-1, 0, 0, 0, 1, 0),
}


def series(
    voxels: np.ndarray,
    orientation: tuple[int, ...] = DICOM_ORIENTATIONS["axial"],
    **tags: Any,
) -> list[bytes]:
    """Return the DICOM files of a scan, in no order; `tags` go into each, None removes one."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    # From LPS to RAS, and from there to the axes of the array.
    axes = [int(np.abs(each).argmax()) for each in (row, column, normal)]
    ras = np.array([-1, -1, 1])
    signs = [
        int((each * ras)[axis]) for each, axis in zip((row, column, normal), axes, strict=True)
    ]
    frames = np.transpose(voxels, axes)[:: signs[0], :: signs[1], :: signs[2]]
    corner = np.array(
        [
            SPACING[axis] * (0 if sign > 0 else voxels.shape[axis] - 1)
            for axis, sign in sorted(zip(axes, signs, strict=True))
        ]
    )
    uid = generate_uid()
    files = []
    for k in range(frames.shape[2]):
        position = corner * ras + normal * SPACING[axes[2]] * k
        usual = {
            "Modality": "MR",
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": uid,
            "PatientID": "P-7",
            "PatientName": "Doe^Jane",
            "InstanceNumber": k + 1,
            "ImageOrientationPatient": list(orientation),
            "ImagePositionPatient": position.tolist(),
            # Between rows, then between columns.
            "PixelSpacing": [SPACING[axes[1]], SPACING[axes[0]]],
            "SliceThickness": SPACING[axes[2]],
            "PhotometricInterpretation": "MONOCHROME2",
        }
        files.append(dicom(frames[:, :, k].T, **(usual | tags)))
    order = np.random.default_rng(3).permutation(len(files))
    return [files[i] for i in order]


def dicom(pixels: np.ndarray, **tags: Any) -> bytes:
    """Return a file of one image (H, W) or several (N, H, W), `int16` or `uint16`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name, value in tags.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return written(dataset)


def written(dataset: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def save_series(folder: Path, files: list[bytes]) -> Path:
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"IM{number:04}").write_bytes(data)
    return folder


PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIBABEL = Path(nibabel.__file__).parent
