"""The high-level classes of SageMaker's Python SDK 2 on local files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import (
    HYPERPARAMETERS,
    ROLE,
    check_answer,
    failure_in,
    local_session,
    names_in,
    run_example,
)
from sagemaker.estimator import Estimator
from sagemaker.pytorch import PyTorch


@pytest.fixture(scope="module")
def example(image: str, data: Path, root: Path) -> dict[str, Any]:
    """The variables of the example in docs/ after it ran."""
    return run_example("local_mode_sdk2.py", image, data, root)


def test_example(example: dict[str, Any], root: Path) -> None:
    """SDK 2: Estimator.fit, deploy, predict with a picture, JSON and CSV (docs/examples)."""
    check_answer(example["answer"])
    check_answer(example["answers"], pictures=2)
    ((label, *probabilities, _),) = example["rows"]
    assert label == example["answer"]["predictions"][0]["label"]
    assert abs(sum(map(float, probabilities)) - 1) < 1e-3
    out = root / "sdk2" / "out"
    assert {"model.json", "model.safetensors"} <= names_in(out / "model.tar.gz")
    assert "data/report.html" in names_in(out / "output.tar.gz")


def test_batch_transform(example: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """SDK 2: a batch transform over a folder with two corrupt pictures answers all good ones."""
    good = sorted(data.rglob("*.png"))[:3]
    (tmp_path / "in").mkdir()
    for number, path in enumerate(good):
        shutil.copy(path, tmp_path / "in" / f"good-{number}.png")
    (tmp_path / "in" / "bad-text.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "in" / "bad-cut.png").write_bytes(good[0].read_bytes()[:200])
    transformer = example["estimator"].transformer(
        1, "local", strategy="SingleRecord", output_path=f"file://{tmp_path}/out"
    )
    transformer.transform(
        f"file://{tmp_path}/in", content_type="application/octet-stream", wait=False
    )
    answers = {
        path.name.removesuffix(".png.out"): json.loads(path.read_text(encoding="utf-8"))
        for path in (tmp_path / "out").iterdir()
    }
    assert set(answers) == {"good-0", "good-1", "good-2", "bad-cut", "bad-text"}
    for name, answer in answers.items():
        if name.startswith("good"):
            check_answer(answer)
        else:
            assert "label" not in json.dumps(answer)
            assert "cannot be read" in json.dumps(answer)


def test_framework_class(image: str, data: Path, root: Path, tmp_path: Path) -> None:
    """SDK 2: a framework class's settings in JSON beside its own; the one at fault is named."""
    (root / "scripts").mkdir()
    (root / "scripts" / "train.py").touch()
    estimator = PyTorch(
        image_uri=image,
        source_dir=str(root / "scripts"),
        entry_point="train.py",
        role=ROLE,
        instance_count=1,
        instance_type="local",
        output_path=f"file://{tmp_path}",
        hyperparameters={"epochs": 1, "split_by": "hospital"},
        sagemaker_session=local_session(root),
    )
    with pytest.raises(RuntimeError, match="exited with code: 2"):
        estimator.fit({"training": f"file://{data}"})
    text = failure_in(tmp_path / "output.tar.gz")
    assert "split_by" in text
    assert "hospital" in text
    assert '\\"' not in text
    assert len(text) <= 1024


def test_two_hosts(
    image: str, data: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SDK 2: Estimator with instance_count=2 trains one model on two hosts."""
    estimator = Estimator(
        image_uri=image,
        role=ROLE,
        instance_count=2,
        instance_type="local",
        output_path=f"file://{tmp_path}",
        hyperparameters=HYPERPARAMETERS,
        sagemaker_session=local_session(root),
    )
    estimator.fit({"training": f"file://{data}"})
    said = r"algo-2\S* is host 1 of algo-1\S*, algo-2\S*; workers on this host: 1"
    assert re.search(said, capfd.readouterr().out)
    assert {"model.json", "model.safetensors"} <= names_in(tmp_path / "model.tar.gz")
    output = names_in(tmp_path / "output.tar.gz")
    assert "data/report.html" in output
    assert "failure" not in output
