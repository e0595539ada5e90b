"""The HTTP side of a model, by Flask's test client, with a real model of random weights."""

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from alexmri.data.pixels import Pixels
from alexmri.model.alexnet import build
from alexmri.model.bundle import save_bundle
from alexmri.model.predictor import Predictor
from alexmri.serving.app import create_app
from alexmri.serving.codec import LARGEST_REQUEST_BYTES
from alexmri.serving.served_model import ServedModel

CODE = Path(__file__).parents[1] / "code"
CLASSES = ("MildDemented", "NonDemented", "VeryMildDemented")
# What serving must not need: the smaller its imports, the sooner it is up and the less can break.
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
        card="",
    )
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> ServedModel:
    model = ServedModel(bundle)
    model.load()
    return model


@pytest.fixture
def client(model: ServedModel) -> FlaskClient:
    return create_app(model).test_client()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (208, 176), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_ping_is_503_until_the_model_is_loaded(bundle: Path) -> None:
    model = ServedModel(bundle)
    client = create_app(model).test_client()
    assert client.get("/ping").status_code == 503
    refused = client.post("/invocations", data=b"x", content_type="image/png")
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "not_ready")
    model.load()
    answer = client.get("/ping")
    assert (answer.status_code, answer.data) == (200, b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_gets_the_probabilities_the_predictor_gives(
    client: FlaskClient, bundle: Path, picture: Image.Image, kind: str
) -> None:
    data = encoded(picture, kind)
    answer = client.post("/invocations", data=data, content_type=f"image/{kind.lower()}")
    assert answer.status_code == 200
    assert answer.json["model"] == Predictor.load(bundle).bundle.version
    (prediction,) = answer.json["predictions"]
    predictor = Predictor.load(bundle)
    expected_K = predictor.probabilities(np.stack([predictor.pixels(data)]))[0]
    given = prediction["probabilities"]
    np.testing.assert_allclose([given[name] for name in CLASSES], expected_K, atol=1e-6)
    assert list(given) == sorted(CLASSES, key=lambda name: -given[name])
    assert prediction["label"] == CLASSES[int(expected_K.argmax())]


def test_json_gets_the_same_answer_as_the_bare_picture(
    client: FlaskClient, picture: Image.Image
) -> None:
    data = encoded(picture, "PNG")
    text = base64.b64encode(data).decode()
    bare = client.post("/invocations", data=data, content_type="image/png").json
    one = client.post("/invocations", json={"image": text}).json
    assert one == bare
    two = client.post("/invocations", json={"instances": [{"b64": text}, {"b64": text}]}).json
    assert len(two["predictions"]) == 2
    for prediction in two["predictions"]:
        assert prediction["label"] == bare["predictions"][0]["label"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"data": b"1,2", "content_type": "text/csv"}, 415, "unsupported_media_type"),
        ({"data": b"junk", "content_type": "image/png"}, 422, "unreadable_picture"),
        ({"data": b"{", "content_type": "application/json"}, 400, "bad_request"),
        (
            {"data": bytes(LARGEST_REQUEST_BYTES + 2), "content_type": "image/png"},
            413,
            "payload_too_large",
        ),
        (
            {"data": b"x", "content_type": "image/png", "headers": {"Accept": "text/csv"}},
            406,
            "not_acceptable",
        ),
        ({"path": "/nothing"}, 404, "not_found"),
        ({"path": "/ping"}, 405, "method_not_allowed"),
    ],
)
def test_a_bad_request_gets_one_shape_of_error(
    client: FlaskClient, request_: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post(**{"path": "/invocations", **request_})
    assert answer.status_code == status
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"code", "message", "request_id"}
    assert answer.json["error"]["code"] == code
    assert len(answer.json["error"]["request_id"]) == 32


def test_a_fault_of_ours_tells_neither_traceback_nor_path(
    client: FlaskClient,
    model: ServedModel,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(pixels_NCHW: Pixels) -> None:
        raise RuntimeError("in /a/secret/path")

    monkeypatch.setattr(model.predictor, "probabilities", fail)
    data = encoded(picture, "PNG")
    answer = client.post("/invocations", data=data, content_type="image/png")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json["error"]["request_id"] in caplog.text
    assert "/a/secret/path" in caplog.text


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
    foreign, ours = result.stdout.split("\n")[:2]
    assert foreign == ""
    rooms = {name.split(".")[1] for name in ours.split()}
    assert rooms <= {"errors", "files", "settings", "contract", "data", "model", "serving"}
    data_modules = {name for name in ours.split() if name.startswith("alexmri.data.")}
    assert data_modules == {"alexmri.data.pixels"}
