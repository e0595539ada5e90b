"""Where a platform puts what a job reads and fetches what it writes: the layout of /opt/ml."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alexmri.errors import UserError
from alexmri.files import read_json_object

BASE_VARIABLE = "SAGEMAKER_BASE_DIR"
PLATFORM_ROOT = Path("/opt/ml")
# Checkpoints that end with the container.
UNFETCHED = Path(tempfile.gettempdir()) / "alexmri-checkpoints"


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders below `root`, which is /opt/ml wherever a platform runs the container."""

    root: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Paths":
        """Return the layout below $SAGEMAKER_BASE_DIR, or below /opt/ml where it is not set."""
        return cls(Path(environment.get(BASE_VARIABLE) or PLATFORM_ROOT))

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def config(self) -> Path:
        """The folder of what the platform says about the job."""
        return self.input / "config"

    @property
    def hyperparameters(self) -> Path:
        return self.config / "hyperparameters.json"

    @property
    def resource_config(self) -> Path:
        """The file that names the hosts of the job."""
        return self.config / "resourceconfig.json"

    @property
    def input_data_config(self) -> Path:
        """The file that says how the channels are delivered."""
        return self.config / "inputdataconfig.json"

    @property
    def data(self) -> Path:
        """The folder that holds one folder per channel."""
        return self.input / "data"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def results(self) -> Path:
        """The folder for everything beside the model: figures, report, metrics."""
        return self.output / "data"

    @property
    def failure(self) -> Path:
        """The file that tells a platform why a training failed."""
        return self.output / "failure"

    @property
    def processing(self) -> Path:
        """The folder of a processing job, with model/, test/ and evaluation/ in it."""
        return self.root / "processing"

    @property
    def message(self) -> Path:
        """The file that tells a platform how a processing job ended."""
        return self.output / "message"


def checkpoint_folder(paths: Paths) -> Path:
    """Return the folder a platform restores and fetches: what checkpointconfig.json names.

    Where it names none and none can be made (a read-only root, another user), `UNFETCHED`.

    Raises:
        UserError: the file is not a JSON object, or names no absolute path.
    """
    config = paths.config / "checkpointconfig.json"
    named = (read_json_object(config) or {}).get("LocalPath")
    if named and (not isinstance(named, str) or not named.startswith("/") or "\0" in named):
        raise UserError(
            f'{config} says "LocalPath": {json.dumps(named)}; it must be an absolute path, such as'
            f" {PLATFORM_ROOT}/checkpoints"
        )
    local = Path(named or PLATFORM_ROOT / "checkpoints")
    below = local.is_relative_to(PLATFORM_ROOT)
    folder = paths.root / local.relative_to(PLATFORM_ROOT) if below else local
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    can_be_made = existing == folder or os.access(existing, os.W_OK)
    return folder if named or can_be_made else UNFETCHED
