"""Errors of AWS, each as one sentence that says what to do about it."""

import re
from dataclasses import dataclass
from typing import Any

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
    denied="let an administrator allow it (docs/aws.md lists what each command needs)",
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
        return f"AWS credentials cannot be had ({_first(error)}); `aws sso login` may help"
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
            f"these credentials may not do {needed.group(1) if needed else action}; {hints.denied}"
        )
    if code in EXPIRING:
        return f"{EXPIRED} (`aws sso login`, or a new AWS_SESSION_TOKEN)"
    if code in WRONG_KEYS:
        return f"{INVALID}, or AWS_PROFILE"
    if code in SLOW:
        return (
            f"{action}: AWS asks to slow down, still after several attempts; run the same command"
            " again in a minute: it goes on where it was"
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
