"""What our image promises about `evaluate` as a processing job."""

import json
from pathlib import Path

import pytest

from .conftest import Training
from .platform import JobEnd
from .processing import process

pytestmark = [pytest.mark.docker, pytest.mark.promise]


def evaluate(image: str, folder: Path, **inputs: Path) -> JobEnd:
    return process(image, folder, inputs, ["evaluation"], entrypoint=["evaluate"])


def test_a_packed_model_is_measured(
    training: Training, slices: Path, image: str, tmp_path: Path
) -> None:
    """Processing: evaluate unpacks model.tar.gz and measures it on a folder of images."""
    end = evaluate(image, tmp_path, model=training.job.artifact(), test=slices)
    assert (end.status, end.reason) == ("Completed", ""), end.log
    evaluation = json.loads((tmp_path / "evaluation/evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["test"]["images"] == 48
    assert (tmp_path / "evaluation" / "statistics.json").is_file()


def test_a_failure_is_told_in_the_message(image: str, slices: Path, tmp_path: Path) -> None:
    """Processing: what is wrong stands in /opt/ml/output/message, in one sentence."""
    end = evaluate(image, tmp_path, test=slices)
    assert end.status == "Failed", end.log
    assert "/opt/ml/processing/model" in end.reason
    assert len(end.reason.splitlines()) == 1
    assert "Traceback" not in end.log
