"""Versions of the model: what they carry, who approves them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from .conftest import BUCKET, REVISION, ROLE, Cloud, Run, client, error_of, keys, put

FINGERPRINT = "fe" * 32
DATA = f"s3://{BUCKET}/alexmri/data/0123456789abcdef/"


def figure(value: float, half: float = 0.02) -> dict[str, Any]:
    return {"value": value, "ci95": [value - half, value + half]}


def evaluation(macro_f1: float = 0.9, half: float = 0.02, **protocol: Any) -> dict[str, Any]:
    """Return what a training leaves as evaluation.json, as far as the registry reads it."""
    return {
        "schema": "alexmri.evaluation/1",
        "protocol": {"split_by": "slice", "subjects_shared": 40} | protocol,
        "test": {
            "images": 100,
            "accuracy": figure(0.95),
            "macro_f1": figure(macro_f1, half),
            "per_class": {"A": {"f1": figure(0.8)}, "B": {"f1": None}},
        },
        "leak_probe": {"slice": 0.99, "subject": 0.4, "shuffled": 0.95},
    }


def files(**more: Any) -> dict[str, bytes]:
    """Return what a training leaves, as far as the registry reads it."""
    documents = {
        "evaluation.json": evaluation(**more),
        "statistics.json": {"multiclass_classification_metrics": {}},
        "audit.json": {"fingerprint": FINGERPRINT},
    }
    written = {name: json.dumps(document).encode() for name, document in documents.items()}
    return written | {"report.html": b"<html>"}


def results(**more: Any) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files(**more).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def results_in(folder: Path) -> Path:
    folder.mkdir()
    for name, data in files().items():
        (folder / name).write_bytes(data)
    return folder


def train(image: str, job: str = "alexmri-1", **more: Any) -> str:
    """Put a completed job, which moto's are at once, and its results."""
    client("sagemaker").create_training_job(
        TrainingJobName=job,
        AlgorithmSpecification={"TrainingImage": image, "TrainingInputMode": "File"},
        RoleArn=ROLE,
        InputDataConfig=[
            {
                "ChannelName": "training",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": DATA}},
            }
        ],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/alexmri/jobs"},
        ResourceConfig={
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 10,
        },
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    put(f"alexmri/jobs/{job}/output/output.tar.gz", results(**more))
    return job


def test_a_version_carries_what_it_is_worth_and_where_it_comes_from(
    cloud: Cloud, image: str, run: Run
) -> None:
    job = train(image)
    done = run("register", job)
    (request,) = cloud.sent("CreateModelPackage")
    model = f"s3://{BUCKET}/alexmri/jobs/{job}/output/model.tar.gz"
    (container,) = request["InferenceSpecification"]["Containers"]
    assert container["Image"] == image
    assert container["ImageDigest"] == image.partition("@")[2]
    assert container["ModelDataUrl"] == model
    assert request["ModelApprovalStatus"] == "PendingManualApproval"
    assert request["MetadataProperties"]["CommitId"] == REVISION
    quality = request["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert quality["S3Uri"] == f"s3://{BUCKET}/alexmri/versions/{job}/statistics.json"
    assert request["CustomerMetadataProperties"] == {
        "training_job": job,
        "git_revision": REVISION,
        "data": DATA,
        "data_upload": "0123456789abcdef",
        "data_fingerprint": FINGERPRINT,
        "split_by": "slice",
        "subjects_shared": "40",
        "test_accuracy": "0.9500 from 0.9300 to 0.9700",
        "test_macro_f1": "0.9000 from 0.8800 to 0.9200",
        "evaluation": f"s3://{BUCKET}/alexmri/versions/{job}/evaluation.json",
        "audit": f"s3://{BUCKET}/alexmri/versions/{job}/audit.json",
    }
    assert len(request["ClientToken"]) <= 36
    kept = {key.rpartition("/")[2] for key in keys(f"alexmri/versions/{job}/")}
    assert kept == {"evaluation.json", "statistics.json", "audit.json", "report.html"}
    assert "to approve it: alexmri aws approve 1" in done.stdout
    # Again: the same version.
    again = run("register", job)
    assert "is registered already" in again.stdout
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert len(cloud.sent("CreateModelPackage")) == 1
    assert len(cloud.sent("CreateModelPackageGroup")) == 1


def test_only_what_is_complete_is_registered(cloud: Cloud, image: str, run: Run) -> None:
    job = train(image)
    client("s3").delete_object(Bucket=BUCKET, Key=f"alexmri/jobs/{job}/output/output.tar.gz")
    assert "has left no s3://" in error_of(run("register", job, ok=False))
    cloud.answer("DescribeTrainingJob", {"TrainingJobName": job, "TrainingJobStatus": "InProgress"})
    told = error_of(run("register", job, ok=False))
    assert told.startswith("alexmri-1 is InProgress; only what a completed training left")
    assert not cloud.sent("CreateModelPackage")


def test_versions_are_listed_approved_and_rejected(cloud: Cloud, image: str, run: Run) -> None:
    for number in (1, 2):
        run("register", train(image, f"alexmri-{number}"))
    assert run("approve", "1", "--reason", "good").stdout == "version 1 is Approved\n"
    assert run("approve", "v1").stdout == "version 1 is Approved already\n"
    assert run("reject", "2").stdout == "version 2 is Rejected\n"
    updates = cloud.sent("UpdateModelPackage")
    first, second = (each for each in updates if "CustomerMetadataProperties" not in each)
    assert first["ModelApprovalStatus"] == "Approved"
    assert first["ApprovalDescription"] == "good"
    assert first["ModelPackageArn"].endswith(":model-package/alexmri/1")
    assert second["ModelApprovalStatus"] == "Rejected"
    lines = run("versions", env={"COLUMNS": "200"}).stdout.splitlines()
    shown = [line for line in lines if "0.9000" in line]
    assert "Rejected" in shown[0]
    assert "Approved" in shown[1]
    assert REVISION[:12] in shown[0]
    assert "there is no version 7 of alexmri" in error_of(run("approve", "7", ok=False))
