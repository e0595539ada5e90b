"""The model directory: weights, what they mean, and a stored example that proves they work.

    model.safetensors   the weights
    model.json          schema alexmri.model/1: architecture, classes, preprocessing, temperature,
                        settings, split, fingerprints, metrics, checksums of the other files
    golden.npz          a few made-up inputs and the logits the network gave for them
    unlike.safetensors  what training slices look like, to tell other pictures from them; models
                        made before there was such a file lack it
    model.onnx          on request: the network for other runtimes (see model/export.py)
    MODEL_CARD.md       the same for people

Nothing in it depends on clock, host or duration: equal runs give equal bytes. No pickle.
"""

import copy
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alexmri.data.pixels import MEAN, PREPROCESSING, STD, Pixels
from alexmri.errors import UserError
from alexmri.files import appearing, sha256_of, write_atomically, write_json
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits
from alexmri.model.unlike import UnlikeTraining

SCHEMA = "alexmri.model/1"
UNLIKE = "unlike.safetensors"
ONNX = "model.onnx"
GOLDEN_IMAGES = 4
# Other processors and other arithmetic round differently; a wrong weight is off by far more.
GOLDEN_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded model: the network in evaluation mode, model.json, and what stands beside them."""

    network: AlexNet
    document: Mapping[str, Any]
    golden_NCHW: Pixels
    unlike: UnlikeTraining | None
    card: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.document["classes"])

    @property
    def image_size(self) -> int:
        return int(self.document["preprocessing"]["image_size"])

    @property
    def channels(self) -> int:
        return int(self.document["preprocessing"]["channels"])

    @property
    def temperature(self) -> float:
        return float(self.document["temperature"])

    @property
    def version(self) -> str:
        """A short name of these very weights: the start of their checksum."""
        return str(self.document["files"]["model.safetensors"])[:12]


def save_bundle(
    folder: Path,
    network: AlexNet,
    *,
    classes: tuple[str, ...],
    image_size: int,
    channels: int,
    dropout: float,
    temperature: float,
    facts: Mapping[str, Any],
    card: str,
    unlike: UnlikeTraining | None = None,
    also: tuple[str, ...] = (),
) -> None:
    """Write the model directory; model.json comes last, so where it stands the rest is whole.

    `facts` (settings, split, data, code, metrics) are stored in model.json as they are. `also`
    names files that stand in `folder` already and belong to the model. What an earlier model left
    there and this one does not have is removed.
    """
    # A copy: a stopped training measures the network once more, on the device it trained on.
    network = copy.deepcopy(network).cpu().eval()
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with appearing(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    golden_NCHW = _golden_pixels(image_size, channels)
    logits_NK = predict_logits(network, golden_NCHW, Compute(torch.device("cpu"), "fp32"))
    buffer = io.BytesIO()
    np.savez(buffer, pixels=golden_NCHW, logits=logits_NK)
    write_atomically(folder / "golden.npz", buffer.getvalue())
    write_atomically(folder / "MODEL_CARD.md", card)
    names = ["model.safetensors", "golden.npz", *also]
    if unlike:
        with appearing(folder / UNLIKE) as temporary:
            unlike.save(temporary)
        names.append(UNLIKE)
    for name in {UNLIKE, ONNX}.difference(names):
        (folder / name).unlink(missing_ok=True)
    files = {name: sha256_of(folder / name) for name in names}
    document = {
        "schema": SCHEMA,
        "architecture": {
            "name": "alexnet",
            "classes": len(classes),
            "image_size": image_size,
            "channels": channels,
            "dropout": dropout,
            "parameters": sum(p.numel() for p in network.parameters()),
        },
        "classes": list(classes),
        "preprocessing": {
            "name": PREPROCESSING,
            "image_size": image_size,
            "channels": channels,
            "mean": MEAN,
            "std": STD,
        },
        "temperature": temperature,
        "files": files,
        "intended_use": "research and teaching; not a medical device, not for diagnosis",
        **facts,
    }
    write_json(folder / "model.json", document)


def load_bundle(folder: Path) -> Bundle:
    """Read a model directory and prove it: checksums, schema, and the golden example.

    Raises:
        UserError: not a model directory, of another schema or preprocessing, or damaged.
    """
    try:
        document = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no model: it has no model.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'model.json'} cannot be read: {error}") from None
    _check_promises(folder, document)
    architecture = document["architecture"]
    with torch.device("meta"):
        network = AlexNet(
            architecture["classes"],
            architecture["image_size"],
            architecture["channels"],
            architecture["dropout"],
        )
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / 'model.safetensors'} does not fit: {error}") from None
    network.eval().requires_grad_(False)
    golden_NCHW = _check_golden(folder, network)
    unlike = UnlikeTraining.load(folder / UNLIKE) if UNLIKE in document["files"] else None
    return Bundle(network, document, golden_NCHW, unlike, _read_card(folder))


def _check_promises(folder: Path, document: Mapping[str, Any]) -> None:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{folder} has schema {schema}; this version reads {SCHEMA}")
    preprocessing = document["preprocessing"]["name"]
    if preprocessing != PREPROCESSING:
        raise UserError(
            f"{folder} was trained with preprocessing {preprocessing}; this version has"
            f" {PREPROCESSING}"
        )
    for name, checksum in document["files"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} is incomplete: {name} is missing")
        if sha256_of(folder / name) != checksum:
            raise UserError(f"{folder / name} is damaged: its checksum is not that of model.json")


def _read_card(folder: Path) -> str:
    """Return MODEL_CARD.md, which is for people: a model without it still answers."""
    try:
        return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _check_golden(folder: Path, network: AlexNet) -> Pixels:
    """Return the stored inputs after proving that the network still answers them as stored."""
    try:
        with np.load(folder / "golden.npz", allow_pickle=False) as golden:
            pixels_NCHW, expected_NK = golden["pixels"], golden["logits"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / 'golden.npz'} cannot be read: {error}") from None
    logits_NK = predict_logits(network, pixels_NCHW, Compute(torch.device("cpu"), "fp32"))
    scale = max(1.0, float(np.abs(expected_NK).max()))
    if not np.abs(logits_NK - expected_NK).max() <= GOLDEN_TOLERANCE * scale:
        raise UserError(
            f"{folder} does not reproduce its stored example on this machine (logits differ by"
            f" {np.abs(logits_NK - expected_NK).max():.3g}); do not use it here"
        )
    result: Pixels = pixels_NCHW
    return result


def _golden_pixels(image_size: int, channels: int) -> Pixels:
    """Return made-up images (N, C, S, S): blurred noise, since a bundle shall hold no person."""
    generator = np.random.Generator(np.random.Philox(20120930))
    coarse = generator.random((GOLDEN_IMAGES, channels, 8, 8))
    repeats = -(-image_size // 8)
    fine = coarse.repeat(repeats, axis=2).repeat(repeats, axis=3)[..., :image_size, :image_size]
    return np.rint(fine * 255).astype(np.uint8)
