"""Who is on an image: file names, regular expressions, CSV."""

import shutil
from pathlib import Path

import pytest

from alexmri.data.folders import ImageFile, discover
from alexmri.data.subjects import Subjects, find_subjects, misfits
from alexmri.errors import UserError


def images(*names: str) -> list[ImageFile]:
    return [ImageFile(name, name.split("/")[0], None, Path(name)) for name in names]


def by_name(*names: str) -> Subjects | None:
    return find_subjects(images(*names), Path(), regex=None, csv_file=None)


def test_kaggle_names_number_people_per_class_and_the_bare_name_is_one_more() -> None:
    groups = by_name(
        "Mild/26 (2).jpg",
        "Mild/26.jpg",
        "Mild/27 (2).jpg",
        "Mild/27.jpg",
        "N/26 (2).jpg",
        "N/27 (2).jpg",
    )
    assert groups is not None
    assert groups.ids == ("Mild/2", "Mild/1", "Mild/2", "Mild/1", "N/2", "N/2")


def test_roboflow_names_keep_the_kaggle_name() -> None:
    groups = by_name(
        "M/26-19-_jpg.rf.0a1b2c.jpg",
        "M/27-19-_jpg.rf.ff.jpg",
        "M/26_jpg.rf.12.jpg",
        "N/1-3-_jpg.rf.9.jpg",
        "N/2-3-_jpg.rf.8.jpg",
        "N/3-4-_jpg.rf.8.jpg",
    )
    assert groups is not None
    assert groups.found_by == "Roboflow file names"
    assert groups.ids == ("M/19", "M/19", "M/1", "N/3", "N/3", "N/4")


@pytest.mark.parametrize(
    ("names", "subjects", "title"),
    [
        (
            ["M/OAS1_0028_MR1_mpr-1_100.jpg", "N/OAS1_0028_MR1_101.jpg"]
            + ["N/OAS1_0031_MR1_7.jpg", "N/OAS1_0031_MR1_8.jpg"],
            ("OAS1_0028", "OAS1_0028", "OAS1_0031", "OAS1_0031"),
            "OASIS file names",
        ),
        (
            ["M/ADNI_002_S_0295_MR_1.png", "M/ADNI_002_S_0295_MR_2.png"]
            + ["N/ADNI_011_S_0003_1.png", "N/ADNI_011_S_0003_2.png"],
            ("002_S_0295", "002_S_0295", "011_S_0003", "011_S_0003"),
            "ADNI file names",
        ),
    ],
)
def test_study_names_are_people_across_classes(
    names: list[str], subjects: tuple[str, ...], title: str
) -> None:
    groups = by_name(*names)
    assert groups == Subjects(subjects, title)
    assert groups.count == 2


@pytest.mark.parametrize(
    "names",
    [
        ["A/1.jpg", "A/2.jpg", "B/1.jpg", "B/2.jpg"],  # numbers only: no person in them
        ["A/1 (1).jpg", "A/1 (2).jpg", "B/1 (1).jpg", "B/1 (2).jpg"],  # a renamed folder
        ["A/scan.jpg", "A/1 (2).jpg", "A/2 (2).jpg", "B/1 (1).jpg"],  # one name tells nothing
        ["A/1 (1).jpg", "A/2 (1).jpg", "B/1.jpg", "B/2.jpg"],  # one class without people
    ],
)
def test_names_that_match_by_chance_tell_nothing(names: list[str]) -> None:
    assert by_name(*names) is None


def kaggle(root: Path, subjects: int = 5, slices: int = 6) -> Path:
    """Write files of Kaggle's names, each of other bytes."""
    for label in ("Mild", "Non"):
        (root / label).mkdir(parents=True)
        for subject in range(2, subjects + 2):
            for i in range(slices):
                name = f"{i + 20} ({subject}).png"
                (root / label / name).write_text(f"{label} {name}")
    return root


def found_in(root: Path) -> Subjects | None:
    folder = discover(root)
    return find_subjects(folder.images, root, regex=None, csv_file=None)


def test_a_copy_under_a_stray_name_shows_the_same_subject(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    shutil.copy(root / "Non" / "20 (2).png", root / "Non" / "20 (2) - Copy.png")
    groups = found_in(root)
    assert groups is not None
    assert groups.count == 10
    assert groups.strays == ()
    names = [image.name for image in discover(root).images]
    assert groups.ids[names.index("Non/20 (2) - Copy.png")] == "Non/2"


def test_a_stray_stands_for_itself_and_is_named(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    (root / "Mild" / "20 (2) - edited.png").write_text("another")
    groups = found_in(root)
    assert groups is not None
    assert groups.found_by == "Kaggle file names"
    assert groups.strays == ("Mild/20 (2) - edited.png",)
    assert groups.count == 11


def test_too_many_strays_leave_subjects_unknown_and_are_named(tmp_path: Path) -> None:
    root = kaggle(tmp_path)
    for i in range(8):
        (root / "Mild" / f"scan{i}.png").write_text(f"another {i}")
    assert found_in(root) is None
    found = misfits(discover(root).images)
    assert found is not None
    assert found[0] == "Kaggle file names"
    assert found[1] == [f"Mild/scan{i}.png" for i in range(8)]


def test_a_csv_made_on_windows_is_understood(tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_bytes(
        b"\xef\xbb\xbfpath,subject\r\nA\\1.png,x\r\n.\\B\\2.png,y\r\n"
    )
    found = images("A/1.png", "B/2.png")
    groups = find_subjects(found, tmp_path, regex=None, csv_file="who.csv")
    assert groups == Subjects(("x", "y"), "groups_file who.csv")


def test_paths_and_columns_of_a_csv_are_found_in_another_spelling(tmp_path: Path) -> None:
    """Macs write é as e and an accent; a column may have blanks about it, and be empty."""
    (tmp_path / "who.csv").write_text(
        "path , subject,,\n/A/e\u0301 1.png,x,,\n././B/\u00e9 2.png,y,,\n././B/\u00e9 2.png,y,,\n",
        encoding="utf-8",
    )
    found = images("A/\u00e9 1.png", "B/e\u0301 2.png")
    groups = find_subjects(found, tmp_path, regex=None, csv_file="who.csv")
    assert groups == Subjects(("x", "y"), "groups_file who.csv")


def test_a_regex_sees_the_class_and_joins_its_groups() -> None:
    found = images("A/p1_s1.png", "A/p1_s2.png", "B/p1_s1.png")
    groups = find_subjects(found, Path(), regex=r"(\w)/(p\d+)_", csv_file=None)
    assert groups is not None
    assert groups.ids == ("A/p1", "A/p1", "B/p1")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(p", "is not a regular expression"),
        (r"p\d+", "has no capture group"),
        (r"(q\d+)", r"names no subject for 2 of 2 images, such as A/p1\.png, B/p2"),
    ],
)
def test_a_bad_regex_is_refused(regex: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_subjects(images("A/p1.png", "B/p2.png"), Path(), regex=regex, csv_file=None)


def test_a_csv_in_the_data_folder_names_people(tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_text("path,subject,age\nA/1.png,x,70\nB/2.png,y,71\n")
    found = images("A/1.png", "B/2.png")
    groups = find_subjects(found, tmp_path, regex=None, csv_file="who.csv")
    assert groups == Subjects(("x", "y"), "groups_file who.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,person\nA/1.png,x\n", "lacks the column 'subject'"),
        (b"path,subject\nA/1.png,x\n", r"names no subject for 1 of 2 images, such as B/2\.png"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        (b"path;subject\nA/1.png;x\n", "'path'; it needs .* path and subject, separated by commas"),
        (b"path\tsubject\nA/1.png\tx\n", "path and subject, separated by commas"),
        (b"file,subject\nA/1.png,x\n", "lacks the column 'path'; .* path and subject$"),
        (b"path,subject,age,age\nA/1.png,x,70,71\n", "has the column 'age' twice"),
        (
            b"path,subject,age\nA/1.png,x,70\nB/2.png,y,71\n./A/1.png,x,80\n",
            r"has rows for A/1\.png that differ in 'age': '70' and '80'",
        ),
        (b"path,subject\nA/1.png,\nB/2.png,y\n", r"no subject for 1 of 2 .* A/1\.png"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "who.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_subjects(images("A/1.png", "B/2.png"), tmp_path, regex=None, csv_file="who.csv")


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"groups_file no\.csv is neither in the current folder nor in"
    ):
        find_subjects(images("A/1.png"), tmp_path, regex=None, csv_file="no.csv")


def test_the_real_names_agree_with_the_table_of_people(real_slices: Path) -> None:
    folder = discover(real_slices)
    from_names = find_subjects(folder.images, folder.root, regex=None, csv_file=None)
    from_table = find_subjects(folder.images, folder.root, regex=None, csv_file="groups.csv")
    assert from_names is not None
    assert from_table is not None
    assert from_names.count == from_table.count == 160
    pairs = set(zip(from_names.ids, from_table.ids, strict=True))
    assert len(pairs) == 160


def test_groups_csv_is_used_unasked_only_beside_slices_json(tmp_path: Path) -> None:
    """Another groups.csv may be of other images; `--groups-file` names that one."""
    for label, name in (("a", "1.png"), ("b", "2.png")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).touch()
    (tmp_path / "groups.csv").write_text("path,subject,age\na/1.png,x,70\nb/2.png,y,71\n")
    images = discover(tmp_path).images
    assert find_subjects(images, tmp_path, regex=None, csv_file=None) is None
    (tmp_path / "slices.json").touch()
    found = find_subjects(images, tmp_path, regex=None, csv_file=None)
    assert found is not None
    assert found.ids == ("x", "y")
    assert find_subjects(images, tmp_path, regex="([ab])/", csv_file=None) != found
