"""The request that searches for good settings: ranges, and CreateHyperParameterTuningJob."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from alexmri.aws.config import AwsConfig, digest_of
from alexmri.aws.requests.training import LOCAL_CHECKPOINTS, OBJECTIVE, data_tags, training_job
from alexmri.errors import UserError, did_you_mean
from alexmri.settings import Resolved, Settings

SCALES = {"linear": "Linear", "log": "Logarithmic", "reverselog": "ReverseLogarithmic"}
# AWS takes 32 characters; a later attempt adds "-2" and so on.
LONGEST_NAME = 29


@dataclass(frozen=True, slots=True)
class Range:
    """What one setting may be: from `values[0]` to `values[1]` in `scale`, or one of `values`."""

    name: str
    values: tuple[str, ...]
    scale: str | None = None
    listed: bool = False


def read_range(text: str) -> Range:
    """Return the range that `text` writes: NAME=LOW:HIGH, NAME=LOW:HIGH:SCALE or NAME=A,B,C.

    Raises:
        UserError: another form, an unknown setting, bounds in the wrong order, or beyond the scale.
    """
    name, equals, given = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not given:
        raise UserError(
            f"--range {text} must look like learning_rate=0.001:0.1:log or optimizer=sgd,adamw"
        )
    if name not in Settings.model_fields:
        hint = did_you_mean(name, Settings.model_fields)
        raise UserError(f"--range {text}: there is no setting '{name}'{hint}")
    if ":" not in given:
        values = tuple(each.strip() for each in given.split(","))
        if "" in values or len(set(values)) < len(values):
            raise UserError(f"--range {text} must list different values, such as {name}=A,B")
        return Range(name, values, listed=True)
    low, high, *scale = given.split(":")
    if len(scale) > 1 or (scale and scale[0] not in SCALES):
        raise UserError(f"--range {text}: the scale must be one of {', '.join(SCALES)}")
    return _bounded(text, name, low, high, scale[0] if scale else None)


def _bounded(text: str, name: str, low: str, high: str, scale: str | None) -> Range:
    try:
        least, most = Decimal(low.strip()), Decimal(high.strip())
    except InvalidOperation:
        raise UserError(
            f"--range {text} must have numbers before and behind the colon; list other values as"
            f" {name}=A,B"
        ) from None
    if not (least.is_finite() and most.is_finite() and least < most):
        raise UserError(f"--range {text} must go from a smaller to a larger number")
    if scale == "log" and least <= 0:
        raise UserError(f"--range {text}: a range in log must begin above 0")
    if scale == "reverselog" and not (least >= 0 and most < 1):
        raise UserError(f"--range {text}: a range in reverselog must be from 0 to below 1")
    return Range(name, (f"{least:f}", f"{most:f}"), scale)


def parameter_ranges(
    ranges: Sequence[Range], resolve: Callable[[Mapping[str, str]], Resolved]
) -> dict[str, Any]:
    """Return the ParameterRanges of a request, each bound and value checked by `resolve`.

    Raises:
        UserError: a value that the setting does not take, a range of what is no number, two ranges
            of one setting.
    """
    first = {each.name: each.values[0] for each in ranges}
    if len(first) < len(ranges):
        raise UserError("--range names a setting twice; give one range for each setting")
    found: dict[str, list[dict[str, Any]]] = {}
    for each in ranges:
        for value in each.values:
            settings = resolve({**first, each.name: value}).settings
        kind = type(getattr(settings, each.name))
        key, bounds = _parameter_range(each, kind)
        found.setdefault(key, []).append(bounds)
    return found


def _parameter_range(each: Range, kind: type) -> tuple[str, dict[str, Any]]:
    if each.listed:
        return "CategoricalParameterRanges", {"Name": each.name, "Values": list(each.values)}
    if kind not in (int, float):
        raise UserError(
            f"--range: setting '{each.name}' is not a number; list its values as {each.name}=A,B"
        )
    if kind is int and each.scale == "reverselog":
        raise UserError(f"--range: '{each.name}' is a whole number, which reverselog does not take")
    low, high = each.values
    bounds = {
        "Name": each.name,
        "MinValue": low,
        "MaxValue": high,
        "ScalingType": SCALES.get(each.scale or "", "Auto"),
    }
    return ("IntegerParameterRanges" if kind is int else "ContinuousParameterRanges"), bounds


def tuning_request(
    config: AwsConfig,
    *,
    image: str,
    revision: str,
    data: Mapping[str, str],
    settings: Mapping[str, str],
    ranges: Mapping[str, Any],
    max_jobs: int,
    parallel: int,
    name: str | None,
) -> dict[str, Any]:
    """Return CreateHyperParameterTuningJob: trainings as `train` asks for them, the best wins.

    Unless `name` is given, the name is a digest of the request. The trials share a prefix for their
    checkpoints, in which the image gives each of them a folder of its own.
    """
    job = training_job(config, image=image, data=data, settings=settings)
    job["StaticHyperParameters"] = job.pop("HyperParameters")
    # Of trainings alone; those of a tuning job have it always.
    job["AlgorithmSpecification"].pop("EnableSageMakerMetricsTimeSeries")
    search = {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": OBJECTIVE,
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": max_jobs,
            "MaxParallelTrainingJobs": parallel,
        },
        "ParameterRanges": dict(ranges),
    }
    name = name or f"{config.name[:18].rstrip('-')}-{digest_of({'job': job, 'search': search}, 10)}"
    job["CheckpointConfig"] = {
        "S3Uri": config.address("checkpoints", name),
        "LocalPath": LOCAL_CHECKPOINTS,
    }
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": search,
        "TrainingJobDefinition": job,
        "Tags": config.tag_list(revision=revision, **data_tags(data)),
    }
