"""The textbook trainer: files -> PIL -> albumentations in DataLoader workers -> float32 step.

Written as tutorials write it, with the recipe, the network and the split of the engine. With
precision bf16 the forward pass runs under autocast; nothing else changes.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import warnings

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from job import Job, answer
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset

# ShiftScaleRotate says that it is deprecated.
warnings.filterwarnings("ignore", category=UserWarning)


class SliceDataset(Dataset):
    def __init__(self, rows, settings, augmented):
        self.rows = rows
        self.mode = "L" if settings["channels"] == 1 else "RGB"
        transforms = [A.Resize(settings["image_size"], settings["image_size"])]
        if augmented and settings["augment"] != "none":
            transforms.append(
                A.ShiftScaleRotate(
                    shift_limit=settings["shift_limit"],
                    scale_limit=settings["scale_limit"],
                    rotate_limit=settings["rotate_limit"],
                    border_mode=cv2.BORDER_CONSTANT,
                    p=settings["augment_probability"],
                )
            )
        self.transform = A.Compose([*transforms, A.Normalize((0.5,), (0.5,)), ToTensorV2()])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        path, label = self.rows[index]
        image = np.array(Image.open(path).convert(self.mode))
        return self.transform(image=image)["image"], label


def loader(job, split):
    return DataLoader(
        SliceDataset(job.rows(split), job.settings, augmented=split == "train"),
        batch_size=job.settings["batch_size"],
        shuffle=split == "train",
        num_workers=job.workers,
        pin_memory=job.device.type == "cuda",
        drop_last=split == "train",
    )


def optimizer_and_schedule(network, settings, total_steps):
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1]},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["learning_rate"], total_steps=total_steps, cycle_momentum=False
    )
    return optimizer, schedule


def evaluate(network, batches, device):
    network.eval()
    truth, answers = [], []
    with torch.no_grad():
        for images, labels in batches:
            answers += network(images.to(device)).argmax(dim=1).tolist()
            truth += labels.tolist()
    return {
        "accuracy": accuracy_score(truth, answers),
        "macro_f1": f1_score(truth, answers, average="macro"),
    }


def main():
    job = Job.read()
    network = job.network()
    batches = loader(job, "train")
    epochs = job.epochs or 1000
    optimizer, schedule = optimizer_and_schedule(network, job.settings, epochs * len(batches))
    criterion = nn.CrossEntropyLoss()
    best, best_f1 = None, -1.0
    for _ in range(epochs):
        network.train()
        running_loss = 0.0
        for images, labels in batches if job.epochs else job.timed(batches):
            images, labels = images.to(job.device), labels.to(job.device)
            optimizer.zero_grad()
            with job.autocast():
                logits = network(images)
                loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            running_loss += loss.item()
        if not job.epochs:
            return
        f1 = evaluate(network, loader(job, "validation"), job.device)["macro_f1"]
        if f1 > best_f1:
            best, best_f1 = {k: v.clone() for k, v in network.state_dict().items()}, f1
    network.load_state_dict(best)
    answer(**evaluate(network, loader(job, "test"), job.device))


if __name__ == "__main__":
    main()
