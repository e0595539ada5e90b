"""Process 1 of a job: it passes signals on, reaps, and tells every kind of death."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from alexmri.contract.exit_reasons import LOST_A_PEER, OomCounter, exit_reason, remedy

PATIENCE = 60
PREPARE = """
import os, sys
from pathlib import Path
from alexmri.contract.signals import hold_signals
hold_signals()
from alexmri.contract.supervisor import Supervisor
commands = [[sys.executable, "-c", script] for script in sys.argv[2:]]
supervisor = Supervisor(commands, Path(sys.argv[1]))
code = supervisor.run([os.environ] * len(commands))
print("code", code, "stops", supervisor.stops, flush=True)
"""
# A worker that works until a signal asks it to stop.
OBEDIENT = """
import signal, sys
from alexmri.contract.signals import StopRequest
with StopRequest().on(signal.SIGTERM, signal.SIGINT) as stop:
    print("working", flush=True)
    while not stop:
        signal.pause()
print("saved", flush=True)
"""


def supervise(failure: Path, *scripts: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(failure), *map(textwrap.dedent, scripts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def ended(failure: Path, *scripts: str) -> tuple[str, str]:
    """Return the last line of a supervisor with these workers, and the failure file's text."""
    output, errors = supervise(failure, *scripts).communicate(timeout=PATIENCE)
    assert output, errors
    text = failure.read_text(encoding="utf-8") if failure.is_file() else ""
    return output.splitlines()[-1], text


def test_all_ends_well(tmp_path: Path) -> None:
    assert ended(tmp_path / "failure", "print('one')", "print('two')") == ("code 0 stops 0", "")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("import sys; sys.exit('the data is odd')", 1, "exit code 1: the data is odd"),
        ("import os; os._exit(7)", 7, "exit code 7 without a word"),
        ("import os; os.kill(os.getpid(), 9)", 137, "killed by signal 9 (SIGKILL)"),
        ("import os; os.kill(os.getpid(), 11)", 139, "killed by signal 11 (SIGSEGV)"),
        ("import os; os.kill(os.getpid(), 7)", 135, "memory behind a file is gone"),
        ("import os; os.kill(os.getpid(), 4)", 132, "this CPU lacks an instruction"),
        (
            "import os, sys; print('[rank0] Watchdog caught collective operation timeout: Work',"
            " file=sys.stderr, flush=True); os.abort()",
            134,
            "NCCL time-out",
        ),
        (
            "import sys; print('RuntimeError: DefaultCPUAllocator: can\\'t allocate memory',"
            " file=sys.stderr); sys.exit(1)",
            1,
            "out of memory: the limit is",
        ),
    ],
)
def test_every_death_is_told(tmp_path: Path, script: str, code: int, words: str) -> None:
    line, failure = ended(tmp_path / "failure", script)
    assert line == f"code {code} stops 0"
    assert words in failure
    assert len(failure) <= 1024
    assert "\n" not in failure


def test_what_the_worker_told_itself_stands(tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'failure')!r}, 'w').write('the cause'); raise SystemExit(2)"
    assert ended(tmp_path / "failure", script) == ("code 2 stops 0", "the cause")


def test_bytes_that_are_no_text_and_a_flood_of_them_do_no_harm(tmp_path: Path) -> None:
    script = "import os; os.write(2, b'\\xff\\xfe' * 50_000 + b'\\n' + b'last \\xc3'); os._exit(3)"
    line, failure = ended(tmp_path / "failure", script)
    assert line == "code 3 stops 0"
    assert "last" in failure


def test_one_death_ends_the_others(tmp_path: Path) -> None:
    line, failure = ended(tmp_path / "failure", OBEDIENT, "import os; os._exit(5)")
    assert line == "code 5 stops 0"
    assert "exit code 5" in failure


@pytest.mark.parametrize("late", ["cause", "follower"])
def test_who_lost_a_peer_is_not_the_cause(tmp_path: Path, late: str) -> None:
    wait = {"cause": "", "follower": ""} | {late: "import time; time.sleep(0.5)\n"}
    lost = wait["follower"] + f"import os; os._exit({LOST_A_PEER})"
    died = wait["cause"] + "import os; os.kill(os.getpid(), 11)"
    line, failure = ended(tmp_path / "failure", lost, died, lost)
    assert line == "code 139 stops 0"
    assert "killed by signal 11" in failure


def test_who_lost_peers_elsewhere_tells_no_cause(tmp_path: Path) -> None:
    line, failure = ended(tmp_path / "failure", *[f"import os; os._exit({LOST_A_PEER})"] * 2)
    assert line == f"code {LOST_A_PEER} stops 0"
    assert failure == ""


def test_a_signal_that_comes_before_the_worker_listens_is_not_lost(tmp_path: Path) -> None:
    slow = "import time; time.sleep(1)\n" + OBEDIENT
    process = supervise(tmp_path / "failure", slow)
    wait_for_child(process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.splitlines()[-2:] == ["saved", "code 0 stops 1"]
    assert not (tmp_path / "failure").exists()


def test_an_orphan_that_comes_to_process_1_is_reaped(tmp_path: Path) -> None:
    script = """
    import os, time
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(9)     # an orphan: its parent has left
        os._exit(0)
    os.wait()
    """
    be_process_one = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER
    failure = tmp_path / "failure"
    process = subprocess.run(
        [sys.executable, "-c", be_process_one + PREPARE, str(failure), textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.stdout == "code 0 stops 0\n"


def wait_for_child(process: "subprocess.Popen[str]") -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
    raise AssertionError("it ended before it had a child")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("memory.events", "low 0\noom 4\noom_kill {}\n"),
        ("memory/memory.oom_control", "oom_kill {}"),
    ],
)
def test_the_kernels_count_of_kills_is_read(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text.format(1))
    before = OomCounter.read(tmp_path)
    assert not OomCounter.read(tmp_path).grew(before)
    (tmp_path / file).write_text(text.format(2))
    assert OomCounter.read(tmp_path).grew(before)
    assert not OomCounter.read(tmp_path / "nothing").grew(before)


def test_a_kill_for_lack_of_memory_names_the_limit() -> None:
    cause = exit_reason(-9, [], out_of_memory=True)
    assert cause.startswith("out of memory: the kernel killed the training")
    assert "GiB" in cause
    assert "batch_size" in cause


def test_an_error_nobody_knows_has_no_remedy() -> None:
    assert remedy("KeyError: 'x'") is None
    assert "disk is full" in (remedy("OSError: [Errno 28] No space left on device") or "")


def test_a_worker_whose_parent_is_killed_dies_too(tmp_path: Path) -> None:
    script = """
    import signal
    from alexmri.training.worker import die_with_parent
    die_with_parent()
    print("ready", flush=True)
    signal.pause()
    """
    process = supervise(tmp_path / "failure", script)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    worker = wait_for_child(process)
    process.kill()
    process.communicate(timeout=PATIENCE)  # returns when nobody holds the pipe any more
    deadline = time.monotonic() + PATIENCE
    while (state := Path(f"/proc/{worker}/stat")).exists():
        if state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        assert time.monotonic() < deadline, "the worker outlives its parent"
