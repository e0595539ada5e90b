"""Tuning jobs: started once however often the command runs, watched; their best trial."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from alexmri.aws.client import Aws, wait_until
from alexmri.aws.jobs import RUNNING, addresses, require_data
from alexmri.errors import UserError
from alexmri.terminal import Terminal


def describe_tuning(aws: Aws, name: str) -> dict[str, Any] | None:
    """Return DescribeHyperParameterTuningJob, None where there is no such tuning job."""
    request = {"HyperParameterTuningJobName": name}
    return aws.call_or_none("sagemaker", "describe_hyper_parameter_tuning_job", request)


def describe_either(aws: Aws, name: str) -> dict[str, Any]:
    """Return the description of the training or the tuning job `name`; see `is_tuning`.

    Raises:
        UserError: there is neither.
    """
    request = {"TrainingJobName": name}
    found = aws.call_or_none("sagemaker", "describe_training_job", request)
    found = found or describe_tuning(aws, name)
    if found is None:
        raise UserError(f"there is no training job and no tuning job {name} in {aws.region}")
    return found


def is_tuning(described: Mapping[str, Any]) -> bool:
    """Tell whether a description is one of a tuning job."""
    return "HyperParameterTuningJobName" in described


def start(aws: Aws, request: Mapping[str, Any], terminal: Terminal) -> str:
    """Start the tuning job, unless it runs or is done; return its name.

    After a failure or a stop the next attempt, NAME-2, builds on the trials of the one before.

    Raises:
        UserError: a tuning job with the name is another search; no data at an address.
    """
    base, parent = str(request["HyperParameterTuningJobName"]), None
    for attempt in itertools.count(1):
        name = base if attempt == 1 else f"{base}-{attempt}"
        found = describe_tuning(aws, name)
        if found is None:
            for place in addresses(request["TrainingJobDefinition"]).values():
                require_data(aws, place)
            sent = {**request, "HyperParameterTuningJobName": name}
            if parent:
                sent["WarmStartConfig"] = {
                    "WarmStartType": "IdenticalDataAndAlgorithm",
                    "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": parent}],
                }
            aws.call("sagemaker", "create_hyper_parameter_tuning_job", sent)
            terminal.say(f"started {name}")
            return name
        if _search(found) != _search(request):
            raise UserError(
                f"there is a tuning job {name} of other ranges, settings, data or image; choose"
                " another --name"
            )
        status = found["HyperParameterTuningJobStatus"]
        if status in RUNNING:
            terminal.say(f"{name} runs already: attaching to it")
            return name
        if status == "Completed":
            terminal.say(
                f"{name} has finished with these settings; pass another --name to search again"
            )
            return name
        terminal.say(f"{name} ended as {status}; the next attempt builds on its trials")
        if best_trial(found):
            parent = name
    raise AssertionError  # count never ends


def _search(job: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes a search the same one."""
    definition = job["TrainingJobDefinition"]
    given = definition.get("StaticHyperParameters") or {}
    ranges = job["HyperParameterTuningJobConfig"].get("ParameterRanges") or {}
    return (
        definition["AlgorithmSpecification"].get("TrainingImage"),
        # AWS adds one of its own.
        {key: value for key, value in given.items() if not key.startswith("_tuning")},
        {kind: found for kind, found in ranges.items() if found},
        addresses(definition),
    )


def best_trial(described: Mapping[str, Any]) -> str | None:
    """Return the name of the best training of a tuning job, None where none has ended."""
    best = described.get("OverallBestTrainingJob") or described.get("BestTrainingJob") or {}
    found: str | None = best.get("TrainingJobName")
    return found


def trained_by(aws: Aws, name: str, terminal: Terminal) -> str:
    """Return the training job `name`, or the best trial of the tuning job `name`.

    Raises:
        UserError: there is no such job, or no trial of it has ended well.
    """
    found = describe_either(aws, name)
    if not is_tuning(found):
        return name
    best = best_trial(found)
    if best is None:
        raise UserError(
            f"no trial of {name} has ended well; it is {found['HyperParameterTuningJobStatus']}"
            f" (`alexmri aws status {name}` lists the trials)"
        )
    terminal.say(f"the best trial of {name} is {best}")
    return best


def tuning_lines(aws: Aws, described: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person wants to know of a tuning job: its state, and its trials, best first."""
    name = str(described["HyperParameterTuningJobName"])
    yield f"tuning job: {name}"
    yield f"status: {described['HyperParameterTuningJobStatus']}"
    if described.get("FailureReason"):
        yield f"reason: {described['FailureReason']}"
    trials = list(
        aws.pages(
            "sagemaker",
            "list_training_jobs_for_hyper_parameter_tuning_job",
            {"HyperParameterTuningJobName": name},
            "TrainingJobSummaries",
        )
    )
    for trial in sorted(trials, key=_value, reverse=True):
        metric = trial.get("FinalHyperParameterTuningJobObjectiveMetric")
        shown = f"{metric['MetricName']} {metric['Value']:.4f}" if metric else "no figure yet"
        settings = " ".join(
            f"{key}={value}" for key, value in sorted(trial["TunedHyperParameters"].items())
        )
        yield f"{shown}  {trial['TrainingJobName']}  {trial['TrainingJobStatus']}  {settings}"


def _value(trial: Mapping[str, Any]) -> float:
    metric = trial.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
    return float(metric.get("Value", "-inf"))


def follow_tuning(aws: Aws, name: str, terminal: Terminal) -> dict[str, Any]:
    """Tell how many trials are done until the tuning job ends; return its last description."""
    last: dict[str, Any] = {}

    def look() -> tuple[str, bool]:
        last.update(describe_tuning(aws, name) or {})
        state = str(last["HyperParameterTuningJobStatus"])
        counted = last.get("TrainingJobStatusCounters") or {}
        done, running = counted.get("Completed", 0), counted.get("InProgress", 0)
        best = (last.get("BestTrainingJob") or {}).get(
            "FinalHyperParameterTuningJobObjectiveMetric"
        )
        shown = f", best {best['MetricName']} {best['Value']:.4f}" if best else ""
        text = f"[{state}] trials: {done} done, {running} running{shown}"
        return text, state not in RUNNING

    wait_until(look, terminal)
    return last
