"""Say what a run is about, and whether another run may go on from its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.data.dataset import Dataset
from alexmri.data.pixels import BY_BRIGHTEST, PREPROCESSING
from alexmri.errors import UserError, option
from alexmri.settings import Settings

# Settings that steer the run but not its result: a resumed run may change them.
FREE_ON_RESUME = frozenset(
    {
        "checkpoint_every_epochs",
        "checkpoint_every_seconds",
        "keep_checkpoints",
        "checkpoint_s3",
        "export_onnx",
        "negative_class",
        "on_bad_image",
        "resume",
        "time_budget_seconds",
        "wandb_project",
        "wandb_mode",
        "workers_per_host",
    }
)
# Settings that make the pixels or the network, or deal out the images: they stay as they were.
FIXED_ON_RESUME = frozenset(
    {
        *("image_size", "channels", "center", "intensity", "num_classes", "seed"),
        *("split_by", "split_ratios", "group_regex", "groups_file"),
    }
)


def resume_check_of(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Return what a checkpoint says its run was about: settings, images, their pixels, split."""
    values = settings.model_dump(mode="json")
    return {
        "settings": {k: v for k, v in values.items() if k not in FREE_ON_RESUME},
        "data": dataset.fingerprint,
        "preprocessing": PREPROCESSING.name,
        "split": dataset.split_fingerprint,
    }


def settings_changed(before: Mapping[str, Any], resume_check: Mapping[str, Any]) -> dict[str, str]:
    """Return setting -> how it differs between two runs, in words."""
    then, now = before["settings"], resume_check["settings"]
    changed = [key for key, value in now.items() if then.get(key) != value]
    return {key: f"{key} was {then.get(key)}, is {now[key]}" for key in changed}


def images_changed(before: Mapping[str, Any], resume_check: Mapping[str, Any]) -> list[str]:
    """Return in words whether two runs have other images, other pixels of them or another split."""
    # The first version of the preprocessing did not stand in checkpoints.
    then = before.get("preprocessing", BY_BRIGHTEST.name)
    if then != resume_check["preprocessing"]:
        return [
            f"another version of alexmri decoded the images (preprocessing was {then}, is"
            f" {resume_check['preprocessing']})"
        ]
    if before["data"] != resume_check["data"]:
        return ["the images are not the same"]
    if before["split"] != resume_check["split"]:
        return ["the images are not split or ordered as before"]
    return []


def changes(
    before: Mapping[str, Any], resume_check: Mapping[str, Any], folder: Path, *, allowed: bool
) -> list[str]:
    """Return in words which settings changed since `before`, which was found in `folder`.

    Raises:
        UserError: changes that were not allowed, or that no run can go on with.
    """
    if not {"settings", "data", "split"} <= before.keys():
        raise UserError(
            f"the checkpoints in {folder} do not say which run they belong to; to start"
            f" anew set {option('resume', 'never')}"
        )
    words = settings_changed(before, resume_check)
    fixed = [word for key, word in words.items() if key in FIXED_ON_RESUME]
    fixed += images_changed(before, resume_check)
    if fixed or (words and not allowed):
        allow = "" if fixed else f" or set {option('resume', 'changed')} to go on with them;"
        raise UserError(
            f"the checkpoints in {folder} belong to another run:"
            f" {'; '.join(fixed or words.values())}; undo the change;{allow} to start anew choose"
            f" another output folder, or set {option('resume', 'never')}"
        )
    return list(words.values())
