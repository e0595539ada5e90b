"""One container under watch: its options, its log, its signals, its end."""

import json
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .docker_helpers import call, wait_for

# Seconds; far more than anything here needs, for machines under load.
PATIENCE = 600


@dataclass(frozen=True, slots=True)
class End:
    """How a container ended: its exit code, and when (seconds since 1970)."""

    code: int
    time: float


class Container:
    """`docker run --detach` of `arguments` (options, image, command) under `name`.

    Without `--tty`, as on a platform: what the program prints goes to a pipe.
    """

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._stop: subprocess.Popen[bytes] | None = None
        begun = call("docker", "run", "--detach", "--name", name, *arguments, check=False)
        if begun.returncode != 0:
            call("docker", "rm", "--force", name, check=False)
            raise AssertionError(f"it cannot be started: {begun.stderr}")
        self._wait = subprocess.Popen(["docker", "wait", name], stdout=subprocess.DEVNULL)

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *error: object) -> None:
        call("docker", "rm", "--force", "--volumes", self.name)
        for process in (self._wait, self._stop):
            if process:
                process.wait()

    @property
    def runs(self) -> bool:
        return self._wait.poll() is None

    def inspect(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(call("docker", "inspect", self.name).stdout)[0]
        return facts

    def log(self) -> str:
        """Return what it printed so far: standard output, then standard error."""
        printed = call("docker", "logs", self.name)
        return printed.stdout + printed.stderr

    def wait_for(self, text: str) -> None:
        """Wait until it prints a line with `text`; the test fails when it does not."""
        command = ["docker", "logs", "--follow", self.name]
        follow = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert follow.stdout
        deadline = threading.Timer(PATIENCE, follow.kill)
        deadline.start()
        try:
            if not any(text.encode() in line for line in follow.stdout):
                raise AssertionError(f"{self.name} did not print '{text}':\n{self.log()}")
        finally:
            deadline.cancel()
            follow.kill()
            follow.communicate()

    def execute(self, script: str) -> str:
        """Run a shell script in it; return what that printed."""
        return call("docker", "exec", self.name, "sh", "-c", script).stdout

    def worker(self, script: str) -> str:
        """Run a shell script as soon as process 1 has a child, whose number is in $worker."""
        find = 'read worker rest < /proc/1/task/1/children; test -n "$worker"'
        command = ("docker", "exec", self.name, "sh", "-c", find)
        wait_for(lambda: call(*command, check=False).returncode == 0)
        return self.execute(f"{find} && {script}")

    def signal(self, name: str) -> None:
        """Send a signal to its process 1."""
        call("docker", "kill", "--signal", name, self.name)

    def stop(self, seconds: int) -> None:
        """Begin to stop it: SIGTERM now, SIGKILL after so many seconds."""
        command = ["docker", "stop", "-t", str(seconds), self.name]
        self._stop = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait(self, seconds: float = PATIENCE) -> End:
        """Wait for its end; the test fails when it does not come in time."""
        try:
            self._wait.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log()}") from None
        state = self.inspect()["State"]
        return End(state["ExitCode"], datetime.fromisoformat(state["FinishedAt"]).timestamp())


@contextmanager
def network(name: str) -> Iterator[str]:
    """Make a network whose containers see each other and nothing else."""
    call("docker", "network", "create", "--internal", name)
    try:
        yield name
    finally:
        call("docker", "network", "rm", name)


def new_name() -> str:
    return f"alexmri-test-{uuid.uuid4().hex[:8]}"


def settings(variables: Mapping[str, str]) -> list[str]:
    return [word for pair in variables.items() for word in ("--env", "=".join(pair))]


def volumes(mounts: Mapping[Path, str]) -> list[str]:
    return [word for path, place in mounts.items() for word in ("--volume", f"{path}:{place}")]
