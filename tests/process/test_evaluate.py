"""container/evaluate as a processing job, and container/preflight."""

import json
import shutil
from pathlib import Path

from .conftest import Tree


def test_a_model_is_measured_on_a_folder(trained: Tree, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    processing = tree.root / "processing"
    shutil.copytree(trained.root / "model", processing / "model")
    shutil.copytree(trained.root / "input" / "data" / "training", processing / "test")
    result = tree.run("evaluate")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((processing / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert evaluation["test"]["images"] == 48
    accuracy = evaluation["test"]["accuracy"]["value"]
    assert f"test_accuracy={accuracy:.6g};" in result.stdout
    statistics = json.loads((processing / "evaluation" / "statistics.json").read_text("utf-8"))
    assert statistics


def test_folders_can_be_given(trained: Tree, tmp_path: Path) -> None:
    model, data = trained.root / "model", trained.root / "input" / "data" / "training"
    arguments = ("--model", str(model), "--test", str(data), "--evaluation", str(tmp_path / "out"))
    assert trained.run("evaluate", *arguments).returncode == 0
    assert (tmp_path / "out" / "evaluation.json").is_file()


def test_a_missing_model_ends_in_one_sentence(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "ml")
    result = tree.run("evaluate")
    assert result.returncode == 2
    message = (tree.root / "output" / "message").read_text(encoding="utf-8")
    assert message == f"{tree.root / 'processing' / 'model'} is no model: it has no model.json"
    assert "Traceback" not in result.stderr


def test_preflight_prints_one_fact_a_line(tmp_path: Path) -> None:
    result = Tree(tmp_path).run("preflight")
    assert result.returncode == 0, result.stderr
    facts = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert facts["device"] in ("cpu", "cuda")
    assert {"NVIDIA driver", "torch", "torch built for CUDA", "memory usable here"} <= set(facts)
    assert int(facts["cores usable here"]) <= int(facts["cores of the machine"])
