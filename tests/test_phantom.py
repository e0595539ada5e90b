"""The phantom is a set of files, behaves like the public slices by the numbers, and leaks alike."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from alexmri.data.phantom import DEMO_SUBJECTS, write_demo_data
from alexmri.errors import UserError

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]
People = list[tuple[str, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "demo"
    assert write_demo_data(folder) == 1280
    return folder


@pytest.fixture(scope="module")
def people() -> People:
    return [(name, number) for name, n in DEMO_SUBJECTS.items() for number in range(1, n + 1)]


@pytest.fixture(scope="module", name="pictures_PSHW")
def read_pictures(folder: Path, people: People) -> npt.NDArray[np.uint8]:
    return np.array(
        [
            [np.asarray(Image.open(folder / name / f"{s} ({number}).jpg")) for s in range(1, 33)]
            for name, number in people
        ]
    )


def features(pictures_PSHW: npt.NDArray[np.uint8], width: int, height: int) -> Array:
    """Return each picture as a small unit vector: a dot product of two is their correlation."""
    small = [
        np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
        for picture in pictures_PSHW.reshape(-1, *pictures_PSHW.shape[2:])
    ]
    vectors = np.array(small, float).reshape(*pictures_PSHW.shape[:2], -1)
    vectors -= vectors.mean(axis=-1, keepdims=True)
    unit: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def brain_mask(picture_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return the brain's pixels as the public slices' outline was found."""
    opened_HW = ndimage.binary_opening(picture_HW > 18)
    closed_HW = ndimage.binary_closing(opened_HW, iterations=4)
    return np.asarray(ndimage.binary_fill_holes(closed_HW), bool)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_files_are_named_and_shaped_like_the_public_ones(folder: Path) -> None:
    for name, subjects in DEMO_SUBJECTS.items():
        found = {path.name for path in (folder / name).iterdir()}
        assert found == {
            f"{s} ({number}).jpg" for s in range(1, 33) for number in range(1, subjects + 1)
        }
    assert {path.name for path in folder.iterdir()} == {*DEMO_SUBJECTS, "README.txt"}
    with Image.open(folder / "MildDemented" / "7 (3).jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (176, 208))


def test_pictures_and_folder_say_that_they_are_synthetic(folder: Path) -> None:
    with Image.open(folder / "NonDemented" / "1 (1).jpg") as picture:
        assert b"synthetic" in picture.info["comment"]
    readme = (folder / "README.txt").read_text()
    assert "Synthetic" in readme
    assert "seed 0" in readme


def test_pictures_depend_on_seed_class_and_subject_alone(folder: Path, tmp_path: Path) -> None:
    few = {"MildDemented": 2, "NonDemented": 1}
    assert write_demo_data(tmp_path / "same", subjects=few, slices=3) == 9
    assert write_demo_data(tmp_path / "other", seed=1, subjects=few, slices=3) == 9
    same, other, whole = (content(f) for f in (tmp_path / "same", tmp_path / "other", folder))
    assert len(same) == 9 + 1
    assert same.items() <= whole.items()
    assert same.keys() == other.keys()
    assert not same.items() & other.items()
    assert len(set(same.values())) == len(same)


def test_an_empty_folder_is_filled_and_a_second_call_refused(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("ours, from before")
    write_demo_data(tmp_path, subjects={"MildDemented": 1}, slices=1)
    before = content(tmp_path)
    assert before.keys() == {"MildDemented/1 (1).jpg", "README.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"MildDemented", "README.txt"}
    with pytest.raises(UserError, match="already holds MildDemented"):
        write_demo_data(tmp_path, subjects={"MildDemented": 1}, slices=1)
    with pytest.raises(UserError, match="is a file"):
        write_demo_data(tmp_path / "README.txt")
    assert content(tmp_path) == before


def test_nothing_is_left_when_drawing_stops_half_way(tmp_path: Path) -> None:
    def stop_after_one(people: list[object], total: int, description: str) -> object:
        yield people[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_data(tmp_path / "demo", track=stop_after_one)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slices", [0, 33])
def test_there_are_32_slices(tmp_path: Path, slices: int) -> None:
    with pytest.raises(UserError, match="1 to 32 slices"):
        write_demo_data(tmp_path / "demo", slices=slices)


def test_the_outline_is_one_template(pictures_PSHW: npt.NDArray[np.uint8]) -> None:
    rim = np.ones((208, 176), bool)
    rim[2:-2, 2:-2] = False
    assert not pictures_PSHW[:, :, rim].any()
    areas = []
    for s in (0, 15, 31):
        masks_PHW = np.array([brain_mask(picture) for picture in pictures_PSHW[:, s]])
        template_HW = np.median(masks_PHW, axis=0) > 0.5
        shared = (masks_PHW & template_HW).sum(axis=(1, 2))
        union = (masks_PHW | template_HW).sum(axis=(1, 2))
        assert (shared / union).min() > 0.99
        areas.append(template_HW.sum())
    assert areas == pytest.approx([18654, 18538, 16942], rel=0.03)


def test_intensities_are_near_the_table(pictures_PSHW: npt.NDArray[np.uint8]) -> None:
    inside_SHW = np.median(pictures_PSHW, axis=0) > 18
    inside = pictures_PSHW[:, inside_SHW][:, ::4]
    assert 1 - inside_SHW.mean() == pytest.approx(0.501, abs=0.015)
    assert inside.mean() == pytest.approx(144, abs=8)
    assert inside.std() == pytest.approx(60, abs=4)
    assert np.percentile(inside, [10, 50, 90]) == pytest.approx([54, 150, 218], abs=12)


def test_the_class_effect_is_real_and_within_the_spread(
    pictures_PSHW: npt.NDArray[np.uint8], people: People
) -> None:
    inside_SHW = np.median(pictures_PSHW, axis=0) > 18
    dark_PSHW = (pictures_PSHW < 92) & inside_SHW
    y_HW, x_HW = np.mgrid[:208, :176]
    central_HW = np.hypot((x_HW - 86) / 34, (y_HW - 104) / 47) < 1
    ventricle_PS = (dark_PSHW & central_HW).sum(axis=(2, 3)) / inside_SHW.sum(axis=(1, 2))
    names = np.array([name for name, _ in people])
    non, very_mild, mild, moderate = (
        ventricle_PS[names == name].mean(axis=1) for name in DEMO_SUBJECTS
    )
    assert non.mean() + 0.01 < min(very_mild.mean(), mild.mean(), moderate.mean())
    assert non.max() > np.median(mild)
    assert mild.min() < np.median(non)
    assert ventricle_PS.mean(axis=0).argmax() + 1 == pytest.approx(24, abs=4)

    csf = dark_PSHW.sum(axis=(1, 2, 3)) / inside_SHW.sum()
    auc = (csf[names == "MildDemented"][:, None] > csf[names == "NonDemented"]).mean()
    assert 0.7 < auc < 0.95


def test_subjects_are_as_alike_as_the_public_ones(pictures_PSHW: npt.NDArray[np.uint8]) -> None:
    unit_PSF = features(pictures_PSHW, 44, 52)
    gaps = [(unit_PSF[:, :-g] * unit_PSF[:, g:]).sum(axis=-1).mean() for g in (1, 2, 3, 4)]
    assert gaps == pytest.approx([0.992, 0.976, 0.955, 0.935], abs=0.01)
    assert gaps[0] == pytest.approx(0.992, abs=0.003)
    pairs_SPP = np.einsum("asf,bsf->sab", unit_PSF, unit_PSF)
    between = pairs_SPP.mean(axis=0)[np.triu_indices(len(unit_PSF), 1)]
    assert between.mean() == pytest.approx(0.91, abs=0.015)
    assert between.min() > 0.84
    assert between.max() < 0.96


def test_the_nearest_neighbour_knows_people_not_disease(
    pictures_PSHW: npt.NDArray[np.uint8], people: People
) -> None:
    unit_NF = features(pictures_PSHW, 32, 32).reshape(1280, -1)
    correlation_NN = unit_NF @ unit_NF.T
    subject_N = np.repeat(np.arange(len(people)), 32)
    label_P = np.unique([name for name, _ in people], return_inverse=True)[1]
    rng = np.random.default_rng(0)

    def accuracy(label_P: npt.NDArray[np.int64], units_N: npt.NDArray[np.int64]) -> float:
        """Split 70/15/15 by unit and classify the last part by the nearest of the first."""
        order = rng.permutation(units_N.max() + 1)
        train_N = np.isin(units_N, order[: round(0.70 * len(order))])
        test_N = np.isin(units_N, order[round(0.85 * len(order)) :])
        label_N = label_P[subject_N]
        nearest = correlation_NN[np.ix_(test_N, train_N)].argmax(axis=1)
        return float((label_N[train_N][nearest] == label_N[test_N]).mean())

    slice_N = np.arange(1280)
    assert accuracy(label_P, slice_N) >= 0.97
    assert accuracy(rng.permutation(label_P), slice_N) >= 0.9
    by_subject = np.mean([accuracy(label_P, subject_N) for _ in range(20)])
    assert 0.3 <= by_subject <= 0.65
