"""The W&B key stays where it is kept, and offline runs reach W&B once."""

import io
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from alexmri.tracking import fetch_wandb_key

from .conftest import BUCKET, SECRET, Cloud, Run, client, error_of, keys, put

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
        "the W&B key cannot be had from Secrets Manager (ClientError); the run is kept offline"
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
    looked = run(*given, "doctor", ok=False)
    assert made["ARN"] in shown.output
    everything = json.dumps([each.body for each in cloud.requests])
    everything += done.output + shown.output + looked.output
    everything += "".join(p.read_text() for p in Path().rglob("*") if p.is_file())
    assert KEY not in everything
    assert "very-secret-key" not in everything
    assert "GetSecretValue" not in cloud.targets()


# --- offline runs


def results(*runs: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for run in runs:
            info = tarfile.TarInfo(f"wandb/{run}/run-{run[-3:]}.wandb")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"w"))
    return packed.getvalue()


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `wandb` that writes down what it is given, and fails where the file `fail` names a run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "wandb"
    script.write_text(
        "#!/bin/sh\n"
        'test "$1" = sync && ls "$2"/*.wandb >/dev/null || exit 3\n'
        f'if grep -q "$(basename "$2")" {folder}/fail 2>/dev/null; then exit 1; fi\n'
        f'basename "$2" >> {folder}/synced\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def job(name: str) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "TrainingJobStatus": "Completed",
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/alexmri/jobs"},
    }


def test_each_run_is_sent_once(cloud: Cloud, wandb: Path, run: Run) -> None:
    cloud.answer("DescribeTrainingJob", job("j"))
    assert "has left no results" in error_of(run("wandb-sync", "j", ok=False))
    put("alexmri/jobs/j/output/output.tar.gz", results("offline-run-1-aaa", "offline-run-2-bbb"))
    assert "2 runs sent" in run("wandb-sync", "j").stdout
    assert "0 runs sent" in run("wandb-sync", "j").stdout
    # The same runs come again with another archive: of a job that was resumed.
    put("alexmri/jobs/k/output/output.tar.gz", results("offline-run-2-bbb", "offline-run-3-ccc"))
    assert "1 runs sent" in run("wandb-sync", f"s3://{BUCKET}/alexmri/jobs").stdout
    assert (wandb / "synced").read_text().split() == [
        "offline-run-1-aaa",
        "offline-run-2-bbb",
        "offline-run-3-ccc",
    ]


def test_a_run_that_w_and_b_refuses_is_sent_the_next_time(
    cloud: Cloud, wandb: Path, run: Run
) -> None:
    cloud.answer("DescribeTrainingJob", job("j"))
    put("alexmri/jobs/j/output/output.tar.gz", results("offline-run-1-aaa", "offline-run-2-bbb"))
    (wandb / "fail").write_text("offline-run-2-bbb")
    told = error_of(run("wandb-sync", "j", ok=False))
    assert "`wandb sync` refused offline-run-2-bbb" in told
    assert "run the same command again: what was sent is marked" in told
    (wandb / "fail").unlink()
    assert "1 runs sent" in run("wandb-sync", "j").stdout
    assert (wandb / "synced").read_text().split() == ["offline-run-1-aaa", "offline-run-2-bbb"]


def test_runs_that_lie_in_s3_as_they_are(cloud: Cloud, wandb: Path, run: Run) -> None:
    put("x/wandb/offline-run-5-eee/run-eee.wandb", b"w")
    put("x/wandb/offline-run-5-eee/files/config.yaml", b"c")
    for sent in (1, 0):
        assert f"{sent} runs sent" in run("wandb-sync", f"s3://{BUCKET}/x").stdout
    assert (wandb / "synced").read_text().split() == ["offline-run-5-eee"]
    assert len(keys("alexmri/wandb-synced/")) == 2
    told = error_of(run("wandb-sync", f"s3://{BUCKET}/nothing", ok=False))
    assert "there is neither output.tar.gz nor an offline run below" in told
