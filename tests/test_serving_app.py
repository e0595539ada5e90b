"""The HTTP side of a model, by Flask's test client, with a real model of random weights."""

import base64
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image
from werkzeug.test import TestResponse

from alexmri.data.pixels import Pixels
from alexmri.errors import UserError
from alexmri.model.alexnet import build
from alexmri.model.bundle import save_bundle
from alexmri.model.predictor import Predictor
from alexmri.serving.app import create_app
from alexmri.serving.options import Options, process_count
from alexmri.serving.served_model import ServedModel
from alexmri.serving.states import Board

CODE = Path(__file__).parents[1] / "code"
CLASSES = ("MildDemented", "NonDemented", "VeryMildDemented")
# What serving must not need: the smaller its imports, the sooner it is up and the less can break.
OPENAPI = json.loads(resources.files("alexmri.serving").joinpath("openapi.json").read_bytes())
FOREIGN = ("albumentations", "wandb", "boto3", "matplotlib", "sklearn", "scipy", "torchvision")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    network = build(classes=len(CLASSES), image_size=32, channels=1, dropout=0.5, seed=1)
    save_bundle(
        folder,
        network,
        classes=CLASSES,
        image_size=32,
        channels=1,
        dropout=0.5,
        temperature=1.5,
        facts={},
        card="# card",
    )
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> ServedModel:
    model = ServedModel(bundle)
    model.load()
    return model


@pytest.fixture(scope="module")
def client(model: ServedModel) -> FlaskClient:
    return create_app(model).test_client()


@pytest.fixture
def client_of(bundle: Path) -> Callable[..., FlaskClient]:
    """A server with an environment of its own."""

    def make(**environment: str) -> FlaskClient:
        model = ServedModel(bundle, Options.of({"ALEXMRI_MAX_BATCH_SIZE": "2", **environment}))
        model.load()
        return create_app(model).test_client()

    return make


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (208, 176), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def described(answer: TestResponse, path: str, method: str) -> TestResponse:
    """Return the answer after a comparison with what openapi.json says about it."""
    told = OPENAPI["paths"][path][method]["responses"].get(str(answer.status_code))
    assert told, f"{method} {path} answers {answer.status_code}, which openapi.json does not have"
    content = told.get("content", {})
    assert (answer.mimetype in content) if content else not answer.data
    if answer.mimetype == "application/json" and content:
        schema = {**content["application/json"]["schema"], "components": OPENAPI["components"]}
        Draft202012Validator(schema).validate(answer.json)
    if "Retry-After" in told.get("headers", {}):
        assert int(answer.headers["Retry-After"]) >= 1
    return answer


def invoke(
    client: FlaskClient,
    data: bytes,
    content_type: str = "image/png",
    path: str = "",
    **headers: str,
) -> TestResponse:
    answer = client.post(
        f"/invocations{path}",
        data=data,
        content_type=content_type,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    return described(answer, "/invocations", "post")


def test_ping_is_503_until_the_model_is_loaded_and_again_while_draining(bundle: Path) -> None:
    model = ServedModel(bundle, Options(largest_batch=1))
    client = create_app(model).test_client()
    assert client.get("/ping").status_code == 503
    refused = invoke(client, b"x")
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "not_ready")
    assert described(client.get("/info"), "/info", "get").status_code == 503
    model.load()
    answer = described(client.get("/ping"), "/ping", "get")
    assert (answer.status_code, answer.data) == (200, b"")
    model.drain()
    assert client.get("/ping").status_code == 503
    refused = invoke(client, b"x")
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "draining")


def test_a_server_is_up_when_all_its_processes_have_been() -> None:
    board = Board(2)
    board.tell_ready(1)
    assert not board.is_up()
    board.tell_ready(0)
    assert board.is_up()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_picture_gets_the_probabilities_the_predictor_gives(
    client: FlaskClient, bundle: Path, picture: Image.Image, kind: str
) -> None:
    data = encoded(picture, kind)
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


def test_another_explanation_is_refused(client: FlaskClient, picture: Image.Image) -> None:
    refused = invoke(client, encoded(picture, "PNG"), path="?explain=lime")
    assert refused.status_code == 400
    assert refused.json["error"]["message"] == "there is one explanation: explain=gradcam"


def test_overlays_stand_with_their_pictures_when_one_is_bad(
    client_of: Callable[..., FlaskClient], picture: Image.Image
) -> None:
    client = client_of(SAGEMAKER_BATCH="true")
    good = base64.b64encode(encoded(picture, "PNG")).decode()
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


def test_several_slices_are_answered_each_and_as_one_person(client: FlaskClient) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (3, 32, 32)).tolist()
    answer = invoke(client, json.dumps({"instances": levels}).encode(), "application/json").json
    each = [prediction["probabilities"] for prediction in answer["predictions"]]
    mean = {name: np.mean([p[name] for p in each]) for name in CLASSES}
    assert answer["subject"]["slices"] == 3
    assert answer["subject"]["probabilities"] == pytest.approx(mean)
    assert answer["subject"]["label"] == max(mean, key=mean.__getitem__)


def test_every_type_of_answer_says_the_same(client: FlaskClient, picture: Image.Image) -> None:
    text = base64.b64encode(encoded(picture, "PNG")).decode()
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
        ({"data": b"junk", "content_type": "image/png"}, 422, "unreadable_picture"),
        ({"data": b"{", "content_type": "application/json"}, 400, "bad_request"),
        (
            {"data": bytes(Options().largest_payload_bytes + 2), "content_type": "image/png"},
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
    answer = client.open(**{"path": "/invocations", "method": "POST", **request_})
    assert answer.status_code == status
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


def test_a_fault_of_ours_tells_neither_traceback_nor_path(
    client: FlaskClient,
    model: ServedModel,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = encoded(picture, "PNG")
    works = model.predictor.predict

    def fail(pixels_NCHW: Pixels) -> Any:
        if pixels_NCHW.any():
            raise RuntimeError("in /a/secret/path")
        return works(pixels_NCHW)

    with monkeypatch.context() as patched:
        patched.setattr(model.predictor, "predict", fail)
        answer = invoke(client, data)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json["error"]["request_id"] in caplog.text
    assert "/a/secret/path" in caplog.text
    assert invoke(client, data).status_code == 200


def test_attributes_come_back_and_the_inference_id_is_logged(
    client: FlaskClient,
    model: ServedModel,
    picture: Image.Image,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = invoke(
        client,
        encoded(picture, "PNG"),
        X_Amzn_SageMaker_Custom_Attributes="trace=7",
        X_Amzn_SageMaker_Inference_Id='mine status=500"',
    )
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "trace=7"
    model.telemetry.flush()
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "mine" in text]
    assert f"request_id={answer.json['request_id']}" in line
    assert 'inference_id="mine status=500\\""' in line
    invoke(client, b"junk")
    model.telemetry.flush()
    assert "status=422" in (out := capsys.readouterr().out)
    assert "code=unreadable_picture" in out


def test_the_log_can_be_json_and_can_leave_out_what_went_well(
    client_of: Callable[..., FlaskClient], picture: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    def logged(client: FlaskClient, data: bytes, name: str) -> list[str]:
        """Ask under this name; return the lines with it, once the server has written them."""
        invoke(client, data, X_Amzn_SageMaker_Inference_Id=name)
        client.get("/metrics")
        return [line for line in capsys.readouterr().out.splitlines() if name in line]

    good = encoded(picture, "PNG")
    (line,) = logged(client_of(ALEXMRI_LOG_FORMAT="json"), good, "id-1")
    told = json.loads(line)
    assert (told["status"], told["pictures"], told["inference_id"]) == (200, 1, "id-1")
    quiet = client_of(SAGEMAKER_CONTAINER_LOG_LEVEL="30")
    assert logged(quiet, good, "id-2") == []
    assert len(logged(quiet, b"junk", "id-3")) == 1


def test_in_a_batch_transform_a_bad_record_is_told_in_its_place(
    client_of: Callable[..., FlaskClient], picture: Image.Image
) -> None:
    client = client_of(SAGEMAKER_BATCH="true", SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    text = base64.b64encode(encoded(picture, "PNG")).decode()
    lines = b"\n".join([json.dumps(text).encode(), b"{", b'"anVuaw=="', json.dumps(text).encode()])
    answer = invoke(client, lines, "application/jsonlines")
    assert answer.status_code == 200
    first, second, third, fourth = answer.json["predictions"]
    assert first == fourth
    assert first["label"] in CLASSES
    assert second["error"]["code"] == "bad_request"
    assert third["error"]["code"] == "unreadable_picture"
    assert answer.json["subject"]["slices"] == 2
    for content_type, data in (("image/png", b"junk"), ("image/png", b""), ("text/html", b"x")):
        alone = invoke(client, data, content_type)
        assert alone.status_code == 200
        assert [set(each) for each in alone.json["predictions"]] == [{"error"}]
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
    client = create_app(ServedModel(bundle, Options.of(environment))).test_client()
    answer = described(client.get("/execution-parameters"), "/execution-parameters", "get")
    assert answer.json == {
        "MaxConcurrentTransforms": transforms,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": megabytes,
    }


def test_metrics_count_what_was_answered(
    client_of: Callable[..., FlaskClient], picture: Image.Image
) -> None:
    client = client_of()
    answer = invoke(client, encoded(picture, "PNG")).json
    invoke(client, b"junk")
    told = described(client.get("/metrics"), "/metrics", "get").text.splitlines()
    label, version = answer["predictions"][0]["label"], answer["model_version"]
    for line in (
        'alexmri_requests_total{status="200"} 1.0',
        'alexmri_requests_total{status="422"} 1.0',
        f'alexmri_predictions_total{{label="{label}"}} 1.0',
        f'alexmri_model_info{{version="{version}"}} 1.0',
        "alexmri_request_seconds_count 2.0",
        "alexmri_queue_seconds_count 1.0",
        "alexmri_forward_seconds_count 1.0",
        'alexmri_batch_size_bucket{le="1.0"} 1.0',
        "alexmri_queued_requests 0.0",
    ):
        assert line in told


def test_a_log_that_cannot_be_written_costs_no_answer_and_no_count(
    client_of: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of()
    full = Path("/dev/full").open("w")  # noqa: SIM115 - it cannot be closed either
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        assert invoke(client, b"junk").status_code == 422
        assert 'alexmri_requests_total{status="422"} 1.0' in client.get("/metrics").text
    with contextlib.suppress(OSError):
        full.close()


def test_info_tells_the_model_and_the_limits(client: FlaskClient, bundle: Path) -> None:
    answer = described(client.get("/info"), "/info", "get").json
    assert answer["classes"] == list(CLASSES)
    assert "not a medical device" in answer["intended_use"]
    assert answer["limits"]["payload_mb"] == 25
    assert "1" in answer["milliseconds_by_batch_size"]
    assert str(bundle) not in json.dumps(answer)


def test_the_description_is_openapi_and_names_what_is_taken(client: FlaskClient) -> None:
    document = described(client.get("/openapi.json"), "/openapi.json", "get").json
    validate(document)
    assert document == OPENAPI
    told = client.get("/info").json
    invocations = document["paths"]["/invocations"]["post"]
    assert list(invocations["requestBody"]["content"]) == told["content_types"]
    assert list(invocations["responses"]["200"]["content"]) == told["accept_types"]
    for path, methods in document["paths"].items():
        for method in ("get", "post", "put", "delete"):
            allowed = client.open(path, method=method).status_code != 405
            assert allowed == (method in methods), (method, path)


PICTURES = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(-5, 300), st.none(), st.floats(), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["b64", "image", "x"]), inner, max_size=2),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(
    body=st.one_of(
        st.dictionaries(st.sampled_from(["image", "instances", "inputs", "x"]), PICTURES).map(
            lambda document: json.dumps(document).encode()
        ),
        st.binary(max_size=200),
    ),
    content_type=st.sampled_from(
        [*OPENAPI["paths"]["/invocations"]["post"]["requestBody"]["content"], "text/html", ""]
    ),
    accept=st.sampled_from(["", "*/*", "text/csv", "application/x-npy", "image/png", "a;q=x"]),
    attributes=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20),
)
def test_every_answer_is_one_the_description_has(
    client: FlaskClient, body: bytes, content_type: str, accept: str, attributes: str
) -> None:
    answer = invoke(
        client, body, content_type, Accept=accept, X_Amzn_SageMaker_Custom_Attributes=attributes
    )
    assert answer.status_code in (200, 400, 406, 413, 415, 422)


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, "port", 9000),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, "workers", 3),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "None"}, "workers", None),
        ({"MODEL_SERVER_WORKERS": "2", "ALEXMRI_WORKERS": "1"}, "workers", 1),
        ({"SAGEMAKER_TS_MAX_WORKERS": "2", "SAGEMAKER_TS_MIN_WORKERS": "1"}, "workers", 2),
        ({"SAGEMAKER_GUNICORN_WORKERS": "2"}, "workers", 2),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "30"}, "timeout_s", 25),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "4"}, "timeout_s", 3),
        ({"SAGEMAKER_TS_RESPONSE_TIMEOUT": "100"}, "timeout_s", 95),
        ({"MODEL_SERVER_TIMEOUT": "10"}, "timeout_s", 7.5),
        ({"SAGEMAKER_TS_BATCH_SIZE": "8"}, "largest_batch", 8),
        ({"SAGEMAKER_TS_MAX_BATCH_DELAY": "100"}, "batch_delay_s", 0.1),
        ({"ALEXMRI_MAX_BATCH_DELAY_MS": "2"}, "batch_delay_s", 0.002),
        ({"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"}, "default_accept", "text/csv"),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, "largest_payload_bytes", 6 * 2**20),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "40"}, "log_level", 40),
        ({"SAGEMAKER_BATCH": "True"}, "batch_transform", True),
    ],
)
def test_the_dialects_of_other_toolkits_are_understood(
    environment: dict[str, str], field: str, value: object
) -> None:
    assert getattr(Options.of(environment), field) == value


def test_variables_without_a_meaning_here_are_tolerated() -> None:
    named = (
        "SAGEMAKER_SAFE_PORT_RANGE SAGEMAKER_MULTI_MODEL SAGEMAKER_BATCH_STRATEGY"
        " SAGEMAKER_MAX_CONCURRENT_TRANSFORMS SAGEMAKER_MODEL_SERVER_VMARGS SAGEMAKER_PROGRAM"
        " SAGEMAKER_STARTUP_TIMEOUT SAGEMAKER_SUBMIT_DIRECTORY SAGEMAKER_REGION CA_REPOSITORY_ARN"
        " SAGEMAKER_GUNICORN_THREADS SAGEMAKER_GUNICORN_WORKER_CLASS"
    )
    assert Options.of(dict.fromkeys(named.split(), "whatever")) == Options.of({}) == Options()


@pytest.mark.parametrize(
    "environment",
    [
        {"SAGEMAKER_BIND_TO_PORT": "http"},
        {"SAGEMAKER_BIND_TO_PORT": "70000"},
        {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "nan"},
        {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0.5"},
        {"ALEXMRI_LOG_FORMAT": "xml"},
    ],
)
def test_a_variable_that_is_wrong_is_named(environment: dict[str, str]) -> None:
    (name,) = environment
    with pytest.raises(UserError, match=name):
        Options.of(environment)


@pytest.mark.parametrize(
    ("asked", "cores", "gigabytes", "processes"),
    [(7, 1, 1, 7), (None, 3, 16, 3), (None, 64, 16, 4), (None, 64, 2, 2), (None, 2, 0.5, 1)],
)
def test_processes_are_those_asked_for_or_one_per_core_up_to_four_that_fit(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    cores: int,
    gigabytes: float,
    processes: int,
) -> None:
    monkeypatch.setattr("alexmri.serving.options.cpu_cores", lambda: cores)
    monkeypatch.setattr(
        "alexmri.serving.options.usable_memory_bytes", lambda: int(gigabytes * 2**30)
    )
    assert process_count(Options(workers=asked), {"CUDA_VISIBLE_DEVICES": ""}) == processes


def test_serving_imports_only_what_it_needs(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("L", (64, 64), 90).save(picture)
    script = f"""
import sys
from pathlib import Path
import alexmri.serving.gunicorn_conf
from alexmri.serving.app import create_app
from alexmri.serving.served_model import ServedModel
assert "torch" not in sys.modules, "torch came before the fork"
model = ServedModel(Path({str(bundle)!r}))
model.load()
data = Path({str(picture)!r}).read_bytes()
answer = create_app(model).test_client().post("/invocations", data=data, content_type="image/png")
assert answer.status_code == 200, answer.text
print(*sorted(set({FOREIGN!r}) & set(sys.modules)))
print(*sorted(name for name in sys.modules if name.startswith("alexmri.")))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(CODE), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    foreign, ours = result.stdout.splitlines()[-2:]
    assert foreign == ""
    rooms = {name.split(".")[1] for name in ours.split()}
    assert rooms <= {"errors", "files", "settings", "contract", "data", "model", "serving"}
    data_modules = {name for name in ours.split() if name.startswith("alexmri.data.")}
    assert data_modules == {"alexmri.data.pixels"}
