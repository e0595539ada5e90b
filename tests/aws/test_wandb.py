"""The W&B key stays where it is kept."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alexmri.tracking import fetch_wandb_key

from .conftest import BUCKET, SECRET, Cloud, Run, client, put

KEY = "feedfacefeedfacefeedfacefeedfacefeedface"


# --- the key


@pytest.mark.parametrize("text", [KEY, json.dumps({"WANDB_API_KEY": KEY}), f" {KEY}\n"])
def test_the_container_fetches_the_key_itself(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    made = client("secretsmanager").create_secret(Name="wandb", SecretString=text)
    told: list[str] = []
    monkeypatch.setenv("ALEXMRI_WANDB_SECRET", made["ARN"])
    fetch_wandb_key(os.environ, told.append)
    assert os.environ["WANDB_API_KEY"] == KEY
    assert told == []
    monkeypatch.delenv("WANDB_API_KEY")


@pytest.mark.parametrize("text", ["", "{}", "{broken"])
def test_a_secret_that_makes_no_sense_is_a_warning(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    answer = {"SecretString": text, "ARN": SECRET, "Name": "wandb"}
    cloud.answer("GetSecretValue", answer)
    told: list[str] = []
    fetch_wandb_key({"ALEXMRI_WANDB_SECRET": SECRET}, told.append)
    assert "WANDB_API_KEY" not in os.environ
    assert len(told) == 1
    assert told[0].endswith("the run is kept offline")


def test_without_network_or_permission_a_training_goes_on_offline(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from alexmri.settings import Layer, resolve
    from alexmri.tracking import WandbSink

    monkeypatch.setenv("ALEXMRI_WANDB_SECRET", SECRET)
    settings = resolve([Layer("test", {})]).settings
    told: list[str] = []
    cloud.refuse("GetSecretValue", "AccessDeniedException", f"no {KEY}")
    sink = WandbSink(settings, tmp_path, None, {}, told.append)
    sink.close()
    assert told == [
        "the W&B key cannot be read from Secrets Manager (ClientError); the run is kept offline"
    ]
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    told.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fetch_wandb_key(os.environ, told.append)
    assert "(EndpointConnectionError)" in told[0]


def test_a_key_or_a_mode_that_is_there_needs_no_secret(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from alexmri.settings import Layer, resolve
    from alexmri.tracking import WandbSink

    fetch_wandb_key({"ALEXMRI_WANDB_SECRET": SECRET, "WANDB_API_KEY": KEY}, pytest.fail)
    fetch_wandb_key({}, pytest.fail)
    monkeypatch.setenv("ALEXMRI_WANDB_SECRET", SECRET)
    settings = resolve([Layer("test", {"wandb_mode": "disabled"})]).settings
    WandbSink(settings, tmp_path, None, {}, pytest.fail).close()
    assert cloud.requests == []


def test_nobody_is_sent_told_or_left_the_key(
    cloud: Cloud, image: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the requests of a training nor what is printed or written hold it."""
    made: Any = client("secretsmanager").create_secret(Name="wandb", SecretString=KEY)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    put("d/x", b"x")
    cloud.requests.clear()
    given = ("--wandb-secret", made["ARN"])
    command = (*given, "train", "--data", f"s3://{BUCKET}/d", "--image", image)
    done, shown = run(*command), run(*command, "--dry-run")
    assert made["ARN"] in shown.output
    everything = json.dumps([each.body for each in cloud.requests])
    everything += done.output + shown.output
    everything += "".join(p.read_text() for p in Path().rglob("*") if p.is_file())
    assert KEY not in everything
    assert "very-secret-key" not in everything
    assert "GetSecretValue" not in cloud.targets()
