"""Any picture becomes the pixels the network takes, or is refused in one sentence."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexmri.data.pixels import decode
from alexmri.errors import UserError


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def ramp(mode: str = "L") -> Image.Image:
    values = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def gray(data: bytes, size: int = 32) -> np.ndarray:
    return decode(data, image_size=size, channels=1)[0].astype(int)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_formats_agree(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    difference = gray(encoded(ramp(), file_format, **options)) - gray(encoded(ramp()))
    assert np.abs(difference).max() <= (3 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_modes_of_one_gray_picture_agree(mode: str) -> None:
    assert np.abs(gray(encoded(ramp(mode))) - gray(encoded(ramp()))).max() <= 1


def test_cmyk_is_close_to_gray() -> None:
    assert np.abs(gray(encoded(ramp("CMYK"), "TIFF")) - gray(encoded(ramp()))).max() <= 2


def test_transparent_is_black() -> None:
    picture = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    assert gray(encoded(picture)).max() == 0


def test_sixteen_bits_scale_to_the_brightest_pixel() -> None:
    values = (np.linspace(0, 3000, 64 * 48).reshape(48, 64)).astype(np.uint16)
    pixels = gray(encoded(Image.fromarray(values)))
    assert pixels.max() >= 250
    assert np.abs(pixels - gray(encoded(ramp()))).max() <= 2


@pytest.mark.parametrize(("dtype", "brightest"), [(np.uint16, 3000), (np.int32, 10**6)])
def test_levels_above_eight_bits_are_scaled_exactly_in_little_memory(
    dtype: type, brightest: int
) -> None:
    side = 1024
    values = np.random.default_rng(1).integers(0, brightest + 1, (side, side)).astype(dtype)
    values[0, 0] = brightest
    data = encoded(Image.fromarray(values), "TIFF")
    tracemalloc.start()
    pixels = gray(data, side).astype(np.uint8)
    # Of a pixel: up to 8 bytes for the result as `gray` has it, and what is not to be many more.
    assert tracemalloc.get_traced_memory()[1] < (16 if dtype is np.uint16 else 24) * side**2
    tracemalloc.stop()
    np.testing.assert_array_equal(pixels, np.rint(values * (255 / brightest)))


def test_exif_rotation_is_applied() -> None:
    turned = ramp().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 270 degrees to look at it
    assert np.array_equal(gray(encoded(turned, exif=exif)), gray(encoded(ramp())))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_block_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(ramp(), "JPEG", exif=exif)
    at = data.index(b"Exif") + 10
    for width in range(1, 24):
        damaged = data[:at] + b"\xff" * width + data[at + width :]
        assert gray(damaged).shape == (32, 32)


def test_colour_keeps_three_channels() -> None:
    picture = Image.new("RGB", (40, 40), (200, 100, 50))
    pixels = decode(encoded(picture), image_size=32, channels=3)
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 5, 5].tolist() == [200, 100, 50]


def test_resizing_is_antialiased() -> None:
    checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
    pixels = gray(encoded(Image.fromarray(checkers.astype(np.uint8))))
    assert np.abs(pixels - 127).max() <= 2


def test_small_pictures_are_enlarged() -> None:
    assert gray(encoded(ramp().resize((8, 8))), size=64).shape == (64, 64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty"),
        (b"not a picture", "it is none of JPEG, PNG"),
        (encoded(ramp(), "GIF"), "it is none of JPEG, PNG"),
        (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "floating-point"),
        (encoded(ramp(), "JPEG")[:400], "truncated"),
        (encoded(ramp(), "PNG")[:120], "truncated"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        decode(data, image_size=32, channels=1)
    assert "\n" not in str(refused.value)
    assert "0x" not in str(refused.value)


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    bomb = encoded(Image.new("1", (9000, 9000)))
    assert len(bomb) < 100_000
    with pytest.raises(UserError, match="9000 x 9000 pixels; at most 64 million"):
        decode(bomb, image_size=32, channels=1)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"bad\.png cannot be read"):
        decode(path, image_size=32, channels=1)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it can read all the same
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.sampled_from(["PNG", "JPEG"]))
def test_mutated_pictures_decode_or_are_refused(at: int, what: bytes, file_format: str) -> None:
    data = bytearray(encoded(ramp(), file_format))
    at %= len(data)
    data[at : at + len(what)] = what
    try:
        pixels = decode(bytes(data), image_size=32, channels=1)
    except UserError:
        return
    assert pixels.shape == (1, 32, 32)
