"""boto3-shaped requests, executed by the local client of whichever SDK is installed."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
from harness import (
    BUCKET,
    CLASSES,
    SDK,
    check_answer,
    failure_in,
    local_session,
    names_in,
)

pytestmark = pytest.mark.parametrize("sdk", [SDK])


@pytest.fixture(scope="module")
def session(root: Path, bucket: Any) -> Any:
    return local_session(root, bucket.address)


@pytest.fixture(scope="module")
def client(session: Any, image: str) -> Any:
    """The SageMaker client after a training and CreateModel."""
    client = session.sagemaker_client
    client.create_training_job(**jobs.training(image))
    client.create_model(**jobs.model(image))
    return client


def fetched(bucket: Any, name: str, folder: Path) -> Path:
    path = folder / Path(name).name
    path.write_bytes(bucket.read(name))
    return path


def test_training(sdk: str, client: Any, bucket: Any, tmp_path: Path) -> None:
    """Low-level client: CreateTrainingJob, from S3 to model.tar.gz and output.tar.gz in S3."""
    job = client.describe_training_job("train")
    assert job["TrainingJobStatus"] == "Completed"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == jobs.MODEL
    model = names_in(fetched(bucket, "jobs/train/output/model.tar.gz", tmp_path))
    assert {"model.json", "model.safetensors"} <= model
    assert not any("checkpoint" in name for name in model)
    output = names_in(fetched(bucket, "jobs/train/output/output.tar.gz", tmp_path))
    assert {"data/report.html", "data/evaluation.json"} <= output
    assert "failure" not in output


def test_two_hosts(sdk: str, client: Any, image: str, bucket: Any, tmp_path: Path) -> None:
    """Low-level client: a training on two hosts ends with one whole model."""
    client.create_training_job(**jobs.training(image, name="two", hosts=2))
    assert client.describe_training_job("two")["TrainingJobStatus"] == "Completed"
    two = names_in(fetched(bucket, "jobs/two/output/model.tar.gz", tmp_path))
    assert two == names_in(fetched(bucket, "jobs/train/output/model.tar.gz", tmp_path))


def test_failure(sdk: str, session: Any, image: str, bucket: Any, tmp_path: Path) -> None:
    """Low-level client: a failed training tells why in output/failure."""
    request = jobs.training(image, name="typo", epocs="3")
    with pytest.raises(RuntimeError, match="exited with code: 2"):
        session.sagemaker_client.create_training_job(**request)
    text = failure_in(fetched(bucket, "jobs/typo/output/output.tar.gz", tmp_path))
    assert "epocs" in text
    assert "epochs" in text
    assert len(text) <= 1024


def test_endpoint(sdk: str, client: Any, session: Any, data: Path) -> None:
    """Low-level client: CreateEndpoint, InvokeEndpoint with all its headers, DeleteEndpoint."""
    client.create_endpoint_config(**jobs.endpoint_config())
    client.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    try:
        assert client.describe_endpoint("endpoint")["EndpointStatus"] == "InService"
        for picture in (data / CLASSES[0] / "1 (1).png", data / CLASSES[1] / "1 (2).jpg"):
            response = session.sagemaker_runtime_client.invoke_endpoint(
                Body=picture.read_bytes(),
                EndpointName="endpoint",
                ContentType="image/png" if picture.suffix == ".png" else "image/jpeg",
                Accept="application/json",
                CustomAttributes="trace=7",
                TargetVariant="only",
                InferenceId="slice-1",
            )
            assert response["Body"].status == 200
            check_answer(json.loads(response["Body"].read()))
    finally:
        client.delete_endpoint("endpoint")


def test_transform(sdk: str, client: Any, data: Path, bucket: Any) -> None:
    """Low-level client: CreateTransformJob answers every picture of a folder."""
    pictures = sorted((data / CLASSES[0]).glob("*.png"))
    for picture in pictures:
        bucket.client.upload_file(str(picture), BUCKET, f"batch/{picture.name}")
    client.create_transform_job(**jobs.transform())
    assert client.describe_transform_job("transform")["TransformJobStatus"] == "Completed"
    answers = {f"{picture.name}.out" for picture in pictures}
    assert bucket.names("answers/transform/") == answers
    for name in answers:
        check_answer(json.loads(bucket.read(f"answers/transform/{name}")))


def test_processing(sdk: str, client: Any, image: str, bucket: Any) -> None:
    """Low-level client: CreateProcessingJob runs `evaluate` on the packed model."""
    client.create_processing_job(**jobs.processing(image))
    assert client.describe_processing_job("evaluate")["ProcessingJobStatus"] == "Completed"
    evaluation = json.loads(bucket.read("evaluation/evaluation.json"))
    assert evaluation["test"]["images"] == 40
    assert 0 <= evaluation["test"]["macro_f1"]["value"] <= 1
    statistics = json.loads(bucket.read("evaluation/statistics.json"))
    assert "accuracy" in statistics["multiclass_classification_metrics"]
    assert any(name.endswith(".html") for name in bucket.names("evaluation/"))
