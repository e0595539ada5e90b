"""What a command is going to ask for, as data: shown by --dry-run, or done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexmri.aws.session import Aws


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `method` is boto3's name for it, `request` what boto3 takes."""

    service: str
    method: str
    request: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {"service": self.service, "call": self.method, "request": dict(self.request)}

    def do(self, aws: Aws) -> dict[str, Any]:
        """Ask for it and return the answer."""
        return aws.call(self.service, self.method, self.request)


@dataclass(frozen=True, slots=True)
class Run:
    """A program that is run on this machine."""

    command: Sequence[str]

    def document(self) -> dict[str, Any]:
        return {"run": list(self.command)}


def plan_text(steps: Sequence[Call | Run]) -> str:
    """Return the steps as JSON; what only AWS knows stands there in angle brackets."""
    return json.dumps([step.document() for step in steps], indent=2, default=str)
