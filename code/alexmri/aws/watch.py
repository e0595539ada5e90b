"""Watch a job until it ends: its states, its log, how far the training is."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from alexmri.aws.client import Aws
from alexmri.aws.jobs import RUNNING, describe
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve
from alexmri.terminal import Terminal

POLL_SECONDS = 5.0
TRAINING_LOGS = "/aws/sagemaker/TrainingJobs"
# The last lines reach CloudWatch some seconds after the end of a job: so many polls without a line.
QUIET_POLLS = 4
EPOCH = re.compile(r"^epoch=(\d+); train_loss=")


@dataclass(slots=True)
class LogReader:
    """The lines of a job's log in CloudWatch, each once."""

    aws: Aws
    job: str
    group: str = TRAINING_LOGS
    _tokens: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield what was added since the last time."""
        request = {"logGroupName": self.group, "logStreamNamePrefix": f"{self.job}/"}
        # The group is made with the first line of the first job.
        found = self.aws.call_or_none("logs", "describe_log_streams", request) or {"logStreams": []}
        for stream in sorted(each["logStreamName"] for each in found["logStreams"]):
            yield from self._stream(stream)

    def _stream(self, stream: str) -> Iterator[str]:
        while True:
            request = {
                "logGroupName": self.group,
                "logStreamName": stream,
                "startFromHead": True,
            }
            token = self._tokens.get(stream)
            answer = self.aws.call(
                "logs", "get_log_events", request | ({"nextToken": token} if token else {})
            )
            for event in answer["events"]:
                yield from str(event["message"]).splitlines()
            self._tokens[stream] = answer["nextForwardToken"]
            # At the end CloudWatch gives back the token it was given. A page may be empty before.
            if self._tokens[stream] == token:
                return


def follow(aws: Aws, job: str, terminal: Terminal) -> dict[str, Any]:
    """Show states and log of `job` until it ends; return its last description."""
    last: dict[str, Any] = {}
    epochs = _epochs(aws, job, terminal, last)
    total = next(epochs)
    for _ in terminal.track(epochs, total, "epochs"):
        pass
    return last


def _epochs(aws: Aws, job: str, terminal: Terminal, last: dict[str, Any]) -> Iterator[int]:
    """Yield how many epochs there are, then once for every epoch that is done."""
    log, told, done, total, quiet = LogReader(aws, job), "", 0, 0, 0
    while True:
        last.update(describe(aws, job))
        running = last["TrainingJobStatus"] in RUNNING
        if not total:
            total = _epochs_of(last.get("HyperParameters") or {})
            yield total
        state = _state(last)
        if state != told:
            terminal.say(state)
            told = state
        quiet += 1
        for line in log.lines():
            quiet = 0
            terminal.say(line)
            found = EPOCH.match(line)
            # After an interruption the log begins again at some epoch.
            while found and done < int(found.group(1)):
                done += 1
                yield done
        if running:
            quiet = 0
        elif quiet >= QUIET_POLLS:
            return
        time.sleep(POLL_SECONDS)


def _epochs_of(hyperparameters: dict[str, str]) -> int:
    """Return how many epochs a job has; 1 where its settings are not ours."""
    try:
        return resolve([Layer("job", hyperparameters)]).settings.epochs
    except UserError:
        return 1


def _state(described: dict[str, Any]) -> str:
    transitions = described.get("SecondaryStatusTransitions") or [{}]
    message = str(transitions[-1].get("StatusMessage") or "")
    state = described.get("SecondaryStatus") or described["TrainingJobStatus"]
    return f"[{state}] {message}".rstrip()


def wait_until(
    look: Callable[[], tuple[str, bool]], terminal: Terminal, seconds: float | None = None
) -> str:
    """Tell each new state that `look` returns until it says that this is the last; return it."""
    told = ""
    while True:
        state, is_last = look()
        if state != told:
            terminal.say(state)
            told = state
        if is_last:
            return state
        time.sleep(POLL_SECONDS if seconds is None else seconds)


def require_completed(described: dict[str, Any]) -> None:
    """Raise UserError unless a job ended well; a stop that a user requested is well."""
    if described["TrainingJobStatus"] == "Failed":
        raise UserError(
            f"{described['TrainingJobName']} failed: {described.get('FailureReason', 'no reason')}"
        )
