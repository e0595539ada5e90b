"""Look at an account before it costs anything: what is there, what is missing, what to do."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from alexmri.aws.client import Aws
from alexmri.aws.config import AwsConfig
from alexmri.aws.dry_run import Call
from alexmri.aws.endpoint_request import driver_problem
from alexmri.aws.policy import actions_of, policy
from alexmri.errors import UserError

Verdict = Literal["ok", "wrong", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `words` say what was found and, unless ok, what helps."""

    what: str
    verdict: Verdict
    words: str


def examine(aws: Aws) -> Iterator[Finding]:
    """Look at one thing after the other; nothing is changed."""
    looks: list[tuple[str, Callable[[Aws], Finding]]] = [
        ("credentials", _credentials),
        *((f"{kind} role", _role(kind)) for kind in ("training", "endpoint", "pipeline")),
        ("bucket", _bucket),
        ("repository", _repository),
        ("W&B secret", _secret),
        ("GPU driver", _driver),
        ("Docker", _docker),
    ]
    for what, look in looks:
        try:
            yield look(aws)
        except UserError as error:
            yield Finding(what, "wrong", str(error))


def reads(config: AwsConfig) -> list[Call]:
    """Return what `examine` asks AWS for."""
    roles = sorted(
        {config.require("role"), config.role_for("endpoint"), config.role_for("pipeline")}
    )
    bucket = {"Bucket": config.require("bucket")}
    asked = [
        Call("sts", "get_caller_identity", {}),
        *(Call("iam", "get_role", {"RoleName": role.rpartition("/")[2]}) for role in roles),
        *(Call("iam", "simulate_principal_policy", {"PolicySourceArn": role}) for role in roles),
        Call("s3", "head_bucket", bucket),
        Call("s3", "get_bucket_location", bucket),
        Call("ecr", "describe_repositories", {"repositoryNames": [config.repository]}),
    ]
    if config.wandb_secret:
        secret = {"SecretId": config.wandb_secret}
        asked.append(Call("secretsmanager", "describe_secret", secret))
    return asked


def _credentials(aws: Aws) -> Finding:
    identity = aws.call("sts", "get_caller_identity", {})
    if identity["Account"] != aws.config.account:
        return Finding(
            "credentials",
            "wrong",
            f"they are of account {identity['Account']}, role is of {aws.config.account}: set"
            " AWS_PROFILE, or correct role",
        )
    return Finding("credentials", "ok", f"{identity['Arn']} in {aws.region}")


def _role(kind: str) -> Callable[[Aws], Finding]:
    def look(aws: Aws) -> Finding:
        arn = aws.config.require("role") if kind == "training" else aws.config.role_for(kind)
        name, what = arn.rpartition("/")[2], f"{kind} role"
        found = aws.call_or_none("iam", "get_role", {"RoleName": name})
        if found is None:
            helps = "make it with the documents of `alexmri aws policy`"
            return Finding(what, "wrong", f"there is no role {name}; {helps}")
        if not _trusts_sagemaker(found["Role"]["AssumeRolePolicyDocument"]):
            return Finding(
                what,
                "wrong",
                f"{name} does not trust sagemaker.amazonaws.com; its trust policy must be that of"
                " `alexmri aws policy trust`",
            )
        return _simulated(aws, kind, arn)

    return look


def _trusts_sagemaker(document: Any) -> bool:
    parsed = json.loads(document) if isinstance(document, str) else document
    for statement in parsed.get("Statement", []):
        service = statement.get("Principal", {})
        services = service.get("Service", []) if isinstance(service, dict) else []
        named = [services] if isinstance(services, str) else services
        if statement.get("Effect") == "Allow" and "sagemaker.amazonaws.com" in named:
            return True
    return False


def _simulated(aws: Aws, kind: str, arn: str) -> Finding:
    """Ask IAM whether the role may do what its job takes; not everybody may ask."""
    what, name = f"{kind} role", arn.rpartition("/")[2]
    missing: list[str] = []
    try:
        for resource, actions in actions_of(policy(aws.config, kind, aws.region)).items():
            asked = [action for action in actions if action != "iam:PassRole"]
            if not asked:
                continue
            answer = aws.call(
                "iam",
                "simulate_principal_policy",
                {"PolicySourceArn": arn, "ActionNames": asked, "ResourceArns": [resource]},
            )
            missing += [
                result["EvalActionName"]
                for result in answer["EvaluationResults"]
                if result["EvalDecision"] != "allowed"
            ]
    except UserError as error:
        return Finding(what, "unknown", f"{name} trusts SageMaker; not checked further: {error}")
    if missing:
        helps = f"attach the document of `alexmri aws policy {kind}`"
        return Finding(what, "wrong", f"{name} lacks {', '.join(sorted(set(missing)))}; {helps}")
    return Finding(what, "ok", f"{name} trusts SageMaker and may do what it has to")


def _bucket(aws: Aws) -> Finding:
    name = aws.config.require("bucket")
    if aws.call_or_none("s3", "head_bucket", {"Bucket": name}) is None:
        helps = f"aws s3 mb s3://{name} --region {aws.region}"
        return Finding("bucket", "wrong", f"there is no bucket {name}; make it: {helps}")
    answer = aws.call("s3", "get_bucket_location", {"Bucket": name})
    # The oldest region has no name there.
    region = answer.get("LocationConstraint") or "us-east-1"
    if region != aws.region:
        return Finding(
            "bucket",
            "wrong",
            f"{name} is in {region}, but jobs run in {aws.region}: set region to {region}, or take"
            " a bucket there",
        )
    return Finding("bucket", "ok", f"{name} is in {region}")


def _repository(aws: Aws) -> Finding:
    name = aws.config.repository
    found = aws.call_or_none("ecr", "describe_repositories", {"repositoryNames": [name]})
    if found is None:
        words = f"there is no {name} yet; `alexmri aws push` makes it"
        return Finding("repository", "unknown", words)
    mutability = found["repositories"][0].get("imageTagMutability", "MUTABLE")
    if not mutability.startswith("IMMUTABLE"):
        words = (
            f"tags of {name} can be moved to another image: aws ecr put-image-tag-mutability"
            f" --repository-name {name} --image-tag-mutability IMMUTABLE"
        )
        return Finding("repository", "wrong", words)
    return Finding("repository", "ok", f"{name} has immutable tags")


def _secret(aws: Aws) -> Finding:
    arn = aws.config.wandb_secret
    if arn is None:
        words = "none: runs are kept offline, `alexmri aws wandb-sync` sends them"
        return Finding("W&B secret", "ok", words)
    # Whether it is there, never what it says.
    if aws.call_or_none("secretsmanager", "describe_secret", {"SecretId": arn}) is None:
        return Finding("W&B secret", "wrong", f"there is no secret {arn}; correct wandb_secret")
    return Finding("W&B secret", "ok", "it is there")


def _driver(aws: Aws) -> Finding:
    problem = driver_problem(aws.config)
    if problem:
        return Finding("GPU driver", "wrong", problem)
    words = (
        f"{aws.config.endpoint_instance} fits CUDA {aws.config.cuda}; for trainings AWS chooses"
        " the driver, and `train` says in its log whether it fits"
    )
    return Finding("GPU driver", "ok", words)


def _docker(aws: Aws) -> Finding:
    if shutil.which("docker") is None:
        words = "there is no `docker` here; only `push` needs it"
        return Finding("Docker", "unknown", words)
    return Finding("Docker", "ok", "`docker` is here, for `push`")
