"""docs/reference.md names every file and every figure of a real run, and no other file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alexmri.data.phantom import write_demo_data

from .command_line import run
from .reference_page import first_cells, undescribed

pytestmark = pytest.mark.slow

CLASSES = ["MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented"]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few images: three people of each class, two slices of each."""
    folder = tmp_path_factory.mktemp("few") / "slices"
    write_demo_data(folder, subjects=dict.fromkeys(CLASSES, 3), slices=2)
    return folder


@pytest.fixture(scope="module")
def out(slices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaves everything that a run can leave."""
    folder = tmp_path_factory.mktemp("run") / "out"
    options = ("--epochs", "1", "--batch-size", "4", "--split-by", "subject", "--coverage", "0.5")
    more = ("--export-onnx", "--wandb-mode", "offline", "--checkpoint-every-epochs", "1")
    run("train", "--data", slices, "--out", folder, *options, *more)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("heading", "folder"),
    [("### Output folder", ""), ("### Model folder", "model"), ("### Checkpoints", "checkpoints")],
)
def test_a_run_leaves_the_files_that_the_reference_names(
    out: Path, heading: str, folder: str
) -> None:
    left = {
        re.sub(r"^step-\d+", "step-N", path.name) + ("/" if path.is_dir() else "")
        for path in (out / folder).iterdir()
    }
    assert left - {"model/", "checkpoints/"} == first_cells(heading)


def test_the_reference_defines_every_figure(out: Path, slices: Path, tmp_path: Path) -> None:
    assert undescribed(read(out / "evaluation.json"), CLASSES) == set()
    measured = tmp_path / "measured.json"
    model = out / "model"
    run("evaluate", model, slices, "--against", model, "--json", measured)
    assert undescribed(read(measured), CLASSES) == set()


def test_the_reference_names_every_key_of_the_audit(out: Path) -> None:
    assert read(out / "audit.json").keys() - first_cells("### `audit.json`") == {"schema"}
