"""What `alexmri aws` asks SageMaker for, executed by SDK 2's local client, files in moto's S3."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from harness import BUCKET, REGION, ROLE, local_session, names_in, write_slices

S3 = f"s3://{BUCKET}"
ACCOUNT = ("--region", REGION, "--role", ROLE, "--bucket", BUCKET)
SHORT = ("--epochs", "1", "--batch-size", "16", "--wandb-mode", "disabled")
ORDER = {
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
    "Equals": lambda left, right: left == right,
}


def plan(image: str, *command: str) -> list[dict[str, Any]]:
    """Return what the image's own `alexmri aws … --dry-run` prints, about this very image."""
    asked = ("--image", "tag", *SHORT, "--dry-run")
    done = subprocess.run(
        ["docker", "run", "--rm", image, "alexmri", "aws", *ACCOUNT, *command, *asked],
        check=True,
        capture_output=True,
        text=True,
    )
    # A name in a registry is what only AWS knows.
    steps: list[dict[str, Any]] = json.loads(
        done.stdout.replace("<digest of the image tag>", image)
    )
    return steps


def locally(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a request with this machine for its instance."""
    text = json.dumps(arguments)
    local: dict[str, Any] = json.loads(re.sub(r'("InstanceType": ")ml\.[^"]+', r"\1local", text))
    return local


@pytest.fixture(scope="module")
def client(root: Path, bucket: Any) -> Any:
    return local_session(root, bucket.address).sagemaker_client


@pytest.fixture(scope="module")
def held_out(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures that no training sees."""
    folder = write_slices(tmp_path_factory.mktemp("held-out") / "slices", people=4, seed=8)
    for path in folder.rglob("*.*"):
        bucket.client.upload_file(str(path), BUCKET, f"held-out/{path.relative_to(folder)}")
    return f"{S3}/held-out"


def test_training(client: Any, image: str, bucket: Any, tmp_path: Path) -> None:
    """SDK 2: the training that `alexmri aws train` asks for runs, and leaves model and report."""
    _, create = plan(image, "train", "--data", f"{S3}/data")
    request = locally(create["request"])
    client.create_training_job(**request)
    name = request["TrainingJobName"]
    assert client.describe_training_job(name)["TrainingJobStatus"] == "Completed"
    for archive, content in (("model", "model.json"), ("output", "data/report.html")):
        path = tmp_path / f"{archive}.tar.gz"
        path.write_bytes(bucket.read(f"alexmri/jobs/{name}/output/{archive}.tar.gz"))
        assert content in names_in(path)


class Execution:
    """Walks a pipeline's definition as SageMaker does: each step a container on this machine.

    SDK 2 has a local pipeline too, but takes its own objects alone, not a definition. Steps whose
    arguments are the same as before come from a cache, as on the platform.
    """

    def __init__(
        self, definition: dict[str, Any], client: Any, bucket: Any, cache: dict[str, Any]
    ) -> None:
        self._definition, self._client, self._bucket = definition, client, bucket
        self._cache = cache
        self._parameters = {p["Name"]: p["DefaultValue"] for p in definition["Parameters"]}
        self._results: dict[str, dict[str, Any]] = {}
        self.steps: list[str] = []
        self.reason: str | None = None

    def run(self, **parameters: Any) -> "Execution":
        self._parameters |= parameters
        self._walk(self._definition["Steps"])
        return self

    def _walk(self, steps: list[dict[str, Any]]) -> None:
        for step in steps:
            assert set(step.get("DependsOn", [])) <= set(self.steps)
            self.steps.append(step["Name"])
            do: Callable[[dict[str, Any]], None] = getattr(self, f"_{step['Type'].lower()}")
            do(step)

    def _once(self, step: dict[str, Any], do: Callable[[dict[str, Any]], Any]) -> None:
        arguments = locally(self._value(step["Arguments"]))
        key = json.dumps([step["Name"], arguments])
        if key not in self._cache:
            self._cache[key] = do(arguments)
        self._results[step["Name"]] = self._cache[key]

    def _training(self, step: dict[str, Any]) -> None:
        def do(arguments: dict[str, Any]) -> Any:
            self._client.create_training_job("pipeline-train", **arguments)
            return self._client.describe_training_job("pipeline-train")

        self._once(step, do)

    def _processing(self, step: dict[str, Any]) -> None:
        def do(arguments: dict[str, Any]) -> Any:
            self._client.create_processing_job(f"pipeline-{step['Name']}", **arguments)
            return arguments

        self._once(step, do)

    def _condition(self, step: dict[str, Any]) -> None:
        arguments = step["Arguments"]
        met = all(
            ORDER[each["Type"]](self._value(each["LeftValue"]), self._value(each["RightValue"]))
            for each in arguments["Conditions"]
        )
        self._walk(arguments["IfSteps" if met else "ElseSteps"])

    def _registermodel(self, step: dict[str, Any]) -> None:
        registry: Any = boto3.client(
            "sagemaker", endpoint_url=self._bucket.address, region_name=REGION
        )
        arguments = self._value(step["Arguments"])
        name = arguments["ModelPackageGroupName"]
        registry.create_model_package_group(ModelPackageGroupName=name)
        made = registry.create_model_package(**arguments)["ModelPackageArn"]
        self._results[step["Name"]] = registry.describe_model_package(ModelPackageName=made)

    def _fail(self, step: dict[str, Any]) -> None:
        self.reason = self._value(step["Arguments"]["ErrorMessage"])

    def version(self) -> dict[str, Any]:
        return self._results["Register"]

    def _value(self, value: Any) -> Any:
        """Return `value` with what its references stand for."""
        if isinstance(value, list):
            return [self._value(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "Get" in value:
            return self._get(value["Get"])
        if "Std:Join" in value:
            parts = [self._value(each) for each in value["Std:Join"]["Values"]]
            return value["Std:Join"]["On"].join(str(part) for part in parts)
        if "Std:JsonGet" in value:
            return self._from_file(**value["Std:JsonGet"])
        return {key: self._value(each) for key, each in value.items()}

    def _get(self, reference: str) -> Any:
        kind, name, *rest = reference.split(".")
        if kind == "Parameters":
            return self._parameters[name]
        if kind == "Execution":
            return {"PipelineExecutionId": "abc", "PipelineExecutionArn": "arn:abc"}[name]
        found: Any = self._results[name]
        for part in ".".join(rest).replace("']", "").replace("['", ".").split("."):
            if isinstance(found, list):
                (found,) = (each for each in found if each["OutputName"] == part)
            else:
                found = found[part]
        return found

    def _from_file(self, PropertyFile: dict[str, str], Path: str) -> Any:
        _, name, _, file = PropertyFile["Get"].split(".")
        (step,) = (each for each in self._definition["Steps"] if each["Name"] == name)
        (declared,) = (each for each in step["PropertyFiles"] if each["PropertyFileName"] == file)
        outputs = self._results[name]["ProcessingOutputConfig"]["Outputs"]
        (output,) = (each for each in outputs if each["OutputName"] == declared["OutputName"])
        address = f"{output['S3Output']['S3Uri']}/{declared['FilePath']}"
        found = json.loads(self._bucket.read(address.removeprefix(f"{S3}/")))
        for part in Path.split("."):
            found = found[part]
        return found


def test_pipeline(client: Any, image: str, bucket: Any, held_out: str) -> None:
    """SDK 2: the pipeline of `alexmri aws pipeline` registers a good model, and stops else."""
    command = ("pipeline", "upsert", "--data", f"{S3}/data", "--test", held_out)
    definition = plan(image, *command)[-1]["request"]["PipelineDefinition"]
    cache: dict[str, Any] = {}

    def execution(**parameters: float) -> Execution:
        return Execution(definition, client, bucket, cache).run(**parameters)

    good = execution(MinMacroF1=0.0, MaxLeakScore=1.0)
    assert good.steps == ["Audit", "Train", "Evaluate", "Check", "Register"]
    version = good.version()
    assert version["ModelApprovalStatus"] == "PendingManualApproval"
    (container,) = version["InferenceSpecification"]["Containers"]
    assert container["ModelDataUrl"] == f"{S3}/alexmri/jobs/pipeline-train/output/model.tar.gz"
    known = version["CustomerMetadataProperties"]
    assert known["training_job"] == "pipeline-train"
    for address in (
        known["evaluation"],
        known["audit"],
        version["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"],
    ):
        assert json.loads(bucket.read(address.removeprefix(f"{S3}/")))

    poor = execution(MinMacroF1=1.01, MaxLeakScore=1.0)
    assert poor.steps == ["Audit", "Train", "Evaluate", "Check", "Stop"]
    assert re.search(r"macro F1 is [01]\.\d+ and must be at least 1.01", poor.reason or "")
    leaking = execution(MinMacroF1=0.0, MaxLeakScore=-1.0)
    assert leaking.steps[-1] == "Stop"
    assert "between subjects scores" in (leaking.reason or "")
