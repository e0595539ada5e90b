"""Turn the bytes of one image into the `uint8` pixels the network sees, in training and serving.

The same function runs on both sides, so that a served image meets the network it was trained
for. Importing this module costs numpy and Pillow, nothing else.
"""

import io
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from alexmri.data.framing import to_square
from alexmri.data.intensities import (
    Bounds,
    percentile_bounds,
    percentile_bounds_of_counts,
    scale,
)
from alexmri.errors import UserError


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image file becomes the pixels of the network, as model.json names it.

    `name` says how it is read; `center` and `intensity` are those of `framing.to_square`.
    """

    name: str = "alexmri.pixels/2"
    center: str = "none"
    intensity: str = "none"


# Until version 0.2 the brightest of more than 8 bits became white, and floats were refused.
BY_BRIGHTEST, BY_PERCENTILES = Preprocessing("alexmri.pixels/1"), Preprocessing("alexmri.pixels/2")
PREPROCESSINGS = (BY_BRIGHTEST, BY_PERCENTILES)
PREPROCESSING = BY_PERCENTILES
# A text in a PNG of 16 bits by which `alexmri slices` says that a whole volume was scaled already.
SCALED_KEY, SCALED = "Intensities", "scaled to 0-65535"
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# A slice has 0.04 megapixels, a scanned film 20; what is larger is a mistake or an attack.
MAX_PIXELS = 64_000_000
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags: bits per sample, what 0 means (0 = white), how samples lie, whether they have a sign.
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339
UNSIGNED, SEPARATE_PLANES = 1, 2
# Pillow's layouts that have 16 bits in the file and lose the lower 8 when they are decoded.
CUT_TO_8_BITS = re.compile(r"(LA|RGB|RGBA|RGBX|RGBa);16[BLN]")
NATIVE = "L" if sys.byteorder == "little" else "B"
SWAPPED = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"} if NATIVE == "L" else {}
# Rows of a large image that are put together at a time.
ROWS = 256
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"zTXt", b"iTXt", b"tEXt", b"iCCP")
# How a file begins, or what stands in it, where it may hold several images.
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FRAME_MARKS = (b"acTL", b"ANMF", b"MPF\0")
# What Pillow raises for files that are damaged; of the last three kinds, in words for nobody.
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    TypeError,
    ArithmeticError,
    LookupError,
)

Pixels = NDArray[np.uint8]


class PixelRows(Protocol):
    """Images that can be read piece by piece: an array, or rows of one on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, wanted: slice | NDArray[np.int64], /) -> Pixels: ...


def decode(
    source: bytes | Path,
    *,
    image_size: int,
    channels: int,
    admit: Callable[[int, int], None] | None = None,
    reader: Callable[[bytes], io.BytesIO] = io.BytesIO,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Pixels:
    """Decode one image to `uint8` pixels of shape (channels, image_size, image_size).

    What `read_picture` and `fit` say holds here too.
    """
    picture = read_picture(source, admit, reader, preprocessing)
    return fit(picture, image_size=image_size, channels=channels, preprocessing=preprocessing)


def read_picture(
    source: bytes | Path,
    admit: Callable[[int, int], None] | None = None,
    reader: Callable[[bytes], io.BytesIO] = io.BytesIO,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Image.Image:
    """Return one image, upright, with 8 bits per value, gray or in colour (mode L or RGB).

    EXIF rotation is applied; transparency lies on black; palettes and CMYK become RGB. Images with
    more than 8 bits per value (also negative or floating point) are scaled from their percentiles
    0.5 and 99.5 to 0 and 255, all channels alike, because MR intensities have no unit. A 16-bit PNG
    that `alexmri slices` has scaled is taken as it is. With `preprocessing` BY_BRIGHTEST, 0 stays 0
    and the brightest value becomes 255. Of several frames or pages the first counts. `admit` is
    called with width and height before there are pixels, and refuses by an exception of its own. So
    may the files that `reader` makes of the bytes, from which Pillow reads.

    Raises:
        UserError: not an image in one of FORMATS, truncated, too large, or with values that are no
            numbers; with BY_BRIGHTEST, floating-point or negative values.
    """
    name = str(source) if isinstance(source, Path) else "the image"
    # Pillow decodes some TIFF files differently by name: bytes are the one door.
    data = read_bytes(source) if isinstance(source, Path) else source
    if not data:
        raise UserError(f"{name} is empty (0 bytes); it was probably not copied whole")
    data = _without_long_texts(data)
    try:
        with Image.open(reader(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6}"
                    " million are read"
                )
            if admit is not None:
                admit(width, height)
            eight_bit = _to_eight_bit(image, lambda: reader(data), name, preprocessing)
            return _upright(eight_bit, image)
    except FAULTS as error:
        raise UserError(
            f"{name} cannot be read as an image: {_reason(error, name, data)}"
        ) from None


def read_bytes(path: Path) -> bytes:
    """Return what is in a file; UserError where it is no file, or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise UserError(f"{path} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def count_frames(data: bytes) -> int:
    """Return how many frames or pages the bytes of a readable image hold."""
    if not data.startswith(TIFF_STARTS) and not any(mark in data for mark in FRAME_MARKS):
        return 1
    try:
        with Image.open(io.BytesIO(_without_long_texts(data)), formats=FORMATS) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged second page is none, as a damaged EXIF block says nothing
        return 1


def fit(
    image: Image.Image,
    *,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Pixels:
    """Return an image of `read_picture` as `uint8` pixels (channels, image_size, image_size).

    One channel is ITU-R 601 luma. The square is cut from the image as `preprocessing` says.
    """
    plain = image.convert("L" if channels == 1 else "RGB")
    center, intensity = preprocessing.center, preprocessing.intensity
    square = to_square(plain, image_size, center=center, intensity=intensity)
    pixels = np.asarray(square, dtype=np.uint8).reshape(image_size, image_size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright(decoded: Image.Image, image: Image.Image) -> Image.Image:
    """Rotate as the EXIF orientation of the loaded file says; a damaged EXIF block says nothing.

    Pillow's own exif_transpose also writes the block anew, and fails where that is damaged. TIFF
    files it has rotated while loading, and their block no longer says so.
    """
    try:
        transpose = TRANSPOSES.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return decoded
    return decoded if transpose is None else decoded.transpose(transpose)


def _to_eight_bit(
    image: ImageFile.ImageFile,
    reopened: Callable[[], io.BytesIO],
    name: str,
    preprocessing: Preprocessing,
) -> Image.Image:
    """Load an opened image and return it in mode L or RGB."""
    if layout := _cut_to_8_bits(image, name):
        return _wide_colour(image, reopened, layout, preprocessing)
    if image.mode == "F" or image.mode.startswith("I"):
        return _wide_gray(image, name, preprocessing)
    image.load()
    if image.has_transparency_data:
        return _on_black(image)
    if image.mode in ("P", "CMYK", "YCbCr", "LAB"):
        return image.convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L")


def _on_black(image: Image.Image) -> Image.Image:
    """Lay a transparent image on black.

    In bands, since each step needs 4 bytes per pixel and lets no other thread run.
    """
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        layer = image.crop(box).convert("RGBA")
        black = Image.new("RGBA", layer.size, "black")
        flat.paste(Image.alpha_composite(black, layer).convert("RGB"), box)
    return flat


def _wide_gray(image: ImageFile.ImageFile, name: str, preprocessing: Preprocessing) -> Image.Image:
    """Scale a gray image with 16 or 32 bits per pixel, whole numbers or floating point."""
    if preprocessing.name == BY_BRIGHTEST.name and image.mode == "F":
        raise UserError(f"{name} has floating-point pixels; save it with 8 or 16 bits per pixel")
    layout = _layout(image)
    if image.tile and image.tile[0].codec_name == "libtiff" and layout in SWAPPED:
        # libtiff gives this machine's order of bytes; Pillow takes it for that of the file.
        layout = SWAPPED[layout]
    values: NDArray[Any] = _loaded_as(image, image.mode, layout)
    tags = getattr(image, "tag_v2", {})
    is_unsigned = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    if values.dtype == np.int32 and is_unsigned:
        values = values.view(np.uint32)
    white_is_0 = tags.get(PHOTOMETRIC) == 0
    if preprocessing.name == BY_BRIGHTEST.name:
        if int(values.min()) < 0:
            raise UserError(f"{name} has negative pixels; save it with 8 or 16 bits per pixel")
        white_is_0 = white_is_0 and values.dtype.itemsize == 2
    elif values.dtype.kind == "f" and (strange := _count_strange(values)):
        raise UserError(
            f"{name} has {strange} pixels that are not finite numbers (NaN or infinite); replace"
            " them, for example by 0"
        )
    if white_is_0:
        # Pillow inverts 8 bits where 0 is white, not more; of 16 often 12 are used.
        wide = values if values.dtype.kind in "fu" else values.astype(np.int64)
        values = wide.max() - wide
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], 0, values).astype(values.dtype)
    if preprocessing.name == BY_BRIGHTEST.name:
        bounds: Bounds = (0, float(values.max()))
    elif image.info.get(SCALED_KEY) == SCALED:
        bounds = (0, 2**16 - 1)
    else:
        bounds = percentile_bounds(values)
    return Image.fromarray(scale(values, bounds))


def _count_strange(values: NDArray[Any]) -> int:
    return values.size - int(np.count_nonzero(np.isfinite(values)))


def _layout(image: ImageFile.ImageFile) -> str:
    """Return how Pillow has found the bytes of an opened image to be arranged."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _cut_to_8_bits(image: ImageFile.ImageFile, name: str) -> str | None:
    """Return the layout of an opened image whose 16 bits per channel Pillow would cut to 8.

    Raises:
        UserError: its 16 bits cannot be had from Pillow.
    """
    layout, tags = _layout(image), getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (8,))
    planar = tags.get(PLANAR) == SEPARATE_PLANES and len(bits) > 1 and max(bits) > 8
    if planar or layout.startswith("CMYK;16"):
        how = "in separate planes" if planar else "as CMYK"
        raise UserError(
            f"{name} has 16 bits per channel, stored {how}, which cannot be read without loss;"
            " save it as 16-bit grayscale or RGB"
        )
    return layout if CUT_TO_8_BITS.fullmatch(layout) else None


def _wide_colour(
    image: ImageFile.ImageFile,
    reopened: Callable[[], io.BytesIO],
    layout: str,
    preprocessing: Preprocessing,
) -> Image.Image:
    """Scale an image of several channels with 16 bits each, all channels alike.

    Pillow keeps the higher byte of each value; told that the bytes come the other way round, it
    keeps the lower one.
    """
    kind, order = layout.split(";16")
    if kind == "LA":  # four bytes: gray and alpha, the higher byte first
        bytes_HWC = _loaded_as(image, "RGBA", "RGBA")
        high_HWC, low_HWC = bytes_HWC[..., 0::2], bytes_HWC[..., 1::2]
    else:
        # Premultiplied by alpha is as it lies on black: alpha itself is not needed.
        kind, mode = ("RGBX", "RGB") if kind == "RGBa" else (kind, image.mode)
        order = NATIVE if order == "N" else order
        other = "L" if order == "B" else "B"
        high_HWC = _loaded_as(image, mode, f"{kind};16{order}")
        with Image.open(reopened(), formats=FORMATS) as again:
            low_HWC = _loaded_as(again, mode, f"{kind};16{other}")
    transparent = image.info.get("transparency")

    def blocks() -> Iterator[tuple[slice, NDArray[Any]]]:
        for start in range(0, len(high_HWC), ROWS):
            rows = slice(start, start + ROWS)
            values: NDArray[Any] = (high_HWC[rows].astype(np.uint32) << 8) | low_HWC[rows].astype(
                np.uint32
            )
            if values.shape[2] in (2, 4):
                values = values[..., :-1] * values[..., -1:] // np.uint32(2**16 - 1)
            if isinstance(transparent, tuple):
                values[(values == transparent).all(axis=2)] = 0
            yield rows, values

    if preprocessing.name == BY_BRIGHTEST.name:
        bounds: Bounds = (0, max(float(values.max()) for _, values in blocks()))
    else:
        counts_V = sum(np.bincount(values.reshape(-1), minlength=2**16) for _, values in blocks())
        bounds = percentile_bounds_of_counts(np.asarray(counts_V))
    table = scale(np.arange(2**16), bounds)
    channels = high_HWC.shape[2] - (high_HWC.shape[2] in (2, 4))
    eight_bit = np.empty((*high_HWC.shape[:2], channels), dtype=np.uint8)
    for rows, values in blocks():
        eight_bit[rows] = table[values]
    return Image.fromarray(eight_bit[..., 0] if channels == 1 else eight_bit)


def _loaded_as(image: ImageFile.ImageFile, mode: str, layout: str) -> Pixels:
    """Load an opened image with another layout of its bytes than Pillow has found."""
    image._mode = mode
    image.tile = [
        tile._replace(args=(layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout)
        for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def _without_long_texts(data: bytes) -> bytes:
    """Return a PNG file without its texts and colour profiles that are longer than Pillow reads.

    Pillow refuses a whole file for one of more than 1 MB, or for 64 MB of them together, since
    texts are stored compressed. Nobody needs them here but for an orientation, which is short.
    """
    if not data.startswith(PNG_SIGNATURE) or not any(kind in data for kind in PNG_TEXTS):
        return data
    kept = [PNG_SIGNATURE]
    start, budget = len(PNG_SIGNATURE), MAX_TEXT_MEMORY
    while start + 8 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + length
        if kind in PNG_TEXTS:
            size = _text_size(kind, data[start + 8 : end - 4]) if budget > 0 else MAX_TEXT_CHUNK + 1
            budget -= size
            if size > MAX_TEXT_CHUNK or budget < 0:
                start = end
                continue
        kept.append(data[start:end])
        start = end
    whole = b"".join(kept) + data[start:]
    return data if len(whole) == len(data) else whole


def _text_size(kind: bytes, chunk: bytes) -> int:
    """Return how long the text of a PNG chunk is; beyond Pillow's limit it is not unpacked."""
    value = chunk.partition(b"\0")[2]
    if kind == b"iTXt":
        packed, value = value[:1] == b"\1", b"\0".join(value[2:].split(b"\0", 2)[2:])
    else:
        packed, value = kind != b"tEXt", value[1:]
    if not packed:
        return len(value)
    try:
        return len(zlib.decompressobj().decompress(value, MAX_TEXT_CHUNK + 1))
    except zlib.error:  # Pillow takes it for no text
        return 0


def _reason(error: Exception, name: str, data: bytes) -> str:
    """Return Pillow's reason without the file name and the object addresses it puts in."""
    text = str(error)
    unidentified = isinstance(error, UnidentifiedImageError) or not text
    if (unidentified and data.startswith(TIFF_STARTS)) or "unknown raw mode" in text:
        return (
            "it is a kind of TIFF that is not supported, or damaged; save it as PNG with 8 or 16"
            " bits per pixel"
        )
    if isinstance(error, (TypeError, ArithmeticError, LookupError)):
        return "it is damaged"
    if unidentified:
        return f"it is none of {', '.join(FORMATS)}, or damaged"
    return text.replace(name, "the file").strip("'\" ")
