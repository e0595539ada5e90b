"""A model as ONNX: read back by onnxruntime, and refused where it would answer otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import alexmri
from alexmri.data.pixels import PREPROCESSING
from alexmri.errors import UserError
from alexmri.model.alexnet import build
from alexmri.model.bundle import load_bundle
from alexmri.model.forward import predict_logits
from alexmri.model.onnx import export_onnx
from alexmri.model.predictor import Predictor
from alexmri.settings import Layer, resolve

from .test_predictor import CLASSES, network_of, noise, save

pytestmark = pytest.mark.slow


def run(*arguments: object, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command; `without` is a package that then cannot be imported."""
    script = f"import sys; sys.modules.update({{name: None for name in {without.split()}}})"
    return subprocess.run(
        [
            *(sys.executable, "-c", f"{script}; from alexmri.cli import main; main()"),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundle"), network_of())


def test_the_command_writes_a_file_that_answers_as_the_model(bundle: Path) -> None:
    done = run("export", bundle, "--onnx")
    assert done.returncode == 0, done.stderr
    assert f"{bundle / 'model.onnx'}: onnxruntime and PyTorch agree" in done.stdout
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    predictor = Predictor.load(bundle)
    for count in (1, 5, 70):
        pixels = noise(count)
        logits, given = session.run(["logits", "probabilities"], {"pixels": pixels})
        np.testing.assert_allclose(logits, predictor.logits(pixels), atol=1e-5)
        np.testing.assert_allclose(given, predictor.probabilities(pixels), atol=1e-5)
        assert (logits.dtype, given.dtype) == (np.float32, np.float32)
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["N", 1, 32, 32])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert facts["preprocessing"] == PREPROCESSING.name
    assert (facts["center"], facts["intensity"]) == ("none", "none")
    onnx.checker.check_model(bundle / "model.onnx", full_check=True)


def test_the_file_names_no_place_on_this_machine(bundle: Path, tmp_path: Path) -> None:
    """PyTorch's exporter notes for every node the lines of code behind it, and where they are."""
    pixels, network = noise(1), load_bundle(bundle).network
    path = tmp_path / "model.onnx"
    export_onnx(path, network, classes=CLASSES, temperature=1.0, pixels_NCHW=pixels)
    written = path.read_bytes()
    assert b"alexnet.py" not in written
    assert str(Path(alexmri.__file__).parent).encode() not in written


# At 256 and 400 pixels the last values are averaged down, in cells of equal and of unequal size.
@pytest.mark.parametrize(("image_size", "channels"), [(50, 3), (224, 1), (256, 1), (400, 3)])
def test_every_geometry_is_exported(tmp_path: Path, image_size: int, channels: int) -> None:
    network = network_of(image_size, channels)
    pixels = noise(2, image_size, channels)
    export_onnx(
        tmp_path / "model.onnx",
        network,
        classes=CLASSES,
        temperature=2.0,
        pixels_NCHW=pixels,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_that_answers_otherwise_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = build(classes=4, image_size=32, channels=1, dropout=0.5, seed=9).eval()
    monkeypatch.setattr(
        "alexmri.model.onnx.predict_logits",
        lambda network, pixels, compute: predict_logits(other, pixels, compute),
    )
    with pytest.raises(UserError, match=r"was not written: its logits differ from PyTorch's by"):
        export_onnx(
            tmp_path / "model.onnx",
            network_of(),
            classes=CLASSES,
            temperature=2.0,
            pixels_NCHW=noise(4),
        )
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_done_it_says_so(bundle: Path, tmp_path: Path, demo: Path) -> None:
    missing = run("export", bundle, "--onnx", "--out", tmp_path / "x", without="onnxruntime")
    assert missing.returncode == 2
    assert "needs the package onnxruntime, which is not installed: pip install" in missing.stderr
    training = run(
        *("train", "--data", demo, "--out", tmp_path / "out", "--export-onnx"), without="onnx"
    )
    assert training.returncode == 2
    assert "needs the package onnx, which is not installed" in training.stderr
    assert not (tmp_path / "out").exists()
    script = run("export", bundle, "--onnx", "--out", tmp_path / "x", without="onnxscript")
    assert "needs the package onnxscript, which is not installed" in script.stderr
    assert "Missing option '--onnx'" in run("export", bundle).stderr
    assert "not a model directory; name the file" in run("export", tmp_path, "--onnx").stderr


def test_training_writes_it_beside_the_model_and_vouches_for_it(demo: Path, tmp_path: Path) -> None:
    command = ("train", "--data", demo, "--out", tmp_path, "--epochs", "1", "--export-onnx")
    done = run(*command, "--wandb-mode", "disabled")
    assert done.returncode == 0, done.stderr
    predictor = Predictor.load(tmp_path / "model")
    assert {"model.onnx", "ood.safetensors"} <= set(predictor.bundle.document["files"])
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    (given,) = session.run(["probabilities"], {"pixels": noise(3)})
    np.testing.assert_allclose(given, predictor.probabilities(noise(3)), atol=1e-5)
    (tmp_path / "model" / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing"):
        load_bundle(tmp_path / "model")


def test_a_new_model_does_not_keep_the_old_ones_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"of another model")
    save(tmp_path, network_of())
    assert not (tmp_path / "model.onnx").exists()


def test_the_setting_is_off_and_can_be_given_as_a_value() -> None:
    assert resolve([]).settings.export_onnx is False
    assert resolve([Layer("hyperparameters.json", {"export_onnx": "true"})]).settings.export_onnx
