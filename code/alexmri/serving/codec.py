"""From the bytes of a request to the pixels the model sees: limits first, then decoding.

Knows nothing of torch, so that the server can answer while the model is still being loaded. Nothing
is ever written to a disk.
"""

import base64
import binascii
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Container, Sequence
from types import TracebackType

import numpy as np
from PIL import Image
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from alexmri.data.pixels import Pixels, decode, fit
from alexmri.errors import UserError
from alexmri.serving.arrays import (
    MOST_PICTURES,
    NPY_MAGIC,
    check_count,
    from_lists,
    from_npy,
    one_picture,
    split,
)
from alexmri.serving.request_error import (
    RequestError,
    bad_request,
    too_large,
    too_late,
    unreadable,
)

# In one request, before any is decoded: a film of 20 million, or 512 slices of 256 x 256.
MOST_PIXELS = 40_000_000
# Requests with more are decoded one at a time, so that their memory does not add up.
MANY_PIXELS = 4_000_000
# So are larger bodies of numbers, before their pixels are known: as Python's objects they take ten
# times as much.
MANY_BYTES = 1_000_000
# A line of pixels costs work of its own, however few there are in it.
LONGEST_SIDE = 20_000
# Each scan of a progressive JPEG goes over all pixels: 1,000 of them, in 28 KB, took 2.2 s. Usual
# are 10, and libtiff has the same limit. In a scan's data this pair of bytes cannot be.
SCAN, MOST_SCANS = b"\xff\xda", 100
IMAGE_TYPES = (
    "image/png",
    "image/jpeg",
    "image/tiff",
    "image/bmp",
    "image/webp",
    "application/x-image",
    "application/octet-stream",
)
NPY_TYPE = "application/x-npy"
JSON_TYPE = "application/json"
LINES_TYPE = "application/jsonlines"
FORM_TYPE = "multipart/form-data"
CONTENT_TYPES = (*IMAGE_TYPES, NPY_TYPE, JSON_TYPE, LINES_TYPE, FORM_TYPE)
SHAPES = '{"image": …}, {"instances": […]} or {"inputs": …}'
RECORD = 'base64, {"b64": base64}, {"image": …} or nested lists of grey levels'

# A picture: a file's bytes, or levels (H, W) or (H, W, 3).
Picture = bytes | Pixels
Record = Picture | RequestError

_many_pixels_at_a_time = threading.Lock()


class PixelBudget:
    """What one request may still decode; refuses by width and height, before there are pixels.

    While it is entered, a large request may wait here for those before it.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._taken = 0
        self._alone = False

    def __enter__(self) -> "PixelBudget":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._alone:
            _many_pixels_at_a_time.release()

    def take(self, width: int, height: int) -> None:
        """Count a picture.

        Raises:
            RequestError: 413 it has too many pixels, alone or with those before it, or too long a
                side; 503 too many large requests came before it.
        """
        if max(width, height) > LONGEST_SIDE:
            raise too_large(
                f"it has {width} x {height} pixels; a side may have {LONGEST_SIDE} at most"
            )
        if self._taken + width * height > MOST_PIXELS:
            raise too_large(
                f"it has {width} x {height} pixels; at most {MOST_PIXELS // 10**6} million are"
                " decoded for one request"
            )
        self._taken += width * height
        if self._taken > MANY_PIXELS:
            self.be_alone()

    def be_alone(self) -> None:
        """Wait until no other large request is being decoded, and keep the others waiting.

        Raises:
            RequestError: 503 the deadline came before.
        """
        if not self._alone:
            left = max(0.0, self._deadline - time.monotonic())
            self._alone = _many_pixels_at_a_time.acquire(timeout=left)
            if not self._alone:
                raise too_late()


def read_records(content_type: str, body: bytes, budget: PixelBudget) -> list[Record]:
    """Return the pictures in a request, at least one; one that is wrong in itself as its error.

    `content_type` is the header, with its parameters.

    Raises:
        RequestError: 413 too many, 415 unknown type, 400 malformed, 422 not the shape of pictures,
            503 too many large requests came before it.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media not in CONTENT_TYPES:
        raise RequestError(
            415,
            "unsupported_media_type",
            f"the content type is '{media}'; send one of {', '.join(CONTENT_TYPES)}",
        )
    if not body:
        raise bad_request("there is no picture: the body is empty")
    records: Sequence[Record]
    numpys = media == NPY_TYPE or (media == "application/octet-stream" and body[:6] == NPY_MAGIC)
    if len(body) > MANY_BYTES and (numpys or media in (JSON_TYPE, LINES_TYPE)):
        budget.be_alone()
    if media == JSON_TYPE:
        records = _from_json(body)
    elif media == LINES_TYPE:
        records = _from_lines(body)
    elif media == FORM_TYPE:
        records = _from_form(content_type, body)
    elif numpys:
        records = from_npy(body)
    else:
        records = [body]
    if not records:
        raise bad_request("there is no picture in the request")
    check_count(len(records))
    return list(records)


def to_pixels(
    records: Sequence[Record],
    budget: PixelBudget,
    *,
    image_size: int,
    channels: int,
    tolerated: Container[int] = (),
) -> tuple[Pixels, list[RequestError | None]]:
    """Return the good pictures as `uint8` (N, C, S, S), and for every record its error or None.

    Raises:
        RequestError: that of the first record whose status is not `tolerated`.
    """
    pixels: list[Pixels] = []
    errors: list[RequestError | None] = []
    for number, record in enumerate(records, start=1):
        try:
            pixels.append(_decode(record, budget.take, image_size, channels))
            errors.append(None)
        except RequestError as error:
            if len(records) > 1:
                error.message = f"picture {number} of {len(records)}: {error.message}"
            if error.status not in tolerated:
                raise
            errors.append(error)
    if not pixels:
        return np.empty((0, channels, image_size, image_size), dtype=np.uint8), errors
    return np.stack(pixels), errors


def _decode(
    record: Record, admit: Callable[[int, int], None], image_size: int, channels: int
) -> Pixels:
    if isinstance(record, RequestError):
        raise record
    if isinstance(record, np.ndarray):
        admit(record.shape[1], record.shape[0])
        return fit(Image.fromarray(record), image_size=image_size, channels=channels)
    if not record:
        raise bad_request("there is no picture: its bytes are missing")
    if record.startswith(b"\xff\xd8") and record.count(SCAN) > MOST_SCANS:
        raise unreadable(f"the JPEG has more than {MOST_SCANS} scans")
    try:
        return decode(record, image_size=image_size, channels=channels, admit=admit)
    except UserError as error:
        raise unreadable(str(error)) from None
    except RequestError:
        raise
    except Exception:
        # Pillow's decoders raise whatever comes when a file is damaged.
        raise unreadable("the image cannot be read as an image: it is damaged") from None


def _from_json(body: bytes) -> Sequence[Record]:
    document = _parse(body, "the body")
    match document:
        case {"image": value}:
            return [_record(value)]
        case {"instances": [_, *_] as instances}:
            return _several(instances)
        case {"inputs": [str() | dict(), *_] as inputs}:
            return _several(inputs)
        case {"inputs": [_, *_] as inputs}:
            return split(from_lists(inputs))
        case {"inputs": str() | dict() as value}:
            return [_record(value)]
        case _:
            raise bad_request(f"the body must be {SHAPES}; a picture is {RECORD}")


def _from_lines(body: bytes) -> Sequence[Record]:
    filled = (line for line in io.BytesIO(body) if not line.isspace())
    lines = list(itertools.islice(filled, MOST_PICTURES + 1))
    if len(lines) > MOST_PICTURES:
        raise too_large(f"more than {MOST_PICTURES} lines in one request")
    records: list[Record] = []
    for line in lines:
        try:
            records.append(_record(_parse(line, "the line")))
        except RequestError as error:
            records.append(error)
    return records


def _from_form(content_type: str, body: bytes) -> Sequence[Record]:
    # In the order of the form; the parser returns them grouped by the names of their fields.
    files: list[io.BytesIO] = []

    def in_memory(
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None,
        content_length: int | None = None,
    ) -> io.BytesIO:
        files.append(io.BytesIO())
        return files[-1]

    parser = FormDataParser(
        stream_factory=in_memory,
        max_form_memory_size=len(body),
        max_form_parts=2 * MOST_PICTURES,
        silent=False,
    )
    options = _parameters(content_type)
    try:
        parser.parse(io.BytesIO(body), FORM_TYPE, len(body), options)
    except RequestEntityTooLarge:
        raise too_large(f"the form has more than {2 * MOST_PICTURES} parts") from None
    except ValueError:
        raise bad_request("the form cannot be read: its parts are not as announced") from None
    if not files:
        raise bad_request("the form holds no file; with curl: -F image=@slice.png")
    return [file.getvalue() for file in files]


def _parameters(content_type: str) -> dict[str, str]:
    from werkzeug.http import parse_options_header

    return parse_options_header(content_type)[1]


def _parse(text: bytes, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise bad_request(f"{what} is not valid JSON") from None


def _several(values: Sequence[object]) -> list[Record]:
    check_count(len(values))
    records: list[Record] = []
    for value in values:
        try:
            records.append(_record(value))
        except RequestError as error:
            records.append(error)
    return records


def _record(value: object) -> Picture:
    match value:
        case {"b64": str(text)} | {"image": str(text)} | {"image": {"b64": str(text)}} | str(text):
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise bad_request("a picture is not valid base64") from None
        case {"image": [*numbers]} | [*numbers]:
            return one_picture(from_lists(numbers))
        case _:
            raise bad_request(f"a picture must be {RECORD}")
