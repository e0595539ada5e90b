"""`alexmri predict` of scans: the answers that their slices get, and one for the person."""

import json
from pathlib import Path

import numpy as np
import pytest

from alexmri.cli import cli
from alexmri.data.slicing import Slicing
from alexmri.errors import UserError
from alexmri.model.alexnet import build
from tests import bundles

from .phantoms import PYDICOM, SPACING, nifti, phantom, save_series, series

AFFINE = np.diag([*SPACING, 1.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=1)
    facts = {"slicing": Slicing(center=5, bits=16).model_dump(mode="json")}
    return bundles.save(tmp_path_factory.mktemp("model"), network, ("AD", "CN"), facts=facts)


def command(*arguments: object) -> None:
    cli.main([str(each) for each in arguments], standalone_mode=False)


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    capsys.readouterr()
    command("predict", *arguments, "--json")
    return json.loads(capsys.readouterr().out)["predictions"]


def test_a_scan_is_answered_as_its_slices_are(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_series(tmp_path / "scans" / "AD" / "dicom", series(phantom()))
    (folder / "notes.txt").write_text("x")
    path = tmp_path / "scans" / "CN" / "sub-1.nii.gz"
    path.parent.mkdir()
    path.write_bytes(nifti(phantom()[::-1], AFFINE))
    options = ("--center", 5, "--bits", 16, "--workers", 1)
    command("slices", tmp_path / "scans", tmp_path / "out", *options)
    cut = [sorted((tmp_path / "out" / label).iterdir()) for label in ("AD", "CN")]
    wanted = [*predicted(capsys, model, *cut[0]), *predicted(capsys, model, *cut[1])]
    for given in ([folder, path], [*folder.glob("IM*"), path], [tmp_path / "scans"]):
        answers = predicted(capsys, model, *given)
        ones = [each for each in answers if "as one person" not in str(each["image"])]
        for one, other in zip(ones, wanted, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
        assert answers[11]["image"] == f"{path}: all 5 as one person"
        mean = np.mean([each["probabilities"]["AD"] for each in ones[5:]])
        assert answers[11]["probabilities"]["AD"] == pytest.approx(mean)


def test_pictures_and_scans_are_answered_together(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = tmp_path / "x.nii"
    scan.write_bytes(nifti(phantom(), AFFINE, packed=False))
    (tmp_path / "scans" / "A").mkdir(parents=True)
    (tmp_path / "scans" / "A" / "x.nii").write_bytes(scan.read_bytes())
    command("slices", tmp_path / "scans", tmp_path / "out", "--center", 1)
    (picture,) = (tmp_path / "out").rglob("*.png")
    answers = predicted(capsys, model, picture, scan, "--one-subject")
    names = [str(each["image"]) for each in answers]
    assert names[0] == str(picture)
    assert names[1] == f"{scan}: axial 3"
    assert names[-2:] == [f"{scan}: all 5 as one person", "all 6 as one person"]


def test_what_is_no_scan_gets_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.nii"
    cut.write_bytes(nifti(phantom(), AFFINE, packed=False)[:900])
    with pytest.raises(UserError, match=r"cut\.nii cannot be used: it ends too early"):
        command("predict", model, cut)
    with pytest.raises(UserError, match="there is no image"):
        command("predict", model, PYDICOM / "reportsi.dcm")
    assert "reportsi.dcm, because it holds no image (modality SR)" in capsys.readouterr().err
