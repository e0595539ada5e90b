"""What `train` does as process 1 of a container: read the job, start the worker, end it well."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from alexmri.contract.barrier import Gathering, wait_for_first
from alexmri.contract.delivery import check_delivery
from alexmri.contract.documents import read_object
from alexmri.contract.failure import failure_text, report_failure
from alexmri.contract.gpu import gpu_environment
from alexmri.contract.hosts import Hosts, read_hosts
from alexmri.contract.paths import Paths, checkpoint_folder
from alexmri.contract.signals import Stopped, StopRequest
from alexmri.contract.sm_environment import sm_environment
from alexmri.contract.supervisor import Supervisor
from alexmri.errors import UserError

GRACE_VARIABLE = "ALEXMRI_STOP_GRACE_SECONDS"
# A platform's sync of the checkpoints runs every few seconds, and not once more after the exit.
GRACE_SECONDS = 10.0
# How long a first host that is done waits for hosts that never called.
LATECOMER_SECONDS = 30.0
PARENT_VARIABLE = "ALEXMRI_PARENT"


def run_as_process_one(
    worker: Sequence[str], paths: Paths, environment: Mapping[str, str], say: Callable[[str], None]
) -> int:
    """Run the training job below `paths` by the command `worker`; return the exit code.

    On several hosts the first one trains and the others wait for it. `hold_signals` was called.
    """
    gathering = None
    try:
        forget(paths.failure)
        hosts = read_hosts(paths.resource_config)
        if hosts and len(hosts.names) > 1 and hosts.rank == 0:
            gathering = Gathering(hosts)
        variables = read_job(paths, hosts, environment, say)
        if hosts and hosts.rank:
            return _follow(hosts, say)
        startup = gpu_environment(variables, paths)
        for line in startup.lines:
            say(line)
        grace = _grace_seconds(environment, synced=checkpoint_folder(paths).is_dir())
    except Exception as error:
        code = report_failure(error, paths.failure)
        if gathering:
            gathering.dismiss(failure_text(error), patience=LATECOMER_SECONDS)
        return code
    supervisor = Supervisor([worker], paths.failure)
    code = supervisor.run({**variables, **startup.variables, PARENT_VARIABLE: str(os.getpid())})
    if supervisor.overdue and _was_saved(checkpoint_folder(paths), supervisor.stopped_at):
        say("warning: the checkpoint is saved, but the report is not complete")
        paths.failure.unlink(missing_ok=True)
        code = 0
    if gathering:
        patience = 0 if supervisor.stops else LATECOMER_SECONDS
        gathering.dismiss(_told(paths.failure, code), patience=patience)
    if supervisor.stops == 1 and code == 0 and grace:
        say(f"waiting {grace:g} s, so that the platform can fetch the checkpoint")
        supervisor.linger(grace)
    return code


def read_job(
    paths: Paths, hosts: Hosts | None, environment: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """Return the environment for the workers of the job.

    Raises:
        UserError: files of the platform that make no sense, or channels that do not come as files.
    """
    delivery = read_object(paths.input_data_config)
    if paths.config.is_dir():  # without the folder no platform started this
        for path, found, meaning in (
            (paths.resource_config, hosts, "this is taken for the only host"),
            (paths.input_data_config, delivery, "every folder of channels is taken as it is"),
        ):
            if found is None:
                say(f"warning: {path} is missing: {meaning}")
    hosts, delivery = hosts or Hosts(), delivery or {}
    check_delivery(delivery, paths.data, hosts)
    hyperparameters = read_object(paths.hyperparameters) or {}
    return sm_environment(paths, hosts, hyperparameters, delivery, environment)


def forget(told: Path) -> None:
    """Remove what an earlier job told about its end: it would be taken for this one's.

    Raises:
        UserError: it is there and stays there.
    """
    try:
        told.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{told} of an earlier job cannot be removed: {error.strerror}; remove it"
        ) from None


def _follow(hosts: Hosts, say: Callable[[str], None]) -> int:
    """Wait for the first host; a stop signal ends the wait, and nothing is lost by that."""
    say(f"{hosts.first} trains for all {len(hosts.names)} hosts; {hosts.current} waits for it")
    with StopRequest().on(signal.SIGTERM, signal.SIGINT) as stop:
        try:
            with stop.interrupts(at=1):
                wait_for_first(hosts)
        except Stopped:
            return 0 if stop.signal is signal.SIGTERM else 130
    return 0


def _grace_seconds(environment: Mapping[str, str], *, synced: bool) -> float:
    """A folder of checkpoints that was there before the job is one that somebody fetches."""
    given = environment.get(GRACE_VARIABLE)
    try:
        seconds = float(given) if given else GRACE_SECONDS * synced
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise UserError(f"{GRACE_VARIABLE} is '{given}'; give it seconds from 0 to 60")
    return seconds


def _told(failure: Path, code: int) -> str | None:
    if code == 0:
        return None
    return failure.read_text(encoding="utf-8") if failure.is_file() else f"exit code {code}"


def _was_saved(checkpoints: Path, since: float | None) -> bool:
    return since is not None and any(
        path.stat().st_mtime >= since for path in checkpoints.glob("*.json")
    )


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command of the process that trains."""
    return [sys.executable, "-m", "alexmri.training.worker", *arguments]
