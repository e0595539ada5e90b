"""Scans over HTTP: slice by slice and as one subject, as the slices that training has seen."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nilearn
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from alexmri.data.decode import read_image
from alexmri.data.pixels import Pixels, decode, fit
from alexmri.data.scans import read_scan
from alexmri.data.slicing import Slicing, as_png, cut
from alexmri.model.alexnet import build
from alexmri.model.predictor import Predictor
from alexmri.serving.app import create_app
from alexmri.serving.decode import PixelBudget, read_records, to_pixels
from alexmri.serving.engine import Engine
from alexmri.serving.request_error import RequestError
from alexmri.serving.scans import expand
from tests import bundles
from tests.scans.phantoms import NIBABEL, PYDICOM, SPACING, dicom, nifti, phantom, series

from .asking import CLASSES, OPENAPI, encoded, invoke

pytestmark = pytest.mark.slow

AFFINE = np.diag([*SPACING, 1.0])
SLICING = Slicing(center=5, spacing_mm=1.5)


@pytest.fixture(scope="module")
def scan_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    network = build(classes=len(CLASSES), image_size=32, channels=1, dropout=0.5, seed=1)
    facts = {"slicing": SLICING.model_dump(mode="json")}
    return bundles.save(folder, network, CLASSES, facts=facts)


@pytest.fixture(scope="module")
def asked(scan_bundle: Path) -> FlaskClient:
    engine = Engine(scan_bundle)
    engine.load()
    return create_app(engine).test_client()


def form(files: list[bytes]) -> dict[str, Any]:
    return {"image": [(io.BytesIO(data), f"IM{i:04}") for i, data in enumerate(files)]}


def trained_on(files: list[bytes], slicing: Slicing, folder: Path) -> Pixels:
    """Return the pixels of the PNG files that `alexmri slices` would write, as training reads."""
    folder.mkdir(exist_ok=True)
    volume = read_scan(files)
    rows = []
    for each in cut(volume, slicing):
        path = folder / f"{each.index}.png"
        path.write_bytes(as_png(each.pixels_HW))
        rows.append(decode(path, image_size=32, channels=1))
    return np.stack(rows)


def served(records: list[bytes], slicing: Slicing) -> Pixels:
    with PixelBudget(float("inf")) as budget:
        expanded, _ = expand(list(records), budget, slicing)
        pixels_NCHW, errors = to_pixels(expanded, budget, image_size=32, channels=1)
    assert errors == [None] * len(pixels_NCHW)
    return pixels_NCHW


KINDS: dict[str, Callable[[], list[bytes]]] = {
    "DICOM": lambda: series(phantom()),
    "NIfTI": lambda: [nifti(phantom(), AFFINE)],
    "NIfTI of floats": lambda: [nifti(phantom().astype(np.float32) / 7 - 20, AFFINE, packed=False)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_training_and_serving_see_the_same_pixels_of_a_scan(
    kind: str, bits: int, plane: str, tmp_path: Path
) -> None:
    slicing = Slicing(bits=bits, plane=plane, every_mm=4, spacing_mm=0.7)
    files = KINDS[kind]()
    trained = trained_on(files, slicing, tmp_path / "slices")
    np.testing.assert_array_equal(served(files, slicing), trained)
    assert trained.std() > 20


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")],
)
def test_training_and_serving_see_the_same_pixels_of_a_picture(
    dtype: type, kind: str, tmp_path: Path
) -> None:
    values = (np.random.default_rng(1).integers(0, 4000, (60, 50)) + 7).astype(dtype)
    path = tmp_path / "slice"
    path.write_bytes(encoded(Image.fromarray(values), kind))
    _, image = read_image(path)
    trained = fit(image, image_size=32, channels=1)
    np.testing.assert_array_equal(served([path.read_bytes()], SLICING)[0], trained)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/x-nifti", "NIfTI"),
        ("application/octet-stream", "NIfTI"),
        ("application/gzip", "NIfTI"),
        ("", "NIfTI"),
        ("multipart/form-data", "NIfTI"),
        ("multipart/form-data", "DICOM"),
        ("application/json", "NIfTI"),
        ("application/json", "DICOM"),
    ],
)
def test_a_scan_is_answered_slice_by_slice_and_as_one_subject(
    asked: FlaskClient, scan_bundle: Path, content_type: str, kind: str, tmp_path: Path
) -> None:
    files = KINDS[kind]()
    body: Any = files[0]
    if content_type == "multipart/form-data":
        body = form(files)
    elif content_type == "application/json":
        body = json.dumps({"instances": [base64.b64encode(data).decode() for data in files]})
    answer = invoke(asked, body, content_type, Accept="application/json")
    assert answer.status_code == 200, answer.json
    expected_NK = (
        Predictor.load(scan_bundle).predict(trained_on(files, SLICING, tmp_path)).probabilities_NK
    )
    given_NK = [
        [each["probabilities"][name] for name in CLASSES] for each in answer.json["predictions"]
    ]
    np.testing.assert_allclose(given_NK, expected_NK, atol=1e-6)
    mean_K = [answer.json["subject"]["probabilities"][name] for name in CLASSES]
    np.testing.assert_allclose(mean_K, expected_NK.mean(axis=0), atol=1e-6)
    assert answer.json["subject"]["slices"] == 5
    assert [each["source"] for each in answer.json["predictions"]] == [
        {"file": 0, "plane": "axial", "index": i, "position_mm": (i - 5.5) * 3} for i in range(3, 8)
    ]


def test_what_is_unusual_about_a_scan_is_told(asked: FlaskClient) -> None:
    four = np.stack([phantom(), phantom()], axis=-1)
    answer = invoke(asked, nifti(four, AFFINE), "application/x-nifti")
    for each in answer.json["predictions"]:
        assert each["source"]["notes"] == ["it holds 2 volumes; the first is used"]


def test_a_dicom_file_alone_is_one_slice(asked: FlaskClient) -> None:
    answer = invoke(asked, dicom(phantom()[..., 5].T), "application/dicom")
    assert answer.status_code == 200
    assert len(answer.json["predictions"]) == 1
    assert answer.json["subject"] is None


def test_the_page_gets_the_slices_that_were_used(asked: FlaskClient) -> None:
    picture = encoded(Image.fromarray(phantom()[..., 2].astype(np.uint8)), "PNG")
    files = [picture, nifti(phantom(), AFFINE)]
    answer = invoke(asked, form(files), "multipart/form-data", "?explain=gradcam")
    first, *slices = answer.json["predictions"]
    assert first["source"] == {"file": 0}
    assert {each["source"]["file"] for each in slices} == {1}
    volume = read_scan(files[1:])
    for found, wanted in zip(slices, cut(volume, SLICING), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(found["source"]["png"])))
        np.testing.assert_array_equal(np.asarray(shown), wanted.pixels_HW)


def test_pictures_alone_say_nothing_of_sources(asked: FlaskClient) -> None:
    answer = invoke(asked, encoded(Image.fromarray(phantom()[..., 2].astype(np.uint8)), "PNG"))
    assert "source" not in answer.json["predictions"][0]


def test_two_series_in_one_request_are_two_scans(asked: FlaskClient) -> None:
    files = [*series(phantom()), *series(phantom()[::-1])]
    answer = invoke(asked, form(files), "multipart/form-data")
    assert [each["source"]["file"] for each in answer.json["predictions"]] == [0] * 5 + [12] * 5


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (nifti(phantom(), AFFINE)[:200], 422, "cannot be unpacked"),
        (nifti(np.zeros((400, 400, 300), np.int8), AFFINE), 413, "at most 40 million are read"),
        (nifti(np.indices((9, 9, 600))[2].astype(np.int16), AFFINE), 200, ""),
        (dicom(phantom()[..., 1], PixelData=None), 422, "its pixels are missing"),
        (b"\x1f\x8b" + b"junk" * 20, 422, "cannot be unpacked"),
    ],
)
def test_limits_come_first(asked: FlaskClient, data: bytes, status: int, message: str) -> None:
    answer = invoke(asked, data, "application/octet-stream")
    assert answer.status_code == status
    if message:
        assert message in answer.json["error"]["message"]


def test_more_slices_than_images_are_allowed_are_refused() -> None:
    deep = nifti(np.indices((9, 9, 600))[2].astype(np.int16), AFFINE)
    with PixelBudget(float("inf")) as budget, pytest.raises(RequestError, match="600 images"):
        expand([deep], budget, Slicing())


def test_a_model_without_parameters_takes_the_middle_32(client: FlaskClient) -> None:
    data = nifti(np.indices((9, 9, 100))[2].astype(np.int16), AFFINE)
    answer = invoke(client, data, "application/x-nifti")
    indices = [each["source"]["index"] for each in answer.json["predictions"]]
    assert indices == list(range(34, 66))
    assert client.get("/info").json["slicing"]["center"] == 32


def test_openapi_names_the_types() -> None:
    content = OPENAPI["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert {"application/dicom", "application/x-nifti"} <= set(content)


def test_what_is_no_scan_is_refused_by_its_bytes() -> None:
    with PixelBudget(float("inf")) as budget:
        records = read_records("application/dicom", b"no scan at all", budget)
        expanded, sources = expand(records, budget, SLICING)
        assert (expanded, sources) == (records, [])
        with pytest.raises(RequestError, match="cannot be read as an image.*nor is it a scan"):
            to_pixels(expanded, budget, image_size=32, channels=1)


REAL = {
    **{
        f"MR_small{form}.dcm": 1
        for form in ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless", "_jpeg_ls_lossless")
    },
    "SC_rgb_jpeg_gdcm.dcm": 1,  # JPEG Lossless
    "MR_truncated.dcm": "it ends too early",
    "reportsi.dcm": "it holds no image (modality SR)",
}


@pytest.mark.parametrize(("name", "expected"), REAL.items())
def test_real_dicom_files_are_answered(asked: FlaskClient, name: str, expected: int | str) -> None:
    answer = invoke(asked, (PYDICOM / name).read_bytes(), "application/dicom")
    if isinstance(expected, str):
        assert answer.status_code == 422
        assert expected in answer.json["error"]["message"]
    else:
        assert len(answer.json["predictions"]) == expected


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz"])
def test_real_nifti_files_are_answered(asked: FlaskClient, name: str) -> None:
    data = (NIBABEL / "tests" / "data" / name).read_bytes()
    answer = invoke(asked, data, "application/octet-stream")
    assert answer.json["subject"]["slices"] == 5


def test_a_real_head_is_answered(asked: FlaskClient) -> None:
    mni152 = next(Path(nilearn.__file__).parent.glob("datasets/data/mni*_t1_*.nii.gz"))
    answer = invoke(asked, mni152.read_bytes(), "application/x-nifti")
    assert [each["source"]["index"] for each in answer.json["predictions"]] == list(range(92, 97))
