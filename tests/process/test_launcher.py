"""container/train as the first process of a job: signals, crashes, and what a platform says."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import PATIENCE, Tree

MANY = ("--epochs", "300")


def wait_for_line(process: "subprocess.Popen[str]", start: str) -> str:
    """Read what the process prints up to the line that starts so; return all of it."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(start):
            return printed
    raise AssertionError(f"it ended without '{start}':\n{printed}")


def worker_of(process: "subprocess.Popen[str]") -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def write_config(tree: Tree, name: str, content: object) -> None:
    (tree.root / "input" / "config" / name).write_text(json.dumps(content), encoding="utf-8")


def test_a_second_sigterm_leaves_out_all_but_the_checkpoint(tree: Tree) -> None:
    process = tree.start("train", *MANY)
    wait_for_line(process, "epoch=1;")
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "SIGTERM: stopping")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert "SIGTERM: saving only the checkpoint" in printed
    assert list((tree.root / "checkpoints").glob("*.safetensors"))
    assert not (tree.root / "output" / "data" / "report.html").exists()
    assert not (tree.root / "output" / "failure").exists()


def test_a_stop_before_the_data_are_read_ends_at_once(tree: Tree) -> None:
    process = tree.start("train", *MANY)
    wait_for_line(process, "alexmri train:")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert not list((tree.root / "model").glob("*"))
    assert not list((tree.root / "output" / "data").glob("report.html"))


def test_the_grace_lets_a_platform_fetch_checkpoints_and_a_signal_ends_it(tree: Tree) -> None:
    (tree.root / "checkpoints").mkdir()
    tree.extra = {"ALEXMRI_STOP_GRACE_SECONDS": "60"}
    process = tree.start("train", *MANY)
    wait_for_line(process, "epoch=1;")
    stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "waiting 60 s, so that the platform can fetch the checkpoint")
    assert list((tree.root / "checkpoints").glob("*.json"))
    assert (tree.root / "model" / "model.json").is_file()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert time.monotonic() - stopped < 90  # the platform's deadline is 120 s


def test_a_killed_worker_is_told_and_the_job_can_be_run_again(tree: Tree) -> None:
    process = tree.start("train", "--checkpoint-every-epochs", "1", *MANY)
    # The second epoch's checkpoint is begun once the first one's is on the disk.
    wait_for_line(process, "epoch=3;")
    os.kill(worker_of(process), signal.SIGKILL)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 137, printed
    assert tree.failure.startswith("the training was killed by signal 9 (SIGKILL)")
    process = tree.start("train", "--checkpoint-every-epochs", "1", *MANY)
    wait_for_line(process, "resuming at epoch")
    process.kill()
    process.communicate(timeout=PATIENCE)


def test_the_platforms_other_files_are_read_or_ignored(tree: Tree) -> None:
    write_config(tree, "resourceconfig.json", {"current_host": "algo-1", "hosts": ["algo-1"]})
    write_config(tree, "checkpointconfig.json", {"LocalPath": "/opt/ml/checkpoints/here"})
    for name in ("init-config.json", "profilerconfig.json", "trainingjobconfig.json"):
        write_config(tree, name, ["nobody", "documents", "this"])
    result = tree.run("train", "--epochs", "1", "--checkpoint-every-epochs", "1")
    assert result.returncode == 0, result.stderr
    assert f"warning: {tree.root}/input/config/inputdataconfig.json is missing" in result.stdout
    assert "resourceconfig.json is missing" not in result.stdout
    assert list((tree.root / "checkpoints" / "here").glob("*.json"))


def test_pipe_mode_is_refused_with_what_to_use(tree: Tree) -> None:
    write_config(tree, "inputdataconfig.json", {"training": {"TrainingInputMode": "Pipe"}})
    assert tree.run("train").returncode == 2
    assert "Pipe mode, which has no files; use File or FastFile mode" in tree.failure


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_without_a_meaning_do_not_end_a_training(
    tree: Tree, number: signal.Signals
) -> None:
    process = tree.start("train", "--epochs", "300")
    wait_for_line(process, "epoch=1;")
    process.send_signal(number)
    wait_for_line(process, f"{number.name} is ignored")
    wait_for_line(process, "epoch=")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_a_terminal_that_goes_away_stops_a_training_with_a_checkpoint(tree: Tree) -> None:
    process = tree.start("train", *MANY)
    wait_for_line(process, "epoch=1;")
    process.send_signal(signal.SIGHUP)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert list((tree.root / "checkpoints").glob("*.json"))
    assert (tree.root / "model" / "model.json").is_file()


def test_each_trial_of_a_tuning_job_has_checkpoints_of_its_own(tree: Tree) -> None:
    """They share one prefix in S3, where those of another trial would be refused."""
    (tree.root / "checkpoints").mkdir()
    tree.extra["ALEXMRI_STOP_GRACE_SECONDS"] = "0"
    for number, rate in enumerate(("0.01", "0.02"), 1):
        tree.extra["TRAINING_JOB_NAME"] = f"search-{number}"
        tree.hyperparameters(
            _tuning_objective_metric="val_macro_f1", learning_rate=rate, epochs="1"
        )
        result = tree.run("train", "--checkpoint-every-epochs", "1")
        assert result.returncode == 0, result.stdout
        assert list((tree.root / "checkpoints" / f"search-{number}").glob("*.json"))
    assert not list((tree.root / "checkpoints").glob("*.json"))


def test_an_entry_point_of_the_job_is_not_run_and_that_is_told(tree: Tree) -> None:
    tree.hyperparameters(sagemaker_program="train.py", epochs="none")
    result = tree.run("train")
    assert result.returncode == 2
    assert "is not run" in result.stdout  # told although the settings are wrong too
    tree.hyperparameters(sagemaker_program="train.py", epochs="300")
    process = tree.start("train")
    printed = wait_for_line(process, "data: ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert "the job names the entry point train.py (sagemaker_program), which is not run" in printed
    assert "exec train" in printed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "there is no training data"),
        (["training/1.jpg", "training/2.jpg"], "has no class folders"),
        (["strange/A/1.jpg"], "channel 'strange'"),
    ],
)
def test_mistakes_about_folders_are_told_before_torch_is_loaded(
    tree: Tree, data: list[str], words: str
) -> None:
    shutil.rmtree(tree.root / "input" / "data")
    for name in data:
        path = tree.root / "input" / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    # A torch that cannot be imported stands in its place.
    (tree.root / "torch").mkdir()
    (tree.root / "torch" / "__init__.py").write_text("raise SystemExit(77)", encoding="utf-8")
    (tree.root / "torch" / "version.py").write_text("__version__, cuda = '0', None")
    tree.extra["PYTHONPATH"] = f"{tree.root}:{tree.environment()['PYTHONPATH']}"
    assert tree.run("train").returncode == 2
    assert words in tree.failure


def test_files_dealt_out_to_a_single_host_are_all_files(tree: Tree) -> None:
    channel = {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}
    write_config(tree, "inputdataconfig.json", {"training": channel})
    process = tree.start("train", *MANY)
    wait_for_line(process, "data: 48 images")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
