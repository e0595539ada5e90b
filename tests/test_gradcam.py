"""Grad-CAM: where a class was seen, as colour over the image."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from alexmri.model.forward import to_input
from alexmri.model.predictor import Predictor

from . import bundles
from .test_predictor import CLASSES, network_of, noise, save


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


@pytest.mark.slow
def test_a_large_picture_in_colour_keeps_its_size(tmp_path: Path) -> None:
    network = network_of(288, 3)
    bundles.save(tmp_path, network, CLASSES, image_size=288, channels=3)
    png = Predictor.load(tmp_path).gradcam_png(noise(1, 288, 3)[0], 0)
    assert Image.open(io.BytesIO(png)).size == (288, 288)
