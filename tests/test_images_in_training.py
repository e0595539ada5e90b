"""An evaluation compares each image with those the model was trained with, by content."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from alexmri.errors import UserError
from alexmri.evaluation.evaluate import evaluate_folder
from alexmri.model.alexnet import build
from alexmri.model.predictor import Predictor
from alexmri.terminal import PlainTerminal

from .bundles import save
from .conftest import ImageMaker

pytestmark = pytest.mark.slow


def model(folder: Path, **facts: Any) -> Path:
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    return save(folder, network, ("A", "B"), **facts)


def protocol(bundle: Path, root: Path) -> tuple[bool | None, int | None]:
    facts = evaluate_folder(Predictor.load(bundle), root, workers=1, terminal=PlainTerminal())
    found = facts["protocol"]
    return found["trained_on_these_images"], found["images_in_training"]


def sha256(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def root(make_images: ImageMaker) -> Path:
    return make_images("A/1.png", "A/2.png", "B/1.png", "B/2.png")


def test_one_training_image_among_others_is_found_under_another_name(
    root: Path, tmp_path: Path
) -> None:
    taken = sha256(root / "A" / "1.png")
    shutil.move(root / "A" / "1.png", root / "A" / "renamed.png")
    bundle = model(tmp_path / "model", training_images=[*taken, "0" * 64])
    assert protocol(bundle, root) == (True, 1)


def test_other_images_are_new(root: Path, tmp_path: Path) -> None:
    assert protocol(model(tmp_path / "model", training_images=["0" * 64]), root) == (False, 0)


def test_what_a_model_does_not_tell_is_unknown(root: Path, tmp_path: Path) -> None:
    assert protocol(model(tmp_path / "model"), root) == (None, None)


def test_a_model_of_0_1_0_knows_its_whole_data_set_again(root: Path, tmp_path: Path) -> None:
    lines = [f"{path.parent.name}/{sha256(path)[0]}" for path in root.rglob("*.png")]
    found = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    bundle = model(tmp_path / "model", facts={"data": {"fingerprint": found}})
    assert protocol(bundle, root) == (True, None)


def test_a_changed_list_is_refused(root: Path, tmp_path: Path) -> None:
    bundle = model(tmp_path / "model", training_images=sha256(root / "A" / "1.png"))
    (bundle / "training_images.sha256").write_text("")
    with pytest.raises(UserError, match=r"training_images\.sha256 is damaged"):
        Predictor.load(bundle)
