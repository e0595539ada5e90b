"""One training step: the arithmetic, in plain sight."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alexmri.training.distributed import ALONE, Workers
from alexmri.training.precision import Twin


@dataclass(frozen=True, slots=True)
class Whole:
    """A batch that several workers share: its images, and the sum of their weights in the loss."""

    images: int
    weight: float


def train_step(
    twin: Twin,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images_NCHW: Tensor,
    labels_N: Tensor,
    *,
    class_weights_K: Tensor | None,
    label_smoothing: float,
    whole: Whole | None = None,
    workers: Workers = ALONE,
) -> tuple[Tensor, Tensor]:
    """Move the weights once; return the batch's mean loss and number of right answers, on device.

    Nothing here waits for the device: the caller adds the two results up and reads them once an
    epoch. The scaler does nothing but in fp16.

    Where several workers train, the images are this worker's part of the batch that `whole` is
    about, and so are the loss and its gradients: their sums over the workers are the batch's.
    """
    logits_NK = twin.logits(images_NCHW, whole.images if whole else None)
    loss = F.cross_entropy(
        logits_NK,
        labels_N,
        weight=class_weights_K,
        label_smoothing=label_smoothing,
        reduction="sum" if whole else "mean",
    )
    if whole:
        loss = loss / whole.weight
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    twin.hand_over_gradients()
    scaler.step(optimizer)
    scaler.update()
    twin.take_weights()
    with torch.no_grad():
        right = (logits_NK.argmax(dim=1) == labels_N).sum()
    if whole:
        loss, right = workers.sum(torch.stack([loss.detach().double(), right]))
    return loss.detach(), right.long()
