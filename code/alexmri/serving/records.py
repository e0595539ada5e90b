"""The images in the body of a request: JSON, JSON lines or a form, not yet decoded."""

import binascii
import io
import itertools
import re
from collections.abc import Sequence

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from alexmri.data.pixels import Pixels
from alexmri.serving.arrays import MAX_IMAGES, check_count, from_lists, one_image, parse_json, split
from alexmri.serving.request_error import RequestError, bad_request, too_large

# Bytes of a text in base64 that are decoded at a time: other threads wait meanwhile.
BASE64_BLOCK = 2**20
# Of one part of a form; of all its parts, and of file contents that look like the end of a part.
MAX_HEAD_BYTES, MAX_BOUNDARIES = 16_384, 10_000
BLANK_LINE = re.compile(rb"\r\n\r\n|\r\r|\n\n")
SHAPES = '{"image": …}, {"instances": […]}, {"inputs": …}, a list of images or one image'
RECORD = 'base64, {"b64": base64}, {"image": …} or nested lists of intensities'
DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
# From the URL-safe alphabet to the usual one.
URL_SAFE, WHITESPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n"

# What one record holds: the bytes of a file, or intensities (H, W) or (H, W, 3).
ImageData = bytes | Pixels
Record = ImageData | RequestError


def from_json(body: bytes) -> Sequence[Record]:
    """Return the images of a JSON document.

    Raises:
        RequestError: 400 malformed, 413 too many images or numbers, 422 not the shape of images.
    """
    match parse_json(body, "the body"):
        case {"image": value}:
            return [_record(value)]
        case {"instances": [_, *_] as instances}:
            return _several(instances)
        case ({"inputs": [_, *_] as values}) | ([_, *_] as values):
            return _list_of_images(values)
        case {"inputs": str() | dict() as value} | (str() as value):
            return [_record(value)]
        case _:
            raise bad_request(f"the body must be {SHAPES}; an image is {RECORD}")


def _list_of_images(values: Sequence[object]) -> Sequence[Record]:
    """Return a list without a name for what it holds: by its shape, one image or several."""
    if not any(isinstance(value, (str, dict)) for value in values):
        try:
            array = from_lists(list(values))
        except RequestError:
            pass  # of several sizes, or not all of them numbers
        else:
            return split(array)
    return _several(values)


def from_lines(body: bytes) -> Sequence[Record]:
    """Return the images of JSON lines, one for each line that is not blank.

    Raises:
        RequestError: 413 too many.
    """
    filled = (line for line in io.BytesIO(body) if not line.isspace())
    lines = list(itertools.islice(filled, MAX_IMAGES + 1))
    if len(lines) > MAX_IMAGES:
        raise too_large(f"more than {MAX_IMAGES} lines in one request")
    records: list[Record] = []
    for line in lines:
        try:
            records.append(_record(parse_json(line, "the line")))
        except RequestError as error:
            records.append(error)
    return records


def from_form(content_type: str, body: bytes) -> Sequence[Record]:
    """Return the files of a form.

    Raises:
        RequestError: 400 malformed, 413 too many parts.
    """
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
        max_form_parts=2 * MAX_IMAGES,
        silent=False,
    )
    options = parse_options_header(content_type)[1]
    _check_part_heads(body, b"--" + options.get("boundary", "").encode())
    try:
        parser.parse(io.BytesIO(body), "multipart/form-data", len(body), options)
    except RequestEntityTooLarge:
        raise too_large(f"the form has more than {2 * MAX_IMAGES} parts") from None
    except ValueError:
        raise bad_request("the form cannot be read: its parts are not as announced") from None
    if not files:
        raise bad_request("the form holds no file; with curl: -F image=@slice.png")
    return [file.getvalue() for file in files]


def _check_part_heads(body: bytes, boundary: bytes) -> None:
    """Refuse long heads of parts, whose lines are parsed in Python: 20 MB took 3.5 s and 600 MB."""
    at, found = body.find(boundary), 0
    while at >= 0:
        start = at + len(boundary)
        limit = start + MAX_HEAD_BYTES
        found += 1
        if found > MAX_BOUNDARIES:
            raise too_large(f"the boundary of the form occurs more than {MAX_BOUNDARIES} times")
        # The last boundary ends in two more hyphens.
        is_line = body[start : start + 1] in (b"\r", b"\n", b" ", b"\t")
        if is_line and len(body) > limit and not BLANK_LINE.search(body, start, limit):
            raise too_large(f"a part of the form has more than {MAX_HEAD_BYTES} bytes of headers")
        at = body.find(boundary, start)


def _several(values: Sequence[object]) -> list[Record]:
    check_count(len(values))
    records: list[Record] = []
    for value in values:
        try:
            records.append(_record(value))
        except RequestError as error:
            records.append(error)
    return records


def _record(value: object) -> ImageData:
    match value:
        case {"b64": str(text)} | {"image": str(text)} | {"image": {"b64": str(text)}} | str(text):
            return _from_base64(text)
        case {"image": [*numbers]} | [*numbers]:
            return one_image(from_lists(numbers))
        case _:
            raise bad_request(f"an image must be {RECORD}")


def _from_base64(text: str) -> bytes:
    """Return the bytes of a text in base64: also of a data URL, in lines, unpadded or URL-safe."""
    url = DATA_URL.match(text)
    start = url.end() if url else 0
    decoded, rest = [], b""
    try:
        for at in range(start, len(text), BASE64_BLOCK):
            block = text[at : at + BASE64_BLOCK].encode("ascii")
            rest += block.translate(URL_SAFE, WHITESPACE)
            # The last four stay for the end: they may be padded.
            whole = max(0, len(rest) - 4) // 4 * 4
            decoded.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
            rest = rest[whole:]
        rest = rest.rstrip(b"=")
        decoded.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    except ValueError:
        raise bad_request("an image is not valid base64") from None
    return b"".join(decoded)
