"""A training as /opt/ml starts it: process 1 checks and launches the job, its workers run it."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexmri.contract.failure import report_failure
from alexmri.contract.gpu import adopt, gpu_environment
from alexmri.contract.inputs import Hosts, check_input_modes, find_channels, read_hosts
from alexmri.contract.launcher import MASTER_PORT, Launcher, Plan, count_workers
from alexmri.contract.paths import UNFETCHED, Paths, checkpoint_folder
from alexmri.data.folders import discover_channels
from alexmri.errors import UserError
from alexmri.files import make_writable, read_json_object
from alexmri.options import read_settings_of_job
from alexmri.terminal import Terminal

if TYPE_CHECKING:
    from alexmri.contract.signals import StopRequest
    from alexmri.training.distributed import Workers
    from alexmri.training.job import Outcome

WORKER = "alexmri.training.worker"
DEMO_SWITCH = "ALEXMRI_DEMO_DATA"
# Hidden, so that own data beside it is never mixed with it.
DEMO = ".demo"
GRACE_VARIABLE = "ALEXMRI_STOP_GRACE_SECONDS"
# A platform's sync of the checkpoints runs every few seconds, and not once more after the exit.
GRACE_SECONDS = 10.0
JOB_VARIABLE = "TRAINING_JOB_NAME"
# A hyperparameter that trials of a tuning job have.
TUNED = "_tuning_objective_metric"
PORT_VARIABLE = "ALEXMRI_MASTER_PORT"


@dataclass(frozen=True, slots=True)
class PlatformJob:
    """What process 1 knows before the workers start.

    Attributes:
        plan: how many workers train where.
        environment: what the workers find in theirs.
        gpus: how many this host has.
        grace_seconds: how long a platform gets to fetch the checkpoint after a stop.
    """

    plan: Plan
    environment: Mapping[str, str]
    gpus: int
    grace_seconds: float


def launch_job(
    arguments: Sequence[str], paths: Paths, environment: Mapping[str, str], terminal: Terminal
) -> int:
    """Check the job below `paths`, train it in processes of its own; return the exit code.

    `hold_signals` was called. Nothing here imports torch, so that mistakes are told at once.
    """
    try:
        forget(paths.failure)
        job = read_job(arguments, paths, environment, terminal)
        launcher = Launcher(job.plan, job.environment, paths.failure, terminal.say)
        code = launcher.run()
        leads = job.plan.hosts.rank == 0
        # The first host alone has files that count.
        saved_in = _checkpoints(paths, environment)
        if launcher.overdue and leads and _was_saved(saved_in, launcher.stopped_at):
            terminal.warn("the checkpoint is saved, but the report is not complete")
            paths.failure.unlink(missing_ok=True)
            code = 0
        if leads and launcher.stops == 1 and code == 0 and launcher.was_ready:
            _linger(launcher, job.grace_seconds, terminal.say)
    except Exception as error:
        return report_failure(error, paths.failure)
    return code


def read_job(
    arguments: Sequence[str], paths: Paths, environment: Mapping[str, str], terminal: Terminal
) -> PlatformJob:
    """Read and check what the platform says of the job, its settings, its GPUs and its folders.

    Raises:
        UserError: for whatever would end the training before its first step.
    """
    hosts = read_hosts(paths.resource_config)
    input_modes = read_json_object(paths.input_data_config)
    if paths.config.is_dir():  # without the folder no platform started this
        for path, found, meaning in (
            (paths.resource_config, hosts, "this host counts as the only one"),
            (
                paths.input_data_config,
                input_modes,
                "the input modes of the channels are not checked",
            ),
        ):
            if found is None:
                terminal.warn(f"{path} is missing: {meaning}")
    hosts = hosts or Hosts()
    check_input_modes(input_modes or {}, paths.data, hosts=len(hosts.names))
    hyperparameters = read_json_object(paths.hyperparameters) or {}
    _tell_of_entry_point(hyperparameters, terminal)
    settings = read_settings_of_job(arguments, environment, hyperparameters)
    startup = gpu_environment(environment, paths)
    for line in startup.lines:
        terminal.say(line)
    if environment.get(DEMO_SWITCH) != "1" or _has_data(paths.data):
        discover_channels(find_channels(paths.data))
    workers = count_workers(settings.workers_per_host, startup.gpus)
    if len(hosts.names) > 1:
        terminal.say(
            f"{hosts.current} is host {hosts.rank} of {', '.join(hosts.names)};"
            f" workers on this host: {workers}"
        )
    return PlatformJob(
        Plan(WORKER, arguments, workers, hosts, _port(environment)),
        {**environment, **startup.variables},
        startup.gpus,
        _grace_seconds(environment, synced=checkpoint_folder(paths).is_dir()),
    )


def run_platform_job(
    paths: Paths,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    terminal: Terminal,
    stop: "StopRequest",
    workers: "Workers",
) -> "Outcome":
    """Train on the channels below `paths`; a job with checkpoints is resumed.

    When `stop` comes, a checkpoint and the best model so far are saved. All `workers` call this.

    Raises:
        UserError: for settings, channels, images or checkpoints that will not do.
    """
    from alexmri.training.job import Job, run_job

    hyperparameters = read_json_object(paths.hyperparameters) or {}
    settings = read_settings_of_job(arguments, environment, hyperparameters)
    channels = _channels(paths.data, environment, terminal, workers)
    checkpoints = _checkpoints(paths, environment)
    if checkpoints == UNFETCHED:
        terminal.warn(f"no folder for checkpoints can be made in {paths.root}: they are not kept")
    job = Job(
        channels=channels,
        settings=settings,
        output=paths.results,
        model=paths.model,
        checkpoints=checkpoints,
        archive=paths.output / "archive",
    )
    return run_job(job, terminal, stop, model_when_stopped=True, workers=workers)


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


def channels_or_demo(data: Path, terminal: Terminal) -> dict[str, Path]:
    """Return the channels below `data`; where they hold nothing, synthetic data, said loudly."""
    channel = data / "training"
    demo = channel / DEMO
    if _has_data(data):
        return find_channels(data)
    terminal.warn("#" * 72)
    terminal.warn(f"There is no data, so this training uses SYNTHETIC images ({demo}).")
    terminal.warn("They are drawn by a program, and so are all figures that follow.")
    terminal.warn("#" * 72)
    if not demo.is_dir():
        from alexmri.data.phantom import write_demo_data

        make_writable(channel)
        try:
            write_demo_data(demo, track=terminal.track)
        except (OSError, UserError):
            if not demo.is_dir():
                raise
            # Another host of the job was faster: it drew the same images into the same folder.
    return {"train": demo}


def _checkpoints(paths: Paths, environment: Mapping[str, str]) -> Path:
    """Return the folder for checkpoints: one of its own for each trial of a tuning job.

    Trials share the prefix in S3, and a checkpoint of another one is refused.
    """
    folder, trial = checkpoint_folder(paths), environment.get(JOB_VARIABLE, "")
    tuned = TUNED in (read_json_object(paths.hyperparameters) or {})
    return folder / trial if tuned and re.fullmatch(r"[A-Za-z0-9-]+", trial) else folder


def _channels(
    data: Path, environment: Mapping[str, str], terminal: Terminal, workers: "Workers"
) -> dict[str, Path]:
    if environment.get(DEMO_SWITCH) != "1":
        return find_channels(data)
    if workers.local_rank == 0:  # draws the demo data for all workers of this host
        channels = channels_or_demo(data, terminal)
        workers.barrier()
        return channels
    workers.barrier()
    return channels_or_demo(data, terminal)


def _has_data(data: Path) -> bool:
    """Whether there is anything below `data` but hidden files, such as the demo data."""
    channel = data / "training"
    visible = [path for path in _entries(channel) if not path.name.startswith(".")]
    return bool(visible) or any(path != channel and path.is_dir() for path in _entries(data))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _tell_of_entry_point(hyperparameters: Mapping[str, Any], terminal: Terminal) -> None:
    """Say that the script is not run which a job names as its own entry point."""
    # Some clients put quotes around every text.
    script = str(hyperparameters.get("sagemaker_program") or "").strip('"')
    if script:
        terminal.warn(
            f"the job names the entry point {script} (sagemaker_program), which is not run: this"
            " image trains by its own `train`. To run a script first, give the job"
            ' ContainerEntrypoint ["bash", "-c", "python3 SCRIPT && exec train"], or'
            ' command="..." with `exec train` at its end in SDK 3'
        )


def _port(environment: Mapping[str, str]) -> int:
    given = environment.get(PORT_VARIABLE) or str(MASTER_PORT)
    if not given.isdecimal() or not 1024 <= int(given) <= 65535:
        raise UserError(f"{PORT_VARIABLE} is '{given}'; give it a port from 1024 to 65535")
    return int(given)


def _grace_seconds(environment: Mapping[str, str], *, synced: bool) -> float:
    """If the folder of checkpoints existed before the job, a platform fetches it."""
    given = environment.get(GRACE_VARIABLE)
    try:
        seconds = float(given) if given else GRACE_SECONDS * synced
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise UserError(f"{GRACE_VARIABLE} is '{given}'; give it seconds from 0 to 60")
    return seconds


def _linger(launcher: Launcher, seconds: float, say: Callable[[str], None]) -> None:
    if seconds:
        say(f"waiting {seconds:g} s, so that the platform can fetch the checkpoint")
        launcher.linger(seconds)


def _was_saved(checkpoints: Path, since: float | None) -> bool:
    return since is not None and any(
        path.stat().st_mtime >= since for path in checkpoints.glob("*.json")
    )


def main() -> int:
    """Be `train`, process 1 of a container, or one worker where torchrun started it."""
    from alexmri.contract.launcher import is_launched
    from alexmri.terminal import PlainTerminal, prepare_output

    prepare_output()
    if is_launched(os.environ):
        from alexmri.training.worker import main as be_worker

        return be_worker()
    paths, terminal = Paths.of(os.environ), PlainTerminal()
    terminal.say(f"alexmri train: the job in {paths.root}")
    return launch_job(sys.argv[1:], paths, os.environ, terminal)


def check_as_process_1(paths: Paths, terminal: Terminal) -> None:
    """Do for a worker of somebody else's torchrun what process 1 does before it starts workers.

    Raises:
        UserError: as `read_job`.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        forget(paths.failure)
    adopt(gpu_environment(os.environ, paths).variables)
    job = read_job(sys.argv[1:], paths, os.environ, terminal)
    count_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), job.gpus)
