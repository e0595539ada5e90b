"""Process 1 of a job: it passes signals on, reaps, and tells every kind of death."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from alexmri.contract.failure import LOST_A_PEER, OomCounter, exit_reason, remedy
from alexmri.contract.inputs import Hosts
from alexmri.contract.launcher import Launcher, Plan, count_workers, is_launched
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve

PATIENCE = 60
PREPARE = """
import os, sys
from pathlib import Path
from alexmri.contract.signals import hold_signals
hold_signals()
from alexmri.contract.launcher import Launcher, Plan
class Script(Plan):
    def command(self):
        return [sys.executable, "-c", sys.argv[2]]
def say(line):
    print(line, flush=True)
launcher = Launcher(Script("", ()), os.environ, Path(sys.argv[1]), say)
print("code", launcher.run(), "stops", launcher.stops, flush=True)
"""
# A worker that works until a signal asks it to stop.
OBEDIENT = """
import os, signal, sys
from alexmri.contract.launcher import say_ready
from alexmri.contract.signals import StopRequest
with StopRequest().on() as stop:
    say_ready(os.environ)
    print("working", flush=True)
    while not stop:
        signal.pause()
print("saved", flush=True)
"""


def launch(failure: Path, script: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(failure), textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def ended(failure: Path, script: str) -> tuple[str, str]:
    """Return the last line of a launcher with this child, and the failure file's text."""
    output, errors = launch(failure, script).communicate(timeout=PATIENCE)
    assert output, errors
    text = failure.read_text(encoding="utf-8") if failure.is_file() else ""
    return output.splitlines()[-1], text


def test_all_ends_well(tmp_path: Path) -> None:
    assert ended(tmp_path / "failure", "print('one')") == ("code 0 stops 0", "")


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


def test_a_stop_before_the_training_listens_ends_it_with_0(tmp_path: Path) -> None:
    process = launch(tmp_path / "failure", "import time; time.sleep(60)")
    wait_for_child(process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.splitlines() == [
        "stopped before the training began: there was nothing to save",
        "code 0 stops 1",
    ]
    assert not (tmp_path / "failure").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
)
def test_a_stop_is_passed_on_and_what_was_saved_is_a_success(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = launch(tmp_path / "failure", OBEDIENT)
    assert process.stdout
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.splitlines()[-2:] == ["saved", f"code {code} stops 1"]
    assert not (tmp_path / "failure").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_without_a_meaning_are_ignored_aloud(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = launch(tmp_path / "failure", OBEDIENT)
    assert process.stdout
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name} is ignored\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.splitlines()[-1] == "code 0 stops 1"


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


REPORT = """
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : {others} (pid: 11)
Root Cause (first observed failure):
[0]:
  rank      : 3 (local_rank: 1)
  exitcode  : {root} (pid: 12)  (SIGKILL)
"""


def torchrun_ended(tmp_path: Path, report: str, hosts: Hosts | None = None) -> tuple[int, str]:
    """Return exit code and cause where torchrun printed `report` and exited with 1."""
    plan = Plan("x", (), 2, hosts or Hosts())
    failure = tmp_path / "failure"
    launcher = Launcher(plan, {}, failure, lambda line: None)
    launcher.was_ready = True
    launcher._words.extend(report.splitlines())
    return launcher._conclude(1), failure.read_text(encoding="utf-8")


@pytest.mark.parametrize(("root", "others"), [(-9, LOST_A_PEER), (-9, -15), (LOST_A_PEER, -9)])
def test_a_worker_that_died_is_named_and_not_the_one_that_lost_it(
    tmp_path: Path, root: int, others: int
) -> None:
    code, cause = torchrun_ended(tmp_path, REPORT.format(root=root, others=others))
    rank = 0 if root == LOST_A_PEER else 3
    assert code == 137
    assert cause.startswith(f"rank {rank} on algo-1: the training was killed by signal 9")


def test_a_host_that_ended_is_named_by_its_address(tmp_path: Path) -> None:
    hosts = Hosts("127.0.0.1", ("127.0.0.1", "127.0.0.2", "127.0.0.3"))
    report = REPORT.format(root=LOST_A_PEER, others=LOST_A_PEER)
    told = "warning: rank 0 lost another worker: Connection closed by peer [127.0.0.3]:4711\n"
    listening = "The server socket listens on 127.0.0.2:7777\n"
    assert torchrun_ended(tmp_path, listening + told + report, hosts) == (
        LOST_A_PEER,
        "host 127.0.0.3 ended, and the training with it; the log of that host has the cause",
    )
    (tmp_path / "failure").unlink()
    cause = torchrun_ended(tmp_path, listening + report, hosts)[1]
    assert cause.startswith("another host ended")


def test_the_command_is_the_worker_or_torchrun() -> None:
    assert Plan("m", ("--epochs", "3")).command() == [sys.executable, "-m", "m", "--epochs", "3"]
    two = Plan("m", (), 2, Hosts("b", ("a", "b")), 7001).command()
    assert two[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=2", "--max-restarts=0"} <= set(two)
    assert {"--master-addr=a", "--master-port=7001"} <= set(two)
    assert two[-2:] == ["-m", "m"]


def test_a_worker_of_somebody_elses_torchrun_launches_nothing() -> None:
    assert is_launched({"RANK": "0", "WORLD_SIZE": "2"})
    assert not is_launched({"RANK": "0"})


@pytest.mark.parametrize(
    ("wanted", "gpus", "count"), [(0, 0, 1), (0, 8, 8), (3, 0, 3), (2, 8, 2), (1, 1, 1)]
)
def test_a_worker_per_gpu_and_one_on_a_cpu_unless_told(wanted: int, gpus: int, count: int) -> None:
    assert count_workers(wanted, gpus) == count


def test_every_worker_needs_its_own_gpu() -> None:
    with pytest.raises(UserError, match="workers_per_host is 3, but this host has 1 usable GPU;"):
        count_workers(3, 1)


@pytest.mark.parametrize("value", [None, "none", "0", 0, ""])
def test_no_number_of_workers_is_the_automatic_one(value: object) -> None:
    assert resolve([Layer("test", {"workers_per_host": value})]).settings.workers_per_host == 0


def test_a_worker_whose_parent_is_killed_dies_too(tmp_path: Path) -> None:
    script = """
    import signal
    from alexmri.contract.signals import die_with_parent
    die_with_parent()
    print("ready", flush=True)
    signal.pause()
    """
    process = launch(tmp_path / "failure", script)
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
