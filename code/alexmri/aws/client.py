"""The boto3 client of every AWS command: it retries, and an error is one sentence."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alexmri.aws.config import AwsConfig
from alexmri.errors import UserError
from alexmri.terminal import Terminal

# Of botocore's "standard" mode: it waits longer each time, and only repeats what may be repeated.
ATTEMPTS = 5
POLL_SECONDS = 5.0

EXPIRED = "the AWS credentials have expired; get new ones"
INVALID = "the AWS credentials are not valid; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MISSING = (
    "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this"
    " machine a role"
)
# How the permission for a call is spelled where it is not SERVICE:Operation.
SERVICES = {"sagemaker-runtime": "sagemaker"}
PERMISSIONS = {
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:CopyObject": "s3:GetObject and s3:PutObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
}
DENIED = (
    *("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"),
    *("AllAccessDisabled", "AccountProblem"),
)
EXPIRING = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
WRONG_KEYS = (
    *("InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken", "SignatureDoesNotMatch"),
    *("UnrecognizedClientException", "InvalidSignatureException", "AuthFailure"),
)
SLOW = (
    *("Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException"),
    *("RequestLimitExceeded", "SlowDown", "RequestThrottled", "RequestThrottledException"),
)
ELSEWHERE = (
    *("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    *("301", "OptInRequired", "InvalidRegion"),
)
LIMITS = ("ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException")
GONE = (
    *("ResourceNotFound", "ResourceNotFoundException", "RepositoryNotFoundException", "404"),
    *("ImageNotFoundException", "NoSuchEntity", "NoSuchKey", "NoSuchBucket"),
)
# SageMaker and CloudFormation say it with the code of any bad request.
INVALID_REQUEST = ("ValidationException", "ValidationError")
ABSENT = re.compile(r"(could|can) ?not (be )?f(i|ou)nd|does not exist|not found", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hints:
    """What to change, in the words of whoever reads the error."""

    denied: str
    region: str
    bucket: str


# For a reader with alexmri.toml beside them.
COMMAND_HINTS = Hints(
    denied="let an administrator allow it (docs/sagemaker.md lists what each command needs)",
    region="set region in alexmri.toml to its region",
    bucket="make it with `alexmri aws setup`, or correct bucket in alexmri.toml",
)
# For a reader of a job's log.
JOB_HINTS = Hints(
    denied=(
        "they need s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and s3:DeleteObject"
        " below the prefix"
    ),
    region="set AWS_REGION to its region",
    bucket="make it, or correct the name",
)


class AwsError(UserError):
    """AWS refused a request; the message says why, in one sentence."""


def make_client(
    session: Any,
    service: str,
    *,
    region: str | None = None,
    attempts: int = ATTEMPTS,
    connect_seconds: float = 10,
    read_seconds: float = 70,
) -> Any:
    """Return boto3's client of `service`, which threads may share.

    Raises:
        botocore.exceptions.BotoCoreError: no region or profile; `errors.sentence` explains it.
    """
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        max_pool_connections=32,
    )
    return session.client(service, region_name=region, config=config)


class Aws:
    """AWS as `config` names it. Threads may share one. Every method raises AwsError."""

    def __init__(self, config: AwsConfig) -> None:
        self.config = config
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        with self._translate_errors("signing in"):
            import boto3  # half a second that other commands need not pay

            self.session = boto3.session.Session(region_name=config.region)
        self.region: str = self.session.region_name or ""

    def client(self, service: str) -> Any:
        """Return the client of `service`; what it raises is the caller's to tell (`told`)."""
        with self._lock, self._translate_errors(f"{service}: signing in"):
            if service not in self._clients:
                self._clients[service] = make_client(self.session, service)
            return self._clients[service]

    def call(self, service: str, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, `method` being boto3's name for it; return the answer."""
        client = self.client(service)
        with self.translate_errors(service, method):
            answer: dict[str, Any] = getattr(client, method)(**request)
            return answer

    def call_or_none(
        self, service: str, method: str, request: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Do the same; None where AWS says that there is no such thing."""
        from botocore.exceptions import ClientError

        client = self.client(service)
        with self.translate_errors(service, method):
            try:
                answer: dict[str, Any] = getattr(client, method)(**request)
            except ClientError as error:
                if is_absent(error):
                    return None
                raise
            return answer

    def pages(
        self, service: str, method: str, request: Mapping[str, Any], key: str
    ) -> Iterator[Any]:
        """Yield what lies under `key` in every page of an answer."""
        client = self.client(service)
        with self.translate_errors(service, method):
            for page in client.get_paginator(method).paginate(**request):
                yield from page.get(key, ())

    @contextmanager
    def translate_errors(self, service: str, method: str) -> Iterator[None]:
        """Turn what boto3 raises in the block into one sentence."""
        operation = self.client(service).meta.method_to_api_mapping.get(method, method)
        with self._translate_errors(permission(service, operation)):
            yield

    @contextmanager
    def _translate_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except boto_errors() as raised:
            region = getattr(self, "region", "") or self.config.region or "this region"
            raise AwsError(sentence(cause_of(raised), action, region)) from None


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `method` is boto3's name for it, `request` what boto3 takes."""

    service: str
    method: str
    request: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {"service": self.service, "call": self.method, "request": dict(self.request)}

    def submit(self, aws: Aws) -> dict[str, Any]:
        """Send the request and return the answer."""
        return aws.call(self.service, self.method, self.request)


@dataclass(frozen=True, slots=True)
class Run:
    """A program that is run on this machine."""

    command: Sequence[str]

    def document(self) -> dict[str, Any]:
        return {"run": list(self.command)}


def dry_run_text(steps: Sequence[Call | Run]) -> str:
    """Return the steps as JSON; what only AWS knows stands there in angle brackets."""
    return json.dumps([step.document() for step in steps], indent=2, default=str)


def ensure(
    aws: Aws, what: str, name: dict[str, str], request: dict[str, Any], terminal: Terminal
) -> None:
    """Make what `request` says unless a thing of that name is there."""
    if aws.call_or_none("sagemaker", f"describe_{what}", name) is None:
        aws.call("sagemaker", f"create_{what}", request)
        terminal.say(f"made the {what.replace('_', ' ')} {next(iter(name.values()))}")


def pause() -> None:
    """Wait before AWS is asked again."""
    time.sleep(POLL_SECONDS)


def wait_until(look: Callable[[], tuple[str, bool]], terminal: Terminal) -> str:
    """Tell each new state that `look` returns until it says that this is the last; return it."""
    told = ""
    while True:
        state, is_last = look()
        if state != told:
            terminal.say(state)
            told = state
        if is_last:
            return state
        pause()


def boto_errors() -> tuple[type[Exception], ...]:
    """Return what boto3 raises where AWS refuses or cannot be reached."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError

    return BotoCoreError, ClientError, Boto3Error, ResponseParserError, RetriesExceededError


def cause_of(raised: Exception) -> Exception:
    """Return the error that a transfer of files wraps, or `raised` itself."""
    from boto3.exceptions import Boto3Error
    from s3transfer.exceptions import RetriesExceededError

    error = raised.last_exception if isinstance(raised, RetriesExceededError) else raised
    if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
        error = error.__context__
    return error if isinstance(error, Exception) else raised


def code_of(error: Exception) -> str:
    """Return the code of a ClientError, such as NoSuchKey; empty for other errors."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def permission(service: str, operation: str) -> str:
    """Return the IAM action that `operation` needs."""
    action = f"{SERVICES.get(service, service)}:{operation}"
    return PERMISSIONS.get(action, action)


def is_absent(error: Any) -> bool:
    """Tell whether a ClientError says that the thing does not exist."""
    code, message = code_of(error), str(error.response["Error"].get("Message", ""))
    return code in GONE or (code in INVALID_REQUEST and bool(ABSENT.search(message)))


def sentence(error: Exception, action: str, region: str, hints: Hints = COMMAND_HINTS) -> str:
    """Return why `action` failed and what helps."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if isinstance(error, exceptions.ClientError):
        return _refused(error, action, region, hints)
    if isinstance(error, ResponseParserError):
        return (
            f"{action}: the answer is not AWS's; is there a proxy in between, or a wrong"
            " AWS_ENDPOINT_URL?"
        )
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return f"{MISSING}, or AWS_PROFILE"
    if isinstance(error, exceptions.NoRegionError):
        return "no AWS region is known; add region to alexmri.toml or set AWS_REGION"
    if isinstance(
        error,
        exceptions.TokenRetrievalError
        | exceptions.SSOError
        | exceptions.CredentialRetrievalError
        | exceptions.ProfileNotFound,
    ):
        return f"AWS credentials cannot be obtained ({_first(error)}); `aws sso login` may help"
    if isinstance(error, exceptions.EndpointConnectionError):
        return (
            f"{action}: AWS cannot be reached in {region}; check the network, and that the region"
            " is spelled right"
        )
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return f"{action}: AWS cannot be reached ({type(error).__name__}); check the network"
    return f"{action} failed: {_first(error)}"


def _refused(error: Any, action: str, region: str, hints: Hints) -> str:
    code, message = code_of(error), str(error.response["Error"].get("Message", ""))
    if code in DENIED:
        needed = re.search(r"perform: ([\w-]+:\w+)", message)
        return (
            f"these credentials do not allow {needed.group(1) if needed else action};"
            f" {hints.denied}"
        )
    if code in EXPIRING:
        return f"{EXPIRED} (`aws sso login`, or a new AWS_SESSION_TOKEN)"
    if code in WRONG_KEYS:
        return f"{INVALID}, or AWS_PROFILE"
    if code in SLOW:
        return (
            f"{action}: AWS limits the rate of requests, even after several attempts; run the"
            " same command again in a minute: it continues where it stopped"
        )
    if code in ELSEWHERE:
        return f"{action}: this is in another region than {region}; {hints.region}"
    if code in LIMITS:
        return (
            f"{action}: a limit of the account is reached ({_brief(message)}); ask for more in"
            " Service Quotas, or take another instance type"
        )
    if code == "NoSuchBucket":
        return f"there is no such bucket; {hints.bucket}"
    if code == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong; set it"
    return f"{action} was refused: {_brief(message) or code}"


def _first(error: Exception) -> str:
    return _brief(str(error)) or type(error).__name__


def _brief(message: str) -> str:
    return (message.splitlines() or [""])[0][:300].rstrip(". ")
