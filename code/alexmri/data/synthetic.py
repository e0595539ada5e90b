"""Tell images that `alexmri demo-data` has drawn, wherever they were copied to."""

from collections import defaultdict
from pathlib import Path

from alexmri.data.folders import Folder

NOTICE = (
    "SYNTHETIC DATA: alexmri has drawn these images. They show no people, and no figure here says"
    " anything about people."
)
FOUND_BY_NAMES = "names of the synthetic images"
# The comment in each image that phantom.py draws, and the README beside them: images that were
# converted to another format have lost the comment.
COMMENT = b"(alexmri phantom)"
README, README_TEXT = "README.txt", "drawn by alexmri"
# Images that are looked at in each class of each split, and how much of each.
MAX_LOOKED_AT, HEAD_BYTES = 16, 4096


def is_synthetic(folder: Folder) -> bool:
    """Whether there are images drawn by alexmri in `folder`."""
    tops = {folder.root}
    by_class: dict[tuple[str | None, str], list[Path]] = defaultdict(list)
    for image in folder.images:
        by_class[image.split, image.label].append(image.path)
    for paths in by_class.values():
        every = -(-len(paths) // MAX_LOOKED_AT)
        if any(COMMENT in _head(path) for path in paths[::every]):
            return True
        tops.update(paths[0].parents[1:3])
    return any(README_TEXT.encode() in _head(top / README) for top in sorted(tops))


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device may never end
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
