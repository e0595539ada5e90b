"""timm's data set, loader, optimiser, schedule and meters around the same network.

They are put together as in timm's train.py, which is not part of its wheel. timm has no rotation
by a few degrees: its own random resized crop stands in for ShiftScaleRotate.
"""

import tempfile
from pathlib import Path

import torch
from job import Job
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter


def class_folders(job, root):
    """Link the training images into the class folders that timm reads."""
    for number, (path, label) in enumerate(job.rows("train")):
        folder = root / str(label)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}{Path(path).suffix}").symlink_to(Path(path).resolve())
    return root


def main():
    job = Job.read()
    settings = job.settings
    network = job.network().train()
    with tempfile.TemporaryDirectory() as folder:
        channels, size = settings["channels"], settings["image_size"]
        data = ImageDataset(
            class_folders(job, Path(folder)), input_img_mode="L" if channels == 1 else "RGB"
        )
        batches = create_loader(
            data,
            (channels, size, size),
            settings["batch_size"],
            is_training=True,
            scale=(0.9, 1.0),
            ratio=(0.95, 1.05),
            hflip=0.0,
            color_jitter=0.0,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
            num_workers=job.workers,
            use_prefetcher=job.device.type == "cuda",
            persistent_workers=job.workers > 0,
            device=job.device,
        )
        optimizer = create_optimizer_v2(
            network,
            opt="momentum",
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            momentum=settings["momentum"],
        )
        schedule = CosineLRScheduler(optimizer, t_initial=1000 * len(batches))
        criterion = torch.nn.CrossEntropyLoss()
        losses = AverageMeter()
        for step, (images, labels) in enumerate(job.timed(batches), 1):
            with job.autocast():
                loss = criterion(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            schedule.step_update(step)


if __name__ == "__main__":
    main()
