"""Files that are damaged, lie about their size, or unpack to gigabytes: one sentence, quickly."""

import gzip
import io
import resource
import struct
import zlib
from collections.abc import Iterator

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from alexmri.data.dicom import read_series
from alexmri.data.scans import group, is_scan, read_scan
from alexmri.data.slicing import Slicing, Volume, cut
from alexmri.errors import UserError

from .phantoms import PYDICOM, SPACING, dicom, nifti, phantom, written

AFFINE = np.diag([*SPACING, 1.0])
# A process that unpacks a bomb shows it here.
MAX_GROWTH = 600 << 20


def read(data: bytes) -> Volume:
    return read_scan([data])


def changed(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


def plain() -> bytes:
    return nifti(phantom(), AFFINE, packed=False)


def image() -> bytes:
    return dicom(phantom()[..., 0], PixelSpacing=[1, 1])


def edited(data: bytes, **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return written(dataset)


def deep(levels: int) -> bytes:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    return image() + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * levels


def deflated_bomb() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(image()))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data = written(dataset)
    start = 144 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 24)
    return data[:start] + b"".join(packer.compress(zeros) for _ in range(80)) + packer.flush()


def lying_codestream(kind: str) -> bytes:
    path = {
        "JPEG 2000": "MR_small_jp2klossless.dcm",
        "JPEG-LS": "MR_small_jpeg_ls_lossless.dcm",
    }[kind]
    dataset = pydicom.dcmread(PYDICOM / path)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    if kind == "JPEG 2000":
        at = frame.index(b"\xff\x4f\xff\x51") + 8
        frame = changed(frame, at, struct.pack(">II", 60_000, 60_000))
    else:
        at = frame.index(b"\xff\xf7") + 5
        frame = changed(frame, at, struct.pack(">HH", 60_000, 60_000))
    dataset.PixelData = encapsulate([frame])
    return written(dataset)


def gzip_bomb() -> bytes:
    head = changed(plain(), 40, struct.pack("<8h", 3, 2000, 2000, 2000, 1, 1, 1, 1))
    return gzip.compress(head[:352]) + gzip.compress(bytes(1 << 28), 9)


def long_gzip() -> bytes:
    """A small volume with a gigabyte of nothing behind it."""
    return gzip.compress(plain()) + gzip.compress(bytes(1 << 28), 9) * 4


def hostile() -> Iterator[tuple[str, bytes, str]]:
    good, data = plain(), image()
    floats = phantom().astype(np.float32)
    strange = np.full_like(floats, np.nan)
    strange[3, 3, 3:5] = 1, 2
    turned = nibabel.Nifti1Image(phantom(), AFFINE)
    turned.set_sform(None, 0)
    turned.set_qform(AFFINE, 1)
    yield "NIfTI, truncated", good[:2000], "ends too early, at byte 2,000 of"
    yield "NIfTI, packed and truncated", gzip.compress(good)[:900], "cannot be unpacked"
    yield "NIfTI, wrong checksum", changed(gzip.compress(good), -8, b"\1\2\3\4"), "cannot be unp"
    yield "NIfTI, header only", good[:348], "ends too early|begin at byte"
    yield (
        "NIfTI, header of 4 GB",
        changed(good, 108, struct.pack("<f", 4e9)),
        "begin at byte 4",
    )
    yield "NIfTI, negative offset", changed(good, 108, struct.pack("<f", -5.0)), "begin at byte"
    yield "NIfTI, no voxels", changed(good, 42, struct.pack("<h", 0)), "header says|header is dam"
    yield "NIfTI, NaN voxels", nifti(strange, AFFINE), "5758 of its 5760 voxels are not finite num"
    yield "empty", b"", "it is empty"
    yield (
        "NIfTI, quaternion that is none",
        changed(turned.to_bytes(), 256, struct.pack("<3f", 2, 2, 2)),
        "axes are not valid",
    )
    yield "NIfTI, no intercept", changed(good, 112, struct.pack("<2f", 1, np.nan)), "damaged"
    yield "NIfTI, too large", gzip_bomb(), "at most 256 million"
    yield (
        "NIfTI, unknown data type",
        changed(good, 70, struct.pack("<h", 4242)),
        "header is damaged",
    )
    yield "NIfTI, colours", changed(good, 70, struct.pack("<hh", 128, 24)), "not single numbers"
    yield "NIfTI, no axes", changed(good, 280, bytes(48)), "axes are not valid"
    yield "NIfTI, constant", nifti(np.ones((9, 9, 9), np.int16), AFFINE), "all of its voxels are 1"
    yield "gzip of something", gzip.compress(b"hello" * 99), "it is not a NIfTI file"
    yield "DICOM, truncated", data[:-500], "ends too early"
    yield "DICOM, only its mark", data[:140], "holds no image|damaged"
    yield "DICOM, mosaic", edited(data, ImageType=["ORIGINAL", "M", "MOSAIC"]), "a Siemens mosaic"
    yield "DICOM, pixels missing", edited(data, PixelData=None), "its pixels are missing"
    yield (
        "DICOM, 4 GB in an element",
        data[:-100].replace(
            b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 960),
            b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 2**32 - 2),
        ),
        "damaged|too early",
    )
    yield "DICOM, deep sequences", deep(20_000), "nested too deeply"
    yield "DICOM, 0 frames", edited(data, NumberOfFrames=-3), "claims -3 images"
    yield "DICOM, many frames", edited(data, NumberOfFrames=30_000), "claims 30000 images"
    yield "DICOM, frames missing", edited(data, NumberOfFrames=40), "ends too early"
    yield "DICOM, large sides", edited(data, Rows=65_000), "has 1 to 16,384 pixels"
    yield (
        "DICOM, too many voxels",
        edited(data, Rows=16_000, Columns=16_000, NumberOfFrames=9),
        "16000 x 16000 x 9 voxels; at most 256 million",
    )
    yield "DICOM, deflated bomb", deflated_bomb(), "unpacks to more than 128 MB"
    yield "DICOM, JPEG 2000 that lies", lying_codestream("JPEG 2000"), "its frames 60000 x 60000"
    yield "DICOM, JPEG-LS that lies", lying_codestream("JPEG-LS"), "its frames 60000 x 60000"
    yield "DICOM, many elements", data + b"\x09\x00\x10\x00LO\0\0" * 900_000, "more than 100,000 el"
    yield "DICOM, noise", data[:200] + np.random.default_rng(1).bytes(5000), "damaged|no image"


CASES = list(hostile())


@pytest.mark.parametrize(("data", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_hostile_file_gets_one_sentence(data: bytes, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as refused:
        cut(read(data), Slicing())
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < MAX_GROWTH


def test_what_lies_behind_the_voxels_is_not_unpacked() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    volume = read(long_gzip())
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH


def test_pictures_are_no_scans() -> None:
    for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"BM", b"RIFF"):
        assert not is_scan(start + bytes(500))
    assert not is_scan(b"")
    assert is_scan(image())
    assert is_scan(plain())


def refusal(data: bytes) -> str:
    """Return what is said to a file, nothing where it is read."""
    try:
        cut(read(data), Slicing())
    except UserError as error:
        return str(error)
    return ""


def test_mutated_scans_are_read_or_refused() -> None:
    generator = np.random.default_rng(5)
    for original in (plain(), gzip.compress(plain()), image()):
        for _ in range(150):
            at = int(generator.integers(0, min(len(original), 700)))
            data = changed(original, at, generator.bytes(int(generator.integers(1, 5))))
            if not is_scan(data):
                continue
            assert "\n" not in refusal(data)


# Bytes of pydicom's files that were changed, at which GDCM or openjpeg abort the process.
DEADLY = {
    "MR_small_jp2klossless.dcm": {1590: 199, 3234: 101, 4433: 53, 4813: 250},
    "MR_small_jpeg_ls_lossless.dcm": {1554: 38, 2923: 255, 3826: 40, 4983: 193, 6107: 211},
    "SC_rgb_jpeg_gdcm.dcm": {1358: 117, 1423: 14, 5080: 143},
    "SC_rgb_jpeg_dcmtk.dcm": {1712: 148, 1769: 197, 2592: 94, 3164: 205},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEADLY)
def test_a_frame_that_ends_its_decoder_ends_nothing_else(name: str) -> None:
    original = (PYDICOM / name).read_bytes()
    data = bytearray(original)
    for at, value in DEADLY[name].items():
        data[at] = value
    assert refusal(bytes(data)) in ("", "it is damaged, or no decoder here reads its pixels")
    assert read(original).voxels_XYZ.std() > 0


def test_a_decoder_that_costs_too_much_is_ended() -> None:
    data = (PYDICOM / "MR_small_jp2klossless.dcm").read_bytes()
    with pytest.raises(UserError, match="no decoder here reads its pixels"):
        read_series([lambda: data], seconds=0)


@pytest.mark.slow
def test_large_requests_wait_for_one_another_before_a_file_is_unpacked() -> None:
    class WaitedError(Exception):
        pass

    def wait() -> None:
        raise WaitedError

    compressed = (PYDICOM / "MR_small_jp2klossless.dcm").read_bytes()
    for data in (compressed, deflated_bomb()):
        with pytest.raises(WaitedError):
            group([data], alone=wait)
    assert group([(PYDICOM / "MR_small.dcm").read_bytes()], alone=wait) == [[0]]
