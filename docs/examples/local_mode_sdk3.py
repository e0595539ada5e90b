"""SageMaker's Python SDK 3 in local mode: train, deploy, ask. No account, no network.

    pip install -r requirements/sdk3.txt; pip install --no-deps -r requirements/sdk3-bare.txt
    IMAGE=alexmri DATA=folder-of-class-folders PORT=8080 python local_mode_sdk3.py

The model lands in ./sdk3/compressed_artifacts/model.tar.gz, beside output.tar.gz with the report
(and, after a failed training, the file `failure`).
"""

import base64
import json
import mimetypes
import os
from pathlib import Path

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.local.local_session import LocalSession
from sagemaker.core.training.configs import Compute, InputData
from sagemaker.train.model_trainer import Mode, ModelTrainer

image = os.environ["IMAGE"]
data = Path(os.environ["DATA"]).resolve()
pictures = (path for path in data.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
picture = next(pictures)
content_type = mimetypes.guess_type(picture.name)[0]
work = Path("sdk3").resolve()
work.mkdir(exist_ok=True)
role = "arn:aws:iam::111122223333:role/any"
boto_session = boto3.Session(region_name="us-east-1")

trainer = ModelTrainer(
    training_mode=Mode.LOCAL_CONTAINER,
    sagemaker_session=Session(boto_session),
    role=role,
    training_image=image,
    compute=Compute(instance_type="local", instance_count=1),
    hyperparameters={"epochs": 1, "batch_size": 16, "split_by": "subject"},
    local_container_root=str(work),
)
trainer.train([InputData(channel_name="training", data_source=str(data))])

session = LocalSession(boto_session)
port = int(os.environ.get("PORT", "8080"))
session.config = {"local": {"local_code": True, "container_root": str(work), "serving_port": port}}
client, runtime = session.sagemaker_client, session.sagemaker_runtime_client
client.create_model(
    ModelName="alexmri",
    ExecutionRoleArn=role,
    PrimaryContainer={
        "Image": image,
        "ModelDataUrl": f"file://{work}/compressed_artifacts/model.tar.gz",
        "Environment": {},
    },
)
client.create_endpoint_config(
    EndpointConfigName="alexmri",
    ProductionVariants=[
        {
            "VariantName": "only",
            "ModelName": "alexmri",
            "InstanceType": "local",
            "InitialInstanceCount": 1,
        }
    ],
)
client.create_endpoint(EndpointName="alexmri", EndpointConfigName="alexmri")
try:
    response = runtime.invoke_endpoint(picture.read_bytes(), "alexmri", content_type)
    answer = json.load(response["Body"])
    print(answer)
    encoded = {"b64": base64.b64encode(picture.read_bytes()).decode()}
    request = json.dumps({"instances": [encoded, encoded]})
    response = runtime.invoke_endpoint(request, "alexmri", "application/json")
    answers = json.load(response["Body"])
    response = runtime.invoke_endpoint(picture.read_bytes(), "alexmri", content_type, "text/csv")
    rows = response["Body"].read().decode()
    print(answers, rows, sep="\n")
finally:
    # The SDK's own thread ends with a traceback here, and the container stays, stopped.
    client.delete_endpoint("alexmri")
