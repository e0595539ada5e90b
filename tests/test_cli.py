"""The command line as a person uses it: real processes, real files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .command_line import run, train
from .conftest import ImageMaker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    done = train(demo, folder / "out", "--seed", "3", "--checkpoint-every-epochs", "1")
    return folder / "out", done.stdout


def test_a_run_leaves_what_is_promised(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert {path.name for path in out.iterdir()} >= {
        *("metrics.jsonl", "evaluation.json", "statistics.json", "report.html", "audit.json"),
        *("split.json", "run.json", "model", "checkpoints", "confusion.png", "curves.png"),
    }
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["protocol"]["split_by"] == "slice"
    assert evaluation["protocol"]["subjects_shared"] >= 6
    low, high = evaluation["test"]["accuracy"]["ci95"]
    assert 0 <= low <= evaluation["test"]["accuracy"]["value"] <= high <= 1
    assert set(evaluation["leak_probe"]) == {"slice", "subject", "shuffled"}
    assert evaluation["leak_probe"]["slice"] > 0.9
    split = json.loads((out / "split.json").read_text())
    counted = sum(image["split"] == "test" for image in split["images"])
    assert counted == evaluation["test"]["images"]
    assert json.loads((out / "run.json").read_text())["finished"] is True


def test_the_lines_are_those_log_readers_parse(finished: tuple[Path, str]) -> None:
    _, printed = finished
    number = r"\d+(?:\.\d+)?"
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")
    shape = " ".join(f"{name}={number};" for name in names)
    epochs = re.findall(rf"^epoch=\d+; {shape} images_per_second=\d+;$", printed, re.MULTILINE)
    assert len(epochs) == 2
    *_, last = (line for line in printed.splitlines() if line.startswith("epoch="))
    best, _, of_test = last.partition(" test_loss=")
    assert re.fullmatch(rf"{number}; test_accuracy={number}; test_macro_f1={number};", of_test)
    # Every value on the last line belongs to the model that was saved.
    assert best in epochs
    score = re.compile(rf"val_macro_f1=({number})")
    assert score.findall(best) == [max(score.findall("".join(epochs)), key=float)]
    assert "\r" not in printed
    for promise in (
        "device: ",
        "precision ",
        "train: ",
        "NonDemented",
        "about ",
        "not a diagnostic",
        "auditing 96 images",
        "computing figures and their intervals",
        "writing the model and the report",
    ):
        assert promise in printed
    assert printed.rstrip().endswith("report.html")


def test_the_report_and_the_card_open_with_the_leak(finished: tuple[Path, str]) -> None:
    out, _ = finished
    for path in (out / "report.html", out / "model" / "MODEL_CARD.md"):
        text = path.read_text()
        assert "people have images in both training and test" in text
        assert "not for diagnosis" in text


def test_the_same_seed_gives_the_same_bytes(finished: tuple[Path, str], demo: Path) -> None:
    out, _ = finished
    again = out.parent / "again"
    train(demo, again, "--seed", "3", "--checkpoint-every-epochs", "1")
    for name in (
        "model.safetensors",
        "model.json",
        "golden.npz",
        "ood.safetensors",
        "training_images.sha256",
        "held_out_images.sha256",
        "MODEL_CARD.md",
    ):
        assert (out / "model" / name).read_bytes() == (again / "model" / name).read_bytes(), name


def test_a_finished_run_is_kept_unless_told(finished: tuple[Path, str], demo: Path) -> None:
    out, _ = finished
    refused = train(demo, out, check=False)
    assert refused.returncode == 2
    assert "holds a finished run" in refused.stderr
    assert "--overwrite" in refused.stderr


def test_predict_and_evaluate_use_the_model(
    finished: tuple[Path, str], demo: Path, tmp_path: Path
) -> None:
    out, _ = finished
    images = sorted(demo.glob("NonDemented/*.jpg"))[:3]
    answer = json.loads(run("predict", out / "model", *images, "--json", "--one-subject").stdout)
    assert [row["image"] for row in answer["predictions"][:3]] == [str(image) for image in images]
    for row in answer["predictions"]:
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    assert answer["predictions"][3]["image"] == "all 3 as one person"
    *_, row, _ = run("predict", out / "model", images[0]).stdout.splitlines()
    assert str(images[0]) in row
    assert all(name in row for name in answer["predictions"][0]["probabilities"])
    packed = tmp_path / "model.tar.gz"
    subprocess.run(["tar", "czf", packed, "-C", out / "model", "."], check=True)
    again = json.loads(run("predict", packed, *images, "--json", "--one-subject").stdout)
    assert again == answer

    done = run("evaluate", out / "model", demo, "--json", tmp_path / "evaluation.json")
    assert "macro F1" in done.stdout
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["test"]["images"] == 96
    assert evaluation["test"]["resampled_by"] == "subject"


def test_evaluate_agrees_with_the_training(
    finished: tuple[Path, str], demo: Path, tmp_path: Path
) -> None:
    out, _ = finished
    split = json.loads((out / "split.json").read_text())
    for image in split["images"]:
        if image["split"] == "test":
            target = tmp_path / "test" / image["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((demo / image["path"]).read_bytes())
    run("evaluate", out / "model", tmp_path, "--json", tmp_path / "again.json")
    written = json.loads((tmp_path / "again.json").read_text())
    assert written["protocol"]["trained_on_these_images"] is False
    assert written["protocol"]["images_in_training"] == 0
    again = written["test"]
    trained = json.loads((out / "evaluation.json").read_text())["test"]
    assert again["confusion_matrix"] == trained["confusion_matrix"]
    assert again["log_loss"]["value"] == pytest.approx(trained["log_loss"]["value"], rel=1e-4)


def test_evaluate_says_when_it_meets_some_of_its_training_images(
    finished: tuple[Path, str], demo: Path, tmp_path: Path
) -> None:
    out, _ = finished
    split = json.loads((out / "split.json").read_text())
    copied = [image for image in split["images"] if image["split"] == "train"][:3]
    copied += [image for image in split["images"] if image["split"] == "test"]
    for number, image in enumerate(copied):
        target = tmp_path / "other" / image["label"] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((demo / image["path"]).read_bytes())
    done = run(
        "evaluate", out / "model", tmp_path / "other", "--json", tmp_path / "evaluation.json"
    )
    assert f"trained with 3 of the {len(copied)} images: the figures are not a test" in done.stdout
    assert "images in " in done.stdout
    protocol = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]
    assert protocol["trained_on_these_images"] is True
    assert protocol["images_in_training"] == 3


def test_evaluate_refuses_a_class_it_does_not_know(
    finished: tuple[Path, str], make_images: ImageMaker
) -> None:
    root = make_images("Alien/1.png")
    refused = run("evaluate", finished[0] / "model", root, check=False)
    assert refused.returncode == 2
    assert "class folder 'Alien', which the model does not know" in refused.stderr


def test_config_shows_values_sources_and_layers(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("momentum = 0.5\n")
    shown = run(
        "config", "--show-sources", "--epochs", "7", "--deterministic",
        "--config", tmp_path / "mine.toml",
        ALEXMRI_SEED="11", COLUMNS="200",
    ).stdout  # fmt: skip
    for name, value, source in (
        ("epochs", "7", "command line"),
        ("deterministic", "true", "command line"),
        ("momentum", "0.5", "mine.toml"),
        ("seed", "11", "environment"),
        ("schedule", '"onecycle"', "recipe best"),
    ):
        assert re.search(rf"{name} +{re.escape(value)} +{source}", shown), name
    layers = run("config", "--model", COLUMNS="120").stdout
    assert "24,721,444" in layers
    assert "225.7" in layers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ('{"epoch": 1}', "did you mean"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    refused = run("config", "--config", tmp_path / "mine.json", check=False)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_mistakes_exit_with_2_and_help_with_0(tmp_path: Path) -> None:
    assert run("--help").returncode == 0
    assert run("train", check=False).returncode == 2
    assert "Missing option" in run("train", check=False).stderr
    data = tmp_path / "data"
    (data / "A").mkdir(parents=True)
    refused = run("train", "--data", data, "--out", tmp_path / "out", check=False)
    assert refused.returncode == 2
    assert "only one class folder" in refused.stderr
    refused = run("train", "--data", data, "--out", data / "A" / "out", check=False)
    assert "lies inside the data folder" in refused.stderr
    refused = run("predict", tmp_path, check=False)
    assert "no image was given" in refused.stderr


def test_demo_data_is_loud_and_refuses_a_full_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    refused = run("demo-data", tmp_path / "full", check=False)
    assert refused.returncode == 2
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_mistakes_about_folders_are_told_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # A torch that cannot be imported stands in its place.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit(77)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "empty").mkdir()
    done = run(command, "--data", tmp_path / "empty", "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert "has no class folders" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    check = (
        "import sys, alexmri.cli\n"
        "heavy = {'torch', 'numpy', 'albumentations', 'wandb', 'matplotlib', 'PIL', 'rich'}\n"
        "heavy |= {'scipy', 'sklearn', 'boto3', 'flask', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
