"""A training as a platform starts it: everything in and out through the folders of /opt/ml."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alexmri.contract.channels import find_channels
from alexmri.contract.hyperparameters import read_arguments, read_hyperparameters
from alexmri.contract.paths import UNFETCHED, Paths, checkpoint_folder
from alexmri.contract.signals import StopRequest
from alexmri.data.phantom import write_demo_data
from alexmri.errors import UserError
from alexmri.settings import environment_layer, resolve
from alexmri.terminal import Terminal
from alexmri.training.folders import make_writable
from alexmri.training.job import Job, Outcome, run_job

DEMO_SWITCH = "ALEXMRI_DEMO_DATA"
DEMO = "demo"


def run_platform_job(
    paths: Paths,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    terminal: Terminal,
    stop: StopRequest,
) -> Outcome:
    """Train on the channels below `paths`; a job with checkpoints is resumed.

    Arguments win over the environment, the environment over hyperparameters.json. When `stop`
    comes, a checkpoint and the best model so far are saved.

    Raises:
        UserError: for settings, channels, images or checkpoints that will not do.
    """
    settings = resolve(
        [
            read_arguments(arguments),
            environment_layer(environment),
            read_hyperparameters(paths.hyperparameters),
        ]
    ).settings
    if environment.get(DEMO_SWITCH) == "1":
        channels = channels_or_demo(paths.data, terminal)
    else:
        channels = find_channels(paths.data)
    checkpoints = checkpoint_folder(paths)
    if checkpoints == UNFETCHED:
        terminal.warn(f"no folder for checkpoints can be made in {paths.root}: they are not kept")
    job = Job(
        channels=channels,
        settings=settings,
        output=paths.results,
        model=paths.model,
        checkpoints=checkpoints,
        earlier=paths.output / "earlier",
    )
    return run_job(job, terminal, stop, model_when_stopped=True)


def channels_or_demo(data: Path, terminal: Terminal) -> dict[str, Path]:
    """Return the channels below `data`; where they hold nothing, made-up data, said loudly.

    The demo data lies in a folder of its own, so that it is never mixed with pictures of people.

    Raises:
        UserError: demo data beside other data.
    """
    channel = data / "training"
    visible = [path for path in _entries(channel) if not path.name.startswith(".")]
    demo = channel / DEMO
    if [path for path in visible if path != demo] or _others(data, channel):
        if demo in visible:
            raise UserError(
                f"{channel} holds the synthetic demo data ({DEMO}/) beside other data; remove"
                f" {DEMO}/"
            )
        return find_channels(data)
    terminal.warn("#" * 72)
    terminal.warn(f"There is no data, so this training uses SYNTHETIC pictures ({demo}).")
    terminal.warn("They are drawn by a program, and so are all figures that follow.")
    terminal.warn("#" * 72)
    if not visible:
        make_writable(channel)
        write_demo_data(demo, track=terminal.track)
    return {"train": demo}


def _others(data: Path, channel: Path) -> list[Path]:
    return [path for path in _entries(data) if path != channel and path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
