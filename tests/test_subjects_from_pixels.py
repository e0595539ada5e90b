"""People are told by pixels alone, and where they cannot be, the confidence says so."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import adjusted_rand_score

from alexmri.cli import cli
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.data.nearest import Indices, Vectors, unit_vectors
from alexmri.data.slice_position import slice_positions
from alexmri.data.subjects_from_pixels import infer_subjects
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal


def load(folder: Path, **values: object) -> Dataset:
    settings = resolve([Layer("test", values)]).settings
    return load_dataset({"train": folder}, settings, workers=1, terminal=PlainTerminal())


class People:
    """Slices as vectors, with the true person and the true height of each."""

    def __init__(self, folder: Path, **values: object) -> None:
        dataset = load(folder, center="none", intensity="none", **values)
        assert dataset.subjects is not None
        self.vectors_ND: Vectors = unit_vectors(dataset.cache.pixels_NCHW)
        self.subject_N = np.array(dataset.subjects.ids)
        self.slice_N = np.array(
            [int(re.match(r"\d+", image.path.name)[0]) for image in dataset.folder.images]  # type: ignore[index]
        )

    def infer(self, rows: Indices) -> tuple[float, float]:
        """Return the adjusted Rand index and the confidence of people told from these images."""
        inferred = infer_subjects(self.vectors_ND[rows])
        index = adjusted_rand_score(self.subject_N[rows], inferred.subject_N)
        return float(index), inferred.confidence


@pytest.fixture(scope="module")
def real(real_slices: Path) -> People:
    return People(real_slices, groups_file="groups.csv")


def hidden_names(source: Path, target: Path, keep: Callable[[Path], bool]) -> dict[str, str]:
    """Copy images under names that tell nothing; return new name -> person."""
    generator = np.random.default_rng(0)
    truth: dict[str, str] = {}
    for path in filter(keep, sorted(source.rglob("*.jpg"))):
        hidden = target / path.parent.name / f"{generator.bytes(8).hex()}.jpg"
        hidden.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, hidden)
        truth[hidden.relative_to(target).as_posix()] = f"{path.parent.name} {path.stem.split()[1]}"
    return truth


def test_people_are_told_whatever_the_files_are_called(twelve_people: Path, tmp_path: Path) -> None:
    truth = hidden_names(twelve_people, tmp_path, lambda path: True)
    dataset = load(tmp_path, groups="inferred", split_by="subject")
    assert dataset.subjects is not None
    assert dataset.subjects.found_by == "pixels, inferred with confidence 1.00"
    assert dataset.subjects_shared == 0
    pairs = {
        (truth[image.name], subject)
        for image, subject in zip(dataset.folder.images, dataset.subjects.ids, strict=True)
    }
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 12


@pytest.mark.parametrize("groups", ["auto", "inferred"])
def test_the_verdict_says_that_torn_chains_are_not_to_be_relied_on(
    twelve_people: Path, tmp_path: Path, groups: str
) -> None:
    def third_of_each_eight(path: Path) -> bool:
        return int(path.stem.split()[0]) % 8 < 3

    hidden_names(twelve_people, tmp_path / "torn", third_of_each_eight)
    arguments = ["audit", str(tmp_path / "torn"), "--json", str(tmp_path / "found.json")]
    CliRunner().invoke(cli, [*arguments, "--groups", groups], catch_exceptions=False)
    found = json.loads((tmp_path / "found.json").read_text())
    pixels = found["inferred_subjects"]
    assert pixels["confidence"] < 0.6
    assert not pixels["believed"]
    said = found["verdict"][0]
    assert f"only {pixels['confidence']:.2f}" in said
    assert ("is uncertain" if groups == "inferred" else "is unknown") in said
    assert any("too little to rely on" in note for note in found["warnings"]) == (
        groups == "inferred"
    )


def test_pictures_of_nobody_are_no_people() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 1, 32, 32), dtype=np.uint8)
    inferred = infer_subjects(unit_vectors(noise))
    assert inferred.confidence < 0.5
    assert not inferred.believed


def test_the_people_of_the_real_slices_are_told(real: People) -> None:
    order = np.random.default_rng(0).permutation(len(real.subject_N))
    index, confidence = real.infer(order)
    assert index >= 0.99
    assert confidence >= 0.99
    index, confidence = real.infer(np.flatnonzero(real.slice_N % 2 == 0))
    assert index >= 0.99
    assert confidence >= 0.99


@pytest.mark.parametrize("people", [3, 5, 10, 20])
def test_few_people_are_not_taken_for_one(real: People, people: int) -> None:
    chosen = np.random.default_rng(people).choice(np.unique(real.subject_N), people, replace=False)
    rows = np.flatnonzero(np.isin(real.subject_N, chosen))
    assert real.infer(rows)[0] >= 0.99
    assert real.infer(rows[real.slice_N[rows] % 2 == 0])[0] >= 0.75


@pytest.mark.slow
def test_the_confidence_is_low_where_people_are_torn(real: People) -> None:
    generator = np.random.default_rng(0)
    images, slices = len(real.subject_N), real.slice_N
    gap = {person: generator.integers(1, 28) for person in np.unique(real.subject_N)}
    start_N = np.array([gap[person] for person in real.subject_N])
    torn = {
        "half of the slices": np.sort(generator.choice(images, images // 2, replace=False)),
        "a third of the slices": np.sort(generator.choice(images, images // 3, replace=False)),
        "every third slice": np.flatnonzero(slices % 3 == 0),
        "the same four missing": np.flatnonzero((slices < 12) | (slices > 15)),
        "five missing somewhere": np.flatnonzero((slices < start_N) | (slices >= start_N + 5)),
        "one slice each": np.flatnonzero(slices == 16),
    }
    for name, rows in torn.items():
        index, confidence = real.infer(rows)
        assert index < 0.9, name
        assert confidence < min(0.9, index + 0.1), name


def test_positions_follow_the_slices(real: People) -> None:
    nothing = np.empty(0, dtype=np.int64)
    position_N = slice_positions(real.vectors_ND, nothing, nothing)
    order = np.corrcoef(position_N, real.slice_N)[0, 1]
    assert abs(order) > 0.97


def test_a_training_that_frames_heads_tells_people_by_whole_images(demo: Path) -> None:
    framed = load(demo, groups="inferred")
    whole = load(demo, groups="inferred", center="none", intensity="none")
    assert not np.array_equal(framed.cache.pixels_NCHW, whole.cache.pixels_NCHW)
    assert framed.subjects == whole.subjects
