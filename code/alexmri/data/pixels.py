"""Turn the bytes of one picture into the `uint8` pixels the network sees, in training and serving.

The same function runs on both sides, so that a served picture meets the network it was trained
for. Importing this module costs numpy and Pillow, nothing else.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from alexmri.errors import UserError

PREPROCESSING = "alexmri.pixels/1"
MEAN = 0.5
STD = 0.5
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# A slice has 0.04 megapixels, a scanned film 20; what is larger is a mistake or an attack.
MAX_PIXELS = 64_000_000
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
) -> Pixels:
    """Decode one picture to `uint8` pixels of shape (channels, image_size, image_size).

    One channel is ITU-R 601 luma. The picture is stretched to the square by an antialiased bilinear
    filter. What `read_picture` says holds here too.
    """
    return fit(read_picture(source, admit), image_size=image_size, channels=channels)


def read_picture(
    source: bytes | Path, admit: Callable[[int, int], None] | None = None
) -> Image.Image:
    """Return one picture, upright, with 8 bits per value, gray or in colour (mode L or RGB).

    EXIF rotation is applied; transparency lies on black; palettes and CMYK become RGB; 16-bit
    pictures are scaled so that their brightest pixel becomes 255, because MR intensities have no
    unit; of several frames the first counts. `admit` is called with width and height before there
    are pixels, and refuses by an exception of its own.

    Raises:
        UserError: not a picture in one of FORMATS, truncated, too large, or floating point.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(opened, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6}"
                    " million are read"
                )
            if admit is not None:
                admit(width, height)
            picture.load()
            eight_bit = _to_eight_bit(_upright(picture), name)
            return eight_bit if eight_bit.mode in ("L", "RGB") else eight_bit.convert("L")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as a picture: {_reason(error, name)}") from None


def fit(picture: Image.Image, *, image_size: int, channels: int) -> Pixels:
    """Return a picture of `read_picture` as `uint8` pixels (channels, image_size, image_size)."""
    plain = picture.convert("L" if channels == 1 else "RGB")
    resized = plain.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.uint8).reshape(image_size, image_size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; a damaged EXIF block says nothing.

    Pillow's own exif_transpose also writes the block anew, and fails where that is damaged.
    """
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:
        return picture
    return picture if turn is None else picture.transpose(turn)


def _to_eight_bit(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        raise UserError(f"{name} has floating-point pixels; save it with 8 or 16 bits per pixel")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        least, most = int(values.min()), int(values.max())
        if least < 0:
            raise UserError(f"{name} has negative pixels; save it with 8 or 16 bits per pixel")
        # A table of the levels there may be: the same numbers, in a tenth of the memory.
        levels = np.arange(most + 1) if most < 2**16 else values
        scaled = levels * (255 / max(most, 1))
        eight_bit: Pixels = np.rint(scaled, out=scaled).astype(np.uint8)
        return Image.fromarray(eight_bit[values] if most < 2**16 else eight_bit)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("RGB")
    return picture.convert("RGB") if picture.mode in ("P", "CMYK", "YCbCr", "LAB") else picture


def _reason(error: Exception, name: str) -> str:
    """Return Pillow's reason without the file name and the object addresses it puts in."""
    text = str(error)
    if isinstance(error, UnidentifiedImageError) or not text:
        return f"it is none of {', '.join(FORMATS)}, or damaged"
    return text.replace(name, "the file").strip("'\" ")
