"""A loop in the style of airbench (Jordan 2024, arXiv 2404.00498): all of it on the GPU.

Decoded once, kept on the device in half precision, shuffled and augmented an epoch at a time there,
half-precision weights, channels last, fused SGD, no step that waits, and a compiled network whose
kernels are launched as CUDA graphs. It writes no checkpoint and does not validate.
"""

import numpy as np
import torch
import torch.nn.functional as F
from job import Job
from PIL import Image
from torch import nn


def decoded(job):
    side, mode = job.settings["image_size"], "L" if job.settings["channels"] == 1 else "RGB"
    rows = job.rows("train")
    images = [
        np.asarray(Image.open(path).convert(mode).resize((side, side))).reshape(side, side, -1)
        for path, _ in rows
    ]
    pixels = torch.from_numpy(np.stack(images)).to(job.device).permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in rows], device=job.device)
    return (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last), labels


def augmented(images, settings):
    """Scale and rotate a random share of the images, about their centre."""
    count, device = len(images), images.device
    scale = 1 + settings["scale_limit"] * (2 * torch.rand(count, 2, device=device) - 1)
    degrees = settings["rotate_limit"] * (2 * torch.rand(count, device=device) - 1)
    angle = torch.deg2rad(degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = cos / scale[:, 0], -sin / scale[:, 0]
    theta[:, 1, 0], theta[:, 1, 1] = sin / scale[:, 1], cos / scale[:, 1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    # Black is -1, and what comes from outside is 0.
    moved = F.grid_sample(images + 1, grid, align_corners=True) - 1
    chosen = torch.rand(count, 1, 1, 1, device=device) < settings["augment_probability"]
    return torch.where(chosen, moved, images)


def main():
    job = Job.read()
    settings, dtype = job.settings, torch.bfloat16
    network = job.network().to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if not isinstance(module, nn.BatchNorm2d) and not list(module.children()):
            module.to(dtype)
    images, labels = decoded(job)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    total = 1000 * (len(images) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    if job.device.type == "cuda":
        network.compile(mode="reduce-overhead")
    for batch, batch_labels in job.timed(Epochs(images, labels, settings, dtype)):
        loss = F.cross_entropy(network(batch).float(), batch_labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


class Epochs:
    """The images, shuffled and augmented at the start of every epoch."""

    def __init__(self, images, labels, settings, dtype):
        self.images, self.labels, self.settings, self.dtype = images, labels, settings, dtype

    def __iter__(self):
        order = torch.randperm(len(self.images), device=self.images.device)
        shuffled = augmented(self.images, self.settings)[order].to(self.dtype)
        size = self.settings["batch_size"]
        for start in range(0, len(order) - size + 1, size):
            rows = slice(start, start + size)
            batch = shuffled[rows].contiguous(memory_format=torch.channels_last)
            yield batch, self.labels[order[rows]]


if __name__ == "__main__":
    main()
