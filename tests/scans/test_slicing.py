"""A scan gives the same slices however its file is laid out."""

import io
import itertools

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from alexmri.data.dicom import read_series
from alexmri.data.nifti import read_nifti
from alexmri.data.pixels import fit, read_picture
from alexmri.data.slicing import PLANES, NotAScanError, Slicing, Volume, as_png, cut, eight_bit
from alexmri.errors import UserError

from .phantoms import (
    DICOM_ORIENTATIONS,
    SPACING,
    dicom,
    nifti,
    orientations,
    oriented,
    phantom,
    series,
    written,
)


def volume_of(files: list[bytes], **options: bool) -> Volume:
    return read_series([lambda data=data: data for data in files], **options)


def expected(plane: str) -> list[np.ndarray]:
    return [
        each.pixels_HW
        for each in cut(Volume(phantom().astype(np.float32), SPACING), Slicing(plane=plane))
    ]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    "orientation", list(orientations()), ids=lambda o: str(o.astype(int).tolist())
)
def test_all_48_orders_and_flips_of_nifti_give_the_same_slices(
    orientation: np.ndarray, plane: str
) -> None:
    voxels, affine = oriented(phantom(), orientation)
    slices = cut(read_nifti(nifti(voxels, affine, packed=False)), Slicing(plane=plane))
    for found, wanted in zip(slices, expected(plane), strict=True):
        np.testing.assert_array_equal(found.pixels_HW, wanted)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("name", DICOM_ORIENTATIONS)
def test_four_dicom_orientations_give_the_same_slices(name: str, plane: str) -> None:
    volume = volume_of(series(phantom(), DICOM_ORIENTATIONS[name]))
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    for found, wanted in zip(cut(volume, Slicing(plane=plane)), expected(plane), strict=True):
        np.testing.assert_array_equal(found.pixels_HW, wanted)


def test_the_mark_stands_where_a_radiologist_looks_for_it() -> None:
    """Left, front and head: the subject's left is on the right side of the image."""
    volume = Volume(phantom().astype(np.float32), SPACING)

    def mark(plane: str, index: int) -> tuple[bool, bool]:
        image = cut(volume, Slicing(plane=plane))[index].pixels_HW
        rows, columns = np.nonzero(image == 255)
        return rows.mean() < image.shape[0] / 2, columns.mean() > image.shape[1] / 2

    assert mark("axial", 9) == (True, True)
    assert mark("coronal", 15) == (True, True)
    assert mark("sagittal", 3) == (True, False)  # the front is on the left


def test_pixels_are_square_in_the_plane() -> None:
    volume = Volume(phantom().astype(np.float32), SPACING)
    sizes = {plane: cut(volume, Slicing(plane=plane))[0].pixels_HW.shape for plane in PLANES}
    assert sizes == {"axial": (40, 24), "coronal": (36, 24), "sagittal": (18, 20)}
    coarse = cut(volume, Slicing(spacing_mm=4))[0].pixels_HW
    assert coarse.shape == (10, 6)
    with pytest.raises(UserError, match=r"2400\d? x 40000 pixels of 0.001 mm"):
        cut(volume, Slicing(spacing_mm=0.001))


@pytest.mark.parametrize(
    ("slicing", "indices"),
    [
        ({}, list(range(12))),
        ({"center": 4}, [4, 5, 6, 7]),
        ({"center": 99}, list(range(12))),
        ({"every_mm": 6}, [2, 4, 6, 8, 10]),
        ({"every_mm": 2}, list(range(12))),  # no finer than the scan
        ({"every_mm": 6, "center": 2}, [4, 6]),
        ({"every_mm": 500}, [6]),
    ],
)
def test_which_slices_are_taken(slicing: dict[str, float], indices: list[int]) -> None:
    found = cut(Volume(phantom().astype(np.float32), SPACING), Slicing(**slicing))
    assert [each.index for each in found] == indices
    assert found[0].position_mm == (indices[0] - 5.5) * 3


def test_all_slices_of_a_volume_have_one_scale_and_a_hot_voxel_does_not_matter() -> None:
    voxels = np.ones((30, 30, 30), np.float32)
    voxels *= np.arange(30)
    voxels[3, 3, 3] = 1e6
    means = [each.pixels_HW.mean() for each in cut(Volume(voxels, (1, 1, 1)), Slicing())]
    assert all(a < b + 1 for a, b in itertools.pairwise(means))
    assert means[0] == 0
    assert means[-1] == 255


def test_a_window_is_in_the_unit_of_the_scan() -> None:
    files = series(phantom(), RescaleSlope=2, RescaleIntercept=-100)
    slicing = Slicing(intensity="window", window=(1000, 1000))
    image = cut(volume_of(files), slicing)[9].pixels_HW
    values = 2.0 * phantom()[..., 9] - 100
    wanted = np.rint(np.clip((values - 500) / 1000, 0, 1) * 255)[::-1, ::-1].T
    assert image.max() == 255
    assert abs(int(image[30, 12]) - int(wanted[15, 12])) <= 2


def test_monochrome1_is_inverted() -> None:
    usual = cut(volume_of(series(phantom())), Slicing())
    inverted = series(phantom().max() - phantom(), PhotometricInterpretation="MONOCHROME1")
    for a, b in zip(cut(volume_of(inverted), Slicing()), usual, strict=True):
        assert np.abs(a.pixels_HW.astype(int) - b.pixels_HW).max() <= 1


def test_the_window_of_the_scan_itself_is_used_where_it_names_one() -> None:
    voi = Slicing(intensity="voi")
    files = series(
        phantom(), WindowCenter=[200.5, 700], WindowWidth=[101, 300], PixelSpacing=[1, 1]
    )
    image = cut(volume_of(files, voi=True), voi)[0].pixels_HW
    # Linear, as the standard has it: 150 is black, 250 is white.
    by_window = cut(volume_of(files), Slicing(intensity="window", window=(200, 100)))[0].pixels_HW
    assert np.abs(image.astype(int) - by_window).max() <= 1
    with pytest.raises(UserError, match="names no window of its own"):
        volume_of(series(phantom()), voi=True)
    with pytest.raises(UserError, match="names no window of its own"):
        cut(read_nifti(nifti(phantom(), np.diag([*SPACING, 1])), voi=True), voi)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_slice_read_from_its_png_is_the_slice_that_was_cut(bits: int) -> None:
    """Training reads the PNG, serving the array: both see the same."""
    for each in cut(Volume(phantom().astype(np.float32), SPACING), Slicing(bits=bits)):
        data = as_png(each.pixels_HW)
        kept = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(kept, each.pixels_HW)
        trained = fit(read_picture(data), image_size=32, channels=1)
        served = fit(Image.fromarray(eight_bit(each.pixels_HW)), image_size=32, channels=1)
        np.testing.assert_array_equal(trained, served)


# --- series


def test_the_first_image_of_each_place_is_used() -> None:
    first, second = phantom(), phantom() * 2
    files = series(first, EchoTime=10, SeriesInstanceUID="1.2.3")
    files += series(second, EchoTime=80, SeriesInstanceUID="1.2.3")
    volume = volume_of(files)
    np.testing.assert_array_equal(volume.voxels_XYZ, first)
    assert volume.notes == ("it holds 24 images in 12 places; the first of each is used",)


def test_a_series_with_missing_slices_is_cut_in_its_own_plane_only() -> None:
    files = series(phantom())
    whole = {pydicom.dcmread(io.BytesIO(data)).InstanceNumber: data for data in files}
    del whole[5], whole[6]
    volume = volume_of(list(whole.values()))
    assert "some seem to be missing" in volume.notes[0]
    assert len(cut(volume, Slicing())) == 10
    with pytest.raises(UserError, match="slices are missing in the head-foot direction"):
        cut(volume, Slicing(plane="coronal"))


def test_a_localizer_is_no_volume() -> None:
    files = [
        data
        for orientation in list(DICOM_ORIENTATIONS.values())[:3]
        for data in series(phantom(), orientation, SeriesInstanceUID="1.2.3")
        if pydicom.dcmread(io.BytesIO(data)).Rows
    ]
    with pytest.raises(NotAScanError, match="several (directions|sizes)"):
        volume_of(files)
    with pytest.raises(NotAScanError, match="it is a single axial slice; ask for the axial plane"):
        cut(volume_of(series(phantom())[:1]), Slicing(plane="coronal"))


def test_pixels_of_several_sizes_are_no_volume() -> None:
    files = series(phantom())
    files[3] = dicom_with(files[3], PixelSpacing=[2, 1.5])
    with pytest.raises(NotAScanError, match="pixels of several sizes"):
        volume_of(files)


@pytest.mark.parametrize("sizes", [[-2, 1], [2, -1]])
def test_a_negative_pixel_size_has_lost_its_sign_only(sizes: list[float]) -> None:
    volume = volume_of(series(phantom(), PixelSpacing=sizes))
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    assert volume.notes == ()


def test_a_missing_pixel_size_is_told() -> None:
    volume = volume_of(series(phantom(), PixelSpacing=None))
    assert volume.spacing_mm == (1, 1, 3)
    assert volume.notes == ("it does not say how large its pixels are; 1 mm is assumed",)


def dicom_with(data: bytes, **tags: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in tags.items():
        setattr(dataset, name, value)
    return written(dataset)


def test_images_that_do_not_say_how_they_lie_are_taken_as_they_are() -> None:
    image = np.arange(600, dtype=np.uint16).reshape(20, 30)
    volume = volume_of([dicom(image)])
    assert "does not say how it lies" in volume.notes[-1]
    found = cut(volume, Slicing())[0].pixels_HW
    assert found.shape == image.shape
    assert found[0, 0] == 0
    assert found[-1, -1] == 255


def enhanced(voxels: np.ndarray) -> bytes:
    """Return one file with a frame for each slice, which says in groups how they lie."""
    frames = np.transpose(voxels[::-1, ::-1], (2, 1, 0))
    order = np.random.default_rng(1).permutation(len(frames))
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    each = []
    for k in order:
        item, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, SPACING[2] * int(k)]
        values.RescaleSlope, values.RescaleIntercept = 2, int(k)
        item.PlanePositionSequence = Sequence([place])
        item.PixelValueTransformationSequence = Sequence([values])
        each.append(item)
    return dicom(
        frames[order],
        NumberOfFrames=len(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(each),
    )


def test_an_enhanced_file_is_a_volume() -> None:
    volume = volume_of([enhanced(phantom())])
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    wanted = phantom() * 2.0 + np.arange(12)
    np.testing.assert_array_equal(volume.voxels_XYZ, wanted)


def test_the_same_series_compressed_gives_the_same_slices() -> None:
    plain = series(phantom())
    packed = []
    for data in plain:
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        packed.append(written(dataset))
    np.testing.assert_array_equal(volume_of(packed).voxels_XYZ, volume_of(plain).voxels_XYZ)


# --- NIfTI


def test_scale_factors_and_both_versions_of_nifti_are_read() -> None:
    import nibabel

    affine = np.diag([*SPACING, 1])
    values = phantom().astype(np.float32)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        image = kind(values, affine)
        image.header.set_data_dtype(np.int16)
        image.header.set_slope_inter(0.5, -20)
        for packed in (True, False):
            volume = read_nifti(nifti(values, affine, packed=packed, kind=kind))
            np.testing.assert_array_equal(volume.voxels_XYZ, values)
        data = image.to_bytes()
        scaled = kind.from_bytes(data).get_fdata()
        assert scaled[0, 0, 0] == 0.5 * 100 - 20
        np.testing.assert_array_equal(read_nifti(data).voxels_XYZ, scaled)


def test_voxels_that_are_no_numbers_count_as_0() -> None:
    """As a background of NaN does, and as nilearn reads them."""
    values = phantom().astype(np.float32)
    values[:14] = np.nan
    values[20, 3, 3] = np.inf
    volume = read_nifti(nifti(values, np.diag([*SPACING, 1])))
    np.testing.assert_array_equal(
        volume.voxels_XYZ, np.where(np.isfinite(values), values, np.float32(0))
    )
    assert volume.notes == (
        "some of its voxels are not finite numbers (NaN or infinite); they count as 0",
    )


def test_a_qform_that_contradicts_the_sform_is_told() -> None:
    import nibabel

    image = nibabel.Nifti1Image(phantom(), np.diag([*SPACING, 1]))
    image.set_qform(np.diag([-SPACING[0], *SPACING[1:], 1]), 1)
    image.set_sform(np.diag([*SPACING, 1]), 2)
    volume = read_nifti(image.to_bytes())
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    assert volume.notes == ("its qform says that it lies otherwise than its sform, which is used",)


@pytest.mark.parametrize(("at", "value"), [(76, -3.0), (80, -1.0), (84, -2.0)])
def test_signs_of_voxel_sizes_are_mended_as_nibabel_does(at: int, value: float) -> None:
    import nibabel

    image = nibabel.Nifti1Image(phantom(), np.diag([*SPACING, 1]))
    image.set_sform(None, 0)
    image.set_qform(np.diag([*SPACING, 1]), 1)
    data = bytearray(image.to_bytes())
    data[at : at + 4] = np.float32(value).tobytes()
    volume = read_nifti(bytes(data))
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    assert volume.spacing_mm == SPACING


def test_of_several_volumes_the_first_is_unpacked() -> None:
    four = np.stack([phantom(), 2 * phantom()], axis=-1)
    volume = read_nifti(nifti(four, np.diag([*SPACING, 1])))
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    assert volume.notes == ("it holds 2 volumes; the first is used",)


def test_a_pair_of_analyze_is_read_and_its_side_is_said_to_be_a_convention() -> None:
    import nibabel

    image = nibabel.AnalyzeImage(phantom()[::-1], np.diag([-1, 2, 3, 1]))
    files = {name: io.BytesIO() for name in ("header", "image")}
    for name, file in files.items():
        image.file_map[name].fileobj = file
    image.to_file_map()
    volume = read_nifti(files["header"].getvalue(), files["image"].getvalue())
    np.testing.assert_array_equal(volume.voxels_XYZ, phantom())
    assert "does not say which side is left" in volume.notes[0]
