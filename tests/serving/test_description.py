"""What the server says it does, and what it imports for it."""

import json
import subprocess
import sys
from pathlib import Path

from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from PIL import Image

from .asking import CLASSES, OPENAPI, described, invoke

CODE = Path(__file__).parents[2] / "code"
# What serving must not need: the smaller its imports, the sooner it is up and the less can break.
FOREIGN = (
    *("albumentations", "wandb", "boto3", "matplotlib", "sklearn", "scipy", "torchvision"),
    *("pydicom", "nibabel", "gdcm"),  # until the first scan comes
)


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


def printed_by(script: str) -> str:
    """Run Python code in a process of its own, and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(CODE), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_numpy_has_no_threads_of_its_own_in_a_worker() -> None:
    """They wait busily and take the cores from the forward pass."""
    script = """
import os
from types import SimpleNamespace
from alexmri.serving import gunicorn_config
gunicorn_config.post_fork(None, SimpleNamespace(place=0))
import numpy
print(len(os.listdir("/proc/self/task")))
"""
    printed = printed_by(script)
    assert printed == "1\n"


def test_serving_imports_only_what_it_needs(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("L", (64, 64), 90).save(picture)
    script = f"""
import sys
from pathlib import Path
import alexmri.serving.gunicorn_config
from alexmri.serving.app import create_app
from alexmri.serving.engine import Engine
assert "torch" not in sys.modules, "torch came before the fork"
engine = Engine(Path({str(bundle)!r}))
engine.load()
data = Path({str(picture)!r}).read_bytes()
answer = create_app(engine).test_client().post("/invocations", data=data, content_type="image/png")
assert answer.status_code == 200, answer.text
print('foreign:', *sorted(set({FOREIGN!r}) & set(sys.modules)))
print('ours:', *sorted(name for name in sys.modules if name.startswith("alexmri.")))
"""
    printed = printed_by(script)
    # The log's line about the request comes before or after: another thread writes it.
    told = dict(line.split(":", 1) for line in printed.splitlines() if " event=" not in line)
    ours = told["ours"]
    assert told["foreign"] == ""
    rooms = {name.split(".")[1] for name in ours.split()}
    assert rooms <= {"errors", "files", "settings", "contract", "data", "model", "serving"}
    data_modules = {name for name in ours.split() if name.startswith("alexmri.data.")}
    read = (
        *("pixels", "framing", "intensities", "scans", "slicing", "orientation", "nifti"),
        *("dicom", "dicom_layout", "decoder_process"),
    )
    assert data_modules == {f"alexmri.data.{name}" for name in read}
