"""Fixtures that several test modules share."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexmri.data.phantom import write_demo_data

REAL_SLICES = Path(__file__).parents[2] / "shared" / "data" / "alzheimer-mri"


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own cache, and no settings or keys from whoever runs the tests."""
    monkeypatch.setenv("ALEXMRI_CACHE_DIR", str(tmp_path / "cache"))
    for name in os.environ:
        if name.startswith(("WANDB_", "ALEXMRI_")) and name != "ALEXMRI_CACHE_DIR":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo data set: 4 classes, 3 people each, 8 slices a person."""
    folder = tmp_path_factory.mktemp("demo") / "slices"
    people = {"MildDemented": 3, "ModerateDemented": 3, "NonDemented": 3, "VeryMildDemented": 3}
    write_demo_data(folder, subjects=people, slices=8)
    return folder


@pytest.fixture(scope="session")
def real_slices() -> Path:
    """The real slices developers have; their people may not be passed on with the code."""
    if not REAL_SLICES.is_dir():
        pytest.skip(f"the real slices are not in {REAL_SLICES}")
    return REAL_SLICES


@pytest.fixture
def make_images(tmp_path: Path) -> "ImageMaker":
    return ImageMaker(tmp_path / "images")


class ImageMaker:
    """Writes small pictures of noise, each unlike any other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._generator = np.random.default_rng(0)

    def __call__(self, *names: str, mode: str = "L", size: tuple[int, int] = (40, 40)) -> Path:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = self._generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(path)
        return self.root
