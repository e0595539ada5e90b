"""A head that was moved, turned, scaled or made brighter looks the same to the network."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexmri.data.cache import open_cache
from alexmri.data.folders import discover
from alexmri.data.framing import to_square
from alexmri.data.pixels import MAX_PIXELS, Preprocessing, decode, fit
from alexmri.errors import UserError
from alexmri.evaluation.robustness import moved
from alexmri.model.alexnet import build
from alexmri.model.bundle import load_bundle
from alexmri.model.predictor import Predictor
from alexmri.terminal import PlainTerminal

from . import bundles

FRAMED = Preprocessing(center="moments", intensity="median")


def head(tilt: float = 0.1, mode: str = "L") -> Image.Image:
    """A head of 110 x 140 pixels with ventricles, a little off the middle of 176 x 208."""
    y, x = np.mgrid[:208, :176].astype(float)
    x, y = x - 84, y - 106
    along, across = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x

    def ellipse(left: float, down: float, wide: float, high: float) -> np.ndarray:
        distance = ((along - left) / wide) ** 2 + ((across - down) / high) ** 2
        return np.clip(10 * (1.05 - distance), 0, 1)

    values = 170 * ellipse(0, 0, 55, 70) + 30 * ellipse(0, 0, 45, 60)
    values -= 130 * (ellipse(-14, -8, 7, 25) + ellipse(16, -5, 9, 27)) + 90 * ellipse(20, 40, 9, 6)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert(mode)


def seen(image: Image.Image, preprocessing: Preprocessing = FRAMED, size: int = 32) -> np.ndarray:
    channels = 1 if image.mode == "L" else 3
    return fit(image, image_size=size, channels=channels, preprocessing=preprocessing).astype(int)


def padded(image: Image.Image, left: int, top: int, width: int, height: int) -> Image.Image:
    return image.crop((-left, -top, width - left, height - top))


def brighter(factor: float, offset: float = 0) -> Callable[[Image.Image], Image.Image]:
    table = [min(255, round(i * factor + offset)) for i in range(256)]
    return lambda image: image.point(table * len(image.getbands()))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half a pixel": lambda image: moved(image, right=2.75, down=3.25),
    "one pixel": lambda image: moved(image, right=-5.5, down=6.5),
    "two pixels": lambda image: moved(image, right=11, down=-13),
    "square": lambda image: padded(image, 16, 0, 208, 208),
    "much black": lambda image: padded(image, 100, 7, 400, 300),
    "5 degrees": lambda image: moved(image, degrees=5),
    "10 degrees": lambda image: moved(image, degrees=-10),
    "smaller": lambda image: moved(image, scale=0.9),
    "larger": lambda image: moved(image, scale=1.1),
    "twice the pixels": lambda image: image.resize((352, 416), Image.Resampling.BICUBIC),
    "darker": brighter(0.8),
    "brighter": brighter(1.2),
    "less contrast": brighter(0.7, 30),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [32, 224])
def test_what_a_scanner_may_do_changes_almost_nothing(change: str, mode: str, size: int) -> None:
    before, after = head(mode=mode), CHANGES[change](head(mode=mode))
    difference = np.abs(seen(after, size=size) - seen(before, size=size))
    assert difference.mean() < 1.5
    plain = Preprocessing()
    stretched = np.abs(seen(after, plain, size) - seen(before, plain, size))
    if change != "twice the pixels":  # which stretching removes too
        assert stretched.mean() > 3 * difference.mean()


@pytest.mark.parametrize("tilt", [-0.6, -0.2, 0.0, 0.3, 0.7])
def test_a_head_stands_upright_in_the_middle_and_fills_the_square(tilt: float) -> None:
    (pixels,) = seen(head(tilt))
    rows, columns = np.nonzero(pixels > 20)
    assert rows.max() - rows.min() + 1 in (27, 28, 29, 30)
    assert columns.max() - columns.min() + 1 in (21, 22, 23, 24)
    weights = pixels / pixels.sum()
    middle = [float((weights.sum(axis=axis) * np.arange(32)).sum()) for axis in (0, 1)]
    np.testing.assert_allclose(middle, 15.5, atol=0.3)
    light = pixels.ravel()
    assert float(np.median(np.repeat(light, light))) == pytest.approx(160, abs=10)


def test_a_lying_head_is_not_stood_up() -> None:
    lying = head(0.0).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(seen(lying)[0], np.rot90(seen(head(0.0))[0]), atol=12)


def test_a_round_head_keeps_its_direction() -> None:
    y, x = np.mgrid[:128, :128] - 63.5
    disc = np.where(np.hypot(x, y) < 50, 120, 0)
    disc[30:50, 60:70] = 200
    image = Image.fromarray(disc.astype(np.uint8))
    turned = np.argwhere(seen(image)[0] > 175).mean(axis=0)
    assert turned[1] == pytest.approx(15.5, abs=1.5)
    assert turned[0] < 12


EMPTY = {
    "black": Image.new("L", (40, 30)),
    "white": Image.new("L", (40, 30), 255),
    "gray": Image.new("RGB", (30, 40), (128, 128, 128)),
    "nearly black": Image.new("L", (64, 64), 1),
    "one pixel": Image.new("L", (1, 1), 9),
    "a line": Image.new("L", (1, MAX_PIXELS // 100), 200),
    "a point": padded(Image.new("L", (1, 1), 255), 3, 90, 100, 100),
    "two corners": Image.fromarray(np.pad(np.eye(2, dtype=np.uint8) * 255, ((0, 98), (0, 98)))),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("size", [32, 1024])
def test_images_without_a_head_become_pixels_too(name: str, size: int) -> None:
    pixels = seen(EMPTY[name], size=size)
    assert pixels.shape[1:] == (size, size)
    if name == "black":
        assert pixels.max() == 0


def test_memory_is_bounded_for_a_large_image() -> None:
    """Where all light lies in two corners the square is larger than the image."""
    corners = Image.new("L", (12_000, 1_000))
    corners.paste(255, (0, 0, 50, 50))
    corners.paste(255, (11_950, 950, 12_000, 1_000))
    assert to_square(corners, 32, center="moments", intensity="median").size == (32, 32)


def test_training_and_serving_see_the_same_pixels(tmp_path: Path) -> None:
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    model = bundles.save(tmp_path / "model", network, ("A", "B"), preprocessing=FRAMED)
    assert load_bundle(model).preprocessing == FRAMED
    for i, label in enumerate("AB"):
        (tmp_path / "data" / label).mkdir(parents=True)
        head(tilt=i / 5).save(tmp_path / "data" / label / "1.png")
    folder = discover(tmp_path / "data")
    caches = [
        open_cache(
            folder,
            image_size=32,
            channels=1,
            workers=1,
            terminal=PlainTerminal(),
            preprocessing=each,
        )
        for each in (Preprocessing(), FRAMED)
    ]
    plain, framed = (each.pixels_NCHW for each in caches)
    assert np.abs(plain[:].astype(int) - framed[:]).mean() > 5
    predictor = Predictor.load(model)
    for row, image in enumerate(folder.images):
        np.testing.assert_array_equal(predictor.pixels(image.path), framed[row])


def test_a_model_with_another_way_to_center_is_refused(tmp_path: Path) -> None:
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    unknown = Preprocessing(center="by hand")
    model = bundles.save(tmp_path / "model", network, ("A", "B"), preprocessing=unknown)
    with pytest.raises(UserError, match="has 'by hand' as 'preprocessing.center'"):
        load_bundle(model)


def test_a_16_bit_slice_is_framed_like_an_8_bit_one() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(head(), dtype=np.uint16) * 250).save(buffer, "PNG")
    wide = decode(buffer.getvalue(), image_size=32, channels=1, preprocessing=FRAMED)
    assert np.abs(wide.astype(int) - seen(head())).mean() < 1.5
