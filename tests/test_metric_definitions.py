"""The metric definitions as SageMaker's own model wants them, and what they find in a line."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from botocore.model import ServiceModel
from botocore.session import Session
from botocore.validate import validate_parameters
from hypothesis import given
from hypothesis import strategies as st

from alexmri.aws.requests.training import METRIC_DEFINITIONS, NAMES
from alexmri.contract.metric_lines import metric_line

REGEX = {definition["Name"]: definition["Regex"] for definition in METRIC_DEFINITIONS}


def printed(*options: str) -> Any:
    command = [sys.executable, "-c", "from alexmri.cli import main; main()", "aws"]
    done = subprocess.run(
        [*command, "metric-definitions", *options], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sagemaker() -> ServiceModel:
    return Session().get_service_model("sagemaker")


def test_the_list_is_what_a_training_job_takes(sagemaker: ServiceModel) -> None:
    definitions = printed()
    shape = sagemaker.shape_for("AlgorithmSpecification")
    validate_parameters({"TrainingInputMode": "File", "MetricDefinitions": definitions}, shape)
    within_limits(definitions, sagemaker)


def test_list_and_objective_are_what_a_tuning_job_takes(sagemaker: ServiceModel) -> None:
    document = printed("--tuning")
    objective = document["HyperParameterTuningJobObjective"]
    assert objective == {"Type": "Maximize", "MetricName": "val_macro_f1"}
    validate_parameters(objective, sagemaker.shape_for("HyperParameterTuningJobObjective"))
    kinds = sagemaker.shape_for("HyperParameterTuningJobObjectiveType").enum
    assert objective["Type"] in kinds
    definitions = document["MetricDefinitions"]
    shape = sagemaker.shape_for("HyperParameterAlgorithmSpecification")
    validate_parameters({"TrainingInputMode": "File", "MetricDefinitions": definitions}, shape)
    within_limits(definitions, sagemaker)
    assert objective["MetricName"] in {definition["Name"] for definition in definitions}


def within_limits(definitions: list[dict[str, str]], sagemaker: ServiceModel) -> None:
    """Botocore's validator leaves upper limits and patterns to the service."""
    assert 0 < len(definitions) <= sagemaker.shape_for("MetricDefinitionList").metadata["max"]
    for definition in definitions:
        for key, value in definition.items():
            limits = sagemaker.shape_for(f"Metric{key}").metadata
            assert limits["min"] <= len(value) <= limits["max"]
            assert re.fullmatch(limits.get("pattern", ".+"), value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(NAMES))
def test_every_number_is_found_and_is_a_plain_decimal(value: float, name: str) -> None:
    line = metric_line({name: value, "other": 1.0})
    assert re.fullmatch(rf"{name}=-?\d+(\.\d+)?; other=1;", line)
    found = re.findall(REGEX[name], line)
    assert len(found) == 1
    tolerance = 0.5 if name.endswith("_per_second") else 0
    assert float(found[0]) == pytest.approx(value, rel=1e-5, abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_each_regex_finds_its_own_metric_alone(name: str) -> None:
    line = "".join(f"{other}={number};" for number, other in enumerate(NAMES))
    for spaced in (line, line.replace(";", "; "), f"algo-1 {line}"):
        assert re.findall(REGEX[name], spaced) == [str(NAMES.index(name))]
    for other in (f"best_{name}", f"{name}_best", f"best-{name}", f"best.{name}", f"my{name}"):
        assert not re.search(REGEX[name], f"x=1; {other}=0.5; y=2;")
    assert not re.search(REGEX[name], f"{name}=nan; {name}=fast; {name}=; {name}=0.5")
