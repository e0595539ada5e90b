"""A model that was trained with `coverage` answers with prediction sets, and refers the rest."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexmri.errors import UserError
from alexmri.model.alexnet import build
from alexmri.model.bundle import load_bundle
from alexmri.model.conformal import Conformal
from alexmri.serving.app import create_app
from alexmri.serving.engine import Engine
from tests import bundles

from .asking import CLASSES

pytestmark = pytest.mark.slow


def png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (208, 176), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def save(folder: Path, **changes: object) -> Path:
    network = build(classes=len(CLASSES), image_size=32, channels=1, dropout=0.5, seed=1)
    sets = {"coverage": 0.9, "unit": "one slice of a new person", "cases": 20}
    facts = {"conformal": {**sets, "threshold": 0.7, "subject_threshold": 0.9, **changes}}
    return bundles.save(folder, network, CLASSES, facts=facts)


@pytest.mark.parametrize("threshold", [0.0, 0.76, 1.0])
def test_sets_hold_the_classes_above_the_threshold(tmp_path: Path, threshold: float) -> None:
    engine = Engine(save(tmp_path, threshold=threshold))
    engine.load()
    client = create_app(engine).test_client()
    info = client.get("/info").get_json()
    assert info["conformal"]["coverage"] == 0.9
    sent = {"a": (io.BytesIO(png(1)), "1.png"), "b": (io.BytesIO(png(2)), "2.png")}
    answer = client.post("/invocations", data=sent, content_type="multipart/form-data").get_json()
    for prediction in answer["predictions"]:
        held = {name for name, p in prediction["probabilities"].items() if 1 - p <= threshold}
        assert set(prediction["prediction_set"]) == held
        assert prediction["refer"] is (len(held) != 1)
    mean = answer["subject"]["probabilities"]
    assert set(answer["subject"]["prediction_set"]) == {
        name for name, p in mean.items() if 1 - p <= 0.9
    }


def test_a_model_without_sets_answers_as_before(tmp_path: Path) -> None:
    network = build(classes=len(CLASSES), image_size=32, channels=1, dropout=0.5, seed=1)
    engine = Engine(bundles.save(tmp_path, network, CLASSES))
    engine.load()
    client = create_app(engine).test_client()
    answer = client.post("/invocations", data=png(1), content_type="image/png").get_json()
    assert "prediction_set" not in answer["predictions"][0]
    assert client.get("/info").get_json()["conformal"] is None


def test_a_model_whose_sets_make_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'conformal.threshold'"):
        load_bundle(save(tmp_path, threshold=1.5))


def test_what_is_stored_is_what_is_read(tmp_path: Path) -> None:
    stored = load_bundle(save(tmp_path)).conformal
    assert stored == Conformal(
        coverage=0.9,
        unit="one slice of a new person",
        cases=20,
        threshold=0.7,
        subject_threshold=0.9,
    )
    assert json.loads((tmp_path / "model.json").read_text())["conformal"]["cases"] == 20
