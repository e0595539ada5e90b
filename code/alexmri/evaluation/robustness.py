"""Measure what is left of a model's accuracy on images that were moved, turned or changed.

Every transform works on the decoded image, before the preprocessing that training and serving
share, as if another scanner or tool had made the file.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexmri.data.decode import read_image
from alexmri.data.pixels import Pixels, Preprocessing, fit
from alexmri.evaluation.predictions import Floats, Ints
from alexmri.evaluation.rates import rates, ratio, unit_matrices
from alexmri.evaluation.resampling import estimate, resamples, units_of
from alexmri.terminal import Terminal

# An image under all changes takes 86 ms of a core at 32 pixels: as long as about so many images
# take in training.
COST_OF_IMAGE = 40
# At most this share of the training's time is spent, but some images are always measured.
MAX_SHARE, MIN_IMAGES, MAX_IMAGES = 0.1, 32, 400
# Without a training, which would set the measure.
IMAGES_OF_A_FOLDER = 200
# Images whose transforms are in memory at once.
CHUNK = 16
NOISE_SIGMA, JPEG_QUALITY, SEED = 8.0, 30, 0

Transform = Callable[[Image.Image, int, np.random.Generator], Image.Image]


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the table: its key in JSON, its words for readers, and what it does.

    `apply` takes an image of mode L or RGB, the network's image size and draws.
    """

    key: str
    title: str
    apply: Transform


@dataclass(frozen=True, slots=True)
class Labelled:
    """N image files with their labels; `subjects_N` is None where the people are unknown."""

    paths: Sequence[Path]
    labels_N: Ints
    subjects_N: tuple[str, ...] | None

    def rows(self, rows_M: NDArray[np.int64]) -> "Labelled":
        """Return some of them."""
        subjects = self.subjects_N
        return Labelled(
            [self.paths[row] for row in rows_M],
            self.labels_N[rows_M],
            None if subjects is None else tuple(subjects[row] for row in rows_M),
        )


def measure_robustness(
    images: Labelled,
    classes: int,
    logits: Callable[[Pixels], NDArray[np.float32]],
    *,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing,
    at_most: int,
    workers: int,
    terminal: Terminal,
    seed: int = SEED,
    replicates: int = 1000,
) -> dict[str, Any] | None:
    """Return accuracy and macro F1 under every change, ready for JSON; None without images.

    Measured is a sample of `at_most` images, drawn by `seed` with the shares of the classes as they
    are. Every file is read once; one that has gone since it was decoded is left out. `logits`
    returns (N, K) for `uint8` pixels. "kept" is accuracy as a share of that on the unchanged
    images, with an interval over the same resamples.
    """
    sample = images.rows(stratified_sample(images.labels_N, at_most, seed))

    def changed(number: int) -> Pixels | None:
        read = read_image(sample.paths[number], preprocessing)
        if isinstance(read, str):
            return None
        rng = np.random.default_rng((seed, number))
        pictures = (change.apply(read[1], image_size, rng) for change in CHANGES)
        take = partial(fit, image_size=image_size, channels=channels, preprocessing=preprocessing)
        return np.stack([take(picture) for picture in pictures])

    found: list[int] = []
    answers: list[Ints] = []
    total = len(sample.paths)
    chunks = (range(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK))
    with ThreadPoolExecutor(workers) as pool:
        results = chain.from_iterable(pool.map(changed, numbers) for numbers in chunks)
        tracked = terminal.track(results, total, "measuring changed images")
        for number, pixels_TCHW in enumerate(tracked):
            if pixels_TCHW is not None:
                found.append(number)
                answers.append(logits(pixels_TCHW).argmax(axis=1))
    if not found:
        return None
    measured = sample.rows(np.array(found))
    rows = _figures(measured, np.stack(answers, axis=1), classes, seed, replicates)
    return {
        "images": len(found),
        "of": len(images.paths),
        "image_size": image_size,
        "resampled_by": "image" if measured.subjects_N is None else "subject",
        "changes": rows,
    }


def sample_size(image_passes: int) -> int:
    """Return how many images are measured after a training of so many image passes."""
    affordable = int(MAX_SHARE * image_passes / COST_OF_IMAGE)
    return min(MAX_IMAGES, max(MIN_IMAGES, affordable))


def stratified_sample(labels_N: Ints, at_most: int, seed: int) -> NDArray[np.int64]:
    """Return rows of a sample in which every class has its share, sorted."""
    if len(labels_N) <= at_most:
        return np.arange(len(labels_N))
    order_N = np.random.default_rng((seed, 5)).permutation(len(labels_N))
    place_N = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        own = order_N[labels_N[order_N] == label]
        # The first of each class comes early, so that none is missing.
        place_N[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.sort(np.argsort(place_N, kind="stable")[:at_most])


def _figures(
    images: Labelled, answers_TN: Ints, classes: int, seed: int, replicates: int
) -> list[dict[str, Any]]:
    units_N = units_of(images.subjects_N, len(images.labels_N))
    weights_RU = np.concatenate(list(resamples(units_N, replicates, seed)))
    measured = []
    for answers_N in answers_TN:
        matrix_UKK = unit_matrices(images.labels_N, answers_N, units_N, classes)
        summed = weights_RU @ matrix_UKK.reshape(len(matrix_UKK), -1)
        measured.append(rates(summed.reshape(-1, classes, classes + 1)))
    clean_R = measured[0]["accuracy"]
    return [
        {
            "change": change.key,
            "title": change.title,
            "accuracy": estimate(figures["accuracy"]),
            "macro_f1": estimate(figures["macro_f1"]),
            "kept": estimate(ratio(figures["accuracy"], clean_R)),
        }
        for change, figures in zip(CHANGES, measured, strict=True)
    ]


# --- what is done to an image


def moved(
    image: Image.Image,
    *,
    right: float = 0.0,
    down: float = 0.0,
    degrees: float = 0.0,
    scale: float = 1.0,
) -> Image.Image:
    """Return an image turned and scaled about its middle, then moved in pixels; new parts black."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    x, y = image.width / 2, image.height / 2
    to_source = (
        cos,
        sin,
        x - cos * (x + right) - sin * (y + down),
        -sin,
        cos,
        y + sin * (x + right) - cos * (y + down),
    )
    return image.transform(image.size, Image.Transform.AFFINE, to_source, Image.Resampling.BICUBIC)


def _sign(rng: np.random.Generator) -> int:
    return int(rng.choice((-1, 1)))


def _shift(pixels: float) -> Transform:
    def apply(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
        step_x, step_y = image.width / image_size, image.height / image_size
        sign, axis = _sign(rng), rng.integers(2)
        return moved(
            image,
            right=sign * pixels * step_x if axis == 0 else 0.0,
            down=sign * pixels * step_y if axis == 1 else 0.0,
        )

    return apply


def _rotation(degrees: float) -> Transform:
    return lambda image, _, rng: moved(image, degrees=_sign(rng) * degrees)


def _scale(factor: float) -> Transform:
    return lambda image, _, rng: moved(image, scale=factor)


def _gray_values(change: Callable[[Floats, float], Floats]) -> Transform:
    """Change gray values; the function takes all of them, and their mean in the image."""

    def apply(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
        values_V = np.arange(256, dtype=np.float64)
        counts_V = np.array(image.convert("L").histogram())
        table_V = np.rint(change(values_V, float(counts_V @ values_V) / counts_V.sum()))
        return image.point(np.clip(table_V, 0, 255).astype(int).tolist() * len(image.getbands()))

    return apply


def _brightness(factor: float) -> Transform:
    return _gray_values(lambda values_V, mean: values_V * factor)


def _contrast(factor: float) -> Transform:
    return _gray_values(lambda values_V, mean: mean + factor * (values_V - mean))


def _noise(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    noise = rng.normal(0, NOISE_SIGMA, values.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(values + noise), 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    with Image.open(buffer) as again:
        return again.convert(image.mode)


def _padded(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
    side = max(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _flip(image: Image.Image, image_size: int, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES = (
    Change("none", "as it is", lambda image, _, rng: image),
    Change("shift_0.5", "shifted by half a pixel of the network", _shift(0.5)),
    Change("shift_1", "shifted by one pixel of the network", _shift(1)),
    Change("shift_2", "shifted by two pixels of the network", _shift(2)),
    Change("rotation_2", "rotated by 2 degrees", _rotation(2)),
    Change("rotation_5", "rotated by 5 degrees", _rotation(5)),
    Change("rotation_10", "rotated by 10 degrees", _rotation(10)),
    Change("scale_0.9", "0.9 times as large", _scale(0.9)),
    Change("scale_0.95", "0.95 times as large", _scale(0.95)),
    Change("scale_1.05", "1.05 times as large", _scale(1.05)),
    Change("scale_1.1", "1.1 times as large", _scale(1.1)),
    Change("brightness_0.8", "0.8 times as bright", _brightness(0.8)),
    Change("brightness_1.2", "1.2 times as bright", _brightness(1.2)),
    Change("contrast_0.8", "0.8 times the contrast", _contrast(0.8)),
    Change("contrast_1.2", "1.2 times the contrast", _contrast(1.2)),
    Change("noise_8", "Gaussian noise of 8 gray values", _noise),
    Change("jpeg_30", "saved as JPEG of quality 30", _jpeg),
    Change("padded", "padded with black to a square", _padded),
    Change("flip", "flipped left to right (not expected to hold)", _flip),
)
