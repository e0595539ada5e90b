"""From the bytes of a request to the pixels the model sees: limits first, then decoding.

Knows nothing of torch, so that the server can answer while the model is still being loaded. Nothing
is ever written to a disk.
"""

import io
import math
import re
import threading
import time
from collections.abc import Container, Sequence
from types import TracebackType

import numpy as np
from PIL import Image

from alexmri.data.pixels import PREPROCESSING, Pixels, Preprocessing, decode, fit
from alexmri.data.scans import is_scan
from alexmri.errors import UserError
from alexmri.serving.arrays import MAX_IMAGES, NPY_MAGIC, check_count, from_npy
from alexmri.serving.records import Record, from_form, from_json, from_lines
from alexmri.serving.request_error import (
    RequestError,
    bad_request,
    too_large,
    too_late,
    unreadable,
)
from alexmri.serving.structure import check_structure

__all__ = [
    "CONTENT_TYPES",
    "MAX_IMAGES",
    "MAX_PIXELS",
    "PixelBudget",
    "Record",
    "read_records",
    "to_pixels",
]

# In one request, before any is decoded: a film of 20 million, or 512 slices of 256 x 256.
MAX_PIXELS = 40_000_000
# A line of pixels costs work of its own, however few there are in it.
MAX_SIDE = 20_000
# Requests with more are decoded one at a time, so that their memory does not add up. The limit is
# lower for numbers, which take ten times as much as Python objects.
MANY_PIXELS = MANY_BYTES = 4_000_000
MANY_NUMBER_BYTES = 1_000_000
# Of the processor, for one request. 40 million pixels take 1 to 3 s; only many files that each are
# as costly as the limits allow take more. Those take turns after the first second.
MANY_SECONDS, MAX_SECONDS = 1, 10

# `curl -d @FILE` sends a file without these bytes; so many of an image hold some of them.
REMOVED_BY_CURL, SURELY_SOME = re.compile(rb"[\0\r\n]"), 2000
CURL_REMEDY = "; curl -d has removed line ends and zero bytes from it: use --data-binary"

IMAGE_TYPES = (
    "image/png",
    "image/jpeg",
    "image/tiff",
    "image/bmp",
    "image/webp",
    "application/x-image",
    "application/octet-stream",
)
SCAN_TYPES = ("application/dicom", "application/x-nifti")
NPY_TYPE = "application/x-npy"
JSON_TYPE = "application/json"
LINES_TYPE = "application/jsonlines"
FORM_TYPE = "multipart/form-data"
CONTENT_TYPES = (*IMAGE_TYPES, *SCAN_TYPES, NPY_TYPE, JSON_TYPE, LINES_TYPE, FORM_TYPE)
# Other names that clients send, beside every image/*. The bytes say what these hold.
BYTES_TYPES = {
    "application/x-image",
    "application/octet-stream",
    "binary/octet-stream",
    "file-path/raw-bytes",
    *SCAN_TYPES,
    "application/gzip",
    "application/x-gzip",
}
# What a client sends that was not told a type: requests.post(data=bytes), curl --data-binary.
UNSTATED_TYPES = {"", "application/x-www-form-urlencoded"}
OTHER_NAMES = {
    "application/npy": NPY_TYPE,
    "text/json": JSON_TYPE,
    "application/x-json": JSON_TYPE,
    "application/x-jsonlines": LINES_TYPE,
    "application/jsonl": LINES_TYPE,
    "application/x-jsonl": LINES_TYPE,
    "application/x-ndjson": LINES_TYPE,
    "application/ndjson": LINES_TYPE,
}
IMAGE_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|II[*+]\0|II\0\*|MM\0[*+]|MM\*\0|BM|RIFF....WEBP", re.DOTALL
)
JSON_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*[\[{"]')
_large_requests_one_at_a_time = threading.Lock()


class PixelBudget:
    """What one request may still decode; refuses by width and height, before there are pixels.

    It belongs to the thread that makes it. While it is entered, a large request may wait here for
    those before it.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._taken = 0
        self._alone = False
        self._began = time.thread_time()

    def __enter__(self) -> "PixelBudget":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._alone:
            _large_requests_one_at_a_time.release()

    def take(self, width: int, height: int) -> None:
        """Count an image.

        Raises:
            RequestError: 413 it has too many pixels, alone or with those before it, or too long a
                side; 503 too many large requests came before it.
        """
        if max(width, height) > MAX_SIDE:
            raise too_large(f"it has {width} x {height} pixels; a side may have {MAX_SIDE} at most")
        if self._taken + width * height > MAX_PIXELS:
            raise too_large(
                f"it has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are"
                " decoded for one request"
            )
        self._taken += width * height
        if self._taken > MANY_PIXELS:
            self.be_alone()

    def take_volume(self, *sides: int) -> None:
        """Count the voxels of a scan.

        Raises:
            RequestError: 413 it has too many, alone or with what came before it; 503 as `take`.
        """
        voxels = math.prod(sides)
        if self._taken + voxels > MAX_PIXELS:
            raise too_large(
                f"the scan has {' x '.join(map(str, sides))} voxels; at most"
                f" {MAX_PIXELS // 10**6} million are read for one request"
            )
        self._taken += voxels
        if self._taken > MANY_PIXELS:
            self.be_alone()

    def be_alone(self) -> None:
        """Wait until no other large request is being decoded, and keep the others waiting.

        Raises:
            RequestError: 503 the deadline came before.
        """
        if not self._alone:
            left = max(0.0, self._deadline - time.monotonic())
            self._alone = _large_requests_one_at_a_time.acquire(timeout=left)
            if not self._alone:
                raise too_late()

    def check_time(self) -> None:
        """Refuse to go on with the next image after the deadline, or at too high a cost.

        Raises:
            RequestError: 503 after the deadline, or it came before this request's turn; 413 it has
                cost too much.
        """
        self.check_deadline()
        seconds = time.thread_time() - self._began
        if seconds > MAX_SECONDS:
            raise too_large(
                f"the request takes more than {MAX_SECONDS} s to decode; send fewer images at a"
                " time"
            )
        if seconds > MANY_SECONDS:
            self.be_alone()

    def check_deadline(self) -> None:
        """Refuse to go on after the deadline.

        Raises:
            RequestError: 503.
        """
        if time.monotonic() > self._deadline:
            raise too_late()

    def reader(self, data: bytes) -> io.BytesIO:
        """Return a file of `data` that ends the decoding at the deadline, where Pillow reads it."""
        return _ReaderWithDeadline(data, self)


class _ReaderWithDeadline(io.BytesIO):
    """Pillow's parsers in Python, and its decoders of PNG and JPEG, read piece by piece."""

    def __init__(self, data: bytes, budget: PixelBudget) -> None:
        super().__init__(data)
        self._budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        self._budget.check_deadline()
        return super().read(size)


def read_records(content_type: str, body: bytes, budget: PixelBudget) -> list[Record]:
    """Return the images in a request, at least one; one that is wrong in itself as its error.

    `content_type` is the header, with its parameters.

    Raises:
        RequestError: 413 too many, 415 unknown type, 400 malformed, 422 not the shape of images,
            503 too many large requests came before it.
    """
    kind = _kind_of(content_type, body)
    if not body:
        raise bad_request("there is no image: the body is empty")
    if len(body) > (MANY_BYTES if kind in ("", FORM_TYPE) else MANY_NUMBER_BYTES):
        budget.be_alone()
    records: Sequence[Record]
    if kind == JSON_TYPE:
        records = from_json(body)
    elif kind == LINES_TYPE:
        records = from_lines(body)
    elif kind == FORM_TYPE:
        records = from_form(content_type, body)
    elif kind == NPY_TYPE:
        records = from_npy(body)
    else:
        records = [body]
    if not records:
        raise bad_request("there is no image in the request")
    check_count(len(records))
    return list(records)


def _kind_of(content_type: str, body: bytes) -> str:
    """Return the type of JSON, lines, forms or .npy, or "" where the body is an image file.

    Raises:
        RequestError: 415.
    """
    media = content_type.partition(";")[0].strip().lower()
    media = OTHER_NAMES.get(media, media)
    if media in (NPY_TYPE, JSON_TYPE, LINES_TYPE, FORM_TYPE):
        return media
    if media.startswith("image/") or media in BYTES_TYPES | UNSTATED_TYPES:
        if body.startswith(NPY_MAGIC):
            return NPY_TYPE
        if IMAGE_STARTS.match(body) or is_scan(body):
            return ""
        if JSON_START.match(body):
            return JSON_TYPE
        if media not in UNSTATED_TYPES or not body:
            return ""
    found = f"the content type is '{media}'" if media else "there is no content type"
    if media in UNSTATED_TYPES:
        found += ", and the body is not an image, an .npy file or JSON"
    if _was_cut_by_curl(body):
        found += CURL_REMEDY
    raise RequestError(
        415, "unsupported_media_type", f"{found}; send one of {', '.join(CONTENT_TYPES)}"
    )


def _was_cut_by_curl(body: bytes) -> bool:
    return len(body) >= SURELY_SOME and not body.isascii() and not REMOVED_BY_CURL.search(body)


def to_pixels(
    records: Sequence[Record],
    budget: PixelBudget,
    *,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing = PREPROCESSING,
    tolerated: Container[int] = (),
) -> tuple[Pixels, list[RequestError | None]]:
    """Return the good images as `uint8` (N, C, S, S), and for every record its error or None.

    Raises:
        RequestError: that of the first record whose status is not `tolerated`.
    """
    pixels: list[Pixels] = []
    errors: list[RequestError | None] = []
    for number, record in enumerate(records, start=1):
        budget.check_time()
        try:
            pixels.append(_decode(record, budget, image_size, channels, preprocessing))
            errors.append(None)
        except RequestError as error:
            if len(records) > 1:
                error.message = f"image {number} of {len(records)}: {error.message}"
            if error.status not in tolerated:
                raise
            errors.append(error)
    if not pixels:
        return np.empty((0, channels, image_size, image_size), dtype=np.uint8), errors
    return np.stack(pixels), errors


def _decode(
    record: Record,
    budget: PixelBudget,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing,
) -> Pixels:
    if isinstance(record, RequestError):
        raise record
    if isinstance(record, np.ndarray):
        budget.take(record.shape[1], record.shape[0])
        return fit(
            Image.fromarray(record),
            image_size=image_size,
            channels=channels,
            preprocessing=preprocessing,
        )
    if not record:
        raise bad_request("there is no image: its bytes are missing")
    check_structure(record)
    try:
        return decode(
            record,
            image_size=image_size,
            channels=channels,
            admit=budget.take,
            reader=budget.reader,
            preprocessing=preprocessing,
        )
    except UserError as error:
        more = "" if IMAGE_STARTS.match(record) else "; nor is it a scan (DICOM, NIfTI)"
        if _was_cut_by_curl(record):
            more = CURL_REMEDY
        raise unreadable(f"{error}{more}") from None
    except RequestError:
        raise
    except Exception:
        # Pillow's decoders raise whatever comes when a file is damaged.
        raise unreadable("the image cannot be read as an image: it is damaged") from None
