"""What the command line says of its options, and to those who mistype one."""

import os
import pty
import subprocess
from pathlib import Path

import click
import pytest

from alexmri.cli import cli
from alexmri.settings import Settings

from .command_line import COMMAND, run


def test_help_shows_settings_in_sections_with_types_and_defaults() -> None:
    shown = run("train", "--help", COLUMNS="80").stdout
    sections = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert sections[:4] == ["Options:", "Network:", "Training:", "Augmentation:"]
    assert "--optimizer [sgd|adamw]" in shown
    assert "--epochs INTEGER                passes over the training images  [default:" in shown
    assert "VALUE" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown, name


@pytest.mark.parametrize("group", [(), ("aws",)])
def test_every_command_is_named_in_a_whole_sentence(group: tuple[str, ...]) -> None:
    shown = run(*group, "--help", COLUMNS="80").stdout.partition("Commands:")[2]
    command = cli.commands[group[0]] if group else cli
    assert isinstance(command, click.Group)
    listed = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set(listed) == set(command.list_commands(click.Context(command)))
    assert all(line.endswith(".") and not line.endswith("...") for line in listed.values()), listed


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["--lr", "1"], "Did you mean --learning-rate?"),
        (["--epoch", "1"], "Did you mean --epochs?"),
        (["--device", "cuda"], "a GPU is used where there is one"),
    ],
)
def test_an_unknown_option_is_answered_with_a_likely_one(typed: list[str], answer: str) -> None:
    refused = run("train", *typed, check=False)
    assert refused.returncode == 2
    assert answer in refused.stderr


def test_an_unknown_option_that_is_like_no_other_gets_no_guess() -> None:
    assert "Did you mean" not in run("train", "--xyzzy", check=False).stderr


def test_an_option_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    refused = run("train", "--data", tmp_path, "--data", tmp_path, "--out", "x", check=False)
    assert refused.returncode == 2
    assert "--data is given twice; give it once" in refused.stderr


def test_of_a_setting_that_is_given_twice_the_last_counts_and_a_line_says_so() -> None:
    shown = run("config", "--show-sources", "--epochs", "3", "--epochs", "4")
    assert "warning: --epochs is given more than once; the last one counts" in shown.stderr
    (row,) = (line for line in shown.stdout.splitlines() if line.startswith("epochs "))
    assert row.split()[1] == "4"


def test_a_table_is_whole_in_a_pipe() -> None:
    lines = run("config", "--show-sources", COLUMNS="80").stdout.splitlines()
    named = {line.split()[0]: line for line in lines}
    for name, field in Settings.model_fields.items():
        assert named[name].rstrip().endswith(str(field.description)), name


def test_a_table_is_folded_and_not_cropped_at_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, "config", "--show-sources"], stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert "…" not in shown.decode()
    assert "┃" in shown.decode()
