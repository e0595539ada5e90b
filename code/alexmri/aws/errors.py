"""Errors of AWS, each as one sentence that says what to do about it."""

import re
from typing import Any

from alexmri.s3 import EXPIRED, INVALID, MISSING

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
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
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
# SageMaker says it with the code of any bad request.
ABSENT = re.compile(r"(could|can) ?not (be )?f(i|ou)nd|does not exist|not found", re.IGNORECASE)


def permission(service: str, operation: str) -> str:
    """Return the IAM action that `operation` needs."""
    action = f"{SERVICES.get(service, service)}:{operation}"
    return PERMISSIONS.get(action, action)


def is_absent(error: Any) -> bool:
    """Tell whether a ClientError says that the thing does not exist."""
    told = error.response["Error"]
    code, message = str(told.get("Code", "")), str(told.get("Message", ""))
    return code in GONE or (code == "ValidationException" and bool(ABSENT.search(message)))


def sentence(error: Exception, action: str, region: str) -> str:
    """Return why `action` failed and what helps."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _refused(error, action, region)
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


def _refused(error: Any, action: str, region: str) -> str:
    told = error.response["Error"]
    code, message = str(told.get("Code", "")), str(told.get("Message", ""))
    if code in DENIED:
        needed = re.search(r"perform: ([\w-]+:\w+)", message)
        return (
            f"these credentials may not do {needed.group(1) if needed else action};"
            " `alexmri aws policy caller` prints what is needed, `alexmri aws doctor` what is there"
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
        return (
            f"{action}: this is in another region than {region}; set region in alexmri.toml to"
            " its region"
        )
    if code in LIMITS:
        return (
            f"{action}: a limit of the account is reached ({_brief(message)}); ask for more in"
            " Service Quotas, or take another instance type"
        )
    if code == "NoSuchBucket":
        return "there is no such bucket; make it, or correct bucket in alexmri.toml"
    return f"{action} was refused: {_brief(message) or code}"


def _first(error: Exception) -> str:
    return _brief(str(error)) or type(error).__name__


def _brief(message: str) -> str:
    return (message.splitlines() or [""])[0][:300].rstrip(". ")
