"""What is printed never ends a program, whatever listens."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from alexmri.terminal import PlainTerminal, RichTerminal, SilentTerminal, Terminal, choose_terminal

PREPARED = "import sys; from alexmri.terminal import *; prepare_output(); "


def run(code: str, *, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-c", PREPARED + code]
    return subprocess.run(command, capture_output=True, env={**os.environ, **(env or {})})


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("terminal", ["PlainTerminal()", "RichTerminal()"])
def test_letters_that_a_terminal_lacks_are_replaced(encoding: str, terminal: str) -> None:
    text = "Ellipse … — Ω \udcff"
    code = (
        f"t = {terminal}; t.say({text!r}); t.warn({text!r}); list(t.track([1], 1, {text!r}));"
        f" t.working({text!r}).__enter__();"
        f" print({text!r}); print({text!r}, file=sys.stderr)"
    )
    done = run(code, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).count("Ellipse") >= 3


def test_a_table_is_whole_where_the_encoding_has_no_ellipsis(demo: Path) -> None:
    code = "from alexmri.cli import main; main()"
    command = [sys.executable, "-c", code, "audit", str(demo)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert b"VeryMildDemented" in done.stdout
    assert b"?" not in done.stdout


class Broken(io.StringIO):
    """Standard output whose reader is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), BrokenPipeError(32, "x"), ValueError("closed")]
)
@pytest.mark.parametrize("kind", [PlainTerminal, RichTerminal])
def test_nobody_who_listens_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PlainTerminal]
) -> None:
    terminal: Terminal = kind()
    monkeypatch.setattr(sys, "stdout", Broken(error))
    terminal.say("a line")
    terminal.warn("another")


def test_a_terminal_without_output_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    terminal = choose_terminal()
    assert type(terminal) is PlainTerminal
    terminal.say("a line")


def lines_into(command: Sequence[str], stdout: int) -> int:
    return subprocess.run(command, stdout=stdout, stderr=stdout, timeout=60).returncode


@pytest.mark.parametrize("terminal", ["PlainTerminal()", "RichTerminal()"])
def test_a_closed_pipe_a_full_disk_and_no_output_leave_the_exit_code(terminal: str) -> None:
    code = f"t = {terminal}; [t.say('x' * 999) for _ in range(99)]; list(t.track([1], 1, 'x'))"
    code += "\nwith t.working('x'): pass\n"
    code += "print('x' * 99); print('y', file=sys.stderr); sys.exit(7)"
    command = [sys.executable, "-c", PREPARED + code]
    reading, writing = os.pipe()
    os.close(reading)
    assert lines_into(command, writing) == 7
    os.close(writing)
    full = os.open("/dev/full", os.O_WRONLY)
    assert lines_into(command, full) == 7
    os.close(full)
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], timeout=60)
    assert closed.returncode == 7


def test_a_terminal_that_was_closed_leaves_the_exit_code() -> None:
    main, side = os.openpty()
    code = (
        "import time, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); t = choose_terminal();"
        "time.sleep(1); [t.say('x' * 99) for _ in range(99)]; list(t.track([1, 2], 2, 'x'));"
        "print('x', file=sys.stderr); sys.exit(7)"
    )
    command = [sys.executable, "-c", PREPARED + code]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side)
    os.close(side)
    os.close(main)
    assert process.wait(60) == 7


def test_where_nobody_sees_a_bar_lines_say_how_far_the_work_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 1000, 4))  # from one item to the next
    monkeypatch.setattr("alexmri.terminal.time.monotonic", lambda: next(seconds))
    assert list(PlainTerminal().track("abcdefg", 7, "decoding")) == list("abcdefg")
    assert capsys.readouterr().out.splitlines() == ["decoding: 3 of 7", "decoding: 6 of 7"]


@pytest.mark.parametrize("terminal", [PlainTerminal, SilentTerminal])
def test_work_without_steps_is_named_before_it_begins(
    terminal: type[PlainTerminal], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal().working("auditing 3 images"):
        said = capsys.readouterr().out
    assert said == ("auditing 3 images\n" if terminal is PlainTerminal else "")


def test_at_a_terminal_a_spinner_names_the_work_and_goes() -> None:
    main, side = os.openpty()
    code = "t = choose_terminal()\nwith t.working('auditing [3] images'):\n    t.say('a line')"
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + "\n" + code], stdin=side, stdout=side, timeout=60
    )
    os.close(side)
    assert done.returncode == 0
    printed = os.read(main, 10_000).decode()
    os.close(main)
    assert "auditing [3] images" in printed
    assert "a line" in printed
