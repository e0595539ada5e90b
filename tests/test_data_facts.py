"""What is true of the data stands in everything that a run leaves: splits compared, synthetic."""

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .command_line import run, train

pytestmark = pytest.mark.slow

CONTAINER = Path(__file__).parents[1] / "container"


@pytest.fixture(scope="module")
def shared(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Train on folders train and validation that share people; return data, output, terminal."""
    root = tmp_path_factory.mktemp("shared")
    for path in sorted(demo.glob("*/*.jpg")):
        number, subject = (int(part) for part in path.stem.strip(")").split(" ("))
        split = "validation" if subject == 3 or (subject == 2 and number > 5) else "train"
        target = root / "data" / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    done = train(root / "data", root / "out", "--epochs", "1")
    return root / "data", root / "out", done.stdout + done.stderr


def documents(out: Path) -> Iterator[tuple[str, str]]:
    for name in ("report.html", "model/MODEL_CARD.md", "audit.json", "evaluation.json"):
        yield name, html.unescape((out / name).read_text(encoding="utf-8"))


def test_train_is_compared_with_validation_where_there_is_no_test_split(
    shared: tuple[Path, Path, str],
) -> None:
    _, out, printed = shared
    protocol = json.loads((out / "evaluation.json").read_text())["protocol"]
    assert protocol["compared_with"] == "validation"
    assert protocol["subjects_shared"] == 4
    found = json.loads((out / "audit.json").read_text())
    assert found["compared_with"] == "validation"
    assert "4 of 12 people have images in both training and validation" in found["verdict"][0]
    said = "4 of the 12 people have images in both training and validation"
    texts = dict(documents(out)) | {"terminal": printed}
    for name in ("terminal", "report.html", "model/MODEL_CARD.md"):
        assert said in texts[name], name
    for name, text in texts.items():
        assert "training and test" not in text, name
        assert "none of the 12 people" not in text, name
        assert "people the network has not seen." not in text, name


def test_a_run_on_synthetic_images_says_so_first_everywhere(
    shared: tuple[Path, Path, str],
) -> None:
    _, out, printed = shared
    texts = dict(documents(out)) | {"terminal": printed}
    for name in ("terminal", "report.html", "model/MODEL_CARD.md"):
        assert "SYNTHETIC DATA" in texts[name], name
    for name, text in texts.items():
        assert "Kaggle" not in text, name
    report = texts["report.html"]
    assert report.index("SYNTHETIC DATA") < report.index("What this number measures")
    assert printed.index("SYNTHETIC DATA") < printed.index("epoch=1")
    for name, path in (
        ("evaluation.json", ("protocol",)),
        ("audit.json", ()),
        ("model/model.json", ("data",)),
    ):
        document = json.loads((out / name).read_text())
        for key in path:
            document = document[key]
        assert document["synthetic"] is True, name


def test_evaluate_leaves_unreadable_images_out_where_it_is_told_to(
    shared: tuple[Path, Path, str], tmp_path: Path
) -> None:
    data, out, _ = shared
    images = shutil.copytree(data / "validation", tmp_path / "images")
    (images / "NonDemented" / "zero.jpg").touch()
    arguments = ["evaluate", out / "model", images, "--json", tmp_path / "found.json"]
    refused = run(*arguments, check=False)
    assert refused.returncode == 2
    assert "zero.jpg is empty" in refused.stderr
    assert "--on-bad-image skip" in refused.stderr
    assert "on_bad_image=skip" not in refused.stderr

    done = run(*arguments, "--on-bad-image", "skip")
    assert "left out because on_bad_image is skip: 1 of 45 images" in done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["test"]["images"] == 44
    assert list(found["skipped_images"]) == ["NonDemented/zero.jpg"]
    assert found["protocol"]["synthetic"] is True


def test_the_container_s_evaluate_has_the_same_option(
    shared: tuple[Path, Path, str], tmp_path: Path
) -> None:
    data, out, _ = shared
    images = shutil.copytree(data / "validation", tmp_path / "images")
    (images / "NonDemented" / "zero.jpg").touch()
    command = [sys.executable, str(CONTAINER / "evaluate"), "--model", str(out / "model")]
    command += ["--test", str(images), "--evaluation", str(tmp_path / "evaluation")]
    done = subprocess.run(
        [*command, "--on-bad-image", "skip"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC DATA" in report
    assert "zero.jpg is empty" in report
