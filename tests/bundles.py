"""Model directories of networks that nobody trained."""

from pathlib import Path
from typing import Any

from alexmri.model.alexnet import AlexNet
from alexmri.model.bundle import save_bundle


def save(folder: Path, network: AlexNet, classes: tuple[str, ...], **changes: Any) -> Path:
    """Write `network` for gray pictures of 32 x 32 pixels as a model directory into `folder`."""
    usual: dict[str, Any] = {
        "image_size": 32,
        "channels": 1,
        "dropout": 0.5,
        "temperature": 1.5,
        "facts": {},
        "card": "# card",
    }
    save_bundle(folder, network, classes=classes, **(usual | changes))
    return folder
