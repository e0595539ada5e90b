"""Say what a run is about, and whether another run may go on from its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.data.dataset import Dataset
from alexmri.errors import UserError
from alexmri.settings import Settings

# Settings that steer the run but not its result: a resumed run may change them.
FREE_ON_RESUME = frozenset(
    {
        "checkpoint_every_epochs",
        "checkpoint_every_seconds",
        "keep_checkpoints",
        "checkpoint_s3",
        "export_onnx",
        "healthy_class",
        "on_bad_image",
        "resume",
        "time_budget_seconds",
        "wandb_project",
        "wandb_mode",
    }
)
# Settings that make the network or deal out the images: no run can go on with others.
FIXED_ON_RESUME = frozenset(
    {
        *("image_size", "channels", "num_classes", "seed"),
        *("split_by", "split_ratios", "group_regex", "groups_file"),
    }
)


def manifest_of(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Return what a checkpoint says its run was about: settings, images, split."""
    values = settings.model_dump(mode="json")
    return {
        "settings": {k: v for k, v in values.items() if k not in FREE_ON_RESUME},
        "data": dataset.fingerprint,
        "split": dataset.split_fingerprint,
    }


def changes(
    before: Mapping[str, Any], manifest: Mapping[str, Any], folder: Path, *, allowed: bool
) -> list[str]:
    """Return in words which settings changed between two manifests, the first found in `folder`.

    Raises:
        UserError: changes that were not allowed, or that no run can go on with.
    """
    now = manifest["settings"]
    changed = [key for key, value in now.items() if before["settings"].get(key) != value]
    words = {key: f"{key} was {before['settings'].get(key)}, is {now[key]}" for key in changed}
    fixed = [words[key] for key in changed if key in FIXED_ON_RESUME]
    if before["data"] != manifest["data"]:
        fixed.append("the images are not the same")
    elif before["split"] != manifest["split"]:
        fixed.append("the images are not split or ordered as before")
    if fixed or (changed and not allowed):
        allow = "" if fixed else " go on with them by resume=changed,"
        raise UserError(
            f"the checkpoints in {folder} belong to another run:"
            f" {'; '.join(fixed or words.values())}; undo the change,{allow} choose another output"
            " folder, or start anew by resume=never (--overwrite for `alexmri train`)"
        )
    return list(words.values())
