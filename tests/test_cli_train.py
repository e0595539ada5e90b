"""`alexmri train` from a shell: stopped, resumed, with other options, and where it goes wrong."""

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from alexmri.data.pixels import BY_BRIGHTEST, PREPROCESSING
from alexmri.files import sha256_of_json

from .command_line import COMMAND, TINY, run, train

pytestmark = pytest.mark.slow


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    arguments = ["train", "--data", str(data), "--out", str(out), *TINY, *more]
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"{text!r} was never printed: {''.join(lines)}")


def test_ctrl_c_saves_prints_the_way_on_and_the_end_is_the_same(demo: Path, tmp_path: Path) -> None:
    options = ("--epochs", "3", "--ema-decay", "0.9", "--augment-probability", "0.5")
    process = start(demo, tmp_path / "stopped", *options)
    read_until(process, "epoch=1;")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert f"train --data {demo} --out {tmp_path / 'stopped'}" in rest.split("to resume: ")[1]
    assert list((tmp_path / "stopped" / "model").iterdir()) == []
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*.json"))

    resumed = train(demo, tmp_path / "stopped", *options)
    assert "resuming at epoch 2" in resumed.stdout
    train(demo, tmp_path / "whole", *options)
    for name in ("model.safetensors", "model.json"):
        stopped = (tmp_path / "stopped" / "model" / name).read_bytes()
        assert stopped == (tmp_path / "whole" / "model" / name).read_bytes(), name
    rows = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]


def test_a_killed_run_resumes_and_other_settings_are_refused(demo: Path, tmp_path: Path) -> None:
    options = ("--epochs", "40", "--checkpoint-every-epochs", "1")
    process = start(demo, tmp_path / "out", *options)
    # The second epoch's checkpoint is begun once the first one's is on the disk.
    read_until(process, "epoch=3;")
    process.kill()
    process.communicate(timeout=60)
    refused = train(demo, tmp_path / "out", *options, "--seed", "9", check=False)
    assert refused.returncode == 2
    assert "seed was 0, is 9" in refused.stderr
    kept = {path: path.read_text() for path in (tmp_path / "out").rglob("step-*.json")}
    for path, text in kept.items():
        content = json.loads(text)
        del content["checksum"], content["resume_check"]["preprocessing"]
        path.write_text(json.dumps(content | {"checksum": sha256_of_json(content)}))
    refused = train(demo, tmp_path / "out", *options, check=False)
    assert refused.returncode == 2
    assert f"(preprocessing was {BY_BRIGHTEST.name}, is {PREPROCESSING.name})" in refused.stderr
    for path, text in kept.items():
        path.write_text(text)
    resumed = train(demo, tmp_path / "out", *options, "--time-budget-seconds", "1")
    assert "resuming at epoch" in resumed.stdout


def test_sigterm_saves_the_best_model_so_far(demo: Path, tmp_path: Path) -> None:
    process = start(demo, tmp_path / "out", "--epochs", "40")
    read_until(process, "epoch=1;")
    process.terminate()
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    document = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert 1 <= document["epochs_trained"] < 40
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"] is False


def test_other_images_in_the_split_are_another_run(demo: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    for path in sorted(demo.glob("*/*.jpg")):
        part = "test" if path.name.startswith(("1 ", "2 ")) else "train"
        target = split / part / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    process = start(split, tmp_path / "out", "--epochs", "40")
    read_until(process, "epoch=1;")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    moved = next(iter((split / "train" / "NonDemented").iterdir()))
    moved.rename(split / "test" / "NonDemented" / moved.name)
    refused = train(split, tmp_path / "out", "--epochs", "40", check=False)
    assert refused.returncode == 2
    assert "the images are not split or ordered as before" in refused.stderr


def test_overwrite_starts_anew(demo: Path, tmp_path: Path) -> None:
    train(demo, tmp_path / "out", "--epochs", "1")
    done = train(demo, tmp_path / "out", "--overwrite", "--seed", "1")
    assert "resuming" not in done.stdout
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2


# --- options


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "adamw", "--learning-rate", "1e-4", "--schedule", "cosine"),
        ("--class-weights", "balanced", "--label-smoothing", "0.1", "--recipe", "baseline"),
        ("--precision", "bf16", "--channels", "3", "--split-by", "subject"),
        ("--split-ratios", "0.8,0.2,0", "--early-stopping-metric", "loss"),
    ],
)
def test_options_train(demo: Path, tmp_path: Path, options: Sequence[str]) -> None:
    done = train(demo, tmp_path / "out", *options, "--epochs", "1")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    if "--split-by" in options:
        assert evaluation["protocol"]["subjects_shared"] == 0
    if "--split-ratios" in options:
        assert evaluation["test"] is None
        assert "test_loss" not in done.stdout
        assert "There is no test set" in (tmp_path / "out" / "report.html").read_text()
    document = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    given = dict(zip(options[::2], options[1::2], strict=True))
    for name, value in given.items():
        stored = document["settings"][name.removeprefix("--").replace("-", "_")]
        assert str(stored) == value or isinstance(stored, float | list)


def test_early_stopping_ends_the_run(demo: Path, tmp_path: Path) -> None:
    done = train(
        demo, tmp_path / "out", "--epochs", "50", "--early-stopping-patience", "1",
        "--learning-rate", "1e-9", "--optimizer", "sgd", "--deterministic",
    )  # fmt: skip
    assert done.stdout.count("images_per_second=") < 10


def test_a_run_away_loss_is_told(demo: Path, tmp_path: Path) -> None:
    refused = train(
        demo, tmp_path / "out", "--learning-rate", "100", "--schedule", "constant",
        "--epochs", "20", check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stdout.count("going back to the weights of") == 2
    assert re.search(
        r"the loss is not a finite number in epoch \d+, even with 0.09 times the learning rate;"
        r" lower learning_rate \(100\)",
        refused.stderr,
    )
    assert list((tmp_path / "out" / "model").iterdir()) == []


def test_a_healthy_class_that_is_none_ends_a_training_before_it_begins(
    demo: Path, tmp_path: Path
) -> None:
    refused = run(
        *("train", "--data", demo, "--out", tmp_path / "out", "--negative-class", "Well"),
        check=False,
    )
    assert refused.returncode == 2
    assert (
        "negative_class is 'Well', which is not a class folder; the classes are" in refused.stderr
    )
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
