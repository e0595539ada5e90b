"""What `train` does as process 1 of a container: read the job, start the workers, end it well."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.control_channel import End, Party
from alexmri.contract.exit_reasons import LOST_A_PEER
from alexmri.contract.failure import failure_text, one_line, report_failure, write_failure
from alexmri.contract.first_host import party_of
from alexmri.contract.gpu import gpu_environment
from alexmri.contract.hosts import Hosts, read_hosts
from alexmri.contract.hyperparameters import read_settings_of_job
from alexmri.contract.input_modes import check_input_modes
from alexmri.contract.json_files import read_json_object
from alexmri.contract.network import network_variables
from alexmri.contract.paths import Paths, checkpoint_folder
from alexmri.contract.signals import STOPPING, WATCHED
from alexmri.contract.sm_environment import MASTER_PORT, sm_environment
from alexmri.contract.supervisor import ATTENTION_SECONDS, Supervisor
from alexmri.contract.workers import Meeting, count_workers, meeting_on_one_host, places
from alexmri.errors import UserError

GRACE_VARIABLE = "ALEXMRI_STOP_GRACE_SECONDS"
# A platform's sync of the checkpoints runs every few seconds, and not once more after the exit.
GRACE_SECONDS = 10.0
PARENT_VARIABLE = "ALEXMRI_PARENT"
PORT_VARIABLE = "SM_MASTER_PORT"


@dataclass(frozen=True, slots=True)
class Plan:
    """What this host knows before its workers start.

    Attributes:
        hosts: the hosts of the job.
        port: where the workers meet on the first host; the hosts talk on the next one.
        workers: how many train on this host.
        variables: what each of them finds in its environment.
        grace_seconds: how long a platform gets to fetch the checkpoint after a stop.
    """

    hosts: Hosts
    port: int
    workers: int
    variables: dict[str, str]
    grace_seconds: float


def run_as_process_one(
    arguments: Sequence[str],
    paths: Paths,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> int:
    """Run the training job below `paths` with these settings; return the exit code.

    As many workers train on every host as `workers_per_host` says; the hosts begin, stop and end
    together. `hold_signals` was called.
    """
    party, plan = Party(), None
    try:
        forget(paths.failure)
        hosts = read_hosts(paths.resource_config)
        port = _port(environment)
        party = party_of(hosts or Hosts(), port + 1, say)
        variables = read_job(paths, hosts, environment, say)
        settings = read_settings_of_job(arguments, variables, paths.hyperparameters)
        startup = gpu_environment(variables, paths)
        for line in startup.lines:
            say(line)
        plan = Plan(
            hosts or Hosts(),
            port,
            count_workers(settings.workers_per_host, startup.gpus),
            {**variables, **startup.variables},
            _grace_seconds(environment, synced=checkpoint_folder(paths).is_dir()),
        )
        party.tell("ready", plan.workers)
    except Exception as error:
        party.tell("failed", report_failure(error, paths.failure), failure_text(error))
    _listen(party, lambda: bool(party.workers or party.end))
    if plan and not party.end:
        _train(plan, arguments, paths, party, say)
        _listen(party, lambda: bool(party.end))
    party.leave()
    return _conclude(party.end or End(), paths.failure)


def _listen(party: Party, heard: Callable[[], bool]) -> None:
    """Wait until something was heard; a stop that comes meanwhile is passed on to all hosts."""
    while not heard():
        came = signal.sigtimedwait(WATCHED, ATTENTION_SECONDS)
        if came and came.si_signo in STOPPING:
            party.asked_to_stop()
        party.listen()


def _train(
    plan: Plan, arguments: Sequence[str], paths: Paths, party: Party, say: Callable[[str], None]
) -> None:
    """Run the workers of this host to their end, and tell the other hosts how that was."""
    hosts, counts = plan.hosts, party.workers or (plan.workers,)
    own, first = party.addresses
    common = {**plan.variables, PARENT_VARIABLE: str(os.getpid())}
    meeting = meeting_on_one_host()
    if len(counts) > 1:
        say(f"{hosts.current} is host {hosts.rank} of {', '.join(hosts.names)}; workers: {counts}")
        meeting = Meeting(first, plan.port, None)
        common |= network_variables(hosts, own, plan.variables)
    supervisor = Supervisor([worker_command(arguments)] * plan.workers, paths.failure, party)
    code = supervisor.run([common | its for its in places(counts, meeting, host=hosts.rank)])
    # The first host alone has files that count.
    leads = hosts.rank == 0
    if leads and supervisor.overdue and _was_saved(checkpoint_folder(paths), supervisor.stopped_at):
        say("warning: the checkpoint is saved, but the report is not complete")
        code = 0
    if leads and supervisor.stops == 1 and code == 0 and plan.grace_seconds:
        say(f"waiting {plan.grace_seconds:g} s, so that the platform can fetch the checkpoint")
        supervisor.linger(plan.grace_seconds)
    if code in (0, 128 + signal.SIGINT):
        party.tell("done", code)
    elif code == LOST_A_PEER or (supervisor.overdue and not leads):
        party.tell("lost")
    else:
        party.tell("failed", code, supervisor.cause)


def _conclude(end: End, failure: Path) -> int:
    """Leave the cause that all hosts tell, or none; return the exit code of the job."""
    text = end.failure and one_line(end.failure)
    if not text:
        with contextlib.suppress(OSError):
            failure.unlink(missing_ok=True)
    elif not failure.is_file() or failure.read_text(encoding="utf-8") != text:
        write_failure(text, failure)
    return end.code


def _port(environment: Mapping[str, str]) -> int:
    given = environment.get(PORT_VARIABLE) or str(MASTER_PORT)
    if not given.isdecimal() or not 1024 <= int(given) < 65535:
        raise UserError(f"{PORT_VARIABLE} is '{given}'; give it a port from 1024 to 65534")
    return int(given)


def read_job(
    paths: Paths, hosts: Hosts | None, environment: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """Return the environment for the workers of the job.

    Raises:
        UserError: files of the platform that make no sense, or channels that do not come as files.
    """
    delivery = read_json_object(paths.input_data_config)
    if paths.config.is_dir():  # without the folder no platform started this
        for path, found, meaning in (
            (paths.resource_config, hosts, "this is taken for the only host"),
            (paths.input_data_config, delivery, "every folder of channels is taken as it is"),
        ):
            if found is None:
                say(f"warning: {path} is missing: {meaning}")
    hosts, delivery = hosts or Hosts(), delivery or {}
    check_input_modes(delivery, paths.data)
    hyperparameters = read_json_object(paths.hyperparameters) or {}
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


def _was_saved(checkpoints: Path, since: float | None) -> bool:
    return since is not None and any(
        path.stat().st_mtime >= since for path in checkpoints.glob("*.json")
    )


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command of a process that trains."""
    return [sys.executable, "-m", "alexmri.training.worker", *arguments]
