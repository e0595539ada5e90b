"""A real model of random weights behind Flask's test client."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from alexmri.model.alexnet import build
from alexmri.serving.app import create_app
from alexmri.serving.config import Config
from alexmri.serving.engine import Engine
from tests import bundles

from .asking import CLASSES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    network = build(classes=len(CLASSES), image_size=32, channels=1, dropout=0.5, seed=1)
    return bundles.save(folder, network, CLASSES)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    engine = Engine(bundle)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> FlaskClient:
    return create_app(engine).test_client()


@pytest.fixture
def client_of(bundle: Path) -> Callable[..., FlaskClient]:
    """A server with an environment of its own."""

    def make(**environment: str) -> FlaskClient:
        engine = Engine(bundle, Config.of({"ALEXMRI_MAX_BATCH_SIZE": "2", **environment}))
        engine.load()
        return create_app(engine).test_client()

    return make


@pytest.fixture(scope="module")
def image() -> Image.Image:
    noise = np.random.default_rng(5).integers(0, 256, (208, 176), dtype=np.uint8)
    return Image.fromarray(noise)
