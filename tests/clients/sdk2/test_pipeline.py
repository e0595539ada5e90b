"""A pipeline of SageMaker's Python SDK 2, each step a container on this machine, files in S3."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness import BUCKET, HYPERPARAMETERS, ROLE, local_session
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.model import Model
from sagemaker.processing import ProcessingInput, ProcessingOutput, Processor
from sagemaker.workflow.condition_step import ConditionStep
from sagemaker.workflow.conditions import ConditionGreaterThanOrEqualTo
from sagemaker.workflow.fail_step import FailStep
from sagemaker.workflow.functions import JsonGet
from sagemaker.workflow.model_step import ModelStep
from sagemaker.workflow.parameters import ParameterFloat
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import LocalPipelineSession
from sagemaker.workflow.properties import PropertyFile
from sagemaker.workflow.steps import ProcessingStep, TrainingStep

S3 = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def pipeline(image: str, root: Path, bucket: Any) -> Pipeline:
    """Train, Evaluate, then Create or Stop by the macro F1 in evaluation.json."""
    session = local_session(root, bucket.address, LocalPipelineSession)
    place: dict[str, Any] = {"role": ROLE, "sagemaker_session": session}
    instances: dict[str, Any] = {"instance_count": 1, "instance_type": "local"}

    estimator = Estimator(
        image, output_path=f"{S3}/pipeline", hyperparameters=HYPERPARAMETERS, **instances, **place
    )
    train = TrainingStep("Train", step_args=estimator.fit(TrainingInput(f"{S3}/data")))
    model_data = train.properties.ModelArtifacts.S3ModelArtifacts

    figures = PropertyFile("Figures", output_name="evaluation", path="evaluation.json")
    processor = Processor(image_uri=image, entrypoint=["evaluate"], **instances, **place)
    evaluation = processor.run(
        inputs=[
            ProcessingInput(model_data, "/opt/ml/processing/model", input_name="model"),
            ProcessingInput(f"{S3}/data", "/opt/ml/processing/test", input_name="test"),
        ],
        outputs=[
            ProcessingOutput(
                "/opt/ml/processing/evaluation", f"{S3}/pipeline/evaluation", "evaluation"
            )
        ],
    )
    evaluate = ProcessingStep("Evaluate", step_args=evaluation, property_files=[figures])

    least = ParameterFloat("MinMacroF1", default_value=0.0)
    macro_f1 = JsonGet(evaluate.name, figures, "test.macro_f1.value")
    create = ModelStep("Create", step_args=Model(image, model_data, **place).create())
    stop = FailStep("Stop", error_message="the macro F1 is too low")
    check = ConditionStep(
        "Check",
        conditions=[ConditionGreaterThanOrEqualTo(macro_f1, least)],
        if_steps=[create],
        else_steps=[stop],
    )
    pipeline = Pipeline(
        "conformance",
        parameters=[least],
        steps=[train, evaluate, check],
        sagemaker_session=session,
    )
    pipeline.create(ROLE)
    return pipeline


def outcome(execution: Any) -> tuple[str, dict[str, str]]:
    """Return the status of an execution and of its steps that ran."""
    steps = execution.list_steps()["PipelineExecutionSteps"]
    status: str = execution.describe()["PipelineExecutionStatus"]
    return status, {step["StepName"]: step["StepStatus"] for step in steps}


def test_good_enough(pipeline: Pipeline, bucket: Any) -> None:
    """SDK 2: a pipeline trains, evaluates, and creates the model if its macro F1 is enough."""
    status, steps = outcome(pipeline.start())
    assert status == "Succeeded"
    assert set(steps) == {"Train", "Evaluate", "Check", "Create-CreateModel"}
    evaluation = json.loads(bucket.read("pipeline/evaluation/evaluation.json"))
    assert 0 <= evaluation["test"]["macro_f1"]["value"] <= 1


def test_too_low(pipeline: Pipeline) -> None:
    """SDK 2: the pipeline ends in its Fail step if the macro F1 is too low."""
    execution = pipeline.start(parameters={"MinMacroF1": 1.01})
    status, steps = outcome(execution)
    assert status == "Failed"
    assert steps == {
        "Train": "Succeeded",
        "Evaluate": "Succeeded",
        "Check": "Succeeded",
        "Stop": "Failed",
    }
    assert "the macro F1 is too low" in execution.describe()["FailureReason"]
