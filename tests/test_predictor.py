"""The network that answers requests: fused, and in the fastest precision that agrees."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexmri.data.pixels import Pixels
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet, build
from alexmri.model.bundle import load_bundle
from alexmri.model.forward import Compute, choose_compute, predict_logits
from alexmri.model.ood import OutOfDistribution
from alexmri.model.predictor import InferenceNetwork, Predictor, choose_inference

from . import bundles

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FP32, BF16 = Compute(CPU, "fp32"), Compute(CPU, "bf16")
CLASSES = ("Mild", "Moderate", "Non", "VeryMild")


def network_of(image_size: int = 32, channels: int = 1) -> AlexNet:
    """A network whose batch norm does something, as after training, and whose labels are clear."""
    network = build(classes=4, image_size=image_size, channels=channels, dropout=0.5, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.01, 2.0),
                (module.weight.data, 0.5, 2.0),
                (module.bias.data, -0.5, 0.5),
            ):
                values.uniform_(low, high, generator=generator)
    last = network.classifier[-1]
    last.bias.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    return network.eval()


def save(folder: Path, network: AlexNet, ood: OutOfDistribution | None = None) -> Path:
    return bundles.save(folder, network, CLASSES, ood=ood)


def noise(count: int, image_size: int = 32, channels: int = 1) -> Pixels:
    generator = np.random.default_rng(7)
    return generator.integers(0, 256, (count, channels, image_size, image_size), dtype=np.uint8)


@pytest.mark.parametrize(("image_size", "channels"), [(32, 1), (32, 3), (50, 1), (224, 3)])
def test_fusing_changes_nothing_but_rounding(image_size: int, channels: int) -> None:
    network, pixels = network_of(image_size, channels), noise(3, image_size, channels)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    logits, features = InferenceNetwork(network, FP32).run(pixels)
    expected = predict_logits(network, pixels, FP32)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert features.shape == (3, 96 + 256 + 384)
    InferenceNetwork(network, BF16).run(pixels)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_fused_network_has_no_batch_norm_and_shares_its_linear_layers() -> None:
    network = network_of()
    fused = InferenceNetwork(network, FP32)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    given = {p.data_ptr() for p in network.classifier.parameters()}
    assert given == {p.data_ptr() for p in fused.head.parameters()}


def test_a_network_in_training_is_fused_and_goes_on_training() -> None:
    network, pixels = network_of(), noise(3)
    expected = predict_logits(network, pixels, FP32)
    network.train()
    logits, _ = InferenceNetwork(network, FP32).run(pixels)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_bf16_lies_channels_last_in_bf16() -> None:
    fused = InferenceNetwork(network_of(), BF16)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    kernels = [module.weight for module in fused.modules() if isinstance(module, nn.Conv2d)]
    assert len(kernels) == 5
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_more_than_one_batch_comes_back_in_order() -> None:
    fused, pixels = InferenceNetwork(network_of(), FP32), noise(300)
    together, alone = fused.run(pixels), fused.run(pixels[257:258])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[257:258], other, atol=1e-4)


@pytest.mark.skipif(
    choose_compute("auto").precision != "bf16", reason="this machine is slow in bf16"
)
def test_bf16_is_chosen_only_where_the_stored_example_agrees(tmp_path: Path) -> None:
    network = network_of()
    calm = load_bundle(save(tmp_path / "calm", network))
    assert choose_inference(calm, CPU).compute.precision == "bf16"
    # Near 1000 bf16 counts in steps of 4, so it cannot tell these two classes apart.
    network.classifier[-1].bias.data = torch.tensor([0.0, 0.0, 1000.0, 1000.5])
    loud = load_bundle(save(tmp_path / "loud", network))
    assert choose_inference(loud, CPU).compute.precision == "fp32"


def test_a_model_that_fusing_changes_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(save(tmp_path, network_of()))
    # Only evaluation mode can be fused; a network that answers otherwise must not be served.
    bundle.network.features[0][1].eps = float("inf")
    bundle.network.forward = lambda images: torch.ones(len(images), 4)  # type: ignore[assignment]
    with pytest.raises(UserError, match="gives another answer to its stored example once"):
        choose_inference(bundle, CPU)


def test_a_model_of_the_version_before_scales_16_bits_as_it_has_learned(tmp_path: Path) -> None:
    """Percentiles came with alexmri.pixels/2; an older network has met the brightest pixel."""
    folder = save(tmp_path, network_of())
    document = json.loads((folder / "model.json").read_text())
    assert document["preprocessing"]["name"] == "alexmri.pixels/2"
    values = np.linspace(0, 3000, 32 * 32).reshape(32, 32).astype(np.uint16)
    values[16, 16] = 60_000
    slice_16 = io.BytesIO()
    Image.fromarray(values).save(slice_16, "PNG")
    assert 126 <= np.median(Predictor.load(folder).pixels(slice_16.getvalue())) <= 128
    document["preprocessing"]["name"] = "alexmri.pixels/1"
    del document["checksum"]  # version 0.1.0 wrote none
    (folder / "model.json").write_text(json.dumps(document))
    older = Predictor.load(folder).pixels(slice_16.getvalue())
    np.testing.assert_array_equal(older[0], np.rint(values * (255 / 60_000)))


def test_a_model_of_the_version_before_stretches_as_it_has_learned(tmp_path: Path) -> None:
    folder = save(tmp_path, network_of())
    document = json.loads((folder / "model.json").read_text())
    for new in ("checksum", "center", "intensity"):
        (document if new == "checksum" else document["preprocessing"]).pop(new)
    document["preprocessing"]["name"] = "alexmri.pixels/1"
    (folder / "model.json").write_text(json.dumps(document))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 99, (208, 176), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Predictor.load(folder).pixels(buffer.getvalue())[0], expected)
