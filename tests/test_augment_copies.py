"""`alexmri augment`: augmented copies of training images, written to a folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexmri.data.augment_copies import write_copies
from alexmri.data.dataset import load_dataset
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal

from .conftest import ImageMaker
from .test_cli import run

NAMES = (
    *("train/A/1 (1).png", "train/A/1 (2).jpg", "train/B/1 (1).png", "train/B/deep/2 (1).png"),
    *("valid/A/1 (7).png", "valid/B/1 (8).png", "test/A/1 (9).png"),
)


def write(source: Path, target: Path, **values: object) -> None:
    settings = resolve([Layer("test", values)]).settings
    write_copies(source, target, copies=2, settings=settings, workers=2, terminal=PlainTerminal())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_only_training_images_get_copies_and_the_rest_stays(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    source = make_images(*NAMES, size=(40, 56))
    done = run("augment", source, tmp_path / "out", "--copies", "2", "--rotate-limit", "45")
    assert "7 images" in done.stdout
    assert "8 augmented copies" in done.stdout
    before, after = content(source), content(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    added = set(after) - set(before)
    assert added == {
        f"train/{folder}copy-{copy}/{name}.png"
        for copy in (1, 2)
        for folder, name in (
            ("A/", "1 (1)"),
            ("A/", "1 (2)"),
            ("B/", "1 (1)"),
            ("B/deep/", "2 (1)"),
        )
    }
    assert len({after[name] for name in added}) == len(added)
    with Image.open(tmp_path / "out" / "train/A/copy-1/1 (1).png") as picture:
        assert picture.size == (40, 56)
        assert picture.mode == "L"
        assert np.asarray(picture)[0, 0] == 0  # turned: the corner came from outside


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    source = make_images(*NAMES, mode="RGB")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(source, tmp_path / name, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_a_copy_shows_the_person_of_its_image(make_images: ImageMaker, tmp_path: Path) -> None:
    source = make_images(*NAMES)
    people = {name: f"{name.split('/')[1]}{Path(name).stem}" for name in NAMES}
    rows = "".join(f"{name},{person}\n" for name, person in people.items())
    (source / "who.csv").write_text(f"path,subject\n{rows}")
    write(source, tmp_path / "out", groups_file="who.csv")
    settings = resolve([Layer("test", {"groups_file": "who.csv"})]).settings
    dataset = load_dataset(
        {"train": tmp_path / "out"}, settings, workers=1, terminal=PlainTerminal()
    )
    assert dataset.groups is not None
    for image, person in zip(dataset.folder.images, dataset.groups.subjects, strict=True):
        assert person == f"{image.label}{image.path.stem}"
    assert dataset.subjects_shared == 0


def test_what_has_no_training_split_of_its_own_is_refused(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    source = make_images("A/1.png", "B/1.png")
    with pytest.raises(UserError, match="does not hold a train and a valid folder"):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(make_images: ImageMaker, tmp_path: Path) -> None:
    source, out = make_images(*NAMES), tmp_path / "out"
    with pytest.raises(UserError, match="lies inside the data folder"):
        write(source, source / "train" / "C")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused = run("augment", source, out, "--copies", "1", check=False)
    assert refused.returncode == 2
    assert f"error: {out} is not empty" in refused.stderr
    assert content(out) == {"mine.txt": b"mine"}


def test_copies_that_would_have_one_name_are_refused(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    source = make_images(*NAMES, "train/A/1 (1).bmp")
    with pytest.raises(UserError, match=r"1 \(1\).bmp and .* would have the same name"):
        write(source, tmp_path / "out")


def test_an_unreadable_picture_leaves_no_half_filled_folder(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    source = make_images(*NAMES)
    (source / "train/B/broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png cannot be read as a picture"):
        write(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
