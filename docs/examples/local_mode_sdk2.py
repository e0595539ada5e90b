"""SageMaker's Python SDK 2 in local mode: train, deploy, ask. No account, no network.

    pip install -r requirements/sdk2.txt
    IMAGE=alexmri DATA=folder-of-class-folders PORT=8080 python local_mode_sdk2.py

The model lands in ./sdk2/out/model.tar.gz, beside output.tar.gz with the report (and, after a
failed training, the file `failure`).
"""

import base64
import mimetypes
import os
from pathlib import Path

import boto3
import sagemaker.local.image
from sagemaker.deserializers import CSVDeserializer, JSONDeserializer
from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession
from sagemaker.serializers import IdentitySerializer, JSONSerializer

# This SDK knows `docker compose` by the word "v2", which Debian's and newer builds do not print
# (aws/sagemaker-python-sdk#3659, #5739). The list must be a new one each time: it is added to.
sagemaker.local.image._SageMakerContainer._get_compose_cmd_prefix = staticmethod(
    lambda: ["docker", "compose"]
)

data = Path(os.environ["DATA"]).resolve()
pictures = (path for path in data.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
picture = next(pictures)
content_type = mimetypes.guess_type(picture.name)[0]
work = Path("sdk2").resolve()
work.mkdir(exist_ok=True)

session = LocalSession(boto3.Session(region_name="us-east-1"))
session.config = {
    "local": {
        "local_code": True,
        "container_root": str(work),
        "serving_port": int(os.environ.get("PORT", "8080")),
    }
}
estimator = Estimator(
    os.environ["IMAGE"],
    role="arn:aws:iam::111122223333:role/any",
    instance_count=1,
    instance_type="local",
    output_path=f"file://{work}/out",
    hyperparameters={"epochs": 1, "batch_size": 16, "split_by": "subject"},
    sagemaker_session=session,
)
estimator.fit({"training": f"file://{data}"})

# The endpoint answers when `deploy` returns; with wait=True the SDK then sleeps half a minute.
predictor = estimator.deploy(
    1,
    "local",
    serializer=IdentitySerializer(content_type),
    deserializer=JSONDeserializer(),
    wait=False,
)
try:
    answer = predictor.predict(picture.read_bytes())
    print(answer)
    predictor.serializer = JSONSerializer()
    encoded = {"b64": base64.b64encode(picture.read_bytes()).decode()}
    answers = predictor.predict({"instances": [encoded, encoded]})
    print(answers)
    predictor.serializer = IdentitySerializer(content_type)
    predictor.deserializer = CSVDeserializer()
    rows = predictor.predict(picture.read_bytes())
    print(rows)
finally:
    # The SDK's own thread ends with a traceback here, and the container stays, stopped.
    predictor.delete_endpoint()
