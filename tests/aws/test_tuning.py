"""`alexmri aws tune`: a search over ranges, its trials, and the best of them."""

import json
from typing import Any

import pytest

from .conftest import BUCKET, REVISION, SECRET, Cloud, Run, client, error_of, put
from .test_hosting import Cut
from .test_registry import results, train

DATA = f"s3://{BUCKET}/alexmri/data/0123456789abcdef"
LR = ("--range", "learning_rate=0.001:5e-2:log")
TUNE = ("tune", "--data", DATA, "--image", REVISION, "--epochs", "3", *LR)
ABSENT = {"__type": "ResourceNotFound", "message": "Could not find it"}


@pytest.fixture
def data(image: str) -> str:
    put("alexmri/data/0123456789abcdef/A/1.png", b"x")
    return DATA


def state(cloud: Cloud, status: str, **more: Any) -> None:
    """Have SageMaker say of every tuning job that was asked for that it is in `status`."""

    def describe(body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        name = body["HyperParameterTuningJobName"]
        for sent in cloud.sent("CreateHyperParameterTuningJob"):
            if sent["HyperParameterTuningJobName"] == name:
                definition = json.loads(json.dumps(sent["TrainingJobDefinition"]))
                # As SageMaker does.
                definition["StaticHyperParameters"]["_tuning_objective_metric"] = "val_macro_f1"
                told = {"HyperParameterTuningJobStatus": status, **more}
                return 200, {**sent, "TrainingJobDefinition": definition, **told}
        return 400, ABSENT

    cloud.answers["DescribeHyperParameterTuningJob"] = describe


def trial(name: str, value: float | None, **more: Any) -> dict[str, Any]:
    metric = {"MetricName": "val_macro_f1", "Value": value}
    return {
        "TrainingJobName": name,
        "TrainingJobStatus": "Completed" if value else "Failed",
        "TunedHyperParameters": {"learning_rate": "0.01"},
        **({"FinalHyperParameterTuningJobObjectiveMetric": metric} if value else {}),
        **more,
    }


def trials(cloud: Cloud, *pages: list[dict[str, Any]]) -> None:
    """Have SageMaker list trials, page after page."""
    target = "ListTrainingJobsForHyperParameterTuningJob"

    def listed(body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        number = int(body.get("NextToken", 0))
        more = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        return 200, {"TrainingJobSummaries": pages[number], **more}

    cloud.answers[target] = listed


def test_the_request_says_all_of_it(cloud: Cloud, data: str, image: str, run: Run) -> None:
    more = (
        *("--range", "epochs=10:40", "--range", "optimizer=sgd,adamw"),
        *("--range", "momentum=0.8:0.99:reverselog", "--max-jobs", "9", "--parallel", "3"),
    )
    run("--wandb-secret", SECRET, *TUNE[:5], *LR, *more, "--seed", "1", "--detach")
    (request,) = cloud.sent("CreateHyperParameterTuningJob")
    search, job = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
    assert search["HyperParameterTuningJobObjective"] == {
        "Type": "Maximize",
        "MetricName": "val_macro_f1",
    }
    assert search["ResourceLimits"] == {
        "MaxNumberOfTrainingJobs": 9,
        "MaxParallelTrainingJobs": 3,
    }
    assert search["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {
                "Name": "learning_rate",
                "MinValue": "0.001",
                "MaxValue": "0.05",
                "ScalingType": "Logarithmic",
            },
            {
                "Name": "momentum",
                "MinValue": "0.8",
                "MaxValue": "0.99",
                "ScalingType": "ReverseLogarithmic",
            },
        ],
        "IntegerParameterRanges": [
            {"Name": "epochs", "MinValue": "10", "MaxValue": "40", "ScalingType": "Auto"}
        ],
        "CategoricalParameterRanges": [{"Name": "optimizer", "Values": ["sgd", "adamw"]}],
    }
    # What is searched for is not fixed.
    assert job["StaticHyperParameters"] == {"seed": "1"}
    assert job["AlgorithmSpecification"]["TrainingImage"] == image
    names = [each["Name"] for each in job["AlgorithmSpecification"]["MetricDefinitions"]]
    assert "val_macro_f1" in names
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"]["MaxWaitTimeInSeconds"] == 172_800
    name = request["HyperParameterTuningJobName"]
    assert len(name) <= 32
    assert job["CheckpointConfig"] == {
        "S3Uri": f"s3://{BUCKET}/alexmri/checkpoints/{name}",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert job["Environment"] == {"ALEXMRI_WANDB_SECRET": SECRET}
    assert job["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert {"Key": "alexmri:data-training", "Value": "0123456789abcdef"} in request["Tags"]


def test_twice_is_once(cloud: Cloud, data: str, run: Run) -> None:
    state(cloud, "InProgress")
    run(*TUNE, "--detach")
    assert "runs already: attaching to it" in run(*TUNE, "--detach").stdout
    state(cloud, "Completed")
    trials(cloud, [])
    assert "has finished with these settings" in run(*TUNE).stdout
    assert len(cloud.sent("CreateHyperParameterTuningJob")) == 1
    run(*TUNE, "--range", "momentum=0.8:0.9", "--detach")
    first, second = cloud.sent("CreateHyperParameterTuningJob")
    assert first["HyperParameterTuningJobName"] != second["HyperParameterTuningJobName"]
    name = first["HyperParameterTuningJobName"]
    told = error_of(run(*TUNE, "--seed", "7", "--name", name, ok=False))
    assert "of other ranges, settings, data or image; choose another --name" in told


def test_a_search_that_was_cut_off_after_any_call_is_started_once(
    cloud: Cloud, data: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    state(cloud, "InProgress")
    cut, number, interrupted = Cut(monkeypatch), 0, True
    while interrupted:
        number += 1
        command = (*TUNE, "--seed", number, "--detach")
        cut.at(number)
        interrupted = run(*command, ok=False).exit_code != 0
        cut.at(0)
        run(*command)
        assert len(cloud.sent("CreateHyperParameterTuningJob")) == number
    assert number > 4


@pytest.mark.parametrize("best", [None, "t-001"])
def test_a_search_that_was_stopped_goes_on_from_its_trials(
    cloud: Cloud, data: str, run: Run, best: str | None
) -> None:
    run(*TUNE, "--detach")
    more = {"BestTrainingJob": trial(best, 0.5)} if best else {}
    (first,) = cloud.sent("CreateHyperParameterTuningJob")
    name = first["HyperParameterTuningJobName"]

    state(cloud, "Stopped", **more)
    describe = cloud.answers["DescribeHyperParameterTuningJob"]
    cloud.answers["DescribeHyperParameterTuningJob"] = lambda body: (
        describe(body) if body["HyperParameterTuningJobName"] == name else (400, ABSENT)
    )
    run(*TUNE, "--detach")
    _, second = cloud.sent("CreateHyperParameterTuningJob")
    assert second["HyperParameterTuningJobName"] == f"{name}-2"
    parents = [{"HyperParameterTuningJobName": name}]
    warm = {
        "WarmStartType": "IdenticalDataAndAlgorithm",
        "ParentHyperParameterTuningJobs": parents,
    }
    # AWS builds on nothing but trials that ended well.
    assert second.get("WarmStartConfig") == (warm if best else None)


def test_status_lists_the_trials_best_first(cloud: Cloud, data: str, run: Run) -> None:
    run(*TUNE, "--detach")
    name = cloud.sent("CreateHyperParameterTuningJob")[0]["HyperParameterTuningJobName"]
    state(cloud, "InProgress")
    trials(cloud, [trial("a", 0.4), trial("b", None)], [trial("c", 0.9)])
    assert run("status", name).stdout.splitlines() == [
        f"tuning job: {name}",
        "status: InProgress",
        "val_macro_f1 0.9000  c  Completed  learning_rate=0.01",
        "val_macro_f1 0.4000  a  Completed  learning_rate=0.01",
        "no figure yet  b  Failed  learning_rate=0.01",
    ]
    assert "there is no training job and no tuning job x" in error_of(run("status", "x", ok=False))


def test_the_search_is_watched_to_its_end(cloud: Cloud, data: str, run: Run) -> None:
    asked: list[str] = []
    trials(cloud, [trial("a", 0.9)])

    def next_state(target: str) -> None:
        if target == "DescribeHyperParameterTuningJob":
            asked.append(target)
            counters = {"Completed": len(asked), "InProgress": 1}
            status = "InProgress" if len(asked) < 4 else "Completed"
            best = trial("a", 0.9)
            state(cloud, status, TrainingJobStatusCounters=counters, BestTrainingJob=best)

    cloud.before = next_state
    lines = run(*TUNE).stdout.splitlines()
    assert "[InProgress] trials: 2 done, 1 running, best val_macro_f1 0.9000" in lines
    assert "[Completed] trials: 4 done, 1 running, best val_macro_f1 0.9000" in lines
    assert "val_macro_f1 0.9000  a  Completed  learning_rate=0.01" in lines
    assert lines[-1].startswith("to register the best: alexmri aws register alexmri-")


def test_a_search_that_failed_says_why(cloud: Cloud, data: str, run: Run) -> None:
    run(*TUNE, "--detach")
    name = cloud.sent("CreateHyperParameterTuningJob")[0]["HyperParameterTuningJobName"]
    trials(cloud, [trial("a", None)])
    state(cloud, "Failed", FailureReason="all trials failed")
    assert "reason: all trials failed" in run("status", name).stdout
    told = error_of(run("register", name, ok=False))
    assert told.startswith(f"no trial of {name} has ended well; it is Failed")


def test_the_best_trial_is_registered_and_fetched(
    cloud: Cloud, data: str, image: str, run: Run
) -> None:
    run(*TUNE, "--detach")
    name = cloud.sent("CreateHyperParameterTuningJob")[0]["HyperParameterTuningJobName"]
    train(image, f"{name}-007")
    state(cloud, "Completed", BestTrainingJob=trial(f"{name}-007", 0.9))
    for _ in range(2):
        done = run("register", name)
        assert f"the best trial of {name} is {name}-007" in done.stdout
        assert "version 1:" in done.stdout
    (version,) = client("sagemaker").list_model_packages(ModelPackageGroupName="alexmri")[
        "ModelPackageSummaryList"
    ]
    known = client("sagemaker").describe_model_package(ModelPackageName=version["ModelPackageArn"])
    assert known["CustomerMetadataProperties"]["training_job"] == f"{name}-007"
    put(f"alexmri/jobs/{name}-007/output/output.tar.gz", results())
    assert f"runs/{name}-007" in run("download", name).stdout


def test_stop_stops_a_search_once(cloud: Cloud, data: str, run: Run) -> None:
    run(*TUNE, "--detach")
    name = cloud.sent("CreateHyperParameterTuningJob")[0]["HyperParameterTuningJobName"]
    cloud.answer("StopHyperParameterTuningJob", {})
    state(cloud, "InProgress")
    assert "is being stopped; the same `tune` command" in run("stop", name).stdout
    state(cloud, "Stopping")
    assert "is being stopped already" in run("stop", name).stdout
    state(cloud, "Stopped")
    assert "is not running; its status is Stopped" in run("stop", name).stdout
    assert cloud.sent("StopHyperParameterTuningJob") == [{"HyperParameterTuningJobName": name}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("learning_rat=1:2",),
            "no setting 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (("learning_rate",), "must look like learning_rate=0.001:0.1:log or optimizer=sgd,adamw"),
        (("learning_rate=0.1:0.01",), "must go from a smaller to a larger number"),
        (("learning_rate=0.1:nan",), "must go from a smaller to a larger number"),
        (("learning_rate=0.1:1:cubic",), "the scale must be one of linear, log, reverselog"),
        (("momentum=0:0.9:log",), "a range in log must begin above 0"),
        (("weight_decay=0.1:1:reverselog",), "must be from 0 to below 1"),
        (("epochs=0:3",), "setting 'epochs' is '0'"),
        (("epochs=1.5:3",), "setting 'epochs' is '1.5'"),
        (("momentum=0.5:1",), "setting 'momentum' is '1'"),
        (("optimizer=sgd,adam",), "setting 'optimizer' is 'adam'"),
        (("optimizer=sgd:adamw",), "list other values as optimizer=A,B"),
        (("optimizer=sgd,sgd",), "must list different values"),
        (("epochs=1:2", "--range", "epochs=3:4"), "names a setting twice"),
        (("epochs=1:2", "--epochs", "3"), "'epochs' has a --range and a value"),
        (("epochs=1:2", "--max-jobs", "2", "--parallel", "3"), "--parallel 3 is more than"),
        (("epochs=1:2", "--name", "n" * 30), "is longer than 29 characters; shorten it"),
        (("epochs=1:2", "--test", "slices"), "--test slices is not an S3 address"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_before_anything_is_made(
    cloud: Cloud, run: Run, options: tuple[str, ...], words: str
) -> None:
    told = run("tune", "--data", DATA, "--image", REVISION, "--range", *options, ok=False)
    assert words in error_of(told)
    assert cloud.requests == []


def test_there_must_be_data(cloud: Cloud, image: str, run: Run) -> None:
    assert f"there is nothing at {DATA}/" in error_of(run(*TUNE, ok=False))
    assert not cloud.sent("CreateHyperParameterTuningJob")
