"""alexmri.toml and its options; what every command has in common."""

import json
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from alexmri.aws.cli import COMMANDS
from alexmri.aws.config import AwsConfig

from .conftest import ACCOUNT, ROLE, Cloud, Run, client, error_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "alexmri.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bukcet = 'x'", "unknown key 'bukcet' in alexmri.toml; did you mean 'bucket'?"),
        ("region = 'mars'", "'region' in alexmri.toml is 'mars'"),
        ("role = 'jobs'", "'role' in alexmri.toml is 'jobs'"),
        ("volume_gb = 1", "greater than or equal to 10; it means: disk of a job in GB"),
        ("subnets = ['a']", "subnets and security_groups go together"),
        ("max_wait_seconds = 60", "max_wait_seconds (60) must not be less than max_run_seconds"),
        ("region =", "alexmri.toml is not valid TOML"),
        ("", "there is no region; add it to alexmri.toml or pass `alexmri aws --region VALUE"),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, run: Run, text: str, words: str) -> None:
    file.write_text(text)
    assert words in error_of(run("policy", "caller", ok=False))


def test_options_win_over_the_file(file: Path, run: Run) -> None:
    file.write_text(f"region = 'eu-west-1'\nrole = '{ROLE}'\nbucket = 'one'\n[tags]\na = 'b'\n")
    given = ("--bucket", "other", "--subnets", "s1,s2", "--security-groups", "g1")
    printed = run(*given, "policy", "training").stdout
    assert "arn:aws:s3:::other/alexmri/*" in printed
    assert "arn:aws:ecr:eu-west-1" in printed
    assert "ec2:CreateNetworkInterface" in printed
    wrong = run("--tags", "novalue", "policy", "caller", ok=False)
    assert "option --tags is 'novalue': write it as key=value,key=value" in error_of(wrong)


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    assert [key for key in AwsConfig.model_fields if f"| `{key}` |" not in page] == []


def test_every_command_is_documented_and_answers_help(run: Run) -> None:
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert run(command, "--help").stdout.startswith("Usage:")
        assert f"alexmri aws {command}" in page, command
    assert all(command in run("--help").stdout for command in COMMANDS)


def test_help_needs_neither_boto3_nor_an_account() -> None:
    look = (
        "import sys\nfrom alexmri.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted(set(sys.modules) & {'boto3', 'botocore', 'torch', 'wandb'}))"
    )
    for arguments in (["--help"], ["aws", "--help"], ["aws", "train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", look, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


# --- policy


@pytest.mark.parametrize("kind", ["caller", "training", "endpoint", "pipeline"])
def test_a_policy_is_as_narrow_as_the_configuration(cloud: Cloud, run: Run, kind: str) -> None:
    document = json.loads(run("policy", kind).stdout)
    assert document["Version"] == "2012-10-17"
    unconfined = {"ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"}
    unconfined |= {"sagemaker:ListModelPackages", "sagemaker:ListEndpointConfigs"}
    for statement in document["Statement"]:
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= unconfined
        if "iam:PassRole" in statement["Action"]:
            assert statement["Condition"]["StringEquals"] == {
                "iam:PassedToService": "sagemaker.amazonaws.com"
            }
            assert set(statement["Resource"]) == {ROLE}
    # IAM itself takes it.
    iam = client("iam")
    iam.create_policy(PolicyName=kind, PolicyDocument=json.dumps(document))
    assert len(json.dumps(document, separators=(",", ":"))) <= 6144


def test_only_a_key_and_a_secret_that_are_named_are_allowed(cloud: Cloud, run: Run) -> None:
    assert "kms:" not in run("policy", "training").stdout
    assert "secretsmanager" not in run("policy", "training").stdout
    arn = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:w"
    printed = run("--kms-key", "alias/k", "--wandb-secret", arn, "policy", "training").stdout
    assert f"arn:aws:kms:us-east-1:{ACCOUNT}:alias/k" in printed
    assert arn in printed


def test_the_trust_policy_is_for_sagemaker_in_this_account(cloud: Cloud, run: Run) -> None:
    document = json.loads(run("policy", "trust").stdout)
    client("iam").create_role(RoleName="jobs", AssumeRolePolicyDocument=json.dumps(document))
    condition = document["Statement"][0]["Condition"]
    assert condition == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


# --- doctor


def good_account(cloud: Cloud, run: Run) -> None:
    trust = run("policy", "trust").stdout
    client("iam").create_role(RoleName="jobs", AssumeRolePolicyDocument=trust)
    client("ecr").create_repository(repositoryName="alexmri", imageTagMutability="IMMUTABLE")
    denied = "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
    cloud.texts["SimulatePrincipalPolicy"] = 403, denied


def test_doctor_of_a_good_account(cloud: Cloud, run: Run) -> None:
    good_account(cloud, run)
    result = run("doctor")
    assert "WRONG" not in result.stdout
    assert f"credentials: arn:aws:sts::{ACCOUNT}" in result.stdout
    assert (
        "unknown  training role: jobs trusts SageMaker; not checked further: these credentials may"
        in (result.stdout)
    )
    assert "not do iam:SimulatePrincipalPolicy" in result.stdout
    assert "bucket: slices is in us-east-1" in result.stdout
    assert "repository: alexmri has immutable tags" in result.stdout
    assert "for trainings AWS chooses the driver" in result.stdout
    assert "very-secret-key" not in result.output


def test_doctor_says_what_to_fix(cloud: Cloud, run: Run) -> None:
    iam = client("iam")
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    iam.create_role(RoleName="jobs", AssumeRolePolicyDocument=document)
    client("ecr").create_repository(repositoryName="alexmri")
    boto3.client("s3", region_name="eu-west-1").create_bucket(
        Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    other = ROLE.replace(ACCOUNT, "999999999999").replace("jobs", "absent")
    result = run(
        *("--bucket", "far", "--endpoint-role", other),
        *("--endpoint-instance", "ml.g5.xlarge"),
        *("--inference-ami", "al2-ami-sagemaker-inference-gpu-3-1", "doctor"),
        ok=False,
    )
    assert result.exit_code == 1
    for words in (
        "training role: jobs does not trust sagemaker.amazonaws.com",
        "endpoint role: there is no role absent; make it with the documents of",
        "bucket: far is in eu-west-1, but jobs run in us-east-1: set region to eu-west-1",
        "repository: tags of alexmri can be moved",
        "GPU driver: inference_ami al2-ami-sagemaker-inference-gpu-3-1 has driver 550 (CUDA 12.4),"
        " the image is built for CUDA 13.0: set inference_ami to"
        " al2023-ami-sagemaker-inference-gpu-4-1",
    ):
        assert f"WRONG    {words}" in result.stdout
    assert "WRONG    bucket: there is no bucket gone" in (
        run("--bucket", "gone", "doctor", ok=False).stdout
    )
    elsewhere = ROLE.replace(ACCOUNT, "999999999999")
    wrong = run("--role", elsewhere, "doctor", ok=False).stdout
    assert f"they are of account {ACCOUNT}, role is of 999999999999" in wrong


def test_doctor_names_actions_that_are_missing(cloud: Cloud, run: Run) -> None:
    good_account(cloud, run)
    result = (
        "<SimulatePrincipalPolicyResponse><SimulatePrincipalPolicyResult><EvaluationResults>"
        "<member><EvalActionName>s3:PutObject</EvalActionName>"
        "<EvalDecision>implicitDeny</EvalDecision></member>"
        "</EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
    )
    cloud.texts["SimulatePrincipalPolicy"] = 200, result
    printed = run("doctor", ok=False).stdout
    assert "WRONG    training role: jobs lacks s3:PutObject; attach the document of" in printed


# --- refusals


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        ("ThrottlingException", "Rate exceeded", "AWS asks to slow down, still after several"),
        ("ExpiredTokenException", "expired", "the AWS credentials have expired; get new ones"),
        ("UnrecognizedClientException", "bad", "the AWS credentials are not valid"),
        ("AccessDeniedException", "no", "may not do sagemaker:DescribeTrainingJob; `alexmri aws"),
        (
            "AccessDeniedException",
            "User: u is not authorized to perform: iam:PassRole on resource: r",
            "may not do iam:PassRole;",
        ),
        ("ResourceLimitExceeded", "limit is 0 Instances", "(limit is 0 Instances); ask for more"),
        ("OptInRequired", "x", "this is in another region than us-east-1; set region"),
        ("ValidationException", "Job name is bad", "was refused: Job name is bad"),
    ],
)
def test_a_refusal_is_one_sentence(
    cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch, code: str, message: str, words: str
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *a: 0)
    cloud.refuse("DescribeTrainingJob", code, message)
    assert words in error_of(run("status", "job", ok=False))
    assert len(cloud.sent("DescribeTrainingJob")) == (5 if code == "ThrottlingException" else 1)


def test_throttling_is_waited_out(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *a: 0)
    tries = []

    def slow(body: object) -> tuple[int, dict[str, str]] | None:
        tries.append(body)
        return (400, {"__type": "ThrottlingException"}) if len(tries) < 3 else None

    cloud.answers["DescribeTrainingJob"] = slow
    wrong = run("status", "absent", ok=False)
    assert error_of(wrong) == "there is no training job absent in us-east-1"
    assert len(tries) == 3


def test_who_has_no_credentials_is_told(
    cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials were found" in error_of(run("status", "job", ok=False))
    monkeypatch.setenv("AWS_PROFILE", "absent")
    told = error_of(run("status", "job", ok=False))
    assert "AWS credentials cannot be had (The config profile (absent) could not be found)" in told


def test_a_network_that_is_gone_is_told(
    cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *a: 0)
    told = error_of(run("status", "job", ok=False))
    assert "sagemaker:DescribeTrainingJob: AWS cannot be reached in us-east-1" in told
