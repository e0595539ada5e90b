"""Run the executables of container/ as a platform does, in a /opt/ml tree of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alexmri.data.phantom import write_demo_data

if TYPE_CHECKING:
    from .serving import Server

REPOSITORY = Path(__file__).parents[2]
# Seconds; far more than anything here needs, for machines under load.
PATIENCE = 180


@dataclass
class Tree:
    """A /opt/ml tree in a temporary folder."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)
    printed: str = ""

    @property
    def failure(self) -> str:
        return (self.root / "output" / "failure").read_text(encoding="utf-8")

    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ALEXMRI_", "SAGEMAKER_", "WANDB_"))
        }
        return inherited | {
            "SAGEMAKER_BASE_DIR": str(self.root),
            "ALEXMRI_CACHE_DIR": str(self.root / "cache"),
            "PYTHONPATH": str(REPOSITORY / "code"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **self.extra,
        }

    def hyperparameters(self, **values: str) -> None:
        path = self.root / "input" / "config" / "hyperparameters.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        return self.spawn(REPOSITORY / "container" / name, *arguments)

    def spawn(self, *command: str | Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command: Sequence[str | Path] = [REPOSITORY / "container" / name, *arguments]
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=PATIENCE
        )


def grow_tree(root: Path) -> Tree:
    """Return a job of two short epochs on a few made-up people."""
    people = {"MildDemented": 4, "NonDemented": 4}
    write_demo_data(root / "input" / "data" / "training", subjects=people, slices=6)
    tree = Tree(root)
    tree.hyperparameters(epochs="2", batch_size="8", seed="3", recipe='"best"')
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return grow_tree(tmp_path / "ml")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which `train` has run, with what it printed; tests leave it as it is."""
    tree = grow_tree(tmp_path_factory.mktemp("trained") / "ml")
    result = tree.run("train")
    assert result.returncode == 0, result.stdout + result.stderr
    tree.printed = result.stdout
    return tree


@pytest.fixture(scope="module")
def server(trained: Tree) -> Iterator["Server"]:
    from .serving import serving  # which needs what is above

    with serving(trained) as server:
        seen = server.wait_until_ready()
        # Connection refused (0) or not loaded yet (503), nothing else.
        assert seen <= {0, 503}
        yield server


@pytest.fixture(scope="module")
def slice_file(trained: Tree) -> Path:
    return trained.root / "input" / "data" / "training" / "NonDemented" / "3 (1).jpg"
