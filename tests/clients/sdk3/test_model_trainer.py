"""ModelTrainer of SageMaker's Python SDK 3 on local files."""

from pathlib import Path
from typing import Any

import boto3
import pytest
from harness import EXAMPLES, REGION, ROLE, check_answer, failure_in, names_in, run_example
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.training.configs import Compute, InputData, SourceCode
from sagemaker.train.distributed import Torchrun
from sagemaker.train.model_trainer import Mode, ModelTrainer


def train(image: str, data: Path, work: Path, *, hosts: int = 1, **more: Any) -> Path:
    """Train by ModelTrainer; return the folder where it packs what comes out, failed or not."""
    work.mkdir()
    trainer = ModelTrainer(
        training_mode=Mode.LOCAL_CONTAINER,
        sagemaker_session=Session(boto3.Session(region_name=REGION)),
        role=ROLE,
        training_image=image,
        compute=Compute(instance_type="local", instance_count=hosts),
        local_container_root=str(work),
        **more,
    )
    trainer.train([InputData(channel_name="training", data_source=str(data))])
    return work / "compressed_artifacts"


def test_example(image: str, data: Path, root: Path) -> None:
    """SDK 3: ModelTrainer without source code, endpoint, picture, JSON and CSV (docs/examples)."""
    result = run_example("local_mode_sdk3.py", image, data, root)
    check_answer(result["answer"])
    check_answer(result["answers"], pictures=2)
    label, *probabilities, _ = result["rows"].strip().split(",")
    assert label == result["answer"]["predictions"][0]["label"]
    assert abs(sum(map(float, probabilities)) - 1) < 1e-3
    packed = root / "sdk3" / "compressed_artifacts"
    assert {"model.json", "model.safetensors"} <= names_in(packed / "model.tar.gz")
    assert "data/report.html" in names_in(packed / "output.tar.gz")


def test_source_code(image: str, data: Path, root: Path) -> None:
    """SDK 3: ModelTrainer with SourceCode(command="exec train") and typed hyperparameters."""
    packed = train(
        image,
        data,
        root / "exec",
        source_code=SourceCode(command="exec train"),
        hyperparameters={"epochs": 1, "batch_size": 16, "momentum": 0.9, "wandb_mode": "disabled"},
    )
    assert {"model.json", "model.safetensors"} <= names_in(packed / "model.tar.gz")


def test_two_hosts(image: str, data: Path, root: Path) -> None:
    """SDK 3: ModelTrainer with Compute(instance_count=2) trains one model on two hosts."""
    settings = {"epochs": 1, "batch_size": 16, "wandb_mode": "disabled"}
    packed = train(image, data, root / "two", hosts=2, hyperparameters=settings)
    assert {"model.json", "model.safetensors"} <= names_in(packed / "model.tar.gz")


def test_torchrun(image: str, data: Path, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SDK 3: distributed=Torchrun() and the script in docs/examples/torchrun train one model."""
    packed = train(
        image,
        data,
        root / "torchrun",
        source_code=SourceCode(source_dir=str(EXAMPLES / "torchrun"), entry_script="train.py"),
        distributed=Torchrun(process_count_per_node=2),
        hyperparameters={"epochs": 1, "batch_size": 16, "wandb_mode": "disabled"},
    )
    assert {"model.json", "model.safetensors"} <= names_in(packed / "model.tar.gz")
    # One model of both workers: two trainings would print twice.
    assert capfd.readouterr().out.count("epoch=1; train_loss=") == 2


def test_failure(image: str, data: Path, root: Path) -> None:
    """SDK 3: under its own starter, too, a failed training tells why in output/failure."""
    with pytest.raises(RuntimeError, match="exited with code: 2"):
        train(
            image,
            data,
            root / "typo",
            source_code=SourceCode(command="exec train"),
            hyperparameters={"epocs": 3},
        )
    text = failure_in(root / "typo" / "compressed_artifacts" / "output.tar.gz")
    assert "epocs" in text
    assert "epochs" in text
    assert len(text) <= 1024
