"""From a folder to pixels, people and splits: decoded once, refused clearly."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexmri.data.audit import audit
from alexmri.data.dataset import Dataset, load_dataset, preprocessing_of
from alexmri.data.pixels import decode
from alexmri.errors import UserError
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal

from .conftest import ImageMaker

pytestmark = pytest.mark.slow


def load(folder: Path, **values: object) -> Dataset:
    return load_dataset(
        {"train": folder}, settings_of(**values), workers=2, terminal=PlainTerminal()
    )


def settings_of(**values: object) -> Settings:
    return resolve([Layer("test", values)]).settings


def audited(folder: Path, **values: object) -> dict[str, object]:
    dataset = load(folder, **values)
    return audit(dataset, settings_of(**values)).document


@pytest.fixture(params=["threads", "processes"])
def decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "processes":
        monkeypatch.setattr("alexmri.data.decode.PROCESSES_FROM", 1)
        monkeypatch.setattr("alexmri.data.decode.CHUNK", 5)


@pytest.mark.usefixtures("decoders")
def test_every_image_is_decoded_as_serving_would(demo: Path) -> None:
    dataset = load(demo)
    preprocessing = preprocessing_of(resolve([]).settings)
    for i in (0, 41, len(dataset.folder.images) - 1):
        expected = decode(
            dataset.folder.images[i].path, image_size=32, channels=1, preprocessing=preprocessing
        )
        assert np.array_equal(dataset.cache.pixels_NCHW[i], expected)


def test_decoded_images_are_reused_until_a_file_changes(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(9)))
    first = load(root)
    assert not first.cache.reused
    again = load(root)
    assert again.cache.reused
    assert again.cache.sha256 == first.cache.sha256
    assert isinstance(again.cache.pixels_NCHW, np.memmap)
    Image.new("L", (40, 40), 7).save(root / "A" / "0.png")
    changed = load(root)
    assert not changed.cache.reused
    assert (changed.cache.pixels_NCHW[0] == 7).all()
    assert changed.fingerprint != first.fingerprint
    assert not load(root, image_size=48).cache.reused


def test_the_cache_is_beside_the_user_unless_told_otherwise(
    make_images: ImageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(9)))
    monkeypatch.delenv("ALEXMRI_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load(root)
    assert len(list((tmp_path / "home" / "alexmri").glob("*.npy"))) == 1
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(root)
    assert len(list(tmp_path.glob(f"alexmri-cache-{os.getuid()}/*.npy"))) == 1


def test_renaming_files_changes_neither_fingerprint_nor_split(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(40)))
    before = load(root)
    places = dict(zip(before.cache.sha256, before.split.assigned, strict=True))
    for path in sorted((root / "A").iterdir()):
        path.rename(path.with_name(f"renamed {path.name}"))
    after = load(root)
    assert after.fingerprint == before.fingerprint
    assert dict(zip(after.cache.sha256, after.split.assigned, strict=True)) == places


@pytest.mark.usefixtures("decoders")
def test_unreadable_images_are_named_together(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(9)))
    whole = (root / "A" / "3.png").read_bytes()
    (root / "A" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"A/3\.png cannot be read .*truncated.*; repair or remove"):
        load(root)
    for i in range(4, 9):
        (root / "A" / f"{i}.png").write_text("no picture")
    with pytest.raises(
        UserError, match=r"6 of 18 images cannot be used: .*A/3\.png .*; and 1 more"
    ):
        load(root)


def test_an_image_that_cannot_be_opened_is_named(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "A/2.png", "B/1.png", "B/2.png")
    (root / "A" / "3.png").symlink_to(root / "gone.png")
    with pytest.raises(UserError, match=r"A/3\.png cannot be read: No such file"):
        load(root)


def test_a_pipe_or_device_among_the_images_is_refused_and_not_waited_for(
    make_images: ImageMaker,
) -> None:
    root = make_images("A/1.png", "A/2.png", "B/1.png", "B/2.png")
    os.mkfifo(root / "A" / "3.png")
    (root / "B" / "3.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"A/3\.png is not a file; .*B/3\.png is not a file"):
        load(root)


def spoil(path: Path) -> bytes:
    """Truncate a picture; return what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def test_skipping_bad_images_equals_removing_them_and_is_told(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    root = make_images(*(f"{label}/{i} ({i % 5}).png" for label in "AB" for i in range(60)))
    before = load(root)
    spoil(root / "A" / "3 (3).png")
    (root / "A" / "9 (4).png").write_text("no picture")
    (root / "B" / "7 (2).png").unlink()
    (root / "B" / "7 (2).png").symlink_to(root / "gone.png")
    dataset = load(root, on_bad_image="skip")
    assert dict(dataset.cache.skipped) == {
        "A/3 (3).png": "cannot be read as an image: image file is truncated",
        "A/9 (4).png": "cannot be read as an image: it is none of JPEG, PNG, BMP, TIFF, WEBP,"
        " or damaged",
        "B/7 (2).png": "cannot be read: No such file or directory",
    }
    found = audited(root, on_bad_image="skip")
    assert found["images"] == 117
    assert found["skipped_images"] == dataset.cache.skipped
    assert found["warnings"][0].startswith(
        "left out because on_bad_image is skip: 3 of 120 images: A/3 (3).png cannot be read as"
    )
    assert str(tmp_path) not in str(found["warnings"])  # they stand in the model file too

    for name in dataset.cache.skipped:
        (root / name).unlink()
    removed = load(root)
    assert dataset.fingerprint == removed.fingerprint
    assert dataset.split_fingerprint == removed.split_fingerprint
    assert dataset.subjects == removed.subjects
    assert dataset.folder.images == removed.folder.images
    assert np.array_equal(dataset.cache.pixels_NCHW, removed.cache.pixels_NCHW)
    places = dict(zip(before.cache.sha256, before.split.assigned, strict=True))
    for sha, place in zip(dataset.cache.sha256, dataset.split.assigned, strict=True):
        assert places[sha] == place


def test_skipped_images_are_remembered_until_they_can_be_read(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(30)))
    bad = root / "A" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"x" * len(whole))
    os.utime(bad, ns=(0, 0))
    assert not load(root, on_bad_image="skip").cache.reused
    again = load(root, on_bad_image="skip")
    assert again.cache.reused
    assert list(again.cache.skipped) == ["A/3.png"]
    assert len(again.cache.pixels_NCHW) == 59
    with pytest.raises(UserError, match=r"A/3\.png cannot be read .*--on-bad-image skip"):
        load(root)
    bad.write_bytes(whole)
    os.utime(bad, ns=(0, 0))  # as after a fault of the disk or of rights: the file is as it was
    assert len(load(root).cache.pixels_NCHW) == 60


def test_too_many_bad_images_are_refused_even_if_they_may_be_skipped(
    make_images: ImageMaker,
) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(50)))
    for i in range(5):
        spoil(root / "A" / f"{i}.png")
    assert len(load(root, on_bad_image="skip").cache.skipped) == 5
    spoil(root / "B" / "0.png")
    with pytest.raises(UserError, match=r"6 of 100 .*A/0\.png .*; and 1 more; .*most 5 %"):
        load(root, on_bad_image="skip")


def test_a_class_may_not_be_skipped_away(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(50)), "C/0.png")
    spoil(root / "C" / "0.png")
    with pytest.raises(UserError, match=r"no image of class 'C' can be read: 1 of 101 .*C/0\.png"):
        load(root, on_bad_image="skip")
    names = [f"train/{label}/{i}.png" for label in "AB" for i in range(50)]
    root = make_images(*names, "test/A/0.png", "test/B/0.png")
    spoil(root / "test" / "B" / "0.png")
    with pytest.raises(UserError, match="no image of class 'B' in test can be read"):
        load(root, on_bad_image="skip")


def test_small_images_are_enlarged_and_told(make_images: ImageMaker) -> None:
    make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(9)))
    root = make_images("A/small.png", size=(20, 40))
    assert "enlarged, because smaller than the network's input: 1 image" in str(
        audited(root)["warnings"]
    )


def test_the_number_of_classes_is_checked(demo: Path) -> None:
    with pytest.raises(UserError, match="num_classes is 3, but .* has 4 class folders: Mild"):
        load(demo, num_classes=3)


def test_a_split_by_subject_shares_nobody(demo: Path) -> None:
    dataset = load(demo, split_by="subject")
    assert dataset.subjects_shared == 0
    assert load(demo).subjects_shared >= 9
    for split, counts in dataset.counts().items():
        if split != "validation":
            assert min(counts.values()) >= 8


def test_a_split_by_subject_needs_people(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/scan{i}x.png" for label in "AB" for i in range(9)))
    with pytest.raises(UserError, match=r"do not tell who .*pass group_regex, groups_file"):
        load(root, split_by="subject")
    dataset = load(root, split_by="subject", group_regex=r"scan([0-9])")
    assert dataset.subjects is not None
    assert dataset.subjects.count == 9


def test_a_split_by_subject_names_the_files_that_do_not_fit(make_images: ImageMaker) -> None:
    names = [f"{label}/{i} ({p}).png" for label in "AB" for p in range(1, 8) for i in range(4)]
    root = make_images(*names, "A/1 (2) - edited.png")
    with pytest.raises(
        UserError,
        match=r"1 of 57 file names do not tell .*: A/1 \(2\) - edited.png; rename",
    ):
        load(root, split_by="subject")
    notes = load(root).notes
    assert any(
        "1 of 57 file names do not fit the pattern of Kaggle" in note and "edited.png" in note
        for note in notes
    )
    (root / "A" / "1 (2) - edited.png").write_bytes((root / "A" / "1 (2).png").read_bytes())
    dataset = load(root, split_by="subject")
    assert dataset.subjects_shared == 0
    places = dict(zip([i.name for i in dataset.folder.images], dataset.split.assigned, strict=True))
    assert places["A/1 (2) - edited.png"] == places["A/1 (2).png"]
    assert not dataset.notes or "fit" not in str(dataset.notes)


def test_names_of_which_too_many_do_not_fit_are_named_not_those_that_do(
    make_images: ImageMaker,
) -> None:
    names = [f"{label}/{i} ({p}).png" for label in "AB" for p in range(1, 8) for i in range(2)]
    root = make_images(*names, *(f"B/odd{i}.png" for i in range(7)))
    with pytest.raises(
        UserError, match=r"7 of 35 file names do not fit the pattern of Kaggle file names: B/odd0"
    ):
        load(root, split_by="subject")
    assert "B/odd0.png" in str(load(root).notes)


def test_what_was_left_out_is_among_the_warnings(make_images: ImageMaker) -> None:
    names = [f"{split}/{label}/{i}.png" for split in ("train", "val") for label in "AB"
             for i in range(9)]  # fmt: skip
    root = make_images(*names, "all/A/1.png")
    (root / "train" / "A" / "1.gif").write_bytes(b"GIF89a")
    warnings = str(audited(root)["warnings"])
    assert "the folder 'all' (1 image)" in warnings
    assert "1 .gif file in class folders (train/A 1)" in warnings


def split_by_hand(demo: Path, root: Path, **places: Callable[[int, int], bool]) -> Path:
    """Copy the slices of `demo` (3 subjects a class, 8 slices each) into folders of splits."""
    for path in sorted(demo.glob("*/*.jpg")):
        number, subject = (int(part) for part in path.stem.strip(")").split(" ("))
        for split, belongs in places.items():
            if belongs(subject, number):
                target = root / split / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return root


def test_without_a_test_split_train_is_compared_with_validation(demo: Path, tmp_path: Path) -> None:
    root = split_by_hand(
        demo, tmp_path / "shared", train=lambda s, n: s < 3, validation=lambda s, n: s == 3 or n > 6
    )
    dataset = load(root)
    assert dataset.compared_with == "validation"
    assert dataset.subjects_shared == 8  # of 12
    assert dataset.subjects_between == {"train_validation": 8}
    found = audited(root)
    assert found["compared_with"] == "validation"
    assert found["subjects_shared"] == 8
    assert found["leak_probe"]["slice"] is not None
    root = split_by_hand(
        demo, tmp_path / "apart", train=lambda s, n: s < 3, validation=lambda s, n: s == 3
    )
    assert load(root).subjects_shared == 0


def test_subjects_of_training_in_validation_are_counted_beside_a_clean_test_split(
    demo: Path, tmp_path: Path
) -> None:
    root = split_by_hand(
        demo,
        tmp_path / "three",
        train=lambda s, n: s == 1 and n < 7,
        validation=lambda s, n: s == 1 and n > 6,
        test=lambda s, n: s > 1,
    )
    dataset = load(root)
    assert dataset.compared_with == "test"
    assert dataset.subjects_shared == 0
    assert dataset.subjects_between == {
        "train_validation": 4,
        "train_test": 0,
        "validation_test": 0,
    }


def test_synthetic_images_are_known_wherever_they_were_copied(
    demo: Path, tmp_path: Path, make_images: ImageMaker
) -> None:
    moved = split_by_hand(demo, tmp_path / "m", train=lambda s, n: s < 3, val=lambda s, n: s == 3)
    assert not (moved / "README.txt").exists()
    for root in (demo, moved):
        dataset = load(root)
        assert dataset.synthetic
        assert dataset.subjects is not None
        assert "Kaggle" not in dataset.subjects.found_by
        assert "synthetic" in dataset.subjects.found_by
        assert audited(root)["synthetic"] is True
    converted = tmp_path / "converted"
    for path in sorted(demo.glob("*/*.jpg")):
        target = converted / path.relative_to(demo).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.save(target)
    assert not load(converted).synthetic
    shutil.copy(demo / "README.txt", converted)
    assert load(converted).synthetic
    real = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(20)))
    (real / "README.txt").write_text("Slices of the study")
    assert not load(real).synthetic
    mixed = shutil.copytree(demo / "MildDemented", real / "C")
    assert mixed.is_dir()
    assert load(real).synthetic


def test_a_given_split_without_validation_gets_one_from_train(make_images: ImageMaker) -> None:
    names = [f"train/{label}/{i}.png" for label in "AB" for i in range(40)]
    root = make_images(*names, *(f"test/{label}/{i}.png" for label in "AB" for i in range(9)))
    dataset = load(root)
    assert dataset.split.split_by == "folders"
    assert sum(dataset.counts()["test"].values()) == 18
    assert 4 <= sum(dataset.counts()["validation"].values()) <= 28
    assert {dataset.folder.images[i].split for i in dataset.split.indices("validation")} == {
        "train"
    }


def test_a_given_split_is_kept_and_that_is_said(make_images: ImageMaker) -> None:
    names = [f"{part}/{label}/{i} ({p}).png" for part in ("train", "valid", "test")
             for label in "AB" for i in range(2) for p in (1, 2)]  # fmt: skip
    root = make_images(*names)
    dataset = load(root, split_by="subject")
    assert dataset.split.split_by == "folders"
    assert dataset.subjects_shared == 4
    assert "split_by is subject, but the data came split" in dataset.split.notes[-1]


def test_too_few_images_are_refused(make_images: ImageMaker) -> None:
    root = make_images("A/1.png", "A/2.png", "B/1.png", "B/2.png")
    with pytest.raises(UserError, match="too few images: none of its 4 is left for validation"):
        load(root)


def test_one_person_in_a_train_folder_is_named_as_such(make_images: ImageMaker) -> None:
    names = [f"train/{label}/{i} ({p}).png" for label, p in (("A", 1), ("B", 1), ("B", 2))
             for i in range(4)]  # fmt: skip
    root = make_images(*names, "test/A/9 (1).png", "test/B/9 (2).png")
    with pytest.raises(UserError, match="class 'A' has only one person"):
        load(root)


def test_where_nobody_has_a_home_the_cache_is_temporary(
    make_images: ImageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(9)))
    for name in ("ALEXMRI_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    load(root)
    assert not (tmp_path / "~").exists()
    assert list(tmp_path.glob(f"alexmri-cache-{os.getuid()}/*.npy"))


def test_exact_copies_stay_together_and_are_told(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(40)))
    for i in range(20):
        (root / "B" / f"copy{i}.png").write_bytes((root / "A" / f"{i}.png").read_bytes())
    found = audited(root)
    assert len(found["exact_duplicates"]) == 20
    assert all(copy["classes"] == ["A", "B"] for copy in found["exact_duplicates"])
    assert all(len(copy["splits"]) == 1 for copy in found["exact_duplicates"])
    assert "20 (20 across classes, 0 across splits)" in str(found["warnings"])


def test_the_probe_sees_a_leak_by_slice_and_none_by_person(demo: Path) -> None:
    for split_by in ("slice", "subject"):
        probe = audited(demo, split_by=split_by)["leak_probe"]
        assert probe["slice"] > 0.9
        assert probe["shuffled"] > 0.9
        assert probe["subject"] < 0.75


def test_the_probe_of_a_large_set_looks_at_a_sample_and_says_so(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexmri.data.audit_probe.MAX_PROBED_IMAGES", 40)
    found = audited(demo)
    note = "the most similar slices were looked for among 32 of 96 images"
    assert note in found["warnings"]
    assert 0 <= found["leak_probe"]["slice"] <= 1
    assert 0 <= found["leak_probe"]["shuffled"] <= 1


def test_the_probe_is_null_where_people_are_unknown(make_images: ImageMaker) -> None:
    root = make_images(*(f"{label}/x{i}.png" for label in "AB" for i in range(60)))
    found = audited(root)
    assert found["subjects"] is None
    assert found["leak_probe"]["subject"] is found["leak_probe"]["shuffled"] is None
    assert 0.2 < found["leak_probe"]["slice"] < 0.8
    assert found["subjects_shared"] is None


def test_one_person_in_a_class_leaves_the_subject_probe_out(make_images: ImageMaker) -> None:
    names = [f"A/{i} ({p}).png" for i in range(9) for p in (1, 2, 3)]
    root = make_images(*names, *(f"B/{i} (1).png" for i in range(20)))
    probe = audited(root)["leak_probe"]
    assert probe["slice"] is not None
    assert probe["subject"] is None


def test_the_real_slices_leak_as_described(real_slices: Path) -> None:
    found = audited(real_slices)
    assert found["subjects"] == 160
    assert found["exact_duplicates"] == []
    assert found["leak_probe"]["slice"] > 0.97
    assert found["leak_probe"]["shuffled"] > 0.95
    assert found["leak_probe"]["subject"] < 0.6
