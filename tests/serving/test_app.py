"""What is answered and what is refused, by Flask's test client."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from alexmri.model.predictor import Predictor
from alexmri.serving.app import create_app
from alexmri.serving.config import Config
from alexmri.serving.engine import Engine

from .asking import CLASSES, OPENAPI, described, encoded, invoke


def test_ping_is_503_until_the_model_is_loaded_and_again_while_draining(bundle: Path) -> None:
    engine = Engine(bundle, Config(max_batch_size=1))
    client = create_app(engine).test_client()
    assert client.get("/ping").status_code == 503
    refused = invoke(client, b"x")
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "not_ready")
    assert described(client.get("/info"), "/info", "get").status_code == 503
    engine.load()
    answer = described(client.get("/ping"), "/ping", "get")
    assert (answer.status_code, answer.data) == (200, b"")
    engine.drain()
    assert client.get("/ping").status_code == 503
    refused = invoke(client, b"x")
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "draining")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_picture_gets_the_probabilities_the_predictor_gives(
    client: FlaskClient, bundle: Path, image: Image.Image, kind: str
) -> None:
    data = encoded(image, kind)
    answer = invoke(client, data, f"image/{kind.lower()}")
    assert answer.status_code == 200
    predictor = Predictor.load(bundle)
    assert answer.json["model"] == answer.json["model_version"] == predictor.bundle.version
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    assert answer.json["subject"] is None
    (prediction,) = answer.json["predictions"]
    expected_K = predictor.predict(np.stack([predictor.pixels(data)])).probabilities_NK[0]
    given = prediction["probabilities"]
    np.testing.assert_allclose([given[name] for name in CLASSES], expected_K, atol=1e-6)
    assert list(given) == sorted(CLASSES, key=lambda name: -given[name])
    assert prediction["label"] == CLASSES[int(expected_K.argmax())]


@pytest.mark.parametrize(
    ("path", "attributes"),
    [("?explain=gradcam", {}), ("", {"X_Amzn_SageMaker_Custom_Attributes": "a=b,explain=gradcam"})],
)
def test_with_explain_each_answer_shows_where_its_label_was_seen(
    client: FlaskClient, bundle: Path, path: str, attributes: dict[str, str]
) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    body = json.dumps({"instances": levels.tolist()}).encode()
    answer = invoke(client, body, "application/json", path, **attributes)
    predictor = Predictor.load(bundle)
    for each, pixels_HW in zip(answer.json["predictions"], levels, strict=True):
        png = base64.b64decode(each["gradcam_png"])
        assert png == predictor.gradcam_png(pixels_HW[None], CLASSES.index(each["label"]))
    without = invoke(client, body, "application/json", "?explained=gradcam")
    assert not any("gradcam_png" in each for each in without.json["predictions"])


def test_another_explanation_is_refused(client: FlaskClient, image: Image.Image) -> None:
    refused = invoke(client, encoded(image, "PNG"), path="?explain=lime")
    assert refused.status_code == 400
    assert refused.json["error"]["message"] == "the only explanation is explain=gradcam"


def test_overlays_stand_with_their_pictures_when_one_is_bad(
    client_of: Callable[..., FlaskClient], image: Image.Image
) -> None:
    client = client_of(SAGEMAKER_BATCH="true")
    good = base64.b64encode(encoded(image, "PNG")).decode()
    lines = "\n".join(json.dumps(text) for text in (good, "AAAA", good)).encode()
    answer = invoke(
        client, lines, "application/jsonlines", "?explain=gradcam", Accept="application/json"
    )
    shown = ["gradcam_png" in each for each in answer.json["predictions"]]
    assert shown == [True, False, True]


def test_info_tells_what_the_page_shows(client: FlaskClient, bundle: Path) -> None:
    told = described(client.get("/info"), "/info", "get").json
    assert (told["image_size"], told["channels"], told["classes"]) == (32, 1, list(CLASSES))
    assert told["card"] == (bundle / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("count", [3, 33, 70])
def test_any_number_of_slices_gets_the_probabilities_the_predictor_gives(
    client: FlaskClient, bundle: Path, count: int
) -> None:
    levels = np.random.default_rng(count).integers(0, 256, (count, 32, 32), dtype=np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, levels)
    answer = invoke(client, buffer.getvalue(), "application/x-npy", Accept="application/x-npy")
    expected_NK = Predictor.load(bundle).predict(levels[:, None]).probabilities_NK
    given_NK = np.load(io.BytesIO(answer.data), allow_pickle=False)
    np.testing.assert_allclose(given_NK, expected_NK, atol=0.02)


def test_several_slices_are_answered_each_and_as_one_person(client: FlaskClient) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).tolist()
    answer = invoke(client, json.dumps({"instances": levels}).encode(), "application/json").json
    each = [prediction["probabilities"] for prediction in answer["predictions"]]
    mean = {name: np.mean([p[name] for p in each]) for name in CLASSES}
    assert answer["subject"]["slices"] == 3
    assert answer["subject"]["probabilities"] == pytest.approx(mean)
    assert answer["subject"]["label"] == max(mean, key=mean.__getitem__)


def test_every_type_of_answer_says_the_same(client: FlaskClient, image: Image.Image) -> None:
    text = base64.b64encode(encoded(image, "PNG")).decode()
    body = json.dumps({"instances": [text, np.eye(32).tolist()]}).encode()

    def ask(accept: str) -> bytes:
        answer = invoke(client, body, "application/json", Accept=accept)
        assert (answer.status_code, answer.mimetype) == (200, accept)
        return answer.data

    predictions = json.loads(ask("application/json"))["predictions"]
    assert [json.loads(line) for line in ask("application/jsonlines").splitlines()] == predictions
    expected_NK = [[p["probabilities"][name] for name in CLASSES] for p in predictions]
    array_NK = np.load(io.BytesIO(ask("application/x-npy")), allow_pickle=False)
    np.testing.assert_allclose(array_NK, expected_NK)
    rows = [line.split(",") for line in ask("text/csv").decode().splitlines()]
    assert [row[0] for row in rows] == [p["label"] for p in predictions]
    np.testing.assert_allclose([[float(p) for p in row[1:-1]] for row in rows], expected_NK)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"data": b"1,2", "content_type": "text/csv"}, 415, "unsupported_media_type"),
        ({"data": b"junk", "content_type": "image/png"}, 422, "unreadable_image"),
        ({"data": b"{", "content_type": "application/json"}, 400, "bad_request"),
        (
            {"data": bytes(Config().max_payload_bytes + 2), "content_type": "image/png"},
            413,
            "payload_too_large",
        ),
        (
            {"data": b"x", "content_type": "image/png", "headers": {"Accept": "text/html"}},
            406,
            "not_acceptable",
        ),
        ({"path": "/nothing"}, 404, "not_found"),
        ({"path": "/ping"}, 405, "method_not_allowed"),
        ({"path": "/invocations", "method": "GET"}, 405, "method_not_allowed"),
    ],
)
def test_a_bad_request_gets_one_shape_of_error(
    client: FlaskClient, request_: dict[str, Any], status: int, code: str
) -> None:
    asked = {"path": "/invocations", "method": "POST", **request_}
    answer = client.open(**asked)
    assert answer.status_code == status
    if asked["path"] in OPENAPI["paths"]:
        of_path = OPENAPI["paths"][asked["path"]]
        described(answer, asked["path"], next(iter(of_path)))
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"code", "message", "request_id"}
    assert answer.json["error"]["code"] == code
    assert len(answer.json["error"]["request_id"]) == 32


def test_a_body_over_the_platforms_limit_is_refused_before_it_is_kept(
    client_of: Callable[..., FlaskClient],
) -> None:
    client = client_of(SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    refused = invoke(client, bytes(2**20 + 1))
    assert (refused.status_code, refused.json["error"]["code"]) == (413, "payload_too_large")
    assert "1 MB" in refused.json["error"]["message"]
    assert invoke(client, bytes(2**20)).status_code == 422


def test_in_a_batch_transform_a_bad_record_is_told_in_its_place(
    client_of: Callable[..., FlaskClient], image: Image.Image
) -> None:
    client = client_of(SAGEMAKER_BATCH="true", SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    text = base64.b64encode(encoded(image, "PNG")).decode()
    lines = b"\n".join([json.dumps(text).encode(), b"{", b'"anVuaw=="', json.dumps(text).encode()])
    answer = invoke(client, lines, "application/jsonlines")
    assert answer.status_code == 200
    first, second, third, fourth = answer.json["predictions"]
    assert first == fourth
    assert first["label"] in CLASSES
    assert second["error"]["code"] == "bad_request"
    assert third["error"]["code"] == "unreadable_image"
    assert answer.json["subject"]["slices"] == 2
    for data in (b"junk", b""):
        alone = invoke(client, data, "image/png")
        assert alone.status_code == 200
        assert [set(each) for each in alone.json["predictions"]] == [{"error"}]
    # What is wrong with the whole job fails it.
    assert invoke(client, b"x", "text/html").status_code == 415
    assert invoke(client, bytes(2**20 + 1)).status_code == 200
    rows = invoke(client, lines, "application/jsonlines", Accept="text/csv").text.splitlines()
    assert [row.split(",")[0] == "" for row in rows] == [False, True, True, False]
    npy = invoke(client, lines, "application/jsonlines", Accept="application/x-npy").data
    rows_NK = np.load(io.BytesIO(npy), allow_pickle=False)
    assert np.isnan(rows_NK).all(axis=1).tolist() == [False, True, True, False]
    assert invoke(client, lines, "application/jsonlines", Accept="text/html").status_code == 406


@pytest.mark.parametrize(
    ("environment", "megabytes", "transforms"),
    [
        ({}, 6, 16),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "50"}, 50, 2),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, 100, 1),
    ],
)
def test_a_batch_transform_is_told_how_to_send(
    bundle: Path, environment: dict[str, str], megabytes: int, transforms: int
) -> None:
    client = create_app(Engine(bundle, Config.of(environment))).test_client()
    answer = described(client.get("/execution-parameters"), "/execution-parameters", "get")
    assert answer.json == {
        "MaxConcurrentTransforms": transforms,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": megabytes,
    }


def test_a_batch_transform_gets_no_newline_at_the_end(
    client_of: Callable[..., FlaskClient], image: Image.Image
) -> None:
    """Its client adds one, and two made a blank line between the records of its file."""
    batch, alone = client_of(SAGEMAKER_BATCH="true"), client_of()
    for accept in ("application/jsonlines", "text/csv"):
        record, line = (
            invoke(client, encoded(image, "PNG"), Accept=accept).data for client in (batch, alone)
        )
        assert record == line.removesuffix(b"\n") != line


@pytest.mark.parametrize("path", ["//ping", "//invocations", "///info"])
def test_a_base_address_may_end_in_a_slash(client: FlaskClient, path: str) -> None:
    """These were 500 with a traceback in the log."""
    method = "POST" if path == "//invocations" else "GET"
    # As gunicorn tells it; a client of Flask's takes the first part for a host.
    answer = client.open(
        "/", method=method, content_type="image/png", environ_overrides={"PATH_INFO": path}
    )
    assert answer.status_code == (400 if method == "POST" else 200)


@pytest.mark.parametrize(
    ("kind", "content_type", "status"),
    [
        ("PNG", "image/png", 422),
        ("JPEG", "image/jpeg", 422),
        ("PNG", "application/x-www-form-urlencoded", 415),  # what curl says by itself
        ("JPEG", "application/x-www-form-urlencoded", 422),
    ],
)
def test_a_file_that_curl_has_changed_is_told(
    client: FlaskClient, image: Image.Image, kind: str, content_type: str, status: int
) -> None:
    cut = encoded(image, kind).translate(None, b"\0\r\n")  # by curl -d @FILE
    answer = invoke(client, cut, content_type)
    assert answer.status_code == status
    assert answer.json
    told = "curl -d has removed line ends and zero bytes from it: use --data-binary"
    assert told in answer.json["error"]["message"]


@pytest.mark.parametrize("text", [True, False])
def test_what_curl_has_not_changed_is_not_blamed_on_it(
    client: FlaskClient, image: Image.Image, text: bool
) -> None:
    whole = encoded(image, "PNG")
    body = base64.b64encode(whole) if text else whole[:-5000]
    answer = invoke(client, body, "image/png")
    assert answer.status_code == 422
    assert answer.json
    assert "curl" not in answer.json["error"]["message"]
