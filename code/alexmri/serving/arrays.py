"""Images sent as numbers: nested lists in JSON, or a .npy file, without pickle."""

import io
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.pixels import Pixels
from alexmri.serving.request_error import RequestError, bad_request, too_large, unreadable

# One request holds a thread while its images are decoded; a subject has fewer slices than this.
MAX_IMAGES = 512
# In one JSON document or line. Lists and strings are made without a pause for other threads, and
# Python's garbage collector goes over lists again and again: 300,000 cost a pause of 0.04 s.
MAX_JSON_VALUES, MAX_JSON_PARTS = 2_000_000, 300_000
NPY_MAGIC = b"\x93NUMPY"
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SHAPES = "(height, width), (height, width, 1 or 3), or several of these along a first axis"


def parse_json(text: bytes, what: str) -> Any:
    """Return a JSON document, and let other threads run while it is parsed.

    Raises:
        RequestError: 400 not JSON; 413 too many values.
    """
    # Commas and brackets bound how many values there are, before any of them is made.
    parts = text.count(b"[") + text.count(b"{") + text.count(b'"') // 2
    if text.count(b",") > MAX_JSON_VALUES or parts > MAX_JSON_PARTS:
        raise too_large(
            f"{what} has more than {MAX_JSON_VALUES // 10**6} million numbers, or more than"
            f" {MAX_JSON_PARTS:,} lists and strings; send an .npy file (application/x-npy),"
            " or images in base64"
        )
    try:
        return json.loads(text, parse_int=_int, parse_float=_float)
    except (ValueError, RecursionError):
        raise bad_request(f"{what} is not valid JSON") from None


def _int(text: str) -> int:
    # In Python, so that the interpreter can switch threads between two numbers: with its own parser
    # json holds all other threads for 0.85 s per 22 MB.
    return int(text)


def _float(text: str) -> float:
    return float(text)


def from_npy(body: bytes) -> list[Pixels | RequestError]:
    """Return the images in an .npy file as `uint8` (H, W) or (H, W, 3).

    Raises:
        RequestError: 400 not such a file, or not of numbers; 413 too many images; 422 not the
            shape of images, or intensities from 0 to 1.
    """
    buffer = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(buffer)
        # A Python literal, at most 10,000 characters long.
        shape, column_major, dtype = HEADERS[version](buffer)
        content = memoryview(body)[buffer.tell() :]
        # The header may promise anything: no memory is allocated for what is not there.
        if dtype.kind not in "uif" or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if column_major else "C")
    except Exception:
        # numpy hands on whatever Python's parser says to a damaged header.
        raise bad_request("the body is not a complete .npy file of numbers") from None
    return split(array)


def from_lists(values: list[Any]) -> NDArray[np.float64]:
    """Return nested lists of numbers as an array.

    Raises:
        RequestError: 400 ragged, too deep, or not of numbers.
    """
    try:
        # First, since numpy makes room in every element for the longest string.
        if not _are_numbers(values):
            raise bad_request("the nested lists must hold numbers and nothing else")
        if values and isinstance(values[0], list):
            # numpy lets no other thread run during one call.
            return np.stack([np.array(part, dtype=np.float64) for part in values])
        return np.array(values, dtype=np.float64)
    except (ValueError, OverflowError, RecursionError):
        raise bad_request("the nested lists must be of equal lengths") from None


def check_count(count: int) -> None:
    """Refuse more images than one request may have, before work is put into them.

    Raises:
        RequestError: 413.
    """
    if count > MAX_IMAGES:
        raise too_large(f"{count} images in one request; at most {MAX_IMAGES} are taken")


def split(array: NDArray[Any]) -> list[Pixels | RequestError]:
    """Return the images an array holds: one where it has the shape of one, else several.

    Raises:
        RequestError: 413 too many, 422 neither, or intensities from 0 to 1.
    """
    if array.size == 0:
        raise unreadable(f"the shape is {array.shape}, which has no pixels")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)):
        return [one_image(array)]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3)):
        check_count(len(array))
        # Of all slices together: one of them alone may be nearly black.
        _refuse_fractions(array)
        return [_or_error(image) for image in array]
    raise unreadable(f"the shape is {array.shape}; images are {SHAPES}")


def one_image(array: NDArray[Any]) -> Pixels:
    """Return intensities from 0 to 255 as one `uint8` image (H, W) or (H, W, 3).

    Raises:
        RequestError: 422 another shape, intensities outside of 0 to 255, or from 0 to 1.
    """
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))):
        raise unreadable(f"the shape is {array.shape}; an image is (height, width[, 1 or 3])")
    _refuse_fractions(array)
    return _to_uint8(array)


def _to_uint8(array: NDArray[Any]) -> Pixels:
    lowest, highest = array.min(), array.max()
    # False for what is not a number too.
    if not (lowest >= 0 and highest <= 255):
        raise unreadable(
            f"the numbers go from {lowest:g} to {highest:g}; send intensities from 0 to 255"
        )
    whole = np.rint(array) if array.dtype.kind == "f" else array
    pixels: Pixels = whole.astype(np.uint8)
    return pixels[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else pixels


def _refuse_fractions(array: NDArray[Any]) -> None:
    """Refuse intensities scaled to 0 to 1, which would be a nearly black image.

    Whole numbers pass: black images and masks of 0 and 1 are legal, as integers or as floats.
    """
    if array.dtype.kind != "f":
        return
    lowest, highest = array.min(), array.max()
    if lowest >= 0 and highest <= 1 and np.any(array != np.rint(array)):
        raise unreadable(
            f"the numbers go from {lowest:.3g} to {highest:.3g}; send intensities from 0 to 255"
            " (these look divided by 255)"
        )


def _are_numbers(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    # bool is no number here, though Python's is.
    return kinds <= {int, float} or (kinds == {list} and all(map(_are_numbers, values)))


def _or_error(array: NDArray[Any]) -> Pixels | RequestError:
    try:
        return _to_uint8(array)
    except RequestError as error:
        return error
