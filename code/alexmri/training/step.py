"""One training step: the arithmetic, in plain sight."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alexmri.training.twin import Twin


def train_step(
    twin: Twin,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images_NCHW: Tensor,
    labels_N: Tensor,
    *,
    class_weights_K: Tensor | None,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Move the weights once; return the batch's mean loss and number of right answers, on device.

    Nothing here waits for the device: the caller adds the two results up and reads them once an
    epoch. The scaler does nothing but in fp16.
    """
    logits_NK = twin.logits(images_NCHW)
    loss = F.cross_entropy(
        logits_NK, labels_N, weight=class_weights_K, label_smoothing=label_smoothing
    )
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    twin.hand_over_gradients()
    scaler.step(optimizer)
    scaler.update()
    twin.take_weights()
    with torch.no_grad():
        right = (logits_NK.argmax(dim=1) == labels_N).sum()
    return loss.detach(), right
