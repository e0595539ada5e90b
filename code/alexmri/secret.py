"""The key of Weights & Biases, fetched where it is used from where it is kept."""

import json
import os
from collections.abc import Callable, Mapping

# ARN of a secret in AWS Secrets Manager: the key alone, or a JSON object with WANDB_API_KEY.
SECRET_VARIABLE = "ALEXMRI_WANDB_SECRET"  # noqa: S105
KEY_VARIABLE = "WANDB_API_KEY"
TIMEOUT_S = 5


def fetch_wandb_key(environment: Mapping[str, str], warn: Callable[[str], None]) -> None:
    """Put the key into this process's environment, where W&B looks for it, and nowhere else.

    Nothing is done where there is a key already or no secret is named. Where it cannot be had, one
    line says why, and the run is kept offline: a training does not end for that.
    """
    arn = environment.get(SECRET_VARIABLE)
    if not arn or environment.get(KEY_VARIABLE):
        return
    try:
        key = _read(arn)
    except Exception as error:
        # Never the text of the answer, which may be the key; botocore's errors do not hold it.
        told = type(error).__name__
        warn(f"the W&B key cannot be had from Secrets Manager ({told}); the run is kept offline")
        return
    os.environ[KEY_VARIABLE] = key


def _read(arn: str) -> str:
    import boto3
    from botocore.config import Config

    # An ARN is arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME.
    client = boto3.session.Session().client(
        "secretsmanager",
        region_name=arn.split(":")[3],
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
        ),
    )
    text = str(client.get_secret_value(SecretId=arn)["SecretString"]).strip()
    if text.startswith("{"):
        text = str(json.loads(text)[KEY_VARIABLE]).strip()
    if not text:
        raise ValueError("empty")
    return text
