"""Least-privilege IAM documents, made from the same configuration as the requests."""

from typing import Any

from alexmri.aws.config import AwsConfig

KINDS = ("caller", "training", "endpoint", "pipeline", "trust")
Statement = dict[str, Any]


def policy(config: AwsConfig, kind: str, region: str) -> dict[str, Any]:
    """Return the policy of `caller`, of the role of `training`, `endpoint` or `pipeline`, or the
    trust policy of these roles."""
    place = _Place(config, region)
    make = {"caller": _caller, "training": _training, "endpoint": _endpoint, "pipeline": _pipeline}
    statements = make[kind](config, place) if kind in make else _trust(config)
    return {"Version": "2012-10-17", "Statement": statements}


def actions_of(document: dict[str, Any]) -> dict[str, list[str]]:
    """Return resource -> actions, for the simulation of a policy."""
    found: dict[str, list[str]] = {}
    for statement in document["Statement"]:
        resources = statement["Resource"]
        first = resources if isinstance(resources, str) else resources[0]
        found.setdefault(first, []).extend(statement["Action"])
    return found


class _Place:
    """ARNs of what is ours."""

    def __init__(self, config: AwsConfig, region: str) -> None:
        partition = config.require("role").split(":")[1]
        self.account, self.region, self.partition = config.account, region, partition
        self.bucket = f"arn:{partition}:s3:::{config.require('bucket')}"
        self.objects = f"{self.bucket}/{config.prefix}/*"
        self.repository = self.of("ecr", f"repository/{config.repository}")

    def of(self, service: str, rest: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{rest}"

    def ours(self, config: AwsConfig, *kinds: str) -> list[str]:
        """Names begin with ours; SageMaker writes those of some kinds in small letters."""
        names = sorted({config.name, config.name.lower()})
        return [self.of("sagemaker", f"{kind}/{name}*") for kind in kinds for name in names]


def _allow(actions: list[str], resource: str | list[str], **condition: Any) -> Statement:
    statement: Statement = {"Effect": "Allow", "Action": actions, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def _pass(roles: list[str]) -> Statement:
    return _allow(
        ["iam:PassRole"],
        sorted(set(roles)),
        StringEquals={"iam:PassedToService": "sagemaker.amazonaws.com"},
    )


def _roles(config: AwsConfig) -> list[str]:
    return [config.require("role"), config.role_for("endpoint"), config.role_for("pipeline")]


def _caller(config: AwsConfig, place: _Place) -> list[Statement]:
    logs = place.of("logs", "log-group:/aws/sagemaker/*")
    alarms = place.of("cloudwatch", f"alarm:{config.name}*")
    return [
        _allow(["ecr:GetAuthorizationToken"], "*"),
        _allow(
            [
                *("ecr:CreateRepository", "ecr:DescribeRepositories", "ecr:DescribeImages"),
                *("ecr:BatchCheckLayerAvailability", "ecr:InitiateLayerUpload"),
                *("ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage"),
                *("ecr:BatchGetImage", "ecr:TagResource"),
            ],
            place.repository,
        ),
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], place.bucket),
        _allow(["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"], place.objects),
        _allow(
            [
                *("sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob"),
                *("sagemaker:StopTrainingJob", "sagemaker:CreateTransformJob"),
                *("sagemaker:DescribeTransformJob", "sagemaker:AddTags", "sagemaker:ListTags"),
            ],
            place.ours(config, "training-job", "transform-job"),
        ),
        _allow(
            [
                *("sagemaker:CreateModelPackageGroup", "sagemaker:DescribeModelPackageGroup"),
                *("sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage"),
                *("sagemaker:UpdateModelPackage", "sagemaker:AddTags"),
            ],
            place.ours(config, "model-package-group", "model-package"),
        ),
        _allow(
            [
                *("sagemaker:CreateModel", "sagemaker:DescribeModel", "sagemaker:DeleteModel"),
                *("sagemaker:CreateEndpointConfig", "sagemaker:DescribeEndpointConfig"),
                *("sagemaker:DeleteEndpointConfig", "sagemaker:CreateEndpoint"),
                *("sagemaker:DescribeEndpoint", "sagemaker:UpdateEndpoint"),
                *("sagemaker:DeleteEndpoint", "sagemaker:InvokeEndpoint"),
                *("sagemaker:AddTags", "sagemaker:ListTags"),
            ],
            place.ours(config, "model", "endpoint-config", "endpoint"),
        ),
        _allow(
            [
                *("sagemaker:CreatePipeline", "sagemaker:UpdatePipeline"),
                *("sagemaker:DescribePipeline", "sagemaker:StartPipelineExecution"),
                *("sagemaker:ListPipelineExecutions", "sagemaker:DescribePipelineExecution"),
                *("sagemaker:ListPipelineExecutionSteps", "sagemaker:AddTags"),
            ],
            place.ours(config, "pipeline"),
        ),
        # These lists cannot be confined to names.
        _allow(["sagemaker:ListModelPackages", "sagemaker:ListEndpointConfigs"], "*"),
        _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], logs),
        _allow(["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"], alarms),
        # For `alexmri aws doctor` alone.
        _allow(["iam:GetRole", "iam:SimulatePrincipalPolicy"], sorted(set(_roles(config)))),
        *(
            [_allow(["secretsmanager:DescribeSecret"], config.wandb_secret)]
            if config.wandb_secret
            else []
        ),
        *(
            [_allow(["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"], _key(config, place))]
            if config.kms_key
            else []
        ),
        _pass(_roles(config)),
    ]


def _in_the_account(config: AwsConfig, place: _Place) -> list[Statement]:
    """What any container of ours needs: log, metrics, image, network, key."""
    statements = [
        _allow(["cloudwatch:PutMetricData"], "*"),
        _allow(
            [
                *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"),
                "logs:DescribeLogStreams",
            ],
            place.of("logs", "log-group:/aws/sagemaker/*"),
        ),
        _allow(["ecr:GetAuthorizationToken"], "*"),
        _allow(
            [
                *("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer"),
                "ecr:BatchGetImage",
            ],
            place.repository,
        ),
        _allow(["s3:ListBucket"], place.bucket),
    ]
    if config.kms_key:
        statements.append(
            _allow(
                ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:CreateGrant"],
                _key(config, place),
            )
        )
    if config.subnets:
        statements.append(
            _allow(
                [
                    *("ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface"),
                    *("ec2:CreateNetworkInterfacePermission", "ec2:DescribeVpcs"),
                    *("ec2:DeleteNetworkInterfacePermission", "ec2:DescribeSubnets"),
                    *("ec2:DescribeNetworkInterfaces", "ec2:DescribeDhcpOptions"),
                    "ec2:DescribeSecurityGroups",
                ],
                "*",
            )
        )
    return statements


def _training(config: AwsConfig, place: _Place) -> list[Statement]:
    statements = _in_the_account(config, place)
    # Deleting is for checkpoints alone, which the platform mirrors.
    checkpoints = f"{place.bucket}/{config.prefix}/checkpoints/*"
    statements += [
        _allow(["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"], place.objects),
        _allow(["s3:DeleteObject"], checkpoints),
    ]
    if config.wandb_secret:
        statements.append(_allow(["secretsmanager:GetSecretValue"], config.wandb_secret))
    return statements


def _endpoint(config: AwsConfig, place: _Place) -> list[Statement]:
    alarms = place.of("cloudwatch", f"alarm:{config.name}*")
    captured = f"{place.bucket}/{config.prefix}/capture/*"
    answers = f"{place.bucket}/{config.prefix}/transform/*"
    return [
        *_in_the_account(config, place),
        _allow(["s3:GetObject"], place.objects),
        _allow(["s3:PutObject"], [answers, captured]),
        _allow(["cloudwatch:DescribeAlarms"], alarms),
    ]


def _pipeline(config: AwsConfig, place: _Place) -> list[Statement]:
    return [
        _allow(
            [
                *("sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob"),
                *("sagemaker:StopTrainingJob", "sagemaker:CreateProcessingJob"),
                *("sagemaker:DescribeProcessingJob", "sagemaker:StopProcessingJob"),
                *("sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage"),
                *("sagemaker:AddTags", "sagemaker:DescribeModelPackageGroup"),
            ],
            [
                # The names of a pipeline's jobs begin with "pipelines-".
                place.of("sagemaker", "training-job/pipelines-*"),
                place.of("sagemaker", "processing-job/pipelines-*"),
                *place.ours(config, "model-package-group", "model-package"),
            ],
        ),
        _allow(["s3:ListBucket"], place.bucket),
        _allow(["s3:GetObject"], place.objects),
        _pass([config.require("role")]),
    ]


def _trust(config: AwsConfig) -> list[Statement]:
    return [
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": config.account}},
        }
    ]


def _key(config: AwsConfig, place: _Place) -> str:
    """Return the ARN of the key, which may be configured by its id or alias."""
    key = config.kms_key or ""
    if key.startswith("arn:"):
        return key
    return place.of("kms", key if key.startswith("alias/") else f"key/{key}")
