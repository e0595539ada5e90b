"""`alexmri aws pipeline`: the definition, step by step, and what is done with it."""

import json
from pathlib import Path
from typing import Any

from botocore.session import Session
from botocore.validate import ParamValidator

from .conftest import BUCKET, REVISION, ROLE, Cloud, Run, client, error_of

DATA = f"s3://{BUCKET}/alexmri/data/0123456789abcdef"
UPSERT = ("pipeline", "upsert", "--data", DATA, "--image", REVISION, "--epochs", "3")
REQUESTS = {
    "Processing": ("CreateProcessingJob", "ProcessingJobName"),
    "Training": ("CreateTrainingJob", "TrainingJobName"),
    "RegisterModel": ("CreateModelPackage", None),
}


def stored(cloud: Cloud) -> Any:
    return json.loads(cloud.sent("CreatePipeline")[-1]["PipelineDefinition"])


def steps_in(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all steps, those of branches too."""
    found = []
    for step in steps:
        found.append(step)
        if step["Type"] == "Condition":
            found += steps_in(step["Arguments"]["IfSteps"] + step["Arguments"]["ElseSteps"])
    return found


def plain(value: Any) -> Any:
    """Put something of the right type in place of references, as an execution does."""
    if isinstance(value, dict):
        if set(value) & {"Get", "Std:Join", "Std:JsonGet"}:
            return "s3://bucket/what-stands-there"
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["Get"]] if "Get" in value else []
        return own + [found for each in value.values() for found in references(each)]
    return (
        [found for each in value for found in references(each)] if isinstance(value, list) else []
    )


def test_every_step_is_a_request_that_boto3_takes(cloud: Cloud, image: str, run: Run) -> None:
    vpc = ("--subnets", "s", "--security-groups", "g", "--kms-key", "k")
    run(*vpc, *UPSERT)
    definition = stored(cloud)
    assert definition["Version"] == "2020-12-01"
    model = Session().get_service_model("sagemaker")
    steps = steps_in(definition["Steps"])
    assert [step["Name"] for step in steps] == [
        *("Audit", "Train", "Evaluate", "Check", "Register", "Stop")
    ]
    for step in steps:
        if step["Type"] not in REQUESTS:
            continue
        operation, name = REQUESTS[step["Type"]]
        request = plain(step["Arguments"]) | ({name: "name"} if name else {})
        shape = model.operation_model(operation).input_shape
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{step['Name']}: {report.generate_report()}"


def test_references_lead_somewhere(cloud: Cloud, image: str, run: Run) -> None:
    run(*UPSERT)
    definition = stored(cloud)
    parameters = {each["Name"] for each in definition["Parameters"]}
    names = {step["Name"] for step in steps_in(definition["Steps"])}
    files = {
        f"Steps.{step['Name']}.PropertyFiles.{each['PropertyFileName']}"
        for step in definition["Steps"]
        for each in step.get("PropertyFiles", [])
    }
    for reference in references(definition):
        kind, name, *rest = reference.split(".")
        if kind == "Parameters":
            assert name in parameters
        elif kind == "Steps":
            assert name in names
            assert rest[0] != "PropertyFiles" or reference in files
        else:
            assert reference in ("Execution.PipelineExecutionId", "Execution.PipelineExecutionArn")


def test_what_the_steps_do(cloud: Cloud, image: str, run: Run) -> None:
    run(*UPSERT, "--test", f"{DATA}/test")
    definition = stored(cloud)
    audit, train, evaluate, check = definition["Steps"]
    entry = {step["Name"]: step["Arguments"].get("AppSpecification") for step in (audit, evaluate)}
    assert entry["Audit"] == {
        "ImageUri": image,
        "ContainerEntrypoint": [
            *("alexmri", "audit", "/opt/ml/processing/data", "--json"),
            "/opt/ml/processing/audit/audit.json",
        ],
    }
    assert entry["Evaluate"] == {"ImageUri": image, "ContainerEntrypoint": ["evaluate"]}
    assert train["DependsOn"] == ["Audit"]
    assert train["Arguments"]["HyperParameters"] == {"epochs": "3"}
    assert train["Arguments"]["AlgorithmSpecification"]["TrainingImage"] == image
    defaults = {each["Name"]: each["DefaultValue"] for each in definition["Parameters"]}
    assert defaults["Data"] == DATA
    assert defaults["Test"] == f"{DATA}/test"
    kinds = [condition["Type"] for condition in check["Arguments"]["Conditions"]]
    assert kinds == ["GreaterThanOrEqualTo", "Equals", "LessThanOrEqualTo"]
    (register,) = check["Arguments"]["IfSteps"]
    assert register["Arguments"]["ModelApprovalStatus"] == "PendingManualApproval"
    assert register["Arguments"]["CustomerMetadataProperties"]["git_revision"] == REVISION
    (stop,) = check["Arguments"]["ElseSteps"]
    assert "macro F1 is" in json.dumps(stop["Arguments"]["ErrorMessage"])
    assert cloud.sent("CreatePipeline")[0]["RoleArn"] == ROLE


def test_the_cache_is_asked_for_where_it_is_right(cloud: Cloud, image: str, run: Run) -> None:
    """What is a key of SageMaker's cache does not depend on the execution; what is not, does."""
    run(*UPSERT)
    audit, train, evaluate, _ = stored(cloud)["Steps"]
    keys = ("AppSpecification", "Environment", "ProcessingInputs", "AlgorithmSpecification")
    for step in (audit, train, evaluate):
        assert step["CacheConfig"]["Enabled"] is True
        for key in (*keys, "CheckpointConfig", "HyperParameters", "InputDataConfig"):
            assert "Execution." not in json.dumps(step["Arguments"].get(key, {}))
    for step in (audit, evaluate):
        (output,) = step["Arguments"]["ProcessingOutputConfig"]["Outputs"]
        assert "Execution.PipelineExecutionId" in json.dumps(output)
    # Checkpoints of another training lie elsewhere.
    run(*UPSERT, "--seed", "2")
    (update,) = cloud.sent("UpdatePipeline")
    other = json.loads(update["PipelineDefinition"])
    assert other["Parameters"][2]["Name"] == "Checkpoints"
    assert other["Parameters"][2] != stored(cloud)["Parameters"][2]


def test_without_a_gate_the_leak_is_not_asked_for(cloud: Cloud, image: str, run: Run) -> None:
    run(*UPSERT, "--no-leak-gate")
    assert "MaxLeakScore" not in json.dumps(stored(cloud))


def test_twice_is_once(cloud: Cloud, image: str, run: Run) -> None:
    assert "made the pipeline alexmri" in run(*UPSERT).stdout
    assert "is up to date" in run(*UPSERT).stdout
    assert "updated" in run(*UPSERT, "--seed", "2").stdout
    assert len(cloud.sent("CreatePipeline")) == len(cloud.sent("UpdatePipeline")) == 1
    assert len(cloud.sent("CreateModelPackageGroup")) == 1


def test_a_changed_role_is_an_update(cloud: Cloud, image: str, run: Run) -> None:
    run(*UPSERT)
    other = ROLE.replace("jobs", "others")
    assert "updated" in run("--pipeline-role", other, *UPSERT).stdout
    (update,) = cloud.sent("UpdatePipeline")
    assert update["RoleArn"] == other


EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/alexmri/execution/abc"


def test_start_starts_one(cloud: Cloud, image: str, run: Run) -> None:
    assert "there is no pipeline alexmri" in error_of(run("pipeline", "start", ok=False))
    run(*UPSERT)
    summary = {"PipelineExecutionArn": EXECUTION, "PipelineExecutionStatus": "Executing"}
    none = {"PipelineExecutionSummaries": []}
    some = {"PipelineExecutionSummaries": [summary]}
    done = {"PipelineExecutionSummaries": [summary | {"PipelineExecutionStatus": "Failed"}]}
    cloud.answer("ListPipelineExecutions", none, none, some, done)
    start = ("pipeline", "start", "--parameter", "MinMacroF1=0.9")
    for _ in range(2):  # killed before it was told: sent twice, it is one to SageMaker
        run(*start)
    assert "abc runs already: no other is started" in run(*start).stdout
    run(*start)
    first, same, other = cloud.sent("StartPipelineExecution")
    assert first["PipelineParameters"] == [{"Name": "MinMacroF1", "Value": "0.9"}]
    assert first["ClientRequestToken"] == same["ClientRequestToken"] != other["ClientRequestToken"]
    assert 32 <= len(first["ClientRequestToken"]) <= 128
    wrong = run("pipeline", "start", "--parameter", "Nothing=1", ok=False)
    assert "has no parameter Nothing; it has Data, Test, Checkpoints" in error_of(wrong)
    wrong = run("pipeline", "start", "--parameter", "Data=s3://other", ok=False)
    assert "Data and Checkpoints go together" in error_of(wrong)


def test_status_and_steps(cloud: Cloud, image: str, run: Run) -> None:
    run(*UPSERT)
    assert "nothing was executed yet" in error_of(run("pipeline", "status", ok=False))
    shown = run("pipeline", "show").stdout.splitlines()
    assert shown[:6] == [
        "Audit: alexmri audit",
        "Train: train on ml.g5.xlarge",
        "Evaluate: evaluate",
        "Check: 3 conditions",
        "Register: a version of alexmri, if Check holds",
        "Stop: end with the reason, if Check does not hold",
    ]
    assert f"Data = {DATA}" in shown
    client("sagemaker").start_pipeline_execution(
        PipelineName="alexmri", ClientRequestToken="t" * 32
    )
    running = {"PipelineExecutionArn": EXECUTION, "PipelineExecutionStatus": "Executing"}
    failed = running | {"PipelineExecutionStatus": "Failed", "FailureReason": "macro F1 is 0.1"}
    cloud.answer("DescribePipelineExecution", running, running, failed)
    stopped = {"StepName": "Stop", "StepStatus": "Failed", "FailureReason": "macro F1 is 0.1"}
    trained = {"StepName": "Train", "StepStatus": "Succeeded", "CacheHitResult": {}}
    steps = {
        "PipelineExecutionSteps": [
            stopped,
            trained | {"CacheHitResult": {"SourcePipelineExecutionArn": EXECUTION}},
        ]
    }
    cloud.answer("ListPipelineExecutionSteps", steps)
    assert run("pipeline", "status").exit_code == 0
    result = run("pipeline", "status", "--follow", ok=False)
    assert result.exit_code == 1
    assert "Train: Succeeded (from the cache)" in result.stdout
    assert "reason: macro F1 is 0.1" in result.stdout
    shown = run("pipeline", "show").stdout.splitlines()
    assert "Train: train on ml.g5.xlarge [Succeeded]" in shown
    assert "Stop: end with the reason, if Check does not hold [Failed]" in shown


def test_the_definition_is_small_and_the_same_each_time(cloud: Cloud, run: Run) -> None:
    dry = [run(*UPSERT, "--dry-run").stdout for _ in range(2)]
    assert dry[0] == dry[1]
    assert len(dry[0]) < 1 << 20
    assert not list(Path().glob("*.json"))
