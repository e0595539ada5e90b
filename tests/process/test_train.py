"""container/train in the /opt/ml layout: results, exit codes, the failure file, signals."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import PATIENCE, Tree


def test_a_job_ends_with_model_and_results_where_the_platform_fetches_them(trained: Tree) -> None:
    model = json.loads((trained.root / "model" / "model.json").read_text(encoding="utf-8"))
    assert model["classes"] == ["MildDemented", "NonDemented"]
    assert model["settings"]["epochs"] == 2
    assert model["settings"]["seed"] == 3
    results = trained.root / "output" / "data"
    assert {path.name for path in results.iterdir()} >= {
        "evaluation.json",
        "statistics.json",
        "report.html",
        "metrics.jsonl",
        "run.json",
        "split.json",
        "audit.json",
    }
    assert not (trained.root / "output" / "failure").exists()


def test_lines_are_plain_and_the_last_metric_belongs_to_the_model(tree: Tree) -> None:
    result = tree.run("train", "--epochs", "1", "--seed=4")
    assert result.returncode == 0, result.stderr
    assert not re.search(r"[\r\x1b]", result.stdout)
    metrics = [line for line in result.stdout.splitlines() if line.startswith("epoch=")]
    assert len(metrics) == 2
    assert re.fullmatch(
        r"epoch=1; train_loss=.*; val_macro_f1=\S+; .*test_loss=\S+; .*;", metrics[-1]
    )
    # As on the command line, a table follows, in which the network stands beside the baselines.
    table = result.stdout.partition(metrics[-1])[2]
    assert re.search(r"^accuracy +\d+ +[\d.]+ ", table, flags=re.MULTILINE)
    assert re.search(r"^  1-NN baseline +[\d.]+ ", table, flags=re.MULTILINE)
    assert f"report in this container: {tree.root}" in table


def test_the_environment_wins_over_the_file(tree: Tree) -> None:
    tree.extra = {"ALEXMRI_EPOCHS": "1"}
    result = tree.run("train")
    assert result.returncode == 0, result.stderr
    assert "epoch=2; train_loss" not in result.stdout


def spoil_setting(tree: Tree) -> None:
    tree.hyperparameters(epocs="3")


def spoil_value(tree: Tree) -> None:
    tree.hyperparameters(learning_rate="fast")


def empty_channel(tree: Tree) -> None:
    (tree.root / "input" / "data" / "validation").mkdir()


def truncate_picture(tree: Tree) -> None:
    picture = next((tree.root / "input" / "data" / "training" / "NonDemented").iterdir())
    picture.write_bytes(picture.read_bytes()[:700])


def remove_data(tree: Tree) -> None:
    shutil.rmtree(tree.root / "input" / "data")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_setting, "unknown setting 'epocs' in hyperparameters.json; did you mean 'epochs'?"),
        (spoil_value, "setting 'learning_rate' is 'fast' in hyperparameters.json"),
        (empty_channel, "channel 'validation' is empty"),
        (truncate_picture, "cannot be read as an image"),
        (remove_data, "there is no training data"),
    ],
)
def test_a_mistake_ends_in_one_sentence_in_the_failure_file(
    tree: Tree, spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(tree)
    result = tree.run("train")
    assert result.returncode == 2
    assert words in tree.failure
    assert "\n" not in tree.failure
    assert len(tree.failure) <= 1024
    assert "Traceback" not in tree.failure + result.stdout + result.stderr


def test_a_mended_job_leaves_no_failure_behind(tree: Tree) -> None:
    assert tree.run("train", "--epochs", "none").returncode == 2
    assert tree.failure
    assert tree.run("train", "--epochs", "1").returncode == 0
    assert not (tree.root / "output" / "failure").exists()


def stop_after(process: "subprocess.Popen[str]", line_start: str, number: signal.Signals) -> str:
    """Send the signal when the process prints a line that starts so; return all it printed."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(line_start):
            process.send_signal(number)
            break
    return printed + process.communicate(timeout=PATIENCE)[0]


def test_sigterm_saves_checkpoint_and_model_and_the_job_can_go_on(tree: Tree) -> None:
    many = ("--epochs", "300")
    process = tree.start("train", *many)
    printed = stop_after(process, "epoch=1;", signal.SIGTERM)
    assert process.returncode == 0, printed
    assert list((tree.root / "checkpoints").glob("*.safetensors"))
    assert (tree.root / "model" / "model.json").is_file()
    facts = json.loads((tree.root / "output" / "data" / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"] is False
    assert not (tree.root / "output" / "failure").exists()

    process = tree.start("train", *many)
    printed = stop_after(process, "resuming at epoch", signal.SIGINT)
    assert process.returncode == 130, printed
    assert "resuming at epoch" in printed


def test_sigterm_before_torch_is_even_imported_ends_cleanly(tree: Tree) -> None:
    process = tree.start("train")
    printed = stop_after(process, "alexmri train:", signal.SIGTERM)
    assert process.returncode == 0, printed
    assert "stopped before the training began" in printed


def wait_for_python_behind_env(process: "subprocess.Popen[str]") -> None:
    """Wait until the `env` of the executable's first line has held SIGTERM and become Python.

    The name alone is not enough: until it is replaced, the new process bears that of the one that
    started it, Python too, which holds nothing back; `env` may, but is called `train`.
    """
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        held = int(facts["SigBlk"], 16) >> (signal.SIGTERM - 1) & 1
        if held and facts["Name"].startswith("python"):
            return
    raise AssertionError(process.communicate()[0])


def test_sigterm_while_python_itself_still_starts_is_not_lost(tree: Tree) -> None:
    process = tree.start("train")
    wait_for_python_behind_env(process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert "stopped before the training began" in printed


def test_a_second_job_in_the_same_folders_keeps_the_first(tree: Tree, trained: Tree) -> None:
    for part in ("model", "output"):
        shutil.copytree(trained.root / part, tree.root / part)
    first = (trained.root / "model" / "model.json").read_bytes()
    result = tree.run("train", "--epochs", "1", "--checkpoint-every-epochs", "1")
    assert result.returncode == 0, result.stderr
    assert "a finished run was here: it is kept in" in result.stdout
    (earlier,) = (tree.root / "output" / "archive").iterdir()
    assert (earlier / "model" / "model.json").read_bytes() == first
    assert (earlier / "data" / "report.html").is_file()
    assert (tree.root / "model" / "model.json").read_bytes() != first
    assert (tree.root / "output" / "data" / "report.html").is_file()


def test_demo_data_is_made_only_when_asked_for_and_never_mixed(tree: Tree) -> None:
    channel = tree.root / "input" / "data" / "training"
    own = tree.root / "own"
    channel.rename(own)
    tree.extra = {"ALEXMRI_DEMO_DATA": "1"}
    process = tree.start("train", "--epochs", "100")
    printed = stop_after(process, "data: ", signal.SIGTERM)
    assert process.returncode == 0, printed
    assert "SYNTHETIC" in printed
    assert {path.name for path in channel.iterdir()} == {".demo"}

    shutil.rmtree(tree.root / "checkpoints")
    shutil.copytree(own, channel, dirs_exist_ok=True)
    trained = tree.run("train", "--epochs", "1", "--resume", "never")
    assert trained.returncode == 0, trained.stderr
    assert f"{len(list(own.glob('*/*')))} images in 2 classes" in trained.stdout
    assert "uses SYNTHETIC images" not in trained.stdout


def test_a_folder_that_cannot_be_written_is_named(tree: Tree) -> None:
    (tree.root / "model").write_text("a file where the folder should be", encoding="utf-8")
    assert tree.run("train").returncode == 2
    assert f"the folder {tree.root / 'model'} cannot be made" in tree.failure


def test_help_says_what_it_reads_and_writes(tree: Tree) -> None:
    result = tree.run("train", "--help")
    assert result.returncode == 0
    assert "/opt/ml/output/failure" in result.stdout


def test_the_executables_are_executable() -> None:
    container = Path(__file__).parents[2] / "container"
    for name in ("train", "serve", "evaluate", "preflight"):
        assert (container / name).stat().st_mode & 0o777 == 0o755
        assert b"\r" not in (container / name).read_bytes()
