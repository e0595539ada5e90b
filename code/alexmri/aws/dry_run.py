"""The requests of a command as data: printed by --dry-run, or sent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexmri.aws.client import Aws


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
