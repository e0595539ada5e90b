"""The boto3 client of every AWS command: it retries, and an error is one sentence."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alexmri.aws.config import AwsConfig
from alexmri.aws.errors import boto_errors, cause_of, is_absent, permission, sentence
from alexmri.errors import UserError

# Of botocore's "standard" mode: it waits longer each time, and only repeats what may be repeated.
ATTEMPTS = 5


class AwsError(UserError):
    """AWS refused a request; the message says why, in one sentence."""


def make_client(
    session: Any,
    service: str,
    *,
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
    return session.client(service, config=config)


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
        with self._lock, self._translate_errors(f"{service}: signing in"):
            if service not in self._clients:
                self._clients[service] = make_client(self._session, service)
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
