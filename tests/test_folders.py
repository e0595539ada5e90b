"""Which folders are classes, which files are images, and what is refused."""

import os
from pathlib import Path

import pytest
from PIL import Image

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


def test_every_spelling_of_jpeg_is_read(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "B/1.png")
    for suffix in (".jfif", ".jpe", ".JFIF", ".pjpeg"):
        Image.new("L", (40, 40), 7).save(root / "A" / f"x{suffix}", "JPEG")
    folder = discover(root)
    assert len(folder.images) == 6
    assert folder.left_out == ()


@pytest.mark.parametrize(
    "name",
    [
        *("lost+found", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir"),
        *(".ipynb_checkpoints", "#recycle", "FOUND.000", ".Trash-1000"),
    ],
)
def test_what_systems_leave_is_passed_over_at_every_level(
    make_images: ImageMaker, name: str
) -> None:
    names = [f"{top}/{label}/1.png" for top in ("train", "test") for label in "AB"]
    root = make_images(*names)
    places = [root, root / "train", root / "test", root / "train" / "A", root / "test" / "B"]
    for place in places:
        (place / name).mkdir()
        Image.new("L", (40, 40)).save(place / name / "thumbnail.png")
    for found in (
        discover(root),
        discover_channels({"train": root / "train", "test": root / "test"}),
        discover(root / "train"),
    ):
        assert found.classes == ("A", "B")
        assert not any("thumbnail" in image.name for image in found.images)
        assert found.left_out == ()
    assert len(discover_for_test(root).images) == 2
    for place in places:  # as lost+found is for everybody but root
        (place / name).chmod(0)
    assert len(discover(root).images) == 4
    for place in places:
        (place / name).chmod(0o755)


@pytest.mark.parametrize("beside", ["all", "dev", "Test_set"])
def test_a_folder_beside_the_splits_is_named_with_its_images(
    make_images: ImageMaker, beside: str
) -> None:
    root = make_images(
        *(f"{split}/{label}/1.png" for split in ("train", "val") for label in "AB"),
        *(f"{beside}/{label}/{i}.png" for label in "AB" for i in range(3)),
    )
    (sentence,) = discover(root).left_out
    assert f"the folder '{beside}' (6 images)" in sentence
    assert "stands beside train, val" in sentence


def test_a_folder_beside_train_alone_is_named_too(make_images: ImageMaker) -> None:
    root = make_images("train/A/1.png", "train/B/1.png", "Test_set/A/1.png", "Test_set/B/1.png")
    folder = discover(root)
    assert len(folder.images) == 2
    assert "'Test_set' (2 images)" in folder.left_out[0]


def test_files_that_may_be_data_are_named_with_number_and_reason(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "B/1.png", "stray.png")
    for name in ("A/1.gif", "A/2.GIF", "B/3.gif", "B/scan.nii.gz", "A/notes.txt", "B/Thumbs.db"):
        (root / name).write_bytes(b"x")
    (root / "A" / "IM0001").write_bytes(bytes(128) + b"DICM")
    folder = discover(root)
    assert len(folder.images) == 2
    assert folder.ignored_files == 8
    said = "; ".join(folder.left_out)
    assert "3 .gif files in class folders (A 2, B 1): only JPEG, PNG" in said
    assert "1 .nii.gz file in class folders (B 1): scans are not trained on" in said
    assert "1 DICOM file in class folders (A 1): scans are not trained on" in said
    assert "1 image in the data folder" in said
    assert "txt" not in said
    assert str(root) not in said  # it stands in the model file too


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_of_scans_is_told_from_an_empty_one(make_images: ImageMaker, split: str) -> None:
    root = make_images(f"{split}A/1.png")
    folder = root / split / "B"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"B holds 30 \.dcm files and no images: scans"):
        discover(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"{top}Dataset/{label}/1.png" for top in ("Augmented", "Original")
             for label in ("Mild", "Non")],
            "'AugmentedDataset' and 'OriginalDataset' hold the same sub-folders 'Mild' and 'Non'"
            ".*one level too high; pass one of them, such as .*/AugmentedDataset",
        ),
        (
            [f"{top}/data/{label}/1.png" for top in ("a", "b") for label in ("Mild", "Non")],
            "hold the same sub-folders 'data/Mild' and 'data/Non'",
        ),
        (
            # One of three lacks a class, another has images of its own.
            ["a/Mild/1.png", "a/Non/1.png", "b/Mild/1.png", "b/Non/1.png", "b/More/1.png"],
            "'a' and 'b' hold the same sub-folders 'Mild' and 'Non'",
        ),
        (
            [f"{label}/{split}/1.png" for label in "AB" for split in ("train", "test")],
            "'A' and 'B' hold the same sub-folders 'test' and 'train'.*(train/A|test/A)",
        ),
        (
            ["test/A/1.png", "test/B/1.png", "valid/A/1.png", "valid/B/1.png"],
            "holds 'test' and 'valid' where class folders should be.*into a train folder",
        ),
        (["A/1.png", "B/1.png", "test/A/1.png"], "holds 'test' where class folders should be"),
    ],
)  # fmt: skip
def test_a_folder_one_level_too_high_is_refused(
    make_images: ImageMaker, names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        discover(make_images(*names))
    assert "\n" not in str(refused.value)


def test_channels_that_each_hold_a_whole_split_are_refused(make_images: ImageMaker) -> None:
    root = make_images(
        *(f"{channel}/{split}/{label}/1.png" for channel in ("train", "test")
          for split in ("train", "valid", "test") for label in "AB")
    )  # fmt: skip
    with pytest.raises(UserError, match="holds 'test', 'train' and 'valid' where class folders"):
        discover_channels({"train": root / "train", "test": root / "test"})


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (("1", "2", "3"), True),
        (("axial", "coronal"), False),
        (("x",), False),
        (("images", "masks"), False),
        (("male/axial", "female/axial"), False),
        ((".", "early", "late"), True),
    ],
)
def test_subfolders_that_may_divide_a_class_are_read(
    make_images: ImageMaker, inner: tuple[str, ...], said: bool
) -> None:
    root = make_images(*(f"{label}/{name}/1.png" for label in "AB" for name in inner))
    folder = discover(root)
    assert folder.classes == ("A", "B")
    assert any("hold the same sub-folders" in sentence for sentence in folder.left_out) == said
