"""Which folders are classes, which files are images, and what is refused."""

import os
from pathlib import Path

import pytest

from alexmri.data.folders import discover, discover_channels, discover_for_test
from alexmri.errors import UserError

from .conftest import ImageMaker


def test_finds_every_format_in_any_case_and_nested_folders(make_images: ImageMaker) -> None:
    formats = ["a.jpg", "b.JPEG", "c.png", "d.BMP", "e.tif", "f.Tiff", "g.webp"]
    root = make_images(*(f"Mild/{name}" for name in formats), "Non/deep/er/x.png", "Non/y.png")
    folder = discover(root)
    assert folder.classes == ("Mild", "Non")
    assert [image.name for image in folder.images if image.label == "Non"] == [
        "Non/deep/er/x.png",
        "Non/y.png",
    ]
    assert len(folder.images) == 9
    assert not folder.is_split


def test_hidden_and_foreign_files_are_counted_not_read(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "B/1.png")
    for name in ("A/.hidden.png", "A/notes.txt", "B/Thumbs.db", "README.md"):
        (root / name).write_text("not an image")
    (root / ".git").mkdir()
    (root / ".git" / "1.png").write_text("not a class")
    folder = discover(root)
    assert len(folder.images) == 2
    assert folder.ignored_files == 4


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_a_split_folder_keeps_its_split(make_images: ImageMaker, validation: str) -> None:
    root = make_images(
        "Train/A/1.png", "Train/B/1.png", f"{validation}/A/2.png", "test/A/3.png", "test/B/3.png"
    )
    folder = discover(root)
    assert folder.is_split
    assert [(image.name.split("/")[0], image.split) for image in folder.images] == [
        *[("Train", "train")] * 2,
        *sorted([(validation, "validation"), ("test", "test"), ("test", "test")]),
    ]


def test_a_train_folder_alone_is_the_whole_data_set(make_images: ImageMaker) -> None:
    folder = discover(make_images("train/A/1.png", "train/B/1.png"))
    assert folder.classes == ("A", "B")
    assert not folder.is_split


def test_channels_are_splits(make_images: ImageMaker) -> None:
    root = make_images("x/A/1.png", "x/B/1.png", "y/A/2.png", "y/B/2.png")
    folder = discover_channels({"train": root / "x", "test": root / "y"})
    assert {image.split for image in folder.images} == {"train", "test"}
    assert folder.images[0].class_and_file == "A/1.png"


def test_a_channel_list_without_train_is_refused(make_images: ImageMaker) -> None:
    root = make_images("x/A/1.png", "y/A/2.png")
    with pytest.raises(UserError, match="no train folder among test, validation"):
        discover_channels({"test": root / "x", "validation": root / "y"})


def test_a_loop_of_links_ends(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "B/1.png")
    (root / "A" / "again").symlink_to(root / "A", target_is_directory=True)
    assert len(discover(root).images) == 2


def test_a_test_folder_may_lack_classes(make_images: ImageMaker) -> None:
    root = make_images("train/A/1.png", "train/B/1.png", "test/A/3.png")
    assert [image.name for image in discover_for_test(root).images] == ["test/A/3.png"]


@pytest.mark.parametrize(
    ("names", "folders", "message"),
    [
        ([], [], "has no class folders"),
        (["A/1.png"], [], "only one class folder, 'A'"),
        (["A/1.png", "B/1.png"], ["C"], "C holds no images"),
        (["Mild/1.png", "mild/2.png"], [], "'Mild' and 'mild' .* differ only in case"),
        (["train/A/1.png", "train/B/1.png", "Train/A/1.png"], [], "two folders for train"),
        (
            ["train/A/1.png", "train/B/1.png", "test/C/1.png"],
            [],
            "class 'C' has images, but none in the train folder",
        ),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(
    make_images: ImageMaker, names: list[str], folders: list[str], message: str
) -> None:
    root = make_images(*names)
    for name in folders:
        (root / name).mkdir()
    with pytest.raises(UserError, match=message) as refused:
        discover(root)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_no_text_is_refused(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "B/1.png")
    (root / "A" / "1.png").rename(root / "A" / os.fsdecode(b"\xff.png"))
    with pytest.raises(UserError, match="is not valid UTF-8; rename it") as refused:
        discover(root)
    str(refused.value).encode()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        discover(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere does not exist"):
        discover_for_test(tmp_path / "nowhere")
