"""What the server tells of itself: faults, the log, the metrics."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from alexmri.data.pixels import Pixels
from alexmri.serving.engine import Engine

from .asking import described, encoded, invoke


def test_a_fault_of_ours_tells_neither_traceback_nor_path(
    client: FlaskClient,
    engine: Engine,
    image: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = encoded(image, "PNG")
    works = engine.predictor.predict

    def fail(pixels_NCHW: Pixels) -> Any:
        if pixels_NCHW.any():
            raise RuntimeError("in /a/secret/path")
        return works(pixels_NCHW)

    with monkeypatch.context() as patched:
        patched.setattr(engine.predictor, "predict", fail)
        answer = invoke(client, data)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json["error"]["request_id"] in caplog.text
    assert "/a/secret/path" in caplog.text
    assert invoke(client, data).status_code == 200


def test_attributes_come_back_and_the_inference_id_is_logged(
    client: FlaskClient,
    engine: Engine,
    image: Image.Image,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = invoke(
        client,
        encoded(image, "PNG"),
        X_Amzn_SageMaker_Custom_Attributes="trace=7",
        X_Amzn_SageMaker_Inference_Id='mine status=500"',
    )
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "trace=7"
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "mine" in text]
    assert f"request_id={answer.json['request_id']}" in line
    assert 'inference_id="mine status=500\\""' in line
    invoke(client, b"junk")
    assert "status=422" in (out := capsys.readouterr().out)
    assert "code=unreadable_image" in out


def test_the_log_can_be_json_and_can_leave_out_what_went_well(
    client_of: Callable[..., FlaskClient], image: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    def logged(client: FlaskClient, data: bytes, name: str) -> list[str]:
        """Ask under this name; return the lines with it, once the server has written them."""
        invoke(client, data, X_Amzn_SageMaker_Inference_Id=name)
        client.get("/metrics")
        return [line for line in capsys.readouterr().out.splitlines() if name in line]

    good = encoded(image, "PNG")
    (line,) = logged(client_of(ALEXMRI_LOG_FORMAT="json"), good, "id-1")
    told = json.loads(line)
    assert (told["status"], told["images"], told["inference_id"]) == (200, 1, "id-1")
    quiet = client_of(SAGEMAKER_CONTAINER_LOG_LEVEL="30")
    assert logged(quiet, good, "id-2") == []
    assert len(logged(quiet, b"junk", "id-3")) == 1


def test_metrics_count_what_was_answered(
    client_of: Callable[..., FlaskClient], image: Image.Image
) -> None:
    client = client_of()
    answer = invoke(client, encoded(image, "PNG")).json
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
