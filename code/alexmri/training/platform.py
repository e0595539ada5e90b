"""A training as a platform starts it: everything in and out through the folders of /opt/ml."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alexmri.contract.channels import find_channels
from alexmri.contract.hyperparameters import read_settings_of_job
from alexmri.contract.paths import UNFETCHED, Paths, checkpoint_folder
from alexmri.contract.signals import StopRequest
from alexmri.data.phantom import write_demo_data
from alexmri.data.shards import gathered
from alexmri.errors import UserError
from alexmri.terminal import Terminal
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.job import Job, Outcome, run_job
from alexmri.training.run_folder import make_writable

DEMO_SWITCH = "ALEXMRI_DEMO_DATA"
DEMO = "demo"


def run_platform_job(
    paths: Paths,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    terminal: Terminal,
    stop: StopRequest,
    workers: Workers = ALONE,
) -> Outcome:
    """Train on the channels below `paths`; a job with checkpoints is resumed.

    Arguments win over the environment, the environment over hyperparameters.json. When `stop`
    comes, a checkpoint and the best model so far are saved. All `workers` call this.

    Raises:
        UserError: for settings, channels, images or checkpoints that will not do.
    """
    settings = read_settings_of_job(arguments, environment, paths.hyperparameters)
    data = _data_of_all_hosts(paths.data, terminal, stop, workers)
    with workers.first_of_host_first("channels", stop):
        demo = environment.get(DEMO_SWITCH) == "1"
        channels = channels_or_demo(data, terminal) if demo else find_channels(data)
    checkpoints = checkpoint_folder(paths)
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


def _data_of_all_hosts(data: Path, terminal: Terminal, stop: StopRequest, workers: Workers) -> Path:
    """Return a folder with the data of all hosts, which their first workers fetch."""
    if workers.leaders is None:
        return data
    if workers.local_rank == 0:
        data = gathered(data, workers.leaders, terminal)
        workers.tell(f"shards/{workers.host}")
    workers.wait_for(f"shards/{workers.host}", stop)
    return Path(workers.gather_json(str(data))[workers.rank - workers.local_rank])


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
        try:
            write_demo_data(demo, track=terminal.track)
        except (OSError, UserError):
            if not demo.is_dir():
                raise
            # Another host of the job was faster: it drew the same pictures into the same folder.
    return {"train": demo}


def _others(data: Path, channel: Path) -> list[Path]:
    return [path for path in _entries(data) if path != channel and path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
