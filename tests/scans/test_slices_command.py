"""`alexmri slices`: from the folder of a download to class folders that `train` takes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import nilearn
import numpy as np
import pydicom
import pytest
from PIL import Image

from alexmri.cli import cli
from alexmri.data.dataset import load_dataset
from alexmri.data.folders import discover
from alexmri.data.slicing import Slicing
from alexmri.errors import UserError
from alexmri.settings import resolve
from alexmri.terminal import SilentTerminal
from tests.command_line import run

from .phantoms import NIBABEL, PYDICOM, SPACING, dicom, nifti, phantom, save_series, series

AFFINE = np.diag([*SPACING, 1.0])
SALT = "a secret of these tests"
MNI152 = next(Path(nilearn.__file__).parent.glob("datasets/data/mni*_t1_*.nii.gz"))


@pytest.fixture(autouse=True)
def salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXMRI_SUBJECT_SALT", SALT)


def slices(scans: Path, out: Path, *options: object) -> None:
    arguments = ["slices", scans, out, "--workers", 1, *options]
    cli.main([str(each) for each in arguments], standalone_mode=False)


def groups(out: Path) -> list[dict[str, str]]:
    with (out / "groups.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def document(out: Path) -> dict[str, object]:
    return json.loads((out / "slices.json").read_text(encoding="utf-8"))


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """A BIDS tree of six subjects, two of whom were there twice."""
    root = tmp_path / "bids"
    rows = ["participant_id\tage\tsex\tdiagnosis\thandedness"]
    for number in range(1, 7):
        voxels = nifti(phantom() + number * np.indices(phantom().shape)[0].astype(np.int16), AFFINE)
        for session in ("01", "02") if number < 3 else ("01",):
            name = f"sub-{number:02}/ses-{session}/anat/sub-{number:02}_ses-{session}_T1w.nii.gz"
            put(root / name, voxels)
            put(root / name.replace("T1w", "FLAIR"), voxels)
        rows.append(f"sub-{number:02}\t{60 + number}\tF\t{'AD' if number % 2 else 'CN'}\tright")
    put(root / "participants.tsv", "\n".join(rows).encode())
    put(root / "dataset_description.json", b"{}")
    return root


BIDS = ("--include", "*_T1w.nii.gz", "--label-column", "diagnosis", "--center", 4, "--labels")


def test_a_bids_tree_becomes_class_folders_with_subjects(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slices(bids, out, *BIDS, bids / "participants.tsv")
    assert discover(out).classes == ("AD", "CN")
    rows = groups(out)
    assert len(rows) == 8 * 4
    assert {row["subject"] for row in rows} == {f"sub-{number:02}" for number in range(1, 7)}
    assert {row["path"].split("/")[0]: row["label"] for row in rows} == {"AD": "AD", "CN": "CN"}
    assert rows[0]["age"] == "61"
    assert rows[0]["sex"] == "F"
    assert "handedness" not in rows[0]
    assert all((out / row["path"]).is_file() for row in rows)
    assert {row["scan"] for row in rows if row["subject"] == "sub-01"} != {rows[0]["scan"]}
    made = document(out)
    assert made["slicing"] == Slicing(center=4).model_dump(mode="json")
    assert made["scans"][0]["indices"] == [4, 5, 6, 7]


def test_train_splits_by_subject_at_once_and_remembers_how_slices_were_cut(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    slices(bids, out, *BIDS, bids / "participants.tsv")
    monkeypatch.setenv("ALEXMRI_CACHE_DIR", str(tmp_path / "cache"))
    settings = resolve([]).settings.model_copy(
        update={"split_by": "subject", "split_ratios": (0.4, 0.3, 0.3)}
    )
    dataset = load_dataset({"train": out}, settings, workers=1, terminal=SilentTerminal())
    assert dataset.subjects is not None
    assert dataset.subjects.found_by == "groups_file groups.csv"
    assert dataset.subjects.count == 6
    assert dataset.subjects_shared == 0
    assert dataset.slicing == Slicing(center=4)


@pytest.mark.slow
def test_a_training_stores_the_parameters_in_the_model(bids: Path, tmp_path: Path) -> None:
    out, run_folder = tmp_path / "out", tmp_path / "run"
    slices(bids, out, *BIDS, bids / "participants.tsv")
    options = ("--epochs", 1, "--batch-size", 8, "--wandb-mode", "disabled")
    run("train", "--data", out, "--out", run_folder, "--split-by", "subject", *options)
    stored = json.loads((run_folder / "model" / "model.json").read_text())
    assert stored["slicing"] == document(out)["slicing"]
    assert stored["split"]["subjects_shared"] == 0
    assert stored["split"]["groups_from"] == "groups_file groups.csv"


def test_a_folder_per_class_of_dicom_series(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    both = series(phantom()) + series(phantom()[::-1])
    save_series(scans / "AD" / "x" / "y", both)
    save_series(scans / "CN", series(phantom(), PatientID="P-8"))
    slices(scans, out)
    rows = groups(out)
    assert len(rows) == 36
    assert len({row["subject"] for row in rows}) == 2
    assert len({row["scan"] for row in rows if row["label"] == "AD"}) == 2


def test_no_tag_and_no_salt_is_in_what_is_written(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    save_series(scans / "AD", series(phantom(), PatientID="P-1234567", StudyDate="20200229"))
    slices(scans, out)
    everything = b"".join([*contents(out).values(), *(str(p).encode() for p in out.rglob("*"))])
    for private in (b"P-1234567", b"Doe", b"20200229", SALT.encode()):
        assert private not in everything
    dataset = pydicom.dcmread(next((scans / "AD").iterdir()))
    assert dataset.SeriesInstanceUID.encode() not in everything
    with Image.open(next(out.rglob("*.png"))) as image:
        assert image.info == {}


def test_another_salt_gives_other_names_and_is_refused_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    save_series(scans / "AD", series(phantom()))
    slices(scans, tmp_path / "a")
    slices(scans, tmp_path / "again")
    assert groups(tmp_path / "a") == groups(tmp_path / "again")
    monkeypatch.setenv("ALEXMRI_SUBJECT_SALT", "another")
    slices(scans, tmp_path / "b")
    assert groups(tmp_path / "a")[0]["subject"] != groups(tmp_path / "b")[0]["subject"]
    with pytest.raises(UserError, match="another secret for the names of patients"):
        slices(scans, tmp_path / "a")


def test_without_a_salt_one_is_kept_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALEXMRI_SUBJECT_SALT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save_series(tmp_path / "scans" / "AD", series(phantom()))
    slices(tmp_path / "scans", tmp_path / "a")
    slices(tmp_path / "scans", tmp_path / "b")
    assert groups(tmp_path / "a") == groups(tmp_path / "b")
    kept = tmp_path / "config" / "alexmri" / "subject-salt"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(kept.read_text()) >= 32


# --- labels and subjects


@pytest.fixture
def oasis(tmp_path: Path) -> Path:
    root = tmp_path / "oasis"
    image = nibabel.AnalyzeImage(phantom(), np.diag([-1, 2, 3, 1]))
    for number, session in ((1, "MR1"), (1, "MR2"), (2, "MR1"), (3, "MR1"), (4, "MR1")):
        name = f"OAS1_{number:04}_{session}"
        folder = root / "disc1" / name / "PROCESSED" / "MPRAGE" / "T88_111"
        folder.mkdir(parents=True)
        nibabel.save(image, folder / f"{name}_mpr_n4_anon_111_t88_gfc.hdr")
    table = "ID,M/F,Age,CDR\nOAS1_0001_MR1,F,74,0\nOAS1_0001_MR2,F,75,0.5\n"
    put(root / "oasis.csv", (table + "OAS1_0002_MR1,M,55,0.0\nOAS1_0003_MR1,F,25,\n").encode())
    return root


def test_oasis_has_classes_by_a_mapping_and_subjects_over_sessions(
    oasis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = "0=NonDemented,0.5=VeryMildDemented,1=MildDemented"
    table = ("--labels", oasis / "oasis.csv", "--label-column", "CDR", "--label-map", mapping)
    slices(oasis, tmp_path / "out", "--include", "*_gfc.hdr", *table)
    rows = groups(tmp_path / "out")
    found = {(row["subject"], row["label"], row["age"], row["sex"]) for row in rows}
    assert found == {
        ("OAS1_0001", "NonDemented", "74", "F"),
        ("OAS1_0001", "VeryMildDemented", "75", "F"),
        ("OAS1_0002", "NonDemented", "55", "M"),
    }
    said = capsys.readouterr().out
    assert "1 scan for which CDR is empty" in said
    assert "1 scan for which oasis.csv has no row" in said
    assert "does not say which side is left" in said


def test_adni_has_a_row_per_image_and_several_per_subject(tmp_path: Path) -> None:
    root = tmp_path / "ADNI"
    for image, visit in (("I11", "sc"), ("I22", "m12")):
        name = f"941_S_1203/MPRAGE/{visit}/{image}/ADNI_941_S_1203_MR_MPRAGE_{image}.nii"
        put(root / name, nifti(phantom(), AFFINE, packed=False))
    table = put(
        tmp_path / "adni.csv",
        b"Image Data ID,Subject,Group,Sex,Age\nI11,941_S_1203,MCI,F,70\nI22,941_S_1203,AD,F,71\n",
    )
    options = ("--labels", table, "--label-column", "Group")
    slices(root, tmp_path / "out", *options)
    found = {(row["subject"], row["label"]) for row in groups(tmp_path / "out")}
    assert found == {("941_S_1203", "MCI"), ("941_S_1203", "AD")}
    with pytest.raises(UserError, match="several rows for .*which say AD and MCI; name the column"):
        slices(root, tmp_path / "other", *options, "--id-column", "Subject")


def test_a_bids_name_wins_over_table_and_tag(tmp_path: Path) -> None:
    save_series(tmp_path / "scans" / "sub-09", series(phantom(), PatientID="P-1"))
    table = put(tmp_path / "t.csv", b"participant_id,dx\nsub-09,AD\n")
    slices(tmp_path / "scans", tmp_path / "out", "--labels", table, "--label-column", "dx")
    assert {row["subject"] for row in groups(tmp_path / "out")} == {"sub-09"}


def test_a_conflict_names_both(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    save_series(scans / "AD" / "sub-01", series(phantom()))
    save_series(scans / "CN" / "sub-02", series(phantom()))
    with pytest.raises(
        UserError, match=r"sub-01/.* and CN/sub-02.* same PatientID.*sub-01 and sub"
    ):
        slices(scans, out)
    put(tmp_path / "b" / "sub-03_I7.nii.gz", nifti(phantom(), AFFINE))
    table = put(tmp_path / "t.csv", b"Image Data ID,Subject,Group\nI7,941_S_1203,AD\n")
    with pytest.raises(UserError, match=r"is of sub-03 by its name, and of 941_S_1203 by"):
        slices(tmp_path / "b", out, "--labels", table, "--label-column", "Group")
    put(tmp_path / "c" / "AD" / "sub-01" / "sub-02_T1w.nii.gz", nifti(phantom(), AFFINE))
    with pytest.raises(UserError, match="names two subjects, sub-01 and sub-02"):
        slices(tmp_path / "c", out)
    assert not out.exists() or not contents(out)


def test_one_series_belongs_to_one_class_and_one_patient(tmp_path: Path) -> None:
    files = series(phantom())
    save_series(tmp_path / "a" / "AD" / "x", files)
    save_series(tmp_path / "a" / "CN" / "x", files)
    with pytest.raises(
        UserError, match="AD/x/IM0000 and CN/x/IM0000 belong to one series .*; keep it in one"
    ):
        slices(tmp_path / "a", tmp_path / "out")
    folder = save_series(tmp_path / "b" / "AD", files)
    other = pydicom.dcmread(folder / "IM0003")
    other.PatientID = "P-8"
    other.save_as(folder / "IM0003")
    with pytest.raises(UserError, match=r"AD/IM0000 and AD/IM0003 belong to one series and two pa"):
        slices(tmp_path / "b", tmp_path / "out")


def test_a_patient_id_is_hashed_where_the_table_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    save_series(scans / "x", series(phantom(), PatientID="12345678"))
    table = put(tmp_path / "t.csv", b"PatientID,dx\n12345678,AD\n")
    slices(scans, out, "--labels", table, "--label-column", "dx")
    save_series(tmp_path / "by folder" / "AD", series(phantom(), PatientID="12345678"))
    slices(tmp_path / "by folder", tmp_path / "other")
    everything = b"".join([*contents(out).values(), *(str(p).encode() for p in out.rglob("*"))])
    assert b"12345678" not in everything
    assert groups(out)[0]["subject"] == groups(tmp_path / "other")[0]["subject"]
    put(table, b"PatientID,dx\n12345678,AD\n12345678,CN\n")
    with pytest.raises(UserError, match="several rows for x/IM0000") as refused:
        slices(scans, tmp_path / "third", "--labels", table, "--label-column", "dx")
    assert "12345678" not in str(refused.value) + capsys.readouterr().out


def test_the_name_of_a_scan_is_not_that_of_a_subject(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MR001", "MR002", "OAS1_0001_MR1"):
        put(tmp_path / "scans" / f"{name}.nii.gz", nifti(phantom(), AFFINE))
    table = put(tmp_path / "t.csv", b"scan_id,dx\nMR001,AD\nMR002,CN\nOAS1_0001_MR1,CN\n")
    slices(tmp_path / "scans", tmp_path / "out", "--labels", table, "--label-column", "dx")
    assert "who is on 2 of 3 scans is unknown" in capsys.readouterr().out
    assert "OAS1_0001" in {row["subject"] for row in groups(tmp_path / "out")}


@pytest.mark.parametrize("subject", [".hidden", "x" * 300, "-ä/../b"])
def test_every_subject_has_names_of_files_that_train_finds(subject: str, tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / "scans" / f"{name}.nii.gz", nifti(phantom(), AFFINE))
    table = put(
        tmp_path / "t.csv", f"scan_id,subject,dx\na,{subject},AD\nb,{subject},CN\n".encode()
    )
    slices(tmp_path / "scans", tmp_path / "out", "--labels", table, "--label-column", "dx")
    assert len(discover(tmp_path / "out").images) == 24
    assert {row["subject"] for row in groups(tmp_path / "out")} == {subject}


def test_scans_that_came_in_splits_stay_in_them(tmp_path: Path) -> None:
    for name in ("train/AD/sub-1", "train/CN/sub-2", "Test/AD/sub-3", "val/CN/sub-4"):
        put(tmp_path / "scans" / f"{name}.nii.gz", nifti(phantom(), AFFINE))
    out = tmp_path / "out"
    slices(tmp_path / "scans", out, "--center", 1)
    slices(tmp_path / "scans", out, "--center", 1)
    found = {(image.split, image.label) for image in discover(out).images}
    assert found == {("train", "AD"), ("train", "CN"), ("test", "AD"), ("validation", "CN")}
    assert {row["label"] for row in groups(out)} == {"AD", "CN"}
    settings = resolve([]).settings.model_copy(update={"split_by": "subject"})
    dataset = load_dataset({"train": out}, settings, workers=1, terminal=SilentTerminal())
    assert dataset.subjects_shared == 0
    assert dataset.subjects is not None
    assert dataset.subjects.count == 4


def test_what_is_left_out_is_told_with_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "scans" / "AD" / "sub-1.nii.gz", nifti(phantom(), AFFINE))
    for name in ("a.mgz", "b.mgz", "c.nrrd", "notes.txt", "._sub-1.nii.gz"):
        put(tmp_path / "scans" / "AD" / name, b"x")
    slices(tmp_path / "scans", tmp_path / "out")
    said = capsys.readouterr().out
    assert "left out: 2 .mgz files and 1 .nrrd file, neither DICOM nor NIfTI" in said
    assert "all scans are of one class, 'AD', and a training needs two" in said
    assert "out holds 12 slices of 1 scan (AD 12)" in said


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "scans" / "AD" / "a.nii.gz", nifti(phantom(), AFFINE))
    os.rename(path, os.fsencode(path.parent) + b"/\xe4.nii.gz")
    with pytest.raises(UserError, match="is not valid UTF-8; rename it"):
        slices(tmp_path / "scans", tmp_path / "out")


def test_a_patient_id_that_was_removed_names_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    for name, study in (("a", "1.2.3"), ("b", "1.2.4"), ("c", "1.2.4")):
        tags = {"PatientID": "Anonymous", "StudyInstanceUID": study}
        save_series(scans / "AD" / name, series(phantom(), **tags))
    slices(scans, tmp_path / "out")
    assert "who is on 3 of 3 scans is unknown" in capsys.readouterr().out
    rows = groups(tmp_path / "out")
    assert len({row["scan"] for row in rows}) == 3
    assert len({row["subject"] for row in rows}) == 2  # series of one study stay together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", "t.csv", "--label-column", "CDR"), "has no column 'CDR'; it has ID, dx"),
        (("--labels", "t.csv"), "--labels FILE and --label-column COLUMN belong together"),
        (("--labels", "t.csv", "--label-column", "dx"), "cannot be a folder's name"),
        (("--label-map", "0=a"), "belong to --labels"),
        (("--percentiles", 1, 99, "--voi-lut"), "exclude one another"),
        (("--percentiles", 99, 1), "percentiles must be two numbers from 0 to 100, the lower"),
        (("--window", 100, 0), "the width of the window must be more than 0"),
        (("--labels", "t.csv", "--label-column", "dx", "--label-map", "0"), "write VALUE=CLASS"),
        (("--include", "*.mgz"), "holds no scan"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    options: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "scans" / "AD" / "x.nii.gz", nifti(phantom(), AFFINE))
    put(tmp_path / "t.csv", b"ID,dx\nx,a/b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        slices(tmp_path / "scans", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists() or not contents(tmp_path / "out")


def test_a_bids_tree_without_labels_is_no_folder_per_class(bids: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sub-01 names a subject and no class .*participants\.tsv"):
        slices(bids, tmp_path / "out")


# --- what is written, and what is not


def test_the_same_command_again_does_nothing_and_goes_on_where_it_was_stopped(
    tmp_path: Path,
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in "abc":
        put(scans / "AD" / f"sub-{name}.nii.gz", nifti(phantom(), AFFINE))
    slices(scans, out)
    first, times = contents(out), {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    slices(scans, out)
    assert contents(out) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} == times
    # As if it had been killed: one scan is missing, and half of another.
    record = document(out)["scans"][1]
    (out / f"{record['label']}/{record['stem']}003.png").unlink()
    slices(scans, out)
    assert contents(out) == first
    put(scans / "AD" / "sub-a.nii.gz", nifti(phantom()[::-1], AFFINE))
    slices(scans, out)
    changed = {name for name, data in contents(out).items() if data != first[name]}
    assert {name for name in changed if name.endswith("png")} == {
        f"AD/{p.name}" for p in (out / "AD").glob("sub-a*")
    }


def test_another_folder_is_asked_for_where_slices_would_mix(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in "ab":
        put(scans / "AD" / f"sub-{name}.nii.gz", nifti(phantom(), AFFINE))
    slices(scans, out)
    with pytest.raises(UserError, match="slices made with other parameters; choose another"):
        slices(scans, out, "--plane", "coronal")
    (scans / "AD" / "sub-a.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 scan that is no longer among these.*sub-a"):
        slices(scans, out)
    put(tmp_path / "mine" / "thesis.txt", b"x")
    with pytest.raises(UserError, match="holds other files; choose a new or empty folder"):
        slices(scans, tmp_path / "mine")
    with pytest.raises(UserError, match="contain one another"):
        slices(scans, scans / "out")


# SIGINT is ignored in what a shell runs in the background.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from alexmri.cli import main; main()"
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_whole_files_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for number in range(12):
        put(scans / "AD" / f"sub-{number}.nii.gz", nifti(phantom() + np.int16(number), AFFINE))
    large = ("--spacing", "0.03")  # so that it takes some seconds
    command = [sys.executable, "-c", INTERRUPTIBLE, "slices", scans, out, *large]
    process = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    journal = out / ".slices.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") > 1):
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped; the same command goes on from here" in said
        assert "Traceback" not in said
    assert not (out / "slices.json").exists()
    done = {p: p.stat().st_mtime_ns for p in out.rglob("sub-*.png")}
    for path in done:
        Image.open(path).load()
    slices(scans, out, *large)
    assert len(groups(out)) == 12 * 12
    assert not journal.exists()
    kept = sum(p.stat().st_mtime_ns == time for p, time in done.items())
    assert kept >= 12


def test_scans_that_cannot_be_read_are_named_and_the_others_are_written(tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    put(scans / "AD" / "good.nii.gz", nifti(phantom(), AFFINE))
    put(scans / "AD" / "cut.nii.gz", nifti(phantom(), AFFINE)[:600])
    put(scans / "AD" / "broken.dcm", b"junk")
    put(scans / "AD" / "empty.nii", b"")
    put(scans / "AD" / "half.hdr", b"x")
    put(scans / "AD" / "report.dcm", (PYDICOM / "reportsi.dcm").read_bytes())
    done = run("slices", scans, out, "--workers", 2, check=False)
    assert done.returncode == 2
    assert "out holds 12 slices of 1 scan" in done.stdout
    assert "left out: AD/report.dcm, because it holds no image (modality SR)" in done.stdout
    assert "4 scans could not be used" in done.stderr
    assert "AD/empty.nii: it is empty (0 bytes)" in done.stderr
    assert "AD/half.hdr: it is half of a pair" in done.stderr
    assert "AD/broken.dcm: it is not a DICOM file" in done.stderr
    assert "AD/cut.nii.gz: it is damaged, or was not copied whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(groups(out)) == 12
    assert len(list(out.rglob("*.png"))) == 12


def test_names_that_may_be_burned_in_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    for number, tags in enumerate(
        (
            {"BurnedInAnnotation": "YES"},
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BurnedInAnnotation": "NO"},
            {},
        )
    ):
        put(scans / "AD" / f"{number}.dcm", dicom(phantom()[..., 0], **tags))
    slices(scans, tmp_path / "out")
    assert "burned into the pixels of 2 scans, such as AD/0.dcm" in capsys.readouterr().out


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    put(tmp_path / "scans" / "AD" / "a.nii.gz", nifti(phantom(), AFFINE))
    slices(tmp_path / "scans", tmp_path / "out", "--bits", 16)
    image = Image.open(next((tmp_path / "out").rglob("*005.png")))
    assert image.mode == "I;16"
    assert len(np.unique(np.asarray(image))) > 256 / 2


# --- the real files that pydicom, nibabel and nilearn ship

# Of pydicom's test files, those that are MR images: what they give in their own plane.
MR_IMAGES = {
    "MR_small.dcm": 1,
    "MR_small_RLE.dcm": 1,
    "MR_small_bigendian.dcm": 1,
    "MR_small_expb.dcm": 1,
    "MR_small_implicit.dcm": 1,
    "MR_small_jp2klossless.dcm": 1,
    "MR_small_jpeg_ls_lossless.dcm": 1,
    "MR_small_padded.dcm": 1,
    "MR_truncated.dcm": "it ends too early; it was probably not copied whole",
    "examples_overlay.dcm": 1,
}
# Others: JPEG Lossless is there in colour only.
OTHERS = {
    "SC_rgb_jpeg_gdcm.dcm": 1,
    "693_J2KI.dcm": 1,
    "image_dfl.dcm": 1,
    "JPGExtended.dcm": "no decoder here reads its pixels",
    "rtplan.dcm": "it holds no image (modality RTPLAN)",
}


@pytest.mark.filterwarnings("ignore")  # pydicom, of what is unusual in these files
def test_the_list_of_mr_images_is_that_of_pydicom() -> None:
    found = set()
    for path in PYDICOM.glob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if header.get("Modality") == "MR":
            found.add(path.name)
    assert found == set(MR_IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [*MR_IMAGES.items(), *OTHERS.items()])
def test_real_dicom_files_give_a_slice_or_one_sentence(
    name: str, expected: int | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "scans" / "MR" / name, (PYDICOM / name).read_bytes())
    said = []
    for plane in ("axial", "coronal", "sagittal"):
        try:
            slices(tmp_path / "scans", tmp_path / plane, "--plane", plane)
        except UserError as error:
            said.append(str(error))
    written = {p.parent.parent.name for p in tmp_path.rglob("*.png")}
    if isinstance(expected, str):
        assert not written
        assert all(expected in sentence for sentence in said)
    else:
        assert written
        assert all("ask for the" in sentence for sentence in said)
    assert all("\n" not in sentence for sentence in said)


def test_compressed_forms_of_one_real_image_give_one_slice(tmp_path: Path) -> None:
    names = [name for name in MR_IMAGES if name.startswith("MR_small")]
    found = set()
    for name in names:
        put(tmp_path / name / "MR" / name, (PYDICOM / name).read_bytes())
        for plane in ("axial", "coronal", "sagittal"):
            try:
                slices(tmp_path / name, tmp_path / f"out-{name}", "--plane", plane)
            except UserError:
                continue
            break
        (image,) = (tmp_path / f"out-{name}").rglob("*.png")
        found.add(image.read_bytes())
    assert len(found) == 1


def test_a_real_brain_lies_upright_and_symmetric(tmp_path: Path) -> None:
    put(tmp_path / "scans" / "T1" / "mni.nii.gz", MNI152.read_bytes())
    slices(tmp_path / "scans", tmp_path / "out", "--center", 1, "--every", "2 mm")
    image = np.asarray(Image.open(next((tmp_path / "out").rglob("*.png")))).astype(float)
    assert image.shape == (233, 197)
    brain = image > 40
    assert 0.25 < brain.mean() < 0.6
    # A template is nearly its own mirror image, and the brain is longer than wide.
    assert np.abs(image - image[:, ::-1]).mean() < 6
    rows, columns = np.flatnonzero(brain.any(axis=1)), np.flatnonzero(brain.any(axis=0))
    assert np.ptp(rows) > np.ptp(columns)


@pytest.mark.parametrize(
    "name",
    ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"],
)
def test_real_nifti_files_give_slices(name: str, tmp_path: Path) -> None:
    path = NIBABEL / "tests" / "data" / name
    put(tmp_path / "scans" / "T1" / name, path.read_bytes())
    slices(tmp_path / "scans", tmp_path / "out")
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    images = sorted((tmp_path / "out").rglob("*.png"))
    assert len(images) == canonical.shape[2]
    voxels = np.asanyarray(canonical.dataobj)
    middle = (voxels[..., 0] if voxels.ndim == 4 else voxels)[:, :, len(images) // 2]
    shown = np.asarray(Image.open(images[len(images) // 2])).astype(float)
    assert np.corrcoef(shown.ravel(), middle[::-1, ::-1].T.ravel())[0, 1] > 0.97


PEAK = """
import resource, sys
from alexmri.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_volumes_do_not_add_up_in_memory(tmp_path: Path) -> None:
    """One volume at a time and worker: each takes 55 MB as float32."""
    big = np.zeros((240, 240, 240), np.uint8)
    big[20:200, 20:200] = np.arange(240, dtype=np.uint8)
    peaks = []
    for count in (2, 10):
        folder = tmp_path / str(count)
        for number in range(count):
            put(folder / "A" / f"sub-{number}.nii.gz", nifti(big, np.eye(4)))
        arguments = ["slices", folder, tmp_path / f"out{count}", "--center", 1, "--workers", 1]
        command = [sys.executable, "-c", PEAK, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"{count} slices of {count} scans" in done.stdout
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + (60 << 10)
