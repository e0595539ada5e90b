"""The surest mistakes, and only mistakes, as pictures."""

import io

import numpy as np
import torch
from PIL import Image

from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.top_losses import MAX_PER_SUBJECT, MAX_SHOWN, SIDE, find_top_losses
from alexmri.model.alexnet import build

N = 40


def predicted(subjects: tuple[str, ...] | None, right: int = 0) -> Predictions:
    """Return predictions where the first `right` are right; the others are ever surer."""
    sure_N = np.linspace(0.55, 0.95, N)
    wrong_NK = np.stack([1 - sure_N, sure_N], axis=1)
    wrong_NK[:right] = [1.0, 0.0]
    return Predictions(
        classes=("a", "b"),
        labels_N=np.zeros(N, dtype=np.int64),
        probabilities_NK=wrong_NK,
        subjects_N=subjects,
        paths=tuple(f"{n}.png" for n in range(N)),
    )


def test_the_surest_wrong_answers_come_first() -> None:
    network = build(classes=2, image_size=32, channels=1, dropout=0.0, seed=0).eval()
    pixels_NCHW = np.random.default_rng(0).integers(0, 256, (N, 1, 32, 32), dtype=np.uint8)
    cpu = torch.device("cpu")

    def names(predictions: Predictions) -> list[str]:
        return [m.path for m in find_top_losses(predictions, pixels_NCHW, network, cpu)]

    found = find_top_losses(predicted(None), pixels_NCHW, network, cpu)
    assert [m.path for m in found] == [f"{n}.png" for n in range(N - 1, N - 1 - MAX_SHOWN, -1)]
    assert (found[0].true, found[0].predicted) == ("a", "b")
    assert found[0].probability == 0.95
    sizes = set()
    for png in (found[0].image, found[0].overlay):
        with Image.open(io.BytesIO(png)) as picture:
            sizes.add((picture.format, picture.size))
    assert sizes == {("PNG", (SIDE, SIDE))}
    assert sum(len(m.image) + len(m.overlay) for m in found) < 700_000

    assert names(predicted(None, right=N)) == []
    assert names(predicted(None, right=N - 1)) == [f"{N - 1}.png"]
    one_subject = names(predicted(("p",) * N))
    assert one_subject == [f"{N - 1}.png", f"{N - 2}.png"][:MAX_PER_SUBJECT]
