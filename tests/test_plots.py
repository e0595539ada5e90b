"""Plots are plain, legible PNG bytes."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alexmri.evaluation import plots
from alexmri.evaluation.predictions import Predictions

from .report_facts import draw_all, history, predictions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert not {str(key).lower() for key in image.info} & {"software", "creation time", "date"}
        return image.size


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def test_plots_are_900_pixels_wide_and_equal_every_time() -> None:
    first, second = draw_all(), draw_all()
    assert first == second
    drawn = {"curves", "confusion", "confusion_subjects", "reliability", "roc", "precision_recall"}
    assert set(first) == drawn | {"roc_demented"}
    assert {size(png)[0] for png in first.values()} == {900}


def test_plots_show_what_they_are_given() -> None:
    rows = history(5)
    assert plots.curves(rows, best_epoch=2) != plots.curves(rows, best_epoch=4)
    # Without a word about it, the kept epoch is the one with the highest macro F1: the last here.
    assert plots.curves(rows) == plots.curves(rows, best_epoch=5)
    good = pixels(plots.confusion([[9, 0], [0, 9]], ("a", "b"), "t"))
    bad = pixels(plots.confusion([[0, 9], [9, 0]], ("a", "b"), "t"))
    height, width = good.shape[:2]
    corner = (height // 4, width - 60)  # the upper right cell
    assert good[corner].mean() > 230  # empty: light
    assert bad[corner].mean() < 120  # full: dark


def test_single_epoch_is_visible() -> None:
    ink = {tuple(rgb) for rgb in pixels(plots.curves(history(1)))[:, 150:600].reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in ink


@pytest.mark.parametrize("name", ["_hidden", "price $a$ $b$", r"\frac{", "健康", "x" * 300, ""])
def test_any_folder_name_can_be_drawn(name: str) -> None:
    p = predictions((name, "other"))
    assert size(plots.roc(p))[0] == 900
    assert size(plots.precision_recall(p))[0] == 900
    assert size(plots.roc_demented(p, name))[0] == 900
    assert size(plots.confusion([[3, 1], [0, 2]], (name, "other"), name))[0] == 900


def test_roc_and_confusion_of_a_split_with_one_class() -> None:
    one = Predictions(
        classes=("a", "b"),
        labels_N=np.zeros(3, dtype=np.int64),
        probabilities_NK=np.full((3, 2), 0.5),
        subjects_N=None,
        paths=("x.png",) * 3,
    )
    for draw in (plots.roc, plots.precision_recall):
        assert size(draw(one))[0] == 900
    assert size(plots.roc_demented(one, "a"))[0] == 900
    assert size(plots.confusion([[3, 0], [0, 0]], ("a", "b"), "one class"))[0] == 900


def test_no_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="no epochs"):
        plots.curves([])


def test_drawing_chooses_no_backend_and_keeps_no_figure() -> None:
    """A process without a screen draws, also in a thread and whatever screen is asked for."""
    program = (
        "import sys, concurrent.futures, matplotlib\n"
        "from tests.report_facts import draw_all\n"
        "with concurrent.futures.ThreadPoolExecutor(1) as pool: pool.submit(draw_all).result()\n"
        "pyplot = sys.modules.get('matplotlib.pyplot')\n"
        "assert pyplot is None or pyplot.get_fignums() == []\n"
        "assert 'matplotlib.backends.backend_tkagg' not in sys.modules\n"
        "assert matplotlib.get_backend(auto_select=False) in (None, 'tkagg')\n"
        "assert 'tkinter' not in sys.modules\n"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    environment.pop("DISPLAY", None)
    for screen in ({}, {"MPLBACKEND": "TkAgg"}):
        command = [sys.executable, "-W", "error", "-c", program]
        subprocess.run(command, check=True, env=environment | screen, cwd=ROOT)
