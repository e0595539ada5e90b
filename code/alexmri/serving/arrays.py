"""Pictures sent as numbers: nested lists in JSON, or a file of numpy's, without pickle."""

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.pixels import Pixels
from alexmri.serving.request_error import RequestError, bad_request, too_large, unreadable

# One request holds a thread while its pictures are decoded; a person has fewer slices than this.
MOST_PICTURES = 512
NPY_MAGIC = b"\x93NUMPY"
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SHAPES = "(height, width), (height, width, 1 or 3), or several of these along a first axis"


def from_npy(body: bytes) -> list[Pixels | RequestError]:
    """Return the pictures in an .npy file as `uint8` (H, W) or (H, W, C).

    Raises:
        RequestError: 400 not such a file, or not of numbers; 413 too many pictures; 422 not the
            shape of pictures.
    """
    buffer = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(buffer)
        # A literal of Python's, at most 10,000 characters long.
        shape, column_major, dtype = HEADERS[version](buffer)
        content = memoryview(body)[buffer.tell() :]
        # The header may promise anything: nothing is made room for that is not there.
        if dtype.kind not in "uif" or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if column_major else "C")
    except Exception:
        # numpy hands on whatever Python's parser says to a damaged header.
        raise bad_request("the body is no .npy file of numbers, or not a whole one") from None
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
        return np.array(values, dtype=np.float64)
    except (ValueError, OverflowError, RecursionError):
        raise bad_request("the nested lists must be of equal lengths") from None


def check_count(count: int) -> None:
    """Refuse more pictures than one request may have, before work is put into them.

    Raises:
        RequestError: 413.
    """
    if count > MOST_PICTURES:
        raise too_large(f"{count} pictures in one request; at most {MOST_PICTURES} are taken")


def split(array: NDArray[Any]) -> list[Pixels | RequestError]:
    """Return the pictures an array holds: one where it has the shape of one, else several.

    Raises:
        RequestError: 413 too many, 422 neither.
    """
    if array.size == 0:
        raise unreadable(f"the shape is {array.shape}: there is no pixel")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3)):
        return [one_picture(array)]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3)):
        check_count(len(array))
        return [_or_error(picture) for picture in array]
    raise unreadable(f"the shape is {array.shape}; pictures are {SHAPES}")


def one_picture(array: NDArray[Any]) -> Pixels:
    """Return grey levels 0 to 255 as one `uint8` picture (H, W) or (H, W, 3).

    Raises:
        RequestError: 422 another shape, or levels outside of 0 to 255.
    """
    colour = array.ndim == 3 and array.shape[2] in (1, 3)
    if not array.size or not (array.ndim == 2 or colour):
        raise unreadable(f"the shape is {array.shape}; a picture is (height, width[, 1 or 3])")
    # False for what is not a number too.
    if not (array.min() >= 0 and array.max() <= 255):
        raise unreadable("the numbers must be grey levels from 0 to 255")
    levels: Pixels = np.rint(array).astype(np.uint8)
    return levels[:, :, 0] if colour and array.shape[2] == 1 else levels


def _are_numbers(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    # bool is no number here, though Python's is.
    return kinds <= {int, float} or (kinds == {list} and all(map(_are_numbers, values)))


def _or_error(array: NDArray[Any]) -> Pixels | RequestError:
    try:
        return one_picture(array)
    except RequestError as error:
        return error
