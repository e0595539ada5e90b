"""alexmri.toml and its options; what every command has in common."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alexmri.aws.cli import COMMANDS
from alexmri.aws.config import AwsConfig

from .conftest import ROLE, Cloud, Run, error_of

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
    assert words in error_of(run("approve", "1", "--dry-run", ok=False))


def test_options_win_over_the_file(file: Path, run: Run) -> None:
    file.write_text(f"region = 'eu-west-1'\nrole = '{ROLE}'\nbucket = 'one'\n[tags]\na = 'b'\n")
    given = ("--bucket", "other", "--subnets", "s1,s2", "--security-groups", "g1")
    train = ("train", "--data", "s3://d/e", "--image", "r@sha256:0", "--dry-run")
    _, step = json.loads(run(*given, *train).stdout)
    request = step["request"]
    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://other/alexmri/jobs"
    assert request["VpcConfig"] == {"SecurityGroupIds": ["g1"], "Subnets": ["s1", "s2"]}
    assert {"Key": "a", "Value": "b"} in request["Tags"]
    wrong = run("--tags", "novalue", *train, ok=False)
    assert "option --tags is 'novalue': write it as key=value,key=value" in error_of(wrong)


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
    assert [key for key in AwsConfig.model_fields if f"| `{key}` |" not in page] == []


def test_every_command_is_documented_and_answers_help(run: Run) -> None:
    page = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
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


# --- errors


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (
            "ThrottlingException",
            "Rate exceeded",
            "AWS limits the rate of requests, even after several",
        ),
        ("ExpiredTokenException", "expired", "the AWS credentials have expired; get new ones"),
        ("UnrecognizedClientException", "bad", "the AWS credentials are not valid"),
        ("AccessDeniedException", "no", "do not allow sagemaker:DescribeTrainingJob; let an"),
        (
            "AccessDeniedException",
            "User: u is not authorized to perform: iam:PassRole on resource: r",
            "do not allow iam:PassRole;",
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
    assert error_of(wrong) == "there is no training job and no tuning job absent in us-east-1"
    assert len(tries) == 3


def test_who_has_no_credentials_is_told(
    cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials were found" in error_of(run("status", "job", ok=False))
    monkeypatch.setenv("AWS_PROFILE", "absent")
    told = error_of(run("status", "job", ok=False))
    assert (
        "AWS credentials cannot be obtained (The config profile (absent) could not be"
        " found)" in told
    )


def test_a_network_that_is_gone_is_told(
    cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *a: 0)
    told = error_of(run("status", "job", ok=False))
    assert "sagemaker:DescribeTrainingJob: AWS cannot be reached in us-east-1" in told
