"""Bodies of requests and what the server reads from them, for tests."""

import base64
import io
import json
import time

import numpy as np
from PIL import Image

from alexmri.data.pixels import Pixels
from alexmri.serving.decode import PixelBudget, Record, read_records, to_pixels
from alexmri.serving.request_error import RequestError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def file_of(kind: str, mode: str = "L", size: tuple[int, int] = (44, 52)) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def form(*files: bytes, names: str = "f" * 3000) -> tuple[str, bytes]:
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in zip(names, files, strict=False)
    ]
    return "multipart/form-data; boundary=xyz", b"".join(parts) + b"--xyz--\r\n"


def pixels_of(content_type: str, body: bytes) -> tuple[Pixels, list[RequestError | None]]:
    return decoded(records_of(content_type, body))


def records_of(content_type: str, body: bytes) -> list[Record]:
    with PixelBudget(time.monotonic() + 60) as budget:
        return read_records(content_type, body, budget)


def decoded(records: list[Record]) -> tuple[Pixels, list[RequestError | None]]:
    with PixelBudget(time.monotonic() + 60) as budget:
        every = range(400, 500)
        return to_pixels(records, budget, image_size=32, channels=1, tolerated=every)


FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
PNG = file_of("PNG")
TEXT = base64.b64encode(PNG).decode()
