"""Show where in an image a class was seen: Grad-CAM, as a PNG over the image."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from alexmri.data.pixels import Pixels
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import to_input

# A slice of 32 pixels is too small to look at.
MIN_SIDE = 256
# Dark violet over orange to light yellow, readable in gray and to the colour-blind.
COLOURS = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]])
PALETTE = np.stack(
    [np.interp(np.linspace(0, 4, 256), np.arange(5), channel) for channel in COLOURS.T], axis=1
).astype(np.float32)
MAX_COVER = 0.65


def gradcam(
    network: AlexNet, pixels_CHW: Pixels, class_index: int, device: torch.device
) -> NDArray[np.float32]:
    """Return Grad-CAM (Selvaraju et al. 2017) of one `uint8` image (C, S, S): 0 to 1, shape (h, w).

    h and w are those of the last convolution block. Its channels are summed with the mean gradient
    of the class's logit as weight, and negative sums become 0. The result is 0 everywhere where
    nothing speaks for the class. `network` must be on `device` and in evaluation mode.
    """
    last_pool = network.features[-1]
    # A server may call inside inference mode, where no gradient can be had.
    with torch.inference_mode(False), torch.enable_grad():
        images_NCHW = to_input(torch.from_numpy(np.array(pixels_CHW)[None]).to(device))
        values_NCHW: torch.Tensor = nn.Sequential(*network.features[:-1])(images_NCHW)
        values_NCHW.requires_grad_(True)
        logits_NK = network.classifier(network.pool(last_pool(values_NCHW)))
        (slope_NCHW,) = torch.autograd.grad(logits_NK[0, class_index], values_NCHW)
    weights_NC11 = slope_NCHW.mean(dim=(2, 3), keepdim=True)
    heat_HW = (weights_NC11 * values_NCHW.detach()).sum(dim=1)[0].relu()
    result: NDArray[np.float32] = (heat_HW / heat_HW.max().clamp_min(1e-12)).cpu().numpy()
    return result


def overlay_png(pixels_CHW: Pixels, heat_HW: NDArray[np.float32]) -> bytes:
    """Return a PNG of a `uint8` image (C, S, S) with `heat_HW` (0 to 1) as colour over it.

    It is a square of S pixels, or of 256 if S is smaller. More heat covers more of the image; where
    the heat is 0, the image is untouched.
    """
    side = max(MIN_SIDE, pixels_CHW.shape[-1])
    image = Image.fromarray(
        pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0)
    )
    image = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    heat = Image.fromarray(heat_HW).resize((side, side), Image.Resampling.BILINEAR)
    strength_HW = np.clip(np.asarray(heat), 0, 1)
    colour_HW3 = PALETTE[np.rint(strength_HW * 255).astype(np.uint8)]
    cover_HW1 = MAX_COVER * strength_HW[..., None]
    mixed = np.asarray(image) * (1 - cover_HW1) + colour_HW3 * cover_HW1
    buffer = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
