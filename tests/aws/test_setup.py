"""`alexmri aws setup`: the stack, what it allows, and what is written to alexmri.toml."""

import ast
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import lint_file
from cfnlint.decode import decode

from .conftest import ACCOUNT, REGION, SECRET, Cloud, Run, client, error_of

TEMPLATE = Path(__file__).parents[2] / "code" / "alexmri" / "aws" / "stack.yaml"
# What IAM cannot confine to a resource.
UNCONFINED = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/0"


@pytest.fixture
def file(cloud: Cloud) -> Path:
    path = Path("alexmri.toml")
    path.write_text(f'# ours\nregion = "{REGION}"\nspot = false\n\n[tags]\nteam = "mri"\n')
    return path


def statements(role: str) -> list[dict[str, Any]]:
    """Return what a role may do, by its own policies and those attached to it."""
    iam = client("iam")
    found: list[dict[str, Any]] = []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        # moto turns what CloudFormation gives it into the text of a Python dict.
        read = ast.literal_eval(document) if isinstance(document, str) else document
        found += read["Statement"]
    for each in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy_version(PolicyArn=each["PolicyArn"], VersionId="v1")
        found += version["PolicyVersion"]["Document"]["Statement"]
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_cfn_lint_finds_nothing() -> None:
    assert [f"{each.linenumber}: {each}" for each in lint_file(TEMPLATE)] == []


def test_the_bucket_keeps_versions_and_images_are_scanned() -> None:
    """moto leaves these properties out."""
    template, problems = decode(str(TEMPLATE))
    assert problems == []
    bucket = template["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == "Retain"
    properties = bucket["Properties"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert properties["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    repository = template["Resources"]["Repository"]
    assert repository["DeletionPolicy"] == "Retain"
    assert repository["Properties"]["ImageScanningConfiguration"] == {"ScanOnPush": True}


def test_setup_makes_all_and_writes_it_down(cloud: Cloud, file: Path, run: Run) -> None:
    done = run("--name", "MRI", "--prefix", "team/mri", "setup")
    written = tomllib.loads(file.read_text())
    assert file.read_text().startswith("# ours\n")
    assert written["spot"] is False
    assert written["tags"] == {"team": "mri"}
    for key in ("bucket", "repository", "role", "endpoint_role", "pipeline_role"):
        assert f"{key}: {written[key]}" in done.stdout
    found = client("s3").get_bucket_encryption(Bucket=written["bucket"])
    rules = found["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (repository,) = client("ecr").describe_repositories()["repositories"]
    assert repository["repositoryName"] == written["repository"] == "alexmri"
    assert repository["imageTagMutability"] == "IMMUTABLE"


@pytest.mark.parametrize("key", ["role", "endpoint_role", "pipeline_role"])
def test_a_role_may_do_little_and_only_with_what_is_ours(
    cloud: Cloud, file: Path, run: Run, key: str
) -> None:
    run("--wandb-secret", SECRET, "setup")
    written = tomllib.loads(file.read_text())
    role = written[key].rpartition("/")[2]
    bucket = f"arn:aws:s3:::{written['bucket']}"
    ours = (bucket, f"{bucket}/alexmri/", SECRET, written["role"])
    here = f"{REGION}:{ACCOUNT}:"
    ours += (f"arn:aws:ecr:{here}repository/alexmri", f"arn:aws:cloudwatch:{here}alarm:alexmri")
    ours += (f"arn:aws:sns:{here}alexmri",)
    ours += (f"arn:aws:logs:{here}log-group:/aws/sagemaker/", f"arn:aws:sagemaker:{here}")
    found = statements(role)
    assert found
    for statement in found:
        assert not [action for action in listed(statement["Action"]) if "*" in action]
        if listed(statement["Resource"]) == ["*"]:
            assert set(listed(statement["Action"])) <= UNCONFINED
        else:
            assert all(each.startswith(ours) for each in listed(statement["Resource"])), statement
        if "s3:DeleteObject" in statement["Action"]:
            assert statement["Resource"] == f"{bucket}/alexmri/checkpoints/*"
        if "iam:PassRole" in statement["Action"]:
            assert statement["Resource"] == written["role"]
            assert statement["Condition"]["StringEquals"] == {
                "iam:PassedToService": "sagemaker.amazonaws.com"
            }
    trust = client("iam").get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust[0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust[0]["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


def test_a_key_a_network_and_a_secret_are_allowed_only_where_there_are_some(
    cloud: Cloud, file: Path, run: Run
) -> None:
    run("setup")
    role = tomllib.loads(file.read_text())["role"].rpartition("/")[2]
    text = json.dumps(statements(role))
    assert "kms:" not in text
    assert "ec2:" not in text
    assert "secretsmanager:" not in text
    options = ("--kms-key", KEY, "--subnets", "s", "--security-groups", "g", "--name", "other")
    run(*options, "--repository", "other", "--bucket", "our-own", "setup")
    written = tomllib.loads(file.read_text())
    assert written["bucket"] == "our-own"
    text = json.dumps(statements(written["role"].rpartition("/")[2]))
    assert f'"{KEY}"' in text
    assert "ec2:CreateNetworkInterface" in text


def test_twice_is_once(cloud: Cloud, file: Path, run: Run) -> None:
    run("setup")
    before = file.read_text()
    cloud.texts["UpdateStack"] = (
        400,
        (
            "<ErrorResponse><Error><Code>ValidationError</Code>"
            "<Message>No updates are to be performed.</Message></Error></ErrorResponse>"
        ),
    )
    assert "the stack alexmri is up to date" in run("setup").stdout
    assert file.read_text() == before
    assert cloud.targets().count("CreateStack") == 1
    (update,) = cloud.sent("UpdateStack")
    # The bucket keeps the name that CloudFormation chose.
    assert "Parameters.member.5.UsePreviousValue=true" in update["form"]
    cloud.texts.clear()
    assert "updating the stack alexmri" in run("--wandb-secret", SECRET, "setup").stdout
    role = tomllib.loads(before)["role"].rpartition("/")[2]
    assert f'"{SECRET}"' in json.dumps(statements(role))
    assert file.read_text() == before


def stack(state: str) -> str:
    return (
        "<DescribeStacksResponse><DescribeStacksResult><Stacks><member>"
        f"<StackName>alexmri</StackName><StackStatus>{state}</StackStatus>"
        "<CreationTime>2026-01-01T00:00:00Z</CreationTime>"
        "</member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
    )


EVENTS = (
    "<DescribeStackEventsResponse><DescribeStackEventsResult><StackEvents><member>"
    "<LogicalResourceId>Bucket</LogicalResourceId><ResourceStatus>CREATE_FAILED</ResourceStatus>"
    "<ResourceStatusReason>slices already exists</ResourceStatusReason>"
    "</member></StackEvents></DescribeStackEventsResult></DescribeStackEventsResponse>"
)


def test_a_stack_that_failed_says_why_and_what_to_do(cloud: Cloud, file: Path, run: Run) -> None:
    cloud.texts["DescribeStacks"] = 200, stack("ROLLBACK_COMPLETE")
    cloud.texts["DescribeStackEvents"] = 200, EVENTS
    told = error_of(run("setup", ok=False))
    assert told.startswith("the stack alexmri is ROLLBACK_COMPLETE (Bucket: slices already exists)")
    assert "delete-stack --stack-name alexmri" in told
    assert "bucket" not in tomllib.loads(file.read_text())


def test_after_ctrl_c_the_same_command_waits_again(cloud: Cloud, file: Path, run: Run) -> None:
    run("setup")
    polls: list[str] = []

    def later(target: str) -> None:
        polls.append(target)
        if polls.count("DescribeStacks") > 2:
            cloud.texts.pop("DescribeStacks", None)

    cloud.texts["DescribeStacks"] = 200, stack("UPDATE_IN_PROGRESS")
    cloud.before = later
    done = run("setup")
    assert "is changing already: waiting for it" in done.stdout
    assert "UpdateStack" not in polls


def test_a_key_that_is_no_arn_is_refused(cloud: Cloud, file: Path, run: Run) -> None:
    told = error_of(run("--kms-key", "alias/k", "setup", ok=False))
    assert told.startswith("kms_key is alias/k, but the roles need the ARN of a key")


def test_a_missing_stack_or_right_is_one_sentence(cloud: Cloud, file: Path, run: Run) -> None:
    wrong = error_of(run("--bucket", "absent", "upload", ".", ok=False))
    assert "there is no such bucket; make it with `alexmri aws setup`" in wrong
    wrong = error_of(
        run("train", "--data", "s3://b/d", "--image", "r@sha256:0", "--dry-run", ok=False)
    )
    assert "there is no bucket; run `alexmri aws setup`, add it to alexmri.toml" in wrong
    cloud.texts["DescribeStacks"] = (
        403,
        ("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"),
    )
    wrong = error_of(run("setup", ok=False))
    assert wrong.startswith("these credentials do not allow cloudformation:DescribeStacks; let an")
