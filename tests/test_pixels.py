"""Any picture becomes the pixels the network takes, or is refused in one sentence."""

import io
import itertools
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alexmri.data.pixels import (
    BY_BRIGHTEST,
    PREPROCESSINGS,
    SCALED,
    SCALED_KEY,
    TRANSPOSES,
    count_frames,
    decode,
    read_picture,
)
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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_a_large_transparent_picture_is_laid_on_black_row_by_row(mode: str) -> None:
    values = np.random.default_rng(3).integers(0, 256, (600, 40, 4), dtype=np.uint8)
    picture = Image.fromarray(values).convert("RGB" if mode == "P" else mode)
    if mode == "P":
        picture = picture.quantize(64)
    info = {} if mode.endswith("A") else {"transparency": (1, 2, 3) if mode == "RGB" else 7}
    data = encoded(picture, "PNG", **info)
    layer = Image.open(io.BytesIO(data)).convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_picture(data)), np.asarray(whole))


def test_sixteen_bits_scale_between_percentiles_and_not_to_a_hot_pixel() -> None:
    values = (np.linspace(0, 3000, 64 * 48).reshape(48, 64)).astype(np.uint16)
    pixels = gray(encoded(Image.fromarray(values)))
    assert np.abs(pixels - gray(encoded(ramp()))).max() <= 3
    values[20, 30] = 60_000
    hot = gray(encoded(Image.fromarray(values)), 48)
    values[20, 30] = values[20, 29]
    cold = gray(encoded(Image.fromarray(values)), 48)
    around = np.abs(hot - cold) > 2
    assert around.sum() <= 9
    assert hot.max() == 255


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_percentiles_are_values_that_so_many_pixels_do_not_exceed(dtype: type) -> None:
    values = np.random.default_rng(1).permutation(1000).reshape(40, 25).astype(dtype)
    pixels = np.asarray(read_picture(encoded(Image.fromarray(values), "TIFF"))).astype(int)
    # Of 1000 different values the fifth and the last but five.
    assert set(values[pixels == 0]) >= {0, 1, 2, 3, 4}
    assert set(values[pixels == 255]) >= {994, 995, 996, 997, 998, 999}
    np.testing.assert_array_equal(pixels, np.rint(np.clip((values - 4.0) / 990, 0, 1) * 255))


@pytest.mark.parametrize("bright", [1, 14])
def test_a_mask_that_percentiles_would_not_see_stays_visible(bright: int) -> None:
    values = np.zeros((64, 64), np.uint16)
    values.flat[:bright] = 900
    pixels = np.asarray(read_picture(encoded(Image.fromarray(values))))
    assert (pixels == 255).sum() == bright
    assert (pixels == 0).sum() == 64**2 - bright


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_values_above_eight_bits_are_scaled_exactly_in_little_memory(dtype: type) -> None:
    side = 1024
    values = np.random.default_rng(1).integers(0, 60_000, (side, side)).astype(dtype)
    data = encoded(Image.fromarray(values), "TIFF")
    tracemalloc.start()
    pixels = gray(data, side).astype(np.uint8)
    # Of a pixel: up to 8 bytes for the result as `gray` has it, and what is not to be many more.
    assert tracemalloc.get_traced_memory()[1] < (16 if dtype is np.uint16 else 24) * side**2
    tracemalloc.stop()
    low, high = np.percentile(values, (0.5, 99.5), method="inverted_cdf").astype(float)
    expected = np.rint(np.clip((values.astype(float) - low) * (255 / (high - low)), 0, 255))
    np.testing.assert_array_equal(pixels, expected)


def test_a_volume_that_was_scaled_as_a_whole_is_not_scaled_again() -> None:
    info = PngInfo()
    info.add_text(SCALED_KEY, SCALED)
    values = np.full((40, 40), 257 * 100, np.uint16)
    values[:20] = 257 * 50
    pixels = np.asarray(read_picture(encoded(Image.fromarray(values), pnginfo=info)))
    assert sorted(set(pixels.flat)) == [50, 100]
    assert sorted(set(np.asarray(read_picture(encoded(Image.fromarray(values)))).flat)) == [0, 255]


# --- as model folders of 0.1.0 have learned it


def old(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data, preprocessing=BY_BRIGHTEST)).astype(int)


@pytest.mark.parametrize(("dtype", "brightest"), [(np.uint16, 3000), (np.int32, 10**6)])
def test_the_version_before_scales_to_the_brightest_pixel(dtype: type, brightest: int) -> None:
    values = np.random.default_rng(1).integers(0, brightest + 1, (64, 64)).astype(dtype)
    values[0, 0] = brightest
    pixels = old(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels, np.rint(values * (255 / brightest)))


def test_the_version_before_refuses_what_it_refused() -> None:
    for data, message in (
        (tiff(RAMP_16.astype(np.float32), sample_format=3), "floating-point pixels"),
        (tiff(RAMP_16.astype(np.int16) - 5, sample_format=2), "negative pixels"),
    ):
        with pytest.raises(UserError, match=message):
            old(data)


def test_both_versions_agree_about_eight_bits() -> None:
    for mode in ("L", "RGB", "P", "LA", "1"):
        data = encoded(ramp(mode))
        np.testing.assert_array_equal(old(data), np.asarray(read_picture(data)))


# --- more than 8 bits per value


RAMP_16 = np.linspace(0, 3000, 64 * 48).reshape(48, 64).astype(np.uint16)
RGB_16, OPAQUE = np.repeat(RAMP_16[..., None], 3, axis=2), np.full_like(RAMP_16, 65535)
RGBA_16 = np.dstack([RGB_16, OPAQUE])


def png_16(values: np.ndarray, colour_type: int, chunk: bytes = b"") -> bytes:
    """Return a PNG with 16 bits per channel; Pillow writes gray ones only."""

    def packed(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = packed(b"IHDR", header), chunk, packed(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + packed(b"IEND", b"")


def tiff(
    values: np.ndarray,
    order: str = "<",
    *,
    photometric: int = 1,
    extra: int | None = None,
    sample_format: int = 1,
    deflated: bool = False,
    planar: int = 1,
    orientation: int = 1,
) -> bytes:
    """Return a TIFF of one strip in either order of bytes; Pillow writes few of these kinds."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    planes = np.moveaxis(values, 2, 0) if planar == 2 else values
    data = planes.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflated else data
    tags = {
        256: [width],
        257: [height],
        258: [values.dtype.itemsize * 8] * samples,
        259: [8 if deflated else 1],
        262: [photometric],
        273: [0],
        274: [orientation],
        277: [samples],
        278: [height],
        279: [len(data)],
        284: [planar],
        338: [] if extra is None else [extra],
        339: [sample_format] * samples,
    }
    tags = {tag: numbers for tag, numbers in tags.items() if numbers}
    behind = 8 + 2 + 12 * len(tags) + 4
    lists = b""
    entries = b""
    sizes = {tag: 4 * len(numbers) for tag, numbers in tags.items()}
    tags[273] = [behind + sum(size for size in sizes.values() if size > 4)]
    for tag, numbers in tags.items():
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = struct.pack(f"{order}I", behind + len(lists))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers))
        entries += packed if len(packed) == 4 else place
        lists += b"" if len(packed) == 4 else packed
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return start + entries + bytes(4) + lists + data


def kinds_of_16_bits() -> Iterator[tuple[str, bytes]]:
    yield "PNG RGB", png_16(RGB_16, 2)
    yield "PNG LA", png_16(np.dstack([RAMP_16, OPAQUE]), 4)
    yield "PNG RGBA", png_16(RGBA_16, 6)
    for order, deflated in itertools.product("<>", (False, True)):
        kinds = {
            "gray": (RAMP_16, {}),
            "signed": (RAMP_16.astype(np.int16), {"sample_format": 2}),
            "signed 32": (RAMP_16.astype(np.int32), {"sample_format": 2}),
            "negative": (RAMP_16.astype(np.int16) - 1500, {"sample_format": 2}),
            "negative 32": (RAMP_16.astype(np.int32) - 10**6, {"sample_format": 2}),
            "float": (RAMP_16.astype(np.float32) / 3000 - 0.5, {"sample_format": 3}),
            "float on its side": (
                np.rot90(RAMP_16).astype(np.float32),
                {"sample_format": 3, "orientation": 6},
            ),
            "RGB": (RGB_16, {"photometric": 2}),
            "RGBA": (RGBA_16, {"photometric": 2, "extra": 2}),
            "RGBA premultiplied": (RGBA_16, {"photometric": 2, "extra": 1}),
            "RGBX": (np.dstack([RGB_16, 0 * RAMP_16]), {"photometric": 2, "extra": 0}),
            "RGB on its side": (np.rot90(RGB_16), {"photometric": 2, "orientation": 6}),
            "gray on its side": (np.rot90(RAMP_16), {"orientation": 6}),
        }
        if order == "<":  # the others are refused
            kinds["unsigned 32"] = (RAMP_16.astype(np.uint32) * 1_400_000, {})
            kinds["white is 0"] = (65535 - RAMP_16, {"photometric": 0})
            kinds["white is 0 in 12 bits"] = (RAMP_16.max() - RAMP_16, {"photometric": 0})
        for name, (values, options) in kinds.items():
            data = tiff(values, order, deflated=deflated, **options)
            yield f"TIFF {order} {'deflated ' if deflated else ''}{name}", data


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in kinds_of_16_bits()])
def test_the_same_values_in_every_kind_of_file_give_the_same_pixels(data: bytes) -> None:
    expected = gray(encoded(Image.fromarray(RAMP_16)), 48)
    assert expected.max() >= 250
    assert np.abs(gray(data, 48) - expected).max() <= 1
    colour = decode(data, image_size=48, channels=3).astype(int)
    assert np.abs(colour - expected).max() <= 1


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_colours_of_16_bits_are_scaled_alike(preprocessing: str) -> None:
    values = np.zeros((40, 40, 3), dtype=np.uint16)
    values[:] = (4000, 1000, 10)
    # Percentiles make the darkest channel black.
    expected = [255, 64, 1] if preprocessing == BY_BRIGHTEST else [255, 63, 0]
    for data in (png_16(values, 2), tiff(values, photometric=2), tiff(values, ">", photometric=2)):
        pixels = decode(data, image_size=32, channels=3, preprocessing=preprocessing)
        assert pixels[:, 5, 5].tolist() == expected


def test_transparent_16_bits_are_black() -> None:
    half = np.dstack([RAMP_16, np.where(np.indices(RAMP_16.shape)[1] < 32, 0, 65535)])
    pixels = gray(png_16(half.astype(np.uint16), 4), 48)
    assert pixels[:, :22].max() == 0
    assert pixels[:, 26:].max() >= 250


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(RGBA_16, photometric=5), "16 bits per channel, stored as CMYK.*save it as 16-bit gr"),
        (tiff(RGB_16, photometric=2, planar=2), "16 bits per channel, stored in separate planes"),
        (tiff(RAMP_16.astype(np.uint32), ">"), "a kind of TIFF that is not supported, or damaged"),
        (tiff(np.dstack([RAMP_16, OPAQUE]), extra=2), "save it as PNG with 8 or 16 bits per pixel"),
        (tiff(RAMP_16 * np.float32("nan"), sample_format=3), "3072 pixels that are not finite num"),
        (tiff(RAMP_16.astype(np.float64), sample_format=3), "a kind of TIFF that is not supported"),
    ],
)
def test_bits_that_cannot_be_had_are_refused_with_what_to_do(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(data, image_size=32, channels=1)


def test_one_bit_stays_black_and_white() -> None:
    pixels = gray(encoded(ramp().convert("1")), 48)
    assert (pixels.min(), pixels.max()) == (0, 255)


# --- by name as by bytes, with any metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_file_gives_the_pixels_of_its_bytes(
    tmp_path: Path, orientation: int, compression: str | None
) -> None:
    path = tmp_path / "turned.tif"
    ramp().save(path, tiffinfo={274: orientation}, compression=compression)
    by_name = decode(path, image_size=48, channels=1)
    assert np.array_equal(by_name, decode(path.read_bytes(), image_size=48, channels=1))
    upright = TRANSPOSES.get(orientation)
    expected = ramp() if upright is None else ramp().transpose(upright)
    assert np.array_equal(by_name[0], gray(encoded(expected), 48))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a file"):
        decode(tmp_path / "pipe.png", image_size=32, channels=1)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png is empty"):
        decode(tmp_path / "empty.png", image_size=32, channels=1)


def with_text(size: int, kind: str, chunks: int = 1) -> PngInfo:
    info = PngInfo()
    for number in range(chunks):
        if kind == "iTXt":
            info.add_itxt(f"XML:com.adobe.xmp{number or ''}", "a" * size, zip=True)
        else:
            info.add_text(f"Comment{number}", "a" * size, zip=kind == "zTXt")
    return info


@pytest.mark.parametrize("kind", ["iTXt", "zTXt", "tEXt"])
@pytest.mark.parametrize(("size", "chunks"), [(3_000_000, 1), (1_000_000, 70), (100, 2)])
def test_texts_in_a_png_do_not_matter_however_long(kind: str, size: int, chunks: int) -> None:
    data = encoded(ramp(), pnginfo=with_text(size, kind, chunks))
    assert np.array_equal(gray(data), gray(encoded(ramp())))


def test_a_long_colour_profile_does_not_matter() -> None:
    data = encoded(ramp("RGB"), icc_profile=b"\0" * 3_000_000)
    assert np.array_equal(gray(data), gray(encoded(ramp())))


def test_texts_that_unpack_to_gigabytes_are_not_unpacked() -> None:
    bomb = encoded(ramp(), pnginfo=with_text(30_000_000, "zTXt", 8))
    started = time.monotonic()
    tracemalloc.start()
    gray(bomb)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_an_orientation_among_the_texts_still_counts() -> None:
    info = with_text(3_000_000, "zTXt")
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    on_its_side = ramp().transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(gray(encoded(on_its_side, pnginfo=info)), gray(encoded(ramp())))


@pytest.mark.parametrize(
    ("file_format", "frames"), [("TIFF", 5), ("PNG", 5), ("WEBP", 5), ("TIFF", 1), ("PNG", 1)]
)
def test_frames_are_counted_and_the_first_is_read(file_format: str, frames: int) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    others = [ramp().point(lambda value, n=n: value // (n + 2)) for n in range(frames - 1)]
    data = encoded(ramp(), file_format, save_all=True, append_images=others, **options)
    assert count_frames(data) == frames
    assert np.array_equal(gray(data), gray(encoded(ramp())))


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
