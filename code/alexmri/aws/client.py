"""The boto3 client of every AWS command: it retries, and an error is one sentence."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alexmri.aws.config import AwsConfig
from alexmri.aws.errors import is_absent, permission, sentence
from alexmri.errors import UserError

# Of botocore's "standard" mode: it waits longer each time, and only repeats what may be repeated.
ATTEMPTS = 5


class AwsError(UserError):
    """AWS refused a request; the message says why, in one sentence."""


class Aws:
    """AWS as `config` names it. Threads may share one. Every method raises AwsError."""

    def __init__(self, config: AwsConfig) -> None:
        self.config = config
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        with self._translate_errors("signing in"):
            import boto3  # half a second that other commands need not pay

            self._session = boto3.session.Session(region_name=config.region)
        self.region: str = self._session.region_name or ""

    def client(self, service: str) -> Any:
        """Return the client of `service`; what it raises is the caller's to tell (`told`)."""
        from botocore.config import Config

        with self._lock, self._translate_errors(f"{service}: signing in"):
            if service not in self._clients:
                self._clients[service] = self._session.client(
                    service,
                    config=Config(
                        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                        connect_timeout=10,
                        read_timeout=70,
                        max_pool_connections=32,
                    ),
                )
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
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except ResponseParserError:
            raise AwsError(
                f"{action}: the answer is not AWS's; is there a proxy in between, or a wrong"
                " AWS_ENDPOINT_URL?"
            ) from None
        except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError) as raised:
            error = raised.last_exception if isinstance(raised, RetriesExceededError) else raised
            # boto3 wraps what a transfer met into an error of its own.
            error = error.__context__ if isinstance(error, Boto3Error) else error
            region = getattr(self, "region", "") or self.config.region or "this region"
            raise AwsError(sentence(error or raised, action, region)) from None
