"""The wrong answers a model is surest of, as small images with what it looked at."""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexmri.data.pixels import PixelRows
from alexmri.evaluation.predictions import Predictions
from alexmri.model.alexnet import AlexNet
from alexmri.model.gradcam import gradcam, overlay_png

MAX_SHOWN = 12
MAX_PER_SUBJECT = 2  # a person's slices look alike, and one wrong person would fill the page
SIDE = 160  # pixels
COLOURS = 128  # a palette halves the bytes, and nobody sees it at this size


@dataclass(frozen=True, slots=True)
class TopLoss:
    """A wrong answer: the image's name, both classes, how sure it was, two PNG images."""

    path: str
    true: str
    predicted: str
    probability: float
    image: bytes
    overlay: bytes


def find_top_losses(
    predictions: Predictions, pixels_NCHW: PixelRows, network: AlexNet, device: torch.device
) -> list[TopLoss]:
    """Return the wrong answers with the highest probability, at most 12 and 2 of a person.

    `pixels_NCHW` are the images of `predictions`, in their order. Overlays are Grad-CAM of the
    class that was answered: they show where it was seen, not why it is wrong.
    """
    answers_N = predictions.probabilities_NK.argmax(axis=1)
    wrong_M = np.flatnonzero(answers_N != predictions.labels_N)
    sure_M = predictions.probabilities_NK[wrong_M, answers_N[wrong_M]]
    seen: Counter[str] = Counter()
    chosen = []
    for row in wrong_M[np.argsort(-sure_M, kind="stable")].tolist():
        if predictions.subjects_N is not None:
            seen[predictions.subjects_N[row]] += 1
            if seen[predictions.subjects_N[row]] > MAX_PER_SUBJECT:
                continue
        chosen.append(row)
        if len(chosen) == MAX_SHOWN:
            break
    found = []
    for row in chosen:
        pixels_CHW, answer = pixels_NCHW[np.array([row])][0], int(answers_N[row])
        heat_HW = gradcam(network, pixels_CHW, answer, device)
        found.append(
            TopLoss(
                path=predictions.paths[row],
                true=predictions.classes[predictions.labels_N[row]],
                predicted=predictions.classes[answer],
                probability=float(predictions.probabilities_NK[row, answer]),
                image=_small(overlay_png(pixels_CHW, np.zeros_like(heat_HW))),
                overlay=_small(overlay_png(pixels_CHW, heat_HW)),
            )
        )
    return found


def _small(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        small: Any = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).quantize(COLOURS)
        small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
