"""The model directory: weights, what they mean, and a stored example that proves they work.

    model.safetensors   the weights
    model.json          schema alexmri.model/1: architecture, classes, preprocessing, temperature,
                        settings, split, how scans were cut (`slicing`), fingerprints, metrics,
                        checksums of the other files, and its own (`checksum`, over the rest;
                        version 0.1.0 wrote none)
    golden.npz          a few made-up inputs and the logits the network gave for them
    ood.safetensors     what training slices look like, to find images that are unusual (see
                        model/ood.py); absent from a training that stopped early. Version 0.1.0
                        called it unlike.safetensors
    training_images.sha256
                        SHA-256 of the file of every training image, one a line, sorted. A model of
                        0.1.0 has none
    held_out_images.sha256
                        the same of the other images of its data set: validation and test
    model.onnx          on request: the network for other runtimes (see model/onnx.py)
    MODEL_CARD.md       the same for readers

Nothing in it depends on clock, host or duration: equal runs give equal bytes, apart from
model.onnx. No pickle.
"""

import copy
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alexmri.data.pixels import PREPROCESSING, PREPROCESSINGS, Pixels, Preprocessing
from alexmri.data.slicing import UNSTATED, Slicing
from alexmri.errors import UserError
from alexmri.files import (
    appearing,
    read_json_object,
    sha256_of,
    sha256_of_json,
    write_atomically,
    write_json,
)
from alexmri.model.alexnet import WIDTHS, AlexNet
from alexmri.model.conformal import Conformal
from alexmri.model.forward import MEAN, STD, Compute, predict_logits
from alexmri.model.ood import DESCRIBING_BLOCKS, OutOfDistribution

SCHEMA = "alexmri.model/1"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.npz"
OOD = "ood.safetensors"
OOD_OF_0_1_0 = "unlike.safetensors"
ONNX = "model.onnx"
TRAINING_IMAGES = "training_images.sha256"
HELD_OUT_IMAGES = "held_out_images.sha256"
FEATURES = sum(WIDTHS[:DESCRIBING_BLOCKS])
GOLDEN_IMAGES = 4
# Relative to the largest logit. Other processors round differently; a wrong weight is off by more.
GOLDEN_TOLERANCE = 0.02

Side = Annotated[int, Field(ge=32, le=1024)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Architecture(_Strict):
    name: Literal["alexnet"]
    classes: Annotated[int, Field(ge=1, le=10_000)]
    image_size: Side
    channels: Literal[1, 3]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    parameters: int


class _Preprocessing(_Strict):
    name: str
    image_size: Side
    channels: Literal[1, 3]
    mean: float
    std: float
    # Version 0.1.0 stretched every image, and had no names for anything else.
    center: Literal["none", "moments"] = "none"
    intensity: Literal["none", "median"] = "none"


class _Data(_Strict):
    counts: dict[str, dict[str, int]] = {}
    fingerprint: str = ""


class _ModelJson(_Strict):
    """What of model.json the code relies on."""

    architecture: _Architecture
    classes: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    preprocessing: _Preprocessing
    temperature: Annotated[float, Field(gt=0)]
    files: dict[str, str]
    intended_use: str
    # Facts about the training; a model without them answers too.
    settings: dict[str, Any] = {}
    split: dict[str, Any] = {}
    data: _Data = _Data()
    code: dict[str, Any] = {}
    leak_probe: dict[str, Any] = {}
    slicing: Slicing | None = None
    conformal: Conformal | None = None
    metrics: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded model: the network in evaluation mode on the CPU, and the files beside its weights.

    `document` is model.json, `golden_NCHW` are the `uint8` images of the stored example, and `card`
    is the text of MODEL_CARD.md. `ood` is None for a model without `ood.safetensors`.
    `training_images` is the text of training_images.sha256, `held_out_images` that of
    held_out_images.sha256; None where it is unknown.
    """

    network: AlexNet
    document: Mapping[str, Any]
    golden_NCHW: Pixels
    ood: OutOfDistribution | None
    card: str
    training_images: str | None = None
    held_out_images: str | None = None

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
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""
        stored = self.document["preprocessing"]
        return Preprocessing(
            stored["name"], stored.get("center", "none"), stored.get("intensity", "none")
        )

    @property
    def conformal(self) -> Conformal | None:
        """What makes prediction sets; None for a model that was trained without `coverage`."""
        stored = self.document.get("conformal")
        return Conformal.model_validate(stored) if stored else None

    @property
    def slicing(self) -> Slicing:
        """How volumes are cut into slices like those of the training; UNSTATED without such."""
        stored = self.document.get("slicing")
        return UNSTATED if stored is None else Slicing.model_validate(stored)

    @property
    def temperature(self) -> float:
        return float(self.document["temperature"])

    @property
    def version(self) -> str:
        """A short name of these very weights: the start of their checksum."""
        return str(self.document["files"][WEIGHTS])[:12]


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
    ood: OutOfDistribution | None = None,
    training_images: Iterable[str] | None = None,
    held_out_images: Iterable[str] | None = None,
    also: tuple[str, ...] = (),
    preprocessing: Preprocessing = PREPROCESSING,
) -> None:
    """Write the model directory; model.json comes last, so where it stands the rest is whole.

    `facts` (settings, split, data, code, slicing, metrics) are stored in model.json as they are.
    `training_images` are the SHA-256 of the training images' files, `held_out_images` those of the
    other images of the data set. `also` names files that stand in `folder` already and belong to
    the model. What an earlier model left there and this one does not have is removed.
    """
    # A copy: a stopped training measures the network once more, on the device it trained on.
    network = copy.deepcopy(network).cpu().eval()
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with appearing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    golden_NCHW = _golden_pixels(image_size, channels)
    logits_NK = predict_logits(network, golden_NCHW, Compute(torch.device("cpu"), "fp32"))
    buffer = io.BytesIO()
    np.savez(buffer, pixels=golden_NCHW, logits=logits_NK)
    write_atomically(folder / GOLDEN, buffer.getvalue())
    write_atomically(folder / "MODEL_CARD.md", card)
    names = [WEIGHTS, GOLDEN, *also]
    if ood:
        with appearing(folder / OOD) as temporary:
            ood.save(temporary)
        names.append(OOD)
    for name, images in ((TRAINING_IMAGES, training_images), (HELD_OUT_IMAGES, held_out_images)):
        if images is not None:
            write_atomically(folder / name, "".join(f"{sha256}\n" for sha256 in sorted(images)))
            names.append(name)
    optional = {OOD, OOD_OF_0_1_0, ONNX, TRAINING_IMAGES, HELD_OUT_IMAGES}
    for name in optional.difference(names):
        (folder / name).unlink(missing_ok=True)
    files = {name: sha256_of(folder / name) for name in names}
    content = {
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
            **asdict(preprocessing),
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
    write_json(folder / "model.json", {**content, "checksum": sha256_of_json(content)})


def load_bundle(folder: Path) -> Bundle:
    """Read a model directory and prove it: checksums, schema, and the golden example.

    Raises:
        UserError: not a model directory, of another schema or preprocessing, damaged, or with
            parts that contradict each other.
    """
    document = read_json_object(folder / "model.json")
    if document is None:
        raise UserError(f"{folder} is not a model: it has no model.json")
    model = _checked(folder, document)
    _check_files(folder, model.files)
    network = _load_network(folder / WEIGHTS, model.architecture)
    _check_agreement(folder, model)
    golden_NCHW = _check_golden(folder, network, model)
    ood = _load_ood(folder, model.files)
    # Last, since what is wrong is told better by what it contradicts.
    content = {key: value for key, value in document.items() if key != "checksum"}
    if "checksum" in document and document["checksum"] != sha256_of_json(content):
        raise UserError(
            f"{folder / 'model.json'} is damaged: its checksum does not match; copy the model again"
        )
    listed = (
        (folder / name).read_text("ascii", "replace") if name in model.files else None
        for name in (TRAINING_IMAGES, HELD_OUT_IMAGES)
    )
    return Bundle(network, document, golden_NCHW, ood, _read_card(folder), *listed)


def _checked(folder: Path, document: Mapping[str, Any]) -> _ModelJson:
    """Return what the code relies on in model.json; UserError where that has another form."""
    path = folder / "model.json"
    if document.get("schema") != SCHEMA:
        raise UserError(
            f"{folder} has schema {document.get('schema')}; this version reads {SCHEMA}"
        )
    preprocessing = document.get("preprocessing")
    name = preprocessing.get("name") if isinstance(preprocessing, dict) else None
    known = [each.name for each in PREPROCESSINGS]
    if name is not None and name not in known:
        raise UserError(
            f"{folder} was trained with preprocessing {name}; this version has"
            f" {' and '.join(known)}"
        )
    try:
        return _ModelJson.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise UserError(f"{path} has no '{place}'; copy the model again") from None
        wish = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(
            f"{path} has {repr(first['input'])[:60]} as '{place}': {wish}; copy the model again"
        ) from None


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse files that are missing, changed or not listed."""
    for name, checksum in files.items():
        if Path(name).name != name:
            raise UserError(f"{folder / 'model.json'} lists {name!r}, which is not in its folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder} is incomplete: {name} is missing")
        if sha256_of(folder / name) != checksum:
            raise UserError(f"{folder / name} is damaged: its checksum is not that of model.json")
    there = {path.name for path in folder.glob("[!.]*.safetensors")}
    for name in (WEIGHTS, GOLDEN, *sorted(there)):
        if name not in files:
            raise UserError(
                f"{folder / 'model.json'} does not list {name} among its files, so nothing proves"
                " that it belongs to the model; copy the model again, or remove the file"
            )


def _load_network(path: Path, architecture: _Architecture) -> AlexNet:
    """Return the network with the weights of a file that has exactly these, all of them finite."""
    with torch.device("meta"):
        network = AlexNet(
            architecture.classes,
            architecture.image_size,
            architecture.channels,
            architecture.dropout,
        )
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    wanted = network.state_dict()
    if names := sorted(wanted.keys() ^ weights.keys()):
        what = "lacks" if names[0] in wanted else "has, and the network has not,"
        raise UserError(f"{path} does not fit: it {what} {names[0]!r}")
    for name, expected in wanted.items():
        found = weights[name]
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise UserError(
                f"{path} does not fit: {name} is {_kind(found)}, and the network of model.json has"
                f" {_kind(expected)}"
            )
        if not torch.isfinite(found).all():
            raise UserError(f"{path} is damaged: {name} holds values that are not finite numbers")
        if name.endswith("running_var") and (found < 0).any():
            raise UserError(f"{path} is damaged: {name} holds negative variances")
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _load_ood(folder: Path, files: Mapping[str, str]) -> OutOfDistribution | None:
    """Return what the model has learned about training slices; None where it has no such file."""
    name = next((name for name in (OOD, OOD_OF_0_1_0) if name in files), None)
    if name is None:
        return None
    ood = OutOfDistribution.load(folder / name)
    if ood.mean_F.shape != (FEATURES,):
        raise UserError(
            f"{folder / name} does not fit: it describes an image by {len(ood.mean_F)}"
            f" numbers, and the network by {FEATURES}; copy the model again"
        )
    return ood


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_agreement(folder: Path, model: _ModelJson) -> None:
    """Refuse a model.json whose parts contradict each other or what the code does."""
    path, classes = folder / "model.json", model.classes
    if len(classes) != model.architecture.classes:
        raise UserError(
            f"{path} names {len(classes)} classes, and the network answers for"
            f" {model.architecture.classes}; copy the model again"
        )
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise UserError(f"{path} names the class {twice[0]!r} twice; copy the model again")
    for key in ("image_size", "channels"):
        network, pixels = (getattr(part, key) for part in (model.architecture, model.preprocessing))
        if network != pixels:
            raise UserError(
                f"{path} contradicts itself: {key} is {network} in 'architecture' and {pixels} in"
                " 'preprocessing'; copy the model again"
            )
    for key, applied in (("mean", MEAN), ("std", STD)):
        if getattr(model.preprocessing, key) != applied:
            raise UserError(
                f"{folder} was trained with {key} {getattr(model.preprocessing, key)} of the"
                f" pixels; this version applies {applied}"
            )


def _read_card(folder: Path) -> str:
    """Return MODEL_CARD.md, or nothing: a model without it still answers."""
    try:
        return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _check_golden(folder: Path, network: AlexNet, model: _ModelJson) -> Pixels:
    """Return the stored inputs after proving that the network still answers them as stored."""
    path = folder / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as golden:
            pixels_NCHW, expected_NK = golden["pixels"], golden["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    side, shape = model.preprocessing.image_size, pixels_NCHW.shape
    count = shape[0] if shape else 0
    if (
        not count
        or shape != (count, model.preprocessing.channels, side, side)
        or expected_NK.shape != (count, len(model.classes))
        or (pixels_NCHW.dtype, expected_NK.dtype) != (np.uint8, np.float32)
    ):
        raise UserError(
            f"{path} does not fit: it holds pixels {list(shape)} of {pixels_NCHW.dtype} and answers"
            f" {list(expected_NK.shape)} of {expected_NK.dtype}; copy the model again"
        )
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
    """Return made-up images (N, C, S, S): blurred noise, so that a model holds no patient data."""
    generator = np.random.Generator(np.random.Philox(20120930))
    coarse = generator.random((GOLDEN_IMAGES, channels, 8, 8))
    repeats = -(-image_size // 8)
    fine = coarse.repeat(repeats, axis=2).repeat(repeats, axis=3)[..., :image_size, :image_size]
    return np.rint(fine * 255).astype(np.uint8)
