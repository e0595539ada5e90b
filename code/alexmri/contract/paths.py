"""Where a platform puts what a job reads and fetches what it writes: the layout of /opt/ml."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASE_VARIABLE = "SAGEMAKER_BASE_DIR"


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders below `root`, which is /opt/ml wherever a platform runs the container."""

    root: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Paths":
        """Return the layout below $SAGEMAKER_BASE_DIR, or below /opt/ml where it is not set."""
        return cls(Path(environment.get(BASE_VARIABLE) or "/opt/ml"))

    @property
    def hyperparameters(self) -> Path:
        return self.root / "input" / "config" / "hyperparameters.json"

    @property
    def data(self) -> Path:
        """The folder that holds one folder per channel."""
        return self.root / "input" / "data"

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
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def processing(self) -> Path:
        """The folder of a processing job, with model/, test/ and evaluation/ in it."""
        return self.root / "processing"

    @property
    def message(self) -> Path:
        """The file that tells a platform how a processing job ended."""
        return self.output / "message"
