"""The hosts of a job and the place of this one among them, from resourceconfig.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.contract.json_files import read_json_object
from alexmri.errors import UserError


@dataclass(frozen=True, slots=True)
class Hosts:
    """Who works on the job; the first of `names`, in the platform's order, leads.

    SageMaker sorts by letters: algo-1, algo-10, algo-2. The rank is the place in that list.
    """

    current: str = "algo-1"
    names: tuple[str, ...] = ("algo-1",)
    interface: str = "eth0"
    document: dict[str, Any] | None = None

    @property
    def rank(self) -> int:
        return self.names.index(self.current)

    @property
    def first(self) -> str:
        return self.names[0]


def read_hosts(path: Path) -> Hosts | None:
    """Return the hosts named in resourceconfig.json, or None where there is no such file.

    Raises:
        UserError: the file does not say who this host is, or who the hosts are.
    """
    document = read_json_object(path)
    if document is None:
        return None
    current, names = document.get("current_host"), document.get("hosts")
    if not isinstance(names, list) or not names or not all(n and isinstance(n, str) for n in names):
        raise UserError(f'{path} names no hosts; it must say "hosts": ["algo-1", …]')
    if not isinstance(current, str) or current not in names:
        raise UserError(
            f'{path} says "current_host": {json.dumps(current)}, which is not among its hosts'
            f" {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a host twice: {', '.join(names)}")
    interface = str(document.get("network_interface_name") or "eth0")
    return Hosts(current, tuple(names), interface, document)
