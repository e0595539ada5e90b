"""`alexmri crossval` as a person uses it: stopped, gone on with, refused, and what it leaves."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexmri.contract.signals import StopRequest
from alexmri.data import audit
from alexmri.data.phantom import write_demo_data
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.crossval import Crossval, choose_groups_file, run_crossval

from .reference_page import first_cells, undescribed

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from alexmri.cli import main; main()"]
TINY = (
    *("--folds", "2", "--epochs", "3", "--batch-size", "4", "--wandb-mode", "disabled"),
    *("--subgroups", "site", "--center", "none", "--intensity", "none"),
)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people of one class, two of another, two slices each; one class for each site."""
    folder = tmp_path_factory.mktemp("few") / "slices"
    write_demo_data(folder, subjects={"MildDemented": 2, "NonDemented": 4}, slices=2)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.jpg"))]
    # `26 (2).jpg` shows subject 2; the names are those that alexmri finds without the table.
    subjects = [f"{name.parent}/{name.stem.partition(' ')[2].strip('()')}" for name in names]
    rows = [f"{name},{who},{who[0]}\n" for name, who in zip(names, subjects, strict=True)]
    (folder / "groups.csv").write_text("path,subject,site\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cross-validation that nothing interrupted, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = crossval(few, out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return [*COMMAND, "crossval", "--data", str(data), "--out", str(out), *TINY, *more]


def crossval(data: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments(data, out, *more), capture_output=True, text=True, check=False)


def stop_in_fold_2(data: Path, out: Path, number: signal.Signals) -> "tuple[int, str]":
    """Send the signal after an epoch of fold 2; return exit code and all that was printed."""
    printed, awaited = "", ["fold 2 of 2:", "epoch=1;"]
    with subprocess.Popen(
        arguments(data, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            printed += line
            if awaited and line.startswith(awaited[0]):
                awaited.pop(0)
                if not awaited:
                    process.send_signal(number)
    return process.returncode, printed


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_image_is_tested_once_by_a_model_that_has_not_seen_the_person(
    whole: tuple[Path, str], few: Path
) -> None:
    out, _ = whole
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(
        path.relative_to(few).as_posix() for path in few.rglob("*.jpg")
    )
    assert {row["subject"] for row in rows if row["fold"] == "1"}.isdisjoint(
        row["subject"] for row in rows if row["fold"] == "2"
    )
    for row in rows:
        probabilities = {name[2:]: float(value) for name, value in row.items() if name[:2] == "p_"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["predicted"] == max(probabilities, key=probabilities.__getitem__)
        own_fold = read(out / f"fold-{row['fold']}" / "split.json")["images"]
        assert {"path": row["path"], "split": "test"} in [
            {key: image[key] for key in ("path", "split")} for image in own_fold
        ]


def test_the_reference_names_what_it_leaves(whole: tuple[Path, str]) -> None:
    out, _ = whole
    left = {path.name for path in out.iterdir()}
    assert {"fold-1", "fold-2", "crossval.json", "predictions.csv"} <= left
    assert {"OUT/fold-N/", "OUT/crossval.json"} <= first_cells("### Elsewhere")
    assert left - {"fold-1", "fold-2", "crossval.json"} <= first_cells("### Output folder")
    classes = ["MildDemented", "NonDemented"]
    assert undescribed(read(out / "evaluation.json"), classes) == set()


def test_the_figures_are_those_of_the_pooled_predictions(whole: tuple[Path, str]) -> None:
    out, printed = whole
    evaluation = read(out / "evaluation.json")
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        right = [row["predicted"] == row["label"] for row in csv.DictReader(file)]
    assert evaluation["test"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert evaluation["test"]["resampled_by"] == "subject"
    assert evaluation["protocol"]["split_by"] == "subject"
    assert evaluation["protocol"]["folds"] == 2
    assert evaluation["protocol"]["subjects_shared"] == 0
    single = [
        read(out / f"fold-{n}" / "evaluation.json")["test"]["accuracy"]["value"] for n in (1, 2)
    ]
    assert [row["accuracy"] for row in evaluation["folds"]] == single
    over = evaluation["over_folds"]["accuracy"]
    assert over["mean"] == pytest.approx(sum(single) / 2)
    assert over["standard_deviation"] == pytest.approx(abs(single[0] - single[1]) / 2**0.5)
    assert "1-NN baseline" in printed
    assert "demented against NonDemented: AUC" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "2-fold cross-validation" in page
    assert "Fold by fold" in page
    look_up = evaluation["test"]["baselines"]["nearest_neighbour"]["accuracy"]["value"]
    assert evaluation["leak_probe"]["subject"] == look_up


def test_subgroups_are_those_of_the_table(whole: tuple[Path, str]) -> None:
    out, printed = whole
    (column,) = read(out / "evaluation.json")["subgroups"]["columns"]
    mild, healthy = column["subgroups"]
    assert (mild["name"], mild["images"], mild["subjects"]) == ("M", 4, 2)
    assert (healthy["name"], healthy["images"], healthy["subjects"]) == ("N", 8, 4)
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "MildDemented"]
    right = [row["predicted"] == row["label"] for row in rows]
    assert mild["accuracy"] == {"value": sum(right) / 4, "ci95": None}
    assert "M (fewer than 10 subjects)" in printed
    assert "<h3>By site</h3>" in (out / "report.html").read_text(encoding="utf-8")


def test_subgroups_bring_the_people_of_their_table(few: Path, tmp_path: Path) -> None:
    """The names of the files do not tell them, so without the table images would be dealt."""
    data, rows = tmp_path / "data", []
    for i, path in enumerate(sorted(few.rglob("*.jpg"))):
        own = data / path.parent.name / f"{'abcdefghijkl'[i]}.jpg"
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, own)
        subject = f"{own.parent.name}{path.stem.partition(' ')[2]}"
        rows.append(f"{own.parent.name}/{own.name},{subject},x\n")
    (data / "groups.csv").write_text("path,subject,site\n" + "".join(rows), encoding="utf-8")
    done = crossval(data, tmp_path / "out", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "slice by slice" not in done.stdout
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        folds = {(row["subject"], row["fold"]) for row in csv.DictReader(file)}
    assert len(folds) == len(dict(folds)) == 6


@pytest.mark.parametrize(
    ("settings", "is_taken"),
    [
        ({}, True),
        ({"groups_file": "who.csv"}, False),
        ({"group_regex": "(.)"}, False),
        ({"groups": "inferred"}, False),
    ],
)
def test_people_told_in_another_way_stay(
    settings: dict[str, str], is_taken: bool, tmp_path: Path
) -> None:
    chosen = resolve([Layer("test", settings)]).settings
    assert choose_groups_file(tmp_path, chosen) is None
    (tmp_path / "groups.csv").touch()
    table = str(tmp_path / "groups.csv")
    assert choose_groups_file(tmp_path, chosen) == (table if is_taken else None)
    (tmp_path / "slices.json").touch()
    assert choose_groups_file(tmp_path, chosen) is None


def test_subgroups_without_a_table_are_refused_before_the_training(
    demo: Path, tmp_path: Path
) -> None:
    refused = crossval(demo, tmp_path / "out")
    assert refused.returncode == 2
    assert "subgroups are columns of groups.csv, which is not in" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_fold_keeps_its_model_and_not_its_checkpoints(whole: tuple[Path, str]) -> None:
    out, _ = whole
    for number in (1, 2):
        assert (out / f"fold-{number}" / "model" / "model.json").is_file()
        assert not (out / f"fold-{number}" / "checkpoints").exists()


def test_the_bench_measures_its_peers_on_the_same_splits(
    few: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    """The look-up of `bench/baselines.py` and that of the cross-validation are one and the same."""
    bench = Path(__file__).parents[1] / "bench" / "baselines.py"
    options = ("--folds", "2", "--seeds", "0", "--epochs", "1", "--stem", "torchvision")
    command = [sys.executable, bench, few, "--out", tmp_path / "rows.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["protocol"], row["row"]): row for row in read(tmp_path / "rows.json")["rows"]}
    names = ("majority", "nearest_neighbour", "logistic_regression", "resnet18")
    assert set(rows) == {(split_by, name) for split_by in ("slice", "subject") for name in names}
    ours = read(whole[0] / "evaluation.json")["test"]["baselines"]["nearest_neighbour"]
    theirs = rows["subject", "nearest_neighbour"]["pooled"]
    for figure in ("accuracy", "macro_f1"):
        assert theirs[figure]["value"] == pytest.approx(ours[figure]["value"])
    assert "| subject | resnet18 | " in done.stdout


def test_images_are_compared_once_for_all_folds(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = audit.find_copies
    monkeypatch.setattr(audit, "find_copies", lambda *each: calls.append(1) or real(*each))
    settings = {"epochs": 1, "batch_size": 4, "wandb_mode": "disabled", "split_by": "subject"}
    plan = Crossval(few, resolve([Layer("test", settings)]).settings, tmp_path / "out", 2)
    assert run_crossval(plan, PlainTerminal(), StopRequest())
    assert len(calls) == 1


def test_stopped_in_a_fold_it_goes_on_and_ends_as_if_it_had_not_been(
    few: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed = stop_in_fold_2(few, out, signal.SIGINT)
    assert code == 130, printed
    assert "to resume: " in printed
    assert not (out / "predictions.csv").exists()
    finished_at = (out / "fold-1" / "run.json").stat().st_mtime_ns

    refused = crossval(few, out, "--seed", "1", "--learning-rate", "0.1")
    assert refused.returncode == 2
    assert "learning_rate was 0.001, is 0.1" in refused.stderr
    assert "seed was 0, is 1" in refused.stderr

    resumed = crossval(few, out)
    assert resumed.returncode == 0, resumed.stderr
    assert "fold 1 of 2 is finished" in resumed.stdout
    assert "resuming at epoch" in resumed.stdout
    assert (out / "fold-1" / "run.json").stat().st_mtime_ns == finished_at
    for name in ("predictions.csv", "evaluation.json"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_a_finished_one_is_kept_and_a_training_is_not_mixed_with_folds(
    few: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    refused = crossval(few, whole[0])
    assert refused.returncode == 2
    assert "holds a finished run" in refused.stderr
    (tmp_path / "run.json").write_text('{"finished": false}', encoding="utf-8")
    refused = crossval(few, tmp_path)
    assert refused.returncode == 2
    assert "holds a training" in refused.stderr
