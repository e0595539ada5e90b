"""What a server runs: the fused network, the score of unusual images, and Grad-CAM."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexmri.data.pixels import Pixels, decode
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet, build
from alexmri.model.bundle import load_bundle
from alexmri.model.forward import Compute, choose_compute, predict_logits, to_input
from alexmri.model.ood import OutOfDistribution, fit_ood
from alexmri.model.predictor import InferenceNetwork, Predictor, choose_inference

from . import bundles

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
    with pytest.raises(UserError, match="answers its stored example otherwise once"):
        choose_inference(bundle, CPU)


# Out of distribution.


@pytest.fixture(scope="module")
def demo_parts(demo: Path) -> tuple[Pixels, Pixels, Pixels]:
    return parts(sorted(demo.rglob("*.jpg")))


def parts(files: list[Path]) -> tuple[Pixels, Pixels, Pixels]:
    """Return a third each for training, for validation and held out."""
    pixels = np.stack([decode(file, image_size=32, channels=1) for file in files])
    turn = np.random.default_rng(1).permutation(len(pixels)) % 3
    return pixels[turn == 0], pixels[turn == 1], pixels[turn == 2]


def photos(count: int) -> Pixels:
    """Pictures with the spectrum of natural scenes, amplitude falling as 1 / frequency."""
    generator = np.random.default_rng(3)
    frequency = np.fft.fftfreq(32)
    radius = np.hypot(*np.meshgrid(frequency, frequency))
    radius[0, 0] = 1
    waves = generator.normal(size=(count, 32, 32)) + 1j * generator.normal(size=(count, 32, 32))
    scenes = np.fft.ifft2(waves / radius).real
    low = scenes.min(axis=(1, 2), keepdims=True)
    spread = np.ptp(scenes, axis=(1, 2), keepdims=True)
    return np.rint((scenes - low) / spread * 255).astype(np.uint8)[:, None]


def fitted(network: AlexNet, train: Pixels, validation: Pixels) -> OutOfDistribution:
    looking = InferenceNetwork(network, FP32)
    return fit_ood(looking.run(train)[1], looking.run(validation)[1])


def check_scores(train: Pixels, validation: Pixels, held_out: Pixels, folder: Path) -> None:
    network = network_of()
    predictor = Predictor.load(save(folder, network, fitted(network, train, validation)))

    def score(pixels: Pixels) -> np.ndarray:
        ood = predictor.predict(pixels).ood_percentile_N
        assert ood is not None
        assert ood.min() >= 0
        assert ood.max() <= 1
        return ood

    for foreign in (noise(20), photos(20), 255 - held_out[:20], np.zeros_like(held_out[:1])):
        assert score(foreign).min() > 0.99
    ordinary = score(held_out)
    assert 0.2 < np.median(ordinary) < 0.8
    assert (ordinary > 0.99).mean() < 0.1


def test_foreign_pictures_score_high_and_slices_do_not(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    check_scores(*demo_parts, tmp_path)


def test_foreign_pictures_score_high_and_real_slices_do_not(
    real_slices: Path, tmp_path: Path
) -> None:
    check_scores(*parts(sorted(real_slices.rglob("*.jpg"))[::8]), tmp_path)


def test_the_score_is_the_share_of_validation_slices_that_are_less_unusual() -> None:
    generator = np.random.default_rng(0)
    train = generator.normal(size=(500, 40)).astype(np.float32)
    validation = generator.normal(size=(100, 40)).astype(np.float32)
    ood = fit_ood(train, validation)
    ranks = np.sort(ood.score(validation))
    np.testing.assert_allclose(ranks, np.arange(100) / 100)
    assert ood.score(np.full((1, 40), 50, dtype=np.float32)).tolist() == [1.0]
    assert ood.score(train.mean(axis=0, keepdims=True)).tolist() == [0.0]


def test_two_slices_or_equal_ones_are_enough_to_fit() -> None:
    same = np.ones((2, 40), dtype=np.float32)
    ood = fit_ood(same, same[:1])
    assert ood.score(same).tolist() == [0.0, 0.0]
    assert ood.score(same + 1).tolist() == [1.0, 1.0]


def test_equal_slices_give_equal_bytes_and_few(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    train, validation, _ = demo_parts
    for name in ("one", "two"):
        network = network_of()
        save(tmp_path / name, network, fitted(network, train, validation))
    one, two = (tmp_path / name / "ood.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size <= 200_000
    assert "ood.safetensors" in json.loads((tmp_path / "one" / "model.json").read_text())["files"]


def test_a_model_without_the_measure_answers_without_it(tmp_path: Path) -> None:
    predictor = Predictor.load(save(tmp_path, network_of()))
    prediction = predictor.predict(noise(5))
    assert prediction.ood_percentile_N is None
    np.testing.assert_allclose(
        prediction.probabilities_NK, predictor.probabilities(noise(5)), atol=0.02
    )
    np.testing.assert_allclose(prediction.probabilities_NK.sum(axis=1), 1)


def test_a_damaged_measure_is_noticed(
    demo_parts: tuple[Pixels, Pixels, Pixels], tmp_path: Path
) -> None:
    network = network_of()
    save(tmp_path, network, fitted(network, *demo_parts[:2]))
    (tmp_path / "ood.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"ood\.safetensors is damaged"):
        load_bundle(tmp_path)
    with pytest.raises(UserError, match=r"ood\.safetensors cannot be read"):
        OutOfDistribution.load(tmp_path / "ood.safetensors")


# Grad-CAM.


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(save(tmp_path_factory.mktemp("model"), network_of()))


def colour(png: bytes) -> np.ndarray:
    """How far each pixel is from grey, (H, W)."""
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    assert picture.mode == "RGB"
    values = np.asarray(picture).astype(int)
    return values.max(axis=2) - values.min(axis=2)


def test_an_overlay_is_the_picture_with_colour_where_the_class_was_seen(
    predictor: Predictor,
) -> None:
    (pixels,) = noise(1)
    overlays = [colour(predictor.gradcam_png(pixels, index)) for index in range(4)]
    assert all(overlay.shape == (256, 256) for overlay in overlays)
    assert max(overlay.max() for overlay in overlays) > 50
    assert not np.array_equal(overlays[0], overlays[3])
    with torch.inference_mode():  # as in a server's model thread
        again = predictor.gradcam_png(pixels, 0)
    assert again == predictor.gradcam_png(pixels, 0)


def test_heat_is_the_gradient_weighted_sum_of_the_last_block(tmp_path: Path) -> None:
    """One channel of block 5 decides about a class, and the heat is that channel."""
    network = network_of()
    for layer in network.classifier:
        if isinstance(layer, nn.Linear):
            layer.weight.data.zero_()
            layer.bias.data.fill_(0.1)
    first, second, third = (m for m in network.classifier if isinstance(m, nn.Linear))
    (pixels,) = noise(1)
    with torch.inference_mode():
        block = network.features[:-1](to_input(torch.from_numpy(pixels[None])))[0]
    channel = int(block.amax(dim=(1, 2)).argmax())
    first.weight.data[0].view(256, 2, 2)[channel] = 1.0
    second.weight.data[0, 0] = 1.0
    third.weight.data[2, 0] = 1.0
    predictor = Predictor.load(save(tmp_path, network))
    png = predictor.gradcam_png(pixels, 2)
    heat = block[channel].numpy()
    where = np.unravel_index(heat.argmax(), heat.shape)
    step = 256 // heat.shape[0]
    cell = colour(png).reshape(heat.shape[0], step, heat.shape[1], step).mean(axis=(1, 3))
    assert heat.max() > 0
    assert cell[where] > 30
    assert (cell[heat == 0] < cell[where]).all()
    # Nothing speaks for another class, so its picture keeps its greys.
    assert colour(predictor.gradcam_png(pixels, 1)).max() == 0


def test_a_large_picture_in_colour_keeps_its_size(tmp_path: Path) -> None:
    network = network_of(288, 3)
    bundles.save(tmp_path, network, CLASSES, image_size=288, channels=3)
    png = Predictor.load(tmp_path).gradcam_png(noise(1, 288, 3)[0], 0)
    assert Image.open(io.BytesIO(png)).size == (288, 288)
