"""The audit finds what is planted in a data set, and nothing in a clean one."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageEnhance, ImageOps

from alexmri.cli import cli
from alexmri.data.nearest import nearest, pairs_above
from alexmri.errors import UserError

pytestmark = pytest.mark.slow


def audited(data: Path, out: Path, *options: str) -> dict[str, Any]:
    arguments = ["audit", str(data), "--json", str(out), *options]
    CliRunner().invoke(cli, arguments, catch_exceptions=False)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "9 degrees": lambda picture: picture.rotate(9, Image.Resampling.BILINEAR),
    "15 degrees": lambda picture: picture.rotate(-15, Image.Resampling.BILINEAR, expand=True),
    "90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "left to right": ImageOps.mirror,
    "top to bottom": ImageOps.flip,
    "with other intensities": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "and with other intensities": lambda picture: picture.rotate(6).point(
        lambda v: int(255 * (v / 255) ** 0.7)
    ),
}


def test_a_clean_set_has_no_findings_and_the_verdict_says_who_is_recognised(
    twelve_people: Path, tmp_path: Path
) -> None:
    found = audited(twelve_people, tmp_path / "found.json", "--html", str(tmp_path / "page.html"))
    for kind in ("exact_duplicates", "near_duplicates", "misfiled", "skipped_images", "warnings"):
        assert not found[kind], kind
    assert found["verdict"][0].startswith("A score on this split measures recognition of people")
    assert found["subjects_shared"] == found["subjects"] == 12
    assert found["leak_probe"]["slice"] > 0.95 > 0.8 > found["leak_probe"]["subject"]
    assert found["leak_probe"]["shuffled"] > 0.95
    assert found["inferred_subjects"] == {"subjects": 12, "confidence": 1.0, "believed": True}
    assert found["sizes"]["MildDemented"] == {"176 x 208": 128}
    apart = audited(twelve_people, tmp_path / "apart.json", "--split-by", "subject")
    assert apart["subjects_shared"] == 0
    assert "does not measure recognition" in apart["verdict"][0]


def test_planted_faults_are_each_found_and_nothing_else(
    twelve_people: Path, tmp_path: Path
) -> None:
    data = tmp_path / "planted"
    shutil.copytree(twelve_people, data)
    mild, healthy = data / "MildDemented", data / "NonDemented"
    (mild / "9 (1).jpg").write_bytes((mild / "9 (1).jpg").read_bytes()[:900])
    shutil.copy(mild / "4 (2).jpg", healthy / "40 (2).jpg")
    with Image.open(mild / "6 (2).jpg") as picture:
        picture.save(healthy / "41 (2).png")
    for number, change in enumerate(CHANGES.values()):
        with Image.open(healthy / f"{5 + 3 * number} (3).jpg") as picture:
            change(picture).save(healthy / f"{50 + number} (3).jpg", quality=85)
    for number in range(10, 16):  # slices of a person of one class stand in another
        (mild / f"{number} (4).jpg").rename(data / "VeryMildDemented" / f"{number} (9).jpg")
    found = audited(data, tmp_path / "found.json", "--html", str(tmp_path / "page.html"))

    assert list(found["skipped_images"]) == ["MildDemented/9 (1).jpg"]
    exact = {tuple(pair["paths"]): pair["kind"] for pair in found["exact_duplicates"]}
    assert exact == {
        ("MildDemented/4 (2).jpg", "NonDemented/40 (2).jpg"): "bytes",
        ("MildDemented/6 (2).jpg", "NonDemented/41 (2).png"): "pixels",
    }
    copies = {
        frozenset(pair["paths"]): pair["how"]
        for pair in found["near_duplicates"]
        if pair["kind"] == "copy"
    }
    expected = {
        frozenset(f"NonDemented/{n} (3).jpg" for n in (5 + 3 * number, 50 + number)): how
        for number, how in enumerate(CHANGES)
    }
    assert copies.keys() == expected.keys()
    for pair, how in expected.items():
        assert how in copies[pair]
    strays = [set(person["paths"]) for person in found["misfiled"]]
    assert {f"VeryMildDemented/{number} (9).jpg" for number in range(10, 16)} in strays
    alike = [pair for pair in found["near_duplicates"] if pair["kind"] == "look-alike"]
    assert alike
    assert all("VeryMildDemented" in pair["classes"] for pair in alike)

    page = (tmp_path / "page.html").read_text()
    assert "Not a diagnostic device" in page
    assert page.count('src="data:image/png;base64,') > 2 * len(CHANGES)
    assert not re.search(r'(?:src|href)="(?!data:)', page)


NO_CONTRAST: dict[str, Callable[[int], Image.Image]] = {
    "transparent": lambda i: Image.new("RGBA", (40, 40), (i, 200, 90, 0)),
    "0 and 1": lambda i: Image.fromarray(
        (np.indices((40, 40)).sum(axis=0) % (i + 2) < 1).view("u1")
    ),
    "blank": lambda i: Image.new("L", (40, 40), 5 * i),
}


@pytest.mark.parametrize("kind", NO_CONTRAST)
@pytest.mark.parametrize("command", ["audit", "train"])
def test_images_without_any_contrast_are_refused(tmp_path: Path, command: str, kind: str) -> None:
    data = tmp_path / "data"
    for label in "AB":
        (data / label).mkdir(parents=True)
        for i in range(30):
            NO_CONTRAST[kind](i).save(data / label / f"{i:02}.png")
    arguments = ["audit", str(data)]
    if command == "train":
        arguments = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1"]
    with pytest.raises(
        UserError, match=r"none of the 60 images has any contrast, the first being A/00\.png"
    ):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.mark.parametrize("per_class", [1, 2, 20])
@pytest.mark.parametrize("kind", ["one", "two", "one class", "copies", "turned copies"])
def test_few_images_with_contrast_are_audited(tmp_path: Path, per_class: int, kind: str) -> None:
    data, noise = tmp_path / "data", np.random.default_rng(0)
    blank, first = Image.new("L", (40, 40)), Image.fromarray(noise.integers(0, 256, (40, 40), "u1"))
    for label in "AB":
        (data / label).mkdir(parents=True)
        for i in range(per_class):
            own = Image.fromarray(noise.integers(0, 256, (40, 40), "u1"))
            image = {
                "one": own if (label, i) == ("A", 0) else blank,
                "two": blank if i else own,
                "one class": own if label == "A" else blank,
                "copies": first,
                "turned copies": first.rotate(90 * "AB".index(label)),
            }[kind]
            image.save(data / label / f"{i} ({i % 3 + 1}).png")
    found = audited(data, tmp_path / "found.json", "--html", str(tmp_path / "page.html"))
    assert found["images"] == 2 * per_class
    blanks = {"one": 2 * per_class - 1, "two": 2 * per_class - 2, "one class": per_class}.get(kind)
    warning = f"images without contrast: {blanks} of {2 * per_class}, the first being "
    assert (warning in str(found["warnings"])) == bool(blanks)


def test_files_of_several_pages_are_named(tmp_path: Path, twelve_people: Path) -> None:
    data = tmp_path / "stacks"
    shutil.copytree(twelve_people, data)
    with Image.open(data / "NonDemented" / "5 (3).jpg") as image:
        others = [image.rotate(turn) for turn in (30, 60)]
        image.save(data / "NonDemented" / "5 (3).tif", save_all=True, append_images=others)
    (data / "NonDemented" / "5 (3).jpg").unlink()
    found = audited(data, tmp_path / "found.json")
    assert found["warnings"] == [
        "files that hold several pages or frames, of which only the first is used: 1, the first"
        " being NonDemented/5 (3).tif with 3 pages"
    ]
    assert f"F{found['warnings'][0][1:]}." in found["verdict"]  # which the terminal shows


def test_pairs_are_those_of_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexmri.data.nearest.COARSE", 8)
    monkeypatch.setattr("alexmri.data.nearest.COARSE_SAMPLE", 100)
    monkeypatch.setattr("alexmri.data.nearest.BLOCK", 64)
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 4), dtype=np.float32) @ generator.standard_normal(
        (4, 60), dtype=np.float32
    )
    vectors += 0.5 * generator.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    i, j, product = pairs_above(vectors, vectors, 0.93)
    whole = np.triu(vectors @ vectors.T, 1)
    assert set(zip(i, j, strict=True)) == set(zip(*np.nonzero(whole >= 0.93), strict=True))
    assert np.allclose(product, whole[i, j], atol=1e-5)
    index, correlation = nearest(vectors[:5], vectors[5:])
    assert index.tolist() == (vectors[:5] @ vectors[5:].T).argmax(axis=1).tolist()
    assert np.allclose(correlation, (vectors[:5] @ vectors[5:].T).max(axis=1))


def test_the_real_slices_are_clean(real_slices: Path, tmp_path: Path) -> None:
    found = audited(real_slices, tmp_path / "found.json", "--groups-file", "groups.csv")
    assert not any(found[kind] for kind in ("exact_duplicates", "near_duplicates", "misfiled"))
    assert found["subjects_shared"] >= 155
    assert found["leak_probe"]["slice"] > 0.98
    assert found["leak_probe"]["shuffled"] > 0.98
    assert found["leak_probe"]["subject"] < 0.6
