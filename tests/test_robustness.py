"""What a model keeps of its accuracy on changed images, measured on the files of the test split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexmri.data.pixels import Pixels, Preprocessing
from alexmri.evaluation import robustness
from alexmri.evaluation.evaluate import evaluate_folder, evaluation_document
from alexmri.evaluation.report import model_card, render_report
from alexmri.evaluation.robustness import (
    CHANGES,
    MIN_IMAGES,
    Labelled,
    measure_robustness,
    sample_size,
    stratified_sample,
)
from alexmri.model.alexnet import build
from alexmri.model.predictor import Predictor
from alexmri.terminal import PlainTerminal

from .bundles import save
from .conftest import ImageMaker
from .report_facts import facts
from .test_card import SETTINGS

FRAMED = Preprocessing(center="moments", intensity="median")
Logits = Callable[[Pixels], np.ndarray]


def files(folder: Path, images: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, values in zip(paths, images, strict=True):
        Image.fromarray(values.astype(np.uint8)).save(path)
    return paths


def measured(
    images: Labelled, logits: Logits, preprocessing: Preprocessing = FRAMED, **changes: Any
) -> dict[str, Any]:
    usual: dict[str, Any] = {"at_most": 1000, "workers": 2, "replicates": 200}
    usual["terminal"] = PlainTerminal()
    found = measure_robustness(
        images,
        2,
        logits,
        image_size=32,
        channels=1,
        preprocessing=preprocessing,
        **(usual | changes),
    )
    assert found is not None
    return found


def row(found: dict[str, Any], change: str) -> dict[str, Any]:
    return next(each for each in found["changes"] if each["change"] == change)


def by_brightness(pixels_NCHW: Pixels) -> np.ndarray:
    """A model that calls an image 1 where its middle is brighter than 100."""
    bright_N = pixels_NCHW[:, 0, 12:20, 12:20].mean(axis=(1, 2)) > 100
    return np.stack([~bright_N, bright_N], axis=1).astype(np.float32)


def by_side(pixels_NCHW: Pixels) -> np.ndarray:
    """A model that calls an image 1 where its right half is the brighter one."""
    left_N, right_N = (
        pixels_NCHW[..., half].mean(axis=(1, 2, 3)) for half in (np.s_[:16], np.s_[16:])
    )
    return np.stack([left_N, right_N], axis=1).astype(np.float32)


@pytest.fixture
def gray(tmp_path: Path) -> Labelled:
    """Eight gray images: of the four bright ones, one is too dark at 0.8 times its brightness."""
    levels = [20, 30, 40, 95, 115, 150, 160, 170]
    paths = files(tmp_path, [np.full((40, 40), level) for level in levels])
    return Labelled(paths, np.array([0, 0, 0, 0, 1, 1, 1, 1]), None)


def test_the_figures_are_those_of_the_changed_images(gray: Labelled) -> None:
    found = measured(gray, by_brightness, Preprocessing())
    assert (found["images"], found["of"], found["resampled_by"]) == (8, 8, "image")
    assert [each["change"] for each in found["changes"]] == [each.key for each in CHANGES]
    for unchanged in ("none", "shift_2", "scale_1.1", "contrast_0.8", "jpeg_30", "padded", "flip"):
        for figure in ("accuracy", "macro_f1", "kept"):
            assert row(found, unchanged)[figure]["value"] == 1
    # 115 becomes 92, one of four: F1 of both classes from 4 and 3 hits and one mistake.
    darker, brighter = row(found, "brightness_0.8"), row(found, "brightness_1.2")
    assert darker["accuracy"]["value"] == brighter["accuracy"]["value"] == 7 / 8
    assert darker["macro_f1"]["value"] == pytest.approx((8 / 9 + 6 / 7) / 2)
    assert darker["kept"]["value"] == pytest.approx(7 / 8)
    low, high = darker["accuracy"]["ci95"]
    assert low < 7 / 8 <= high
    json.dumps(found, allow_nan=False)


def test_what_a_model_keeps_is_a_share_of_what_it_had(gray: Labelled) -> None:
    wrong = Labelled(gray.paths, np.array([1, 0, 0, 0, 1, 1, 1, 1]), tuple("aabbccdd"))
    found = measured(wrong, by_brightness, Preprocessing())
    assert found["resampled_by"] == "subject"
    assert row(found, "none")["accuracy"]["value"] == 7 / 8
    assert row(found, "brightness_0.8")["kept"]["value"] == pytest.approx(6 / 7)
    nothing = measured(
        Labelled(gray.paths, 1 - gray.labels_N, None), by_brightness, Preprocessing()
    )
    assert row(nothing, "none")["kept"] is None


def test_a_flip_is_shown_though_it_need_not_hold(tmp_path: Path) -> None:
    sides = [np.zeros((40, 40)) for _ in range(4)]
    for i, side in enumerate(sides):
        side[:, 3:9] = 200 if i < 2 else 0
        side[:, 31:37] = 0 if i < 2 else 200
    found = measured(
        Labelled(files(tmp_path, sides), np.array([0, 0, 1, 1]), None), by_side, Preprocessing()
    )
    assert row(found, "none")["accuracy"]["value"] == 1
    assert row(found, "flip")["accuracy"]["value"] == row(found, "flip")["kept"]["value"] == 0


def changed(key: str, image: Image.Image, seed: int = 0) -> np.ndarray:
    apply = next(each.apply for each in CHANGES if each.key == key)
    return np.asarray(apply(image, 32, np.random.default_rng(seed))).astype(float)


def block() -> Image.Image:
    values = np.zeros((128, 64), dtype=np.uint8)
    values[44:84, 22:42] = 100
    return Image.fromarray(values)


def spread_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centroid and covariance (row, column) of gray values."""
    places = np.argwhere(values > 0).astype(float)
    weights = values[values > 0]
    return np.average(places, axis=0, weights=weights), np.cov(places.T, aweights=weights)


@pytest.mark.parametrize("pixels", [0.5, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_a_shift_is_in_pixels_of_the_network(pixels: float, seed: int) -> None:
    """Of 64 columns and 128 rows a network of 32 pixels makes one of 2 and of 4."""
    before, _ = spread_of(np.asarray(block()).astype(float))
    after, _ = spread_of(changed(f"shift_{pixels:g}", block(), seed))
    moves = np.abs(after - before)
    assert moves.min() < 0.01
    assert moves.max() == pytest.approx(pixels * (4 if moves[0] > moves[1] else 2), abs=0.02)


@pytest.mark.parametrize("degrees", [2, 5, 10])
def test_a_rotation_turns_by_so_many_degrees(degrees: int) -> None:
    _, covariance = spread_of(changed(f"rotation_{degrees}", block()))
    rows, columns, mixed = covariance[0, 0], covariance[1, 1], covariance[0, 1]
    turned = np.rad2deg(np.arctan2(2 * mixed, rows - columns) / 2)
    assert abs(turned) == pytest.approx(degrees, abs=0.2)


@pytest.mark.parametrize("factor", [0.9, 0.95, 1.05, 1.1])
def test_a_scale_changes_the_size(factor: float) -> None:
    _, before = spread_of(np.asarray(block()).astype(float))
    _, after = spread_of(changed(f"scale_{factor:g}", block()))
    np.testing.assert_allclose(after.diagonal() / before.diagonal(), factor**2, rtol=0.03)


def test_gray_values_noise_and_shape_change_as_named() -> None:
    image = block()
    values = np.asarray(image).astype(float)
    np.testing.assert_array_equal(changed("brightness_1.2", image), values * 1.2)
    mean = values.mean()
    np.testing.assert_allclose(
        changed("contrast_0.8", image), mean + 0.8 * (values - mean), atol=0.5
    )
    inside = changed("noise_8", image)[values > 0]
    assert (inside.mean(), inside.std()) == (pytest.approx(100, abs=1), pytest.approx(8, abs=0.6))
    assert changed("padded", image).shape == (128, 128)
    assert changed("padded", image).sum() == values.sum()
    assert 0 < np.abs(changed("jpeg_30", image) - values).mean() < 8
    np.testing.assert_array_equal(changed("flip", image), values[:, ::-1])


def test_a_class_of_black_images_is_measured_too(tmp_path: Path) -> None:
    images = [np.zeros((30, 40)), np.zeros((50, 50)), np.full((30, 40), 120), np.full((9, 9), 200)]
    labelled = Labelled(files(tmp_path, images), np.array([0, 0, 1, 1]), None)
    found = measured(labelled, by_brightness)
    assert row(found, "none")["accuracy"]["value"] == 1
    assert row(found, "rotation_10")["accuracy"]["value"] == 1


def test_files_are_read_once_and_those_that_are_gone_are_left_out(
    gray: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = robustness.read_image

    def counted(path: Path, preprocessing: Preprocessing) -> Any:
        reads.append(path)
        return real(path, preprocessing)

    monkeypatch.setattr(robustness, "read_image", counted)
    gray.paths[3].unlink()
    gray.paths[4].write_bytes(b"no image")
    found = measured(gray, by_brightness, Preprocessing())
    assert sorted(reads) == sorted(gray.paths)
    assert (found["images"], found["of"]) == (6, 8)
    assert row(found, "brightness_0.8")["accuracy"]["value"] == 1
    for path in gray.paths:
        path.unlink(missing_ok=True)
    nothing = measure_robustness(
        gray,
        2,
        by_brightness,
        image_size=32,
        channels=1,
        preprocessing=FRAMED,
        at_most=10,
        workers=1,
        terminal=PlainTerminal(),
    )
    assert nothing is None


def test_a_sample_keeps_the_shares_of_the_classes() -> None:
    labels_N = np.repeat([0, 1, 2], [500, 290, 10])
    rows_M = stratified_sample(labels_N, 80, seed=3)
    assert len(set(rows_M.tolist())) == 80
    np.testing.assert_allclose(np.bincount(labels_N[rows_M]), [50, 29, 1], atol=1)
    np.testing.assert_array_equal(rows_M, stratified_sample(labels_N, 80, seed=3))
    assert not np.array_equal(rows_M, stratified_sample(labels_N, 80, seed=4))
    np.testing.assert_array_equal(stratified_sample(labels_N, 800, seed=3), np.arange(800))


def test_a_short_training_measures_fewer_images() -> None:
    assert sample_size(44 * 3587) == 394
    assert sample_size(20_000) == 50
    assert sample_size(10**7) == 400
    assert sample_size(0) == MIN_IMAGES


def test_an_evaluation_says_it_in_json_report_and_card(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    root = make_images("A/1.png", "A/2.png", "B/1.png", "B/2.png")
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    predictor = Predictor.load(save(tmp_path / "model", network, ("A", "B"), preprocessing=FRAMED))
    found = evaluate_folder(predictor, root, workers=1, terminal=PlainTerminal())
    table = evaluation_document(found)["robustness"]
    assert (table["images"], table["of"], table["image_size"]) == (4, 4, 32)
    assert row(table, "none")["accuracy"] == found["test"]["accuracy"]
    assert row(table, "none")["macro_f1"] == found["test"]["macro_f1"]
    page = render_report(facts(robustness=table))
    card = model_card(facts(robustness=table, settings=SETTINGS))
    for text in (page, card):
        assert "Robustness" in text
        for each in CHANGES:
            assert each.title in text
    assert "Robustness" not in render_report(facts(robustness=None))
    assert "Robustness" not in model_card(facts(robustness=None, settings=SETTINGS))
