"""What a request may hold, and what it is told when it does not."""

import base64
import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexmri.data.pixels import FORMATS as TRAINING_FORMATS
from alexmri.data.pixels import decode
from alexmri.serving.arrays import MAX_IMAGES
from alexmri.serving.decode import IMAGE_TYPES, MAX_PIXELS, PixelBudget, to_pixels
from alexmri.serving.request_error import RequestError
from alexmri.serving.responses import choose_type

from .request_bodies import (
    FIELD,
    FORMATS,
    GRAY,
    PNG,
    TEXT,
    as_json,
    file_of,
    form,
    npy,
    pixels_of,
    records_of,
)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("content_type", IMAGE_TYPES)
def test_an_image_file_is_what_its_bytes_are(kind: str, content_type: str) -> None:
    data = file_of(kind)
    pixels_NCHW, errors = pixels_of(f"{content_type.upper()}; q=1", data)
    assert errors == [None]
    np.testing.assert_array_equal(pixels_NCHW[0], decode(data, image_size=32, channels=1))


@pytest.mark.parametrize(
    "content_type",
    [
        "image/jpg",
        "image/pjpeg",
        "image/x-png",
        "image/tif",
        "image/x-ms-bmp",
        "IMAGE/PNG; charset=binary",
        "binary/octet-stream",
        "file-path/raw-bytes",
        "application/x-image",
        "application/x-www-form-urlencoded",
        "",
    ],
)
def test_the_bytes_say_what_a_body_of_a_vague_type_is(content_type: str) -> None:
    for kind in FORMATS:
        data = file_of(kind)
        assert records_of(content_type, data) == [data]
    (record,) = records_of(content_type, npy(GRAY))
    np.testing.assert_array_equal(record, GRAY)
    assert records_of(content_type, b" \n" + as_json({"instances": [TEXT]})) == [PNG]


@pytest.mark.parametrize(
    "media", ["application/x-jsonlines", "application/jsonl", "application/x-ndjson"]
)
def test_json_lines_have_many_names(media: str) -> None:
    assert records_of(media, as_json(TEXT) + b"\n" + as_json(TEXT)) == [PNG, PNG]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", PNG),
        ("application/pdf", b"%PDF-1.7"),
        ("audio/mpeg", PNG),
        ("", b"image=abc"),
        ("application/x-www-form-urlencoded", b"image=abc"),
    ],
)
def test_an_unknown_type_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        records_of(content_type, body)
    assert caught.value.status == 415
    known = f"the content type is '{content_type}'" if content_type else "there is no content type"
    assert caught.value.message.startswith(known)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_and_pages_count_as_in_training(
    tmp_path: Path, tag: int, compression: str | None
) -> None:
    path = tmp_path / "slice.tif"
    first, second = (Image.fromarray(page) for page in (GRAY * 5, GRAY))
    first.save(
        path,
        save_all=True,
        append_images=[second],
        tiffinfo={274: tag},
        compression=compression,
    )
    (pixels_CHW,), _ = pixels_of("image/tiff", path.read_bytes())
    np.testing.assert_array_equal(pixels_CHW, decode(path, image_size=32, channels=1))


def test_no_other_formats_are_taken_than_in_training() -> None:
    for kind in ("GIF", "PPM", "TGA", "ICO", "JPEG2000"):
        _, (error,) = pixels_of("application/octet-stream", file_of(kind))
        assert error is not None
        assert error.status == 422
    assert set(FORMATS) == set(TRAINING_FORMATS)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("data:image/png;base64," + TEXT, id="data URL"),
        pytest.param("data:;base64," + TEXT, id="data URL without a type"),
        pytest.param(base64.encodebytes(PNG).decode(), id="lines"),
        pytest.param(base64.encodebytes(PNG).decode().replace("\n", "\r\n"), id="MIME"),
        pytest.param(TEXT + "\n", id="a newline at the end"),
        pytest.param(TEXT.rstrip("="), id="no padding"),
        pytest.param(base64.urlsafe_b64encode(PNG).decode(), id="URL-safe"),
        pytest.param(base64.urlsafe_b64encode(PNG).decode().rstrip("="), id="URL-safe, unpadded"),
    ],
)
def test_base64_is_taken_as_clients_send_it(text: str) -> None:
    for document in ({"image": text}, {"instances": [{"b64": text}]}, text, [text]):
        assert records_of("application/json", as_json(document)) == [PNG]
    assert records_of("application/jsonlines", as_json(text)) == [PNG]


@given(
    data=st.binary(min_size=1, max_size=200),
    block=st.sampled_from([1, 2, 3, 4, 5, 7, 64, 2**20]),
    url_safe=st.booleans(),
    padded=st.booleans(),
    width=st.integers(1, 80),
)
def test_base64_of_any_bytes_in_any_form_comes_back(
    data: bytes, block: int, url_safe: bool, padded: bool, width: int
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(data).decode()
    text = text if padded else text.rstrip("=")
    lines = "\r\n".join(text[at : at + width] for at in range(0, len(text), width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexmri.serving.records.BASE64_BLOCK", block)
        assert records_of("application/json", as_json(lines)) == [data]


@pytest.mark.parametrize(
    ("document", "count"),
    [
        (GRAY.tolist(), 1),
        (np.stack([GRAY] * 3, axis=-1).tolist(), 1),
        ([GRAY.tolist()], 1),
        ([GRAY.tolist(), GRAY.tolist()], 2),
        ([GRAY.tolist(), GRAY[:3].tolist()], 2),
        ([GRAY.tolist(), TEXT, {"b64": TEXT}], 3),
        ({"inputs": [GRAY.tolist(), GRAY[:3].tolist()]}, 2),
    ],
)
def test_a_bare_list_is_images_or_one_image(document: object, count: int) -> None:
    assert not any(
        isinstance(record, RequestError)
        for record in records_of("application/json", as_json(document))
    )
    assert len(records_of("application/json", as_json(document))) == count


SCALED = (GRAY / 255).astype(np.float32)


@pytest.mark.parametrize(
    "array",
    [
        SCALED,
        SCALED[:, :, None],
        np.stack([SCALED] * 2),
        (GRAY > 20) * 0.5,
        SCALED.astype(np.float16),
    ],
)
def test_intensities_from_0_to_1_are_refused(array: np.ndarray) -> None:
    for content_type, body in (
        ("application/x-npy", npy(array)),
        ("application/json", as_json({"inputs": array.tolist()})),
    ):
        with pytest.raises(RequestError, match="send intensities from 0 to 255") as caught:
            records_of(content_type, body)
        assert caught.value.status == 422
        assert f"from 0 to {array.max():.3g}" in caught.value.message


@pytest.mark.parametrize(
    "array",
    [
        (GRAY > 20).astype(np.uint8),
        (GRAY > 20).astype(np.float32),
        np.zeros((6, 8)),
        SCALED * 8,
        np.stack([SCALED, GRAY]),
    ],
    ids=["0 and 1", "0.0 and 1.0", "black", "above 1", "one dark slice of several"],
)
def test_dark_images_are_taken(array: np.ndarray) -> None:
    expected = np.rint(array).astype(np.uint8)
    records = records_of("application/x-npy", npy(array))
    np.testing.assert_array_equal(
        np.stack(records), expected if array.ndim == 3 else expected[None]
    )


def test_numbers_out_of_range_are_told() -> None:
    for array, told in ((GRAY.astype(int) * 100, "0 to 4700"), (SCALED - 0.5, "-0.5 to -0.315686")):
        with pytest.raises(RequestError, match=f"the numbers go from {told}; send intensities"):
            records_of("application/x-npy", npy(array))


@pytest.mark.parametrize(
    ("document", "count"),
    [
        ({"image": TEXT}, 1),
        ({"image": {"b64": TEXT}}, 1),
        ({"instances": [TEXT]}, 1),
        ({"instances": [TEXT, {"b64": TEXT}, {"image": TEXT}]}, 3),
        ({"inputs": TEXT}, 1),
        ({"inputs": {"b64": TEXT}}, 1),
        ({"inputs": [TEXT, {"b64": TEXT}]}, 2),
    ],
)
def test_json_holds_files_in_base64(document: object, count: int) -> None:
    assert records_of("application/json", as_json(document)) == [PNG] * count


@pytest.mark.parametrize(
    ("document", "count"),
    [
        ({"image": GRAY.tolist()}, 1),
        ({"image": GRAY[:, :, None].tolist()}, 1),
        ({"image": (GRAY + 0.25).tolist()}, 1),
        ({"instances": [GRAY.tolist(), {"image": GRAY.tolist()}]}, 2),
        ({"inputs": GRAY.tolist()}, 1),
        ({"inputs": [GRAY.tolist(), GRAY.tolist()]}, 2),
        ({"inputs": np.stack([GRAY] * 3)[..., None].tolist()}, 3),
    ],
)
def test_json_holds_intensities(document: object, count: int) -> None:
    records = records_of("application/json", as_json(document))
    assert len(records) == count
    for record in records:
        np.testing.assert_array_equal(record, GRAY)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", ">u2"])
def test_npy_holds_one_image_or_several(dtype: str) -> None:
    gray = GRAY.astype(dtype)
    colour = np.stack([gray] * 3, axis=-1)
    for array, count in ((gray, 1), (colour, 1), (np.stack([gray] * 2), 2), (colour[None], 1)):
        for content_type in ("application/x-npy", "application/octet-stream"):
            pixels_NCHW, errors = pixels_of(content_type, npy(array))
            assert errors == [None] * count
    by_file = io.BytesIO()
    Image.fromarray(GRAY).save(by_file, "PNG")
    expected, _ = pixels_of("image/png", by_file.getvalue())
    np.testing.assert_array_equal(pixels_NCHW, expected)


def test_lines_and_forms_hold_several() -> None:
    lines = b"\n".join([as_json(TEXT), b"", as_json({"b64": TEXT}), as_json({"image": TEXT})])
    assert records_of("application/jsonlines", lines + b"\r\n") == [PNG] * 3
    assert records_of(*form(PNG, PNG)) == [PNG, PNG]


def test_the_images_of_a_form_stay_in_its_order() -> None:
    assert records_of(*form(b"1", b"2", b"3", names="aba")) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", as_json({"instances": [""] * (MAX_IMAGES + 1)}), 413),
        ("application/jsonlines", b"1\n" * (MAX_IMAGES + 1), 413),
        ("application/json", as_json({"inputs": [[[1, 2]]] * (MAX_IMAGES + 1)}), 413),
        ("application/json", as_json({"image": [[1, [2]]]}), 400),
        (*form(*[b"x"] * (MAX_IMAGES + 1)), 413),
        (*form(*[b"x"] * 3000), 413),
        ("application/x-npy", npy(np.zeros((MAX_IMAGES + 1, 2, 2), np.uint8)), 413),
        ("text/csv", b"1,2", 415),
        ("", b"1,2", 415),
        ("image/png", b"", 400),
        ("", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b'{"image":' * 50_000, 400),
        ("application/json", b"\xff", 400),
        ("application/json", b'{"image": %s}' % (b"1" * 5000), 400),
        ("application/json", as_json([]), 400),
        ("application/json", as_json({"instances": []}), 400),
        ("application/json", as_json({"instances": "abc"}), 400),
        ("application/json", as_json({"image": 3}), 400),
        ("application/json", as_json({"image": "not base64!"}), 400),
        ("application/json", as_json({"image": "ü"}), 400),
        ("application/json", as_json({"image": [[1, 2], [3]]}), 400),
        ("application/json", as_json({"image": [["1", "2"]]}), 400),
        ("application/json", as_json({"image": [[True, False]]}), 400),
        ("application/json", as_json({"image": [[None]]}), 400),
        ("application/json", as_json({"image": [[10**400]]}), 400),
        ("application/json", b'{"image": ' + b"[" * 80 + b"1" + b"]" * 80 + b"}", 400),
        ("application/json", as_json({"image": [[256]]}), 422),
        ("application/json", as_json({"image": [[-1]]}), 422),
        ("application/json", b'{"image": [[NaN]]}', 422),
        ("application/json", as_json({"image": [1, 2]}), 422),
        ("application/json", as_json({"inputs": [1, 2]}), 422),
        ("multipart/form-data", b"--x", 400),
        ("multipart/form-data; boundary=x", b"--y\r\n", 400),
        ("multipart/form-data; boundary=x", FIELD, 400),
        ("application/x-npy", b"\x93NUMPY", 400),
        ("application/x-npy", npy(GRAY)[:-1], 400),
        ("application/x-npy", npy(np.array([{"a": 1}]), allow_pickle=True), 400),
        ("application/x-npy", npy(np.array(["a"])), 400),
        ("application/x-npy", npy(np.zeros((0, 4))), 422),
        ("application/x-npy", npy(np.zeros((2, 2, 2, 2), np.uint8)), 422),
        ("application/x-npy", npy(np.float32([[np.inf]])), 422),
    ],
)  # fmt: skip
def test_a_request_that_will_not_do(content_type: str, body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        records_of(content_type, body)
    assert caught.value.status == status


def test_the_first_bad_image_ends_the_decoding() -> None:
    large = file_of("PNG", size=(1000, 1000))
    with PixelBudget(time.monotonic() + 60) as budget:
        with pytest.raises(RequestError, match="cannot be read as an image") as caught:
            to_pixels([b"junk", large], budget, image_size=32, channels=1)
        assert caught.value.message.startswith("image 1 of 2: ")
        # All of the budget is left.
        budget.take(MAX_PIXELS // 4000, 4000)


def test_a_bad_record_is_told_in_its_place() -> None:
    good, junk = {"b64": TEXT}, {"b64": base64.b64encode(b"junk").decode()}
    document = {"instances": [good, junk, {"b64": 3}, good, "", [[300]]]}
    pixels_NCHW, errors = pixels_of("application/json", as_json(document))
    assert len(pixels_NCHW) == 2
    assert [error and error.status for error in errors] == [None, 422, 400, None, 400, 422]
    assert errors[1] is not None
    assert errors[1].message.startswith("image 2 of 6: the image cannot be read as an image")
    _, (alone,) = pixels_of("image/png", b"junk")
    assert alone is not None
    assert alone.message.startswith("the image cannot be read as an image")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/csv", "text/csv"),
        ("application/x-npy, application/json;q=0.5", "application/x-npy"),
        ("image/png, application/jsonlines;q=0.1", "application/jsonlines"),
        ("application/json; charset=utf-8", "application/json"),
        ('text/csv; header="a;b"; q=0.5, application/x-npy;version=1;q=0.9', "application/x-npy"),
    ],
)
def test_the_answer_has_the_type_the_client_prefers(accept: str, chosen: str) -> None:
    assert choose_type(accept, "application/json") == chosen


def test_the_platform_may_say_what_no_preference_means() -> None:
    assert choose_type("", "text/csv") == choose_type("*/*", "text/csv") == "text/csv"
    assert choose_type("", "text/html") == "application/json"
    with pytest.raises(RequestError) as caught:
        choose_type("text/html", "application/json")
    assert caught.value.status == 406
