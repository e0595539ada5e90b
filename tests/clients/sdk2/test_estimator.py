"""The high-level classes of SageMaker's Python SDK 2 on local files."""

from pathlib import Path

import pytest
from harness import ROLE, check_answer, failure_in, local_session, names_in, run_example
from sagemaker.pytorch import PyTorch


def test_example(image: str, data: Path, root: Path) -> None:
    """SDK 2: Estimator.fit, deploy, predict with a picture and with JSON (docs/examples)."""
    result = run_example("local_mode_sdk2.py", image, data, root)
    check_answer(result["answer"])
    check_answer(result["answers"], pictures=2)
    out = root / "sdk2" / "out"
    assert {"model.json", "model.safetensors"} <= names_in(out / "model.tar.gz")
    assert "data/report.html" in names_in(out / "output.tar.gz")


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
