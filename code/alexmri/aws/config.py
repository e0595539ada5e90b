"""What `alexmri.toml` says about an AWS account: typed, bounded, documented, once."""

import hashlib
import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from alexmri.errors import UserError, did_you_mean

DEFAULT_FILE = Path("alexmri.toml")
# As the Dockerfile has it (TORCH_CUDA).
DEFAULT_CUDA: Final = "cu130"


def _list(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _table(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if not all(equals and key.strip() for key, equals, _ in pairs):
        raise ValueError("write it as key=value,key=value")
    return {key.strip(): text.strip() for key, _, text in pairs}


Role = Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")]
Instance = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
Names = Annotated[tuple[str, ...], BeforeValidator(_list)]


class AwsConfig(BaseModel):
    """The keys of alexmri.toml; each is an option of `alexmri aws` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str | None = Field(
        None,
        pattern=r"^[a-z]{2,3}(-[a-z]+)+-\d$",
        description="AWS region of everything (default: that of your AWS profile or AWS_REGION)",
    )
    role: Role | None = Field(
        None, description="ARN of the role that jobs run as; its account is the account"
    )
    endpoint_role: Role | None = Field(
        None, description="ARN of the role that endpoints run as (default: role)"
    )
    pipeline_role: Role | None = Field(
        None, description="ARN of the role that starts the steps of a pipeline (default: role)"
    )
    bucket: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
        description="S3 bucket for data, results and checkpoints",
    )
    prefix: str = Field(
        "alexmri",
        pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$",
        description="where in the bucket everything lies",
    )
    repository: str = Field(
        "alexmri",
        pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$",
        description="ECR repository of the image",
    )
    name: str = Field(
        "alexmri",
        pattern=r"^[a-zA-Z0-9](-?[a-zA-Z0-9]){0,29}$",
        description="name of model group, pipeline and endpoint, and start of the names of jobs",
    )

    training_instance: Instance = Field("ml.g5.xlarge", description="instance that trains")
    training_instances: int = Field(1, ge=1, le=100, description="instances that train one model")
    processing_instance: Instance = Field(
        "ml.m5.xlarge", description="instance that audits and evaluates in a pipeline"
    )
    endpoint_instance: Instance = Field("ml.m5.large", description="instance that serves")
    endpoint_gpu_instance: Instance = Field(
        "ml.g5.xlarge", description="instance that serves with `deploy --gpu`"
    )
    transform_instance: Instance = Field(
        "ml.m5.xlarge", description="instance of a batch transform"
    )
    endpoint_instances: int = Field(1, ge=1, le=100, description="instances of an endpoint")
    volume_gb: int = Field(50, ge=10, le=16_384, description="disk of a job in GB")
    spot: bool = Field(True, description="train on spare capacity: cheaper, with interruptions")
    max_run_seconds: int = Field(
        86_400, ge=60, le=2_419_200, description="when a training is stopped"
    )
    max_wait_seconds: int = Field(
        172_800,
        ge=60,
        le=2_419_200,
        description="when a training on spare capacity is given up, waiting included",
    )
    retries: int = Field(3, ge=0, le=30, description="how often AWS restarts a job it has lost")

    subnets: Names = Field((), max_length=16, description="subnets of your VPC for jobs and models")
    security_groups: Names = Field((), max_length=5, description="security groups in your VPC")
    kms_key: str | None = Field(
        None, description="KMS key that encrypts what is written to S3 and to disks"
    )
    tags: Annotated[dict[str, str], BeforeValidator(_table)] = Field(
        {}, max_length=40, description="tags of all that is made"
    )
    wandb_secret: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:.+$",
        description="ARN of the Secrets Manager secret with the key of Weights & Biases",
    )

    cuda: Literal["cpu", "cu126", "cu130"] = Field(
        DEFAULT_CUDA,
        description="CUDA that `push` builds for, or cpu; GPUs of jobs and endpoints follow it",
    )
    scaling_requests_per_minute: float = Field(
        3000.0,
        gt=0,
        description="requests per minute for each instance at which a scaled endpoint holds",
    )
    startup_seconds: int = Field(
        900, ge=60, le=3600, description="how long a model may load before an endpoint gives up"
    )
    data_capture_percent: int = Field(
        0, ge=0, le=100, description="share of requests that an endpoint copies to S3"
    )
    alarm_error_percent: float = Field(
        5.0, gt=0, le=100, description="share of failing requests that undoes an update"
    )
    alarm_latency_ms: float = Field(
        2000.0, gt=0, description="latency (90 % of requests) that undoes an update"
    )

    def require(self, key: str) -> str:
        """Return what `key` says; UserError where it says nothing."""
        value = getattr(self, key)
        if not value:
            made = "run `alexmri aws setup`, " if key in ("role", "bucket") else ""
            raise UserError(
                f"there is no {key}; {made}add it to {DEFAULT_FILE} or pass `alexmri aws"
                f" --{key.replace('_', '-')} VALUE …` ({AwsConfig.model_fields[key].description})"
            )
        return str(value)

    @property
    def account(self) -> str:
        """The number of the account, which every role names."""
        return self.require("role").split(":")[4]

    def role_for(self, what: str) -> str:
        """Return the role of `endpoint` or `pipeline`, or else the one of jobs."""
        return getattr(self, f"{what}_role") or self.require("role")

    def address(self, *parts: str) -> str:
        """Return the S3 address of `parts` below our prefix."""
        return "/".join(("s3:/", self.require("bucket"), self.prefix, *parts))

    def tag_list(self, **more: str) -> list[dict[str, str]]:
        """Return the tags as AWS takes them, with `more` of our own (alexmri:NAME)."""
        own = {f"alexmri:{key.replace('_', '-')}": value for key, value in more.items()}
        return [{"Key": key, "Value": value} for key, value in {**self.tags, **own}.items()]

    @property
    def vpc(self) -> dict[str, list[str]] | None:
        """The VpcConfig of a request, None without subnets."""
        if not self.subnets:
            return None
        return {"SecurityGroupIds": list(self.security_groups), "Subnets": list(self.subnets)}


def read_config(file: Path | None, options: Mapping[str, str]) -> AwsConfig:
    """Return what `file` says (alexmri.toml, where it is there), with `options` over it.

    Raises:
        UserError: no such file, no TOML, an unknown key (with the nearest name), a bad value.
    """
    values: dict[str, Any] = {}
    path = file or DEFAULT_FILE
    if file or path.is_file():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid TOML: {error}") from None
    for key in values:
        if key not in AwsConfig.model_fields:
            hint = did_you_mean(key, AwsConfig.model_fields)
            raise UserError(f"unknown key '{key}' in {path}{hint} (all keys: docs/sagemaker.md)")
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if "region" not in values and os.environ.get(variable):
            values["region"] = os.environ[variable]
    try:
        config = AwsConfig.model_validate(values | dict(options))
    except ValidationError as error:
        raise UserError(_explain(error, path, options)) from None
    return _sensible(config, path)


def _sensible(config: AwsConfig, path: Path) -> AwsConfig:
    if bool(config.subnets) != bool(config.security_groups):
        raise UserError(f"{path}: subnets and security_groups go together; give both or neither")
    if config.spot and config.max_wait_seconds < config.max_run_seconds:
        raise UserError(
            f"{path}: max_wait_seconds ({config.max_wait_seconds}) must not be less than"
            f" max_run_seconds ({config.max_run_seconds}), since waiting includes running"
        )
    return config


def _explain(error: ValidationError, path: Path, options: Mapping[str, str]) -> str:
    finding = error.errors()[0]
    key = str(finding["loc"][0])
    where = f"option --{key.replace('_', '-')}" if key in options else f"'{key}' in {path}"
    message = finding["msg"].removeprefix("Value error, ")
    return (
        f"{where} is {finding['input']!r}: {message[0].lower() + message[1:]};"
        f" it means: {AwsConfig.model_fields[key].description}"
    )


def example(key: str) -> str:
    """Return the kind of value that `key` takes, for help texts."""
    annotation = AwsConfig.model_fields[key].annotation
    inner = [a for a in typing.get_args(annotation) if a is not types.NoneType]
    kind = inner[0] if isinstance(annotation, types.UnionType) else annotation
    names = {bool: "BOOL", int: "NUMBER", float: "NUMBER"}
    return names.get(kind, "VALUE") if isinstance(kind, type) else "VALUE"


def digest_of(request: Mapping[str, Any], digits: int) -> str:
    """Return the first hexadecimal `digits` of the SHA-256 of a request."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
