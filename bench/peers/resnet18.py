"""torchvision's ResNet-18, trained from scratch on one split, as a peer of AlexNet.

The settings are those usual for small images: SGD with Nesterov momentum 0.9, weight decay 5e-4
on weight matrices, one cycle, batches of 64, the augmentation of the recipe `best`. The learning
rate is the better of 0.01 and 0.003 on the validation split of seed 100, by slice; at 0.05 the loss
jumped (docs/LOG.md). The epoch is chosen on validation, and the temperature fitted there, as for
AlexNet.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Dataset
from alexmri.data.loader import Loader, epoch_order, steps_per_epoch, train_batches
from alexmri.evaluation.calibration import fit_temperature
from alexmri.model.forward import Compute, choose_compute, predict_logits, to_input
from alexmri.model.predictor import softmax
from alexmri.settings import Settings
from alexmri.training.loop import best_epoch, validation_metrics

BATCH_SIZE = 64
LEARNING_RATE = 0.003
WEIGHT_DECAY = 5e-4


def build(classes: int, channels: int, stem: str) -> nn.Module:
    """Return the network; `small` is the stem for 32 pixels, where torchvision's leaves one.

    The small one (He et al. 2016, section 4.2) has a 3 x 3 convolution of stride 1 and no pooling:
    16 times the work, and the fairer peer.
    """
    network = resnet18(weights=None, num_classes=classes)
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network  # type: ignore[no-any-return]


def train(
    dataset: Dataset, settings: Settings, *, epochs: int, stem: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return probabilities (N, K) of the test split, and what was chosen."""
    part, validation = dataset.part("train"), dataset.part("validation")
    compute = choose_compute("auto")
    served = Compute(compute.device, "fp32")
    torch.manual_seed(settings.seed)
    network = build(len(dataset.classes), settings.channels, stem).to(compute.device)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    rest = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": rest},
    ]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)
    steps = epochs * steps_per_epoch(len(part), BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, cycle_momentum=False
    )
    loader, augment = Loader(part, compute.device), choose_augment(settings)
    history: list[dict[str, float]] = []
    best_weights = network.state_dict()
    for epoch in range(1, epochs + 1):
        network.train()
        order = epoch_order(len(part), seed=settings.seed, epoch=epoch)
        batches = list(train_batches(order, BATCH_SIZE))
        for rows_N, (pixels_NCHW, labels_N) in zip(batches, loader.batches(batches), strict=True):
            if augment:
                pixels_NCHW = augment(pixels_NCHW, epoch, rows_N)
            with compute.autocast():
                logits_NK = network(to_input(pixels_NCHW))
            loss = F.cross_entropy(logits_NK.float(), labels_N)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        logits = predict_logits(network, validation.pixels_NCHW, served)
        history.append({"epoch": epoch, **validation_metrics(logits, validation.labels_N)})
        if best_epoch(history, settings.early_stopping_metric) == epoch:
            best_weights = copy.deepcopy(network.state_dict())
        print(f"  epoch {epoch}: {history[-1]}", flush=True)
    network.load_state_dict(best_weights)
    logits = predict_logits(network, validation.pixels_NCHW, served)
    temperature = fit_temperature(logits, validation.labels_N)
    logits = predict_logits(network, dataset.part("test").pixels_NCHW, served)
    return softmax(logits, temperature), {
        "epoch": best_epoch(history, settings.early_stopping_metric),
        "epochs": epochs,
        "temperature": temperature,
        "stem": stem,
        "precision": compute.precision,
    }
