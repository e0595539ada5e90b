"""What README shows of a first run is what a first run prints."""

import re
from pathlib import Path

import pytest

from .command_line import run

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"


def test_the_first_run_prints_what_readme_shows(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    run("demo-data", tmp_path / "slices")
    options = ("--epochs", "1", "--wandb-mode", "disabled")
    done = run("train", "--data", tmp_path / "slices", "--out", tmp_path / "out", *options)
    # How far the work is, which is said on slow machines alone.
    lines = [line for line in done.stdout.splitlines() if not re.fullmatch(r".+: \d+ of \d+", line)]
    # A long line is wrapped in README, and an epoch is shown of 44; the rest has another number.
    printed = " ".join(" ".join(lines).split()).replace("1 epoch of", "44 epochs of")
    shown = " ".join(block.partition("model: ")[0].split())
    parts = [part.strip() for part in shown.split("…") if part.strip(" ;")]
    assert len(parts) == 8
    place = 0
    for part in parts:
        found = printed.find(part, place)
        assert found >= 0, part
        place = found + len(part)
