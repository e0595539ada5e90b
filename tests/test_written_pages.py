"""Report and audit page as files in headless Chromium: readable, printable, by themselves."""

import base64
import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from selenium import webdriver

from alexmri.cli import cli
from alexmri.data.phantom import write_demo_data
from alexmri.evaluation.report import render_report

from .browser import check_readable, show_as
from .report_facts import draw_all, external, facts, subgroups

LONG = "Very" * 12 + "MildImpairment"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, and a class with a name that breaks nowhere."""
    picture = io.BytesIO()
    Image.effect_noise((160, 160), 60).save(picture, "PNG")
    loss = {
        "path": f"{LONG}/{'1' * 80}.jpg",
        "true": LONG,
        "predicted": "Non",
        "probability": 0.99,
        "image": picture.getvalue(),
        "overlay": picture.getvalue(),
    }
    classes = ("Mild", "Non", LONG)
    shown = facts(
        classes,
        top_losses=[loss] * 4,
        plots=draw_all(classes, "Non"),
        external=external(),
        subgroups=subgroups(classes, LONG),
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(shown), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an audit that found one fault of each kind."""
    folder = tmp_path_factory.mktemp("audit")
    data = folder / "slices"
    write_demo_data(data, subjects={"MildDemented": 2, "NonDemented": 2})
    mild, healthy = data / "MildDemented", data / "NonDemented"
    (healthy / f"{'copy' * 30}.jpg").write_bytes((mild / "4 (2).jpg").read_bytes())
    with Image.open(healthy / "5 (2).jpg") as picture:
        picture.rotate(9, Image.Resampling.BILINEAR).save(healthy / "turned.jpg")
    (mild / "9 (1).jpg").write_bytes((mild / "9 (1).jpg").read_bytes()[:900])
    for number in range(10, 16):
        (mild / f"{number} (2).jpg").rename(healthy / f"stray {number}.jpg")
    page = folder / "audit.html"
    arguments = ["audit", str(data), "--html", str(page)]
    CliRunner().invoke(cli, arguments, catch_exceptions=False)
    return page


@pytest.fixture(params=["report", "audit"])
def page(request: pytest.FixtureRequest, browser: webdriver.Chrome) -> webdriver.Chrome:
    file: Path = request.getfixturevalue(request.param)
    browser.get_log("browser")  # what was said of the page before
    browser.get(file.as_uri())
    return browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable(page: webdriver.Chrome, width: int, scheme: str) -> None:
    show_as(page, width, scheme)
    check_readable(page, width)


def test_it_asks_for_nothing_and_the_browser_has_no_complaint(page: webdriver.Chrome) -> None:
    assert page.get_log("browser") == []
    script = "return performance.getEntriesByType('resource').map((each) => each.name)"
    assert [name for name in page.execute_script(script) if not name.startswith("data:")] == []


def test_pictures_are_there_and_have_words_for_those_who_cannot_see(page: webdriver.Chrome) -> None:
    script = "return [...document.images].map((each) => [each.alt, each.naturalWidth])"
    pictures = page.execute_script(script)
    assert len(pictures) > 5
    assert all(alt.strip() and width for alt, width in pictures)


def test_it_prints_dark_on_white_within_the_paper(page: webdriver.Chrome) -> None:
    show_as(page, 1280, "dark")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert page.execute_script(colour) == "rgb(255, 255, 255)"
    paper_pixels = 718  # A4 less the margins, at 96 pixels an inch
    size = {"width": paper_pixels, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= paper_pixels
    printed = base64.b64decode(page.print_page())
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") >= 2
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
