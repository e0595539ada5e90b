"""The page at `/` in headless Chromium, in front of container/serve with a trained model."""

import base64
import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ..browser import check_readable, show_as
from ..scans.phantoms import SPACING, nifti, phantom
from .conftest import PATIENCE, Tree
from .serving import Server

CLASSES = {"MildDemented", "NonDemented"}
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], { type: "image/png" }));
document.getElementById("drop").dispatchEvent(
  new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
"""


class Page:
    """The page in a browser, used as a person does."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.find("#facts tr"))

    def find(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> list[str]:
        return [element.text for element in self.find(selector) if element.is_displayed()]

    def wait(self, until: Any) -> None:
        WebDriverWait(self.browser, PATIENCE, 0.05).until(lambda browser: until())

    def choose(self, *files: Path) -> None:
        """Choose files and wait for the answer or the refusal."""
        self.find("#files")[0].send_keys("\n".join(map(str, files)))
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        self.wait(lambda: self.text("#problem") or self.text("#answers"))

    def complaints(self) -> list[str]:
        """What the browser has to say since it was last asked, such as breaches of the policy."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Page:
    return Page(browser, f"http://127.0.0.1:{server.port}/")


@pytest.fixture(scope="module")
def slices(trained: Tree) -> list[Path]:
    return sorted((trained.root / "input" / "data" / "training" / "NonDemented").iterdir())


def test_an_image_gets_its_answer_with_bars_score_and_overlay(
    page: Page, server: Server, slices: list[Path]
) -> None:
    page.choose(slices[0])
    _, content = server.ask("/invocations", slices[0].read_bytes(), "image/jpeg")
    (expected,) = json.loads(content)["predictions"]
    (label,) = page.text("#images .answer")
    assert label == expected["label"]
    shown = dict(line.split("\n") for line in page.text("#images .bars li"))
    assert set(shown) == CLASSES
    for name, share in expected["probabilities"].items():
        assert float(shown[name].removesuffix("%")) == pytest.approx(100 * share, abs=0.2)
    width, of = (
        page.browser.execute_script(f"return document.querySelector('{s}').offsetWidth")
        for s in ("#images .fill", "#images .track")
    )
    assert width / of == pytest.approx(expected["probabilities"][label], abs=0.02)
    assert any("Out of distribution: more unusual than" in line for line in page.text("article p"))
    images = page.find("#images img")
    page.wait(lambda: all(image.get_property("complete") for image in images))
    image, overlay = images
    with Image.open(slices[0]) as original:
        assert image.get_property("naturalWidth") == original.width
    assert overlay.get_property("naturalWidth") == 256
    assert all(image.get_attribute("alt") for image in images)
    assert not page.text("#person article")
    (said,) = page.text("[role=status][aria-live=polite]")
    assert said.startswith(f"Answered: {slices[0].name}, {label}")


def test_several_images_are_one_person(page: Page, slices: list[Path]) -> None:
    page.choose(*slices[:3])
    assert page.text("#images h3") == [path.name for path in slices[:3]]
    (person,) = page.text("#person article")
    assert "All 3 slices as one person" in person
    assert set(person.split("\n")) >= CLASSES


def test_a_scan_is_dropped_and_the_slices_that_were_used_are_shown(page: Page) -> None:
    scan = nifti(phantom(), np.diag([*SPACING, 1.0]))
    page.browser.execute_script(DROP, base64.b64encode(scan).decode(), "head.nii.gz")
    page.wait_for_answer()
    assert "All 12 slices as one person" in page.text("#person article")[0]
    titles = page.text("#images h3")
    assert titles[0] == "head.nii.gz, axial slice 0 (-16.5 mm from the middle)"
    assert len(titles) == 12
    images = page.find("#images img")
    page.wait(lambda: all(image.get_property("complete") for image in images))
    assert len(images) == 24
    assert images[0].get_property("naturalWidth") == 24
    assert images[0].get_property("naturalHeight") == 40
    assert not page.complaints()


def test_a_foreign_image_is_warned_about(page: Page, tmp_path: Path, slices: list[Path]) -> None:
    Image.effect_noise((64, 64), 120).save(tmp_path / "noise.png")
    page.choose(tmp_path / "noise.png", slices[0])
    (warning,) = page.text("#images article:first-child .warn")
    assert "more unusual than every validation slice. Distrust" in warning
    assert "slices is out of distribution: distrust" in page.text("#person .warn")[0]


def test_a_refusal_is_told_in_the_servers_words(
    page: Page, server: Server, tmp_path: Path, slices: list[Path]
) -> None:
    (tmp_path / "notes.png").write_bytes(b"no image at all")
    page.choose(tmp_path / "notes.png")
    _, content = server.ask("/invocations", b"no image at all", "image/png")
    refusal = json.loads(content)["error"]["message"]
    assert page.text("[role=alert]") == [f"notes.png: {refusal}"]
    assert not page.text("#answers")
    page.choose(slices[0], tmp_path / "notes.png")
    assert page.text("[role=alert]") == [f"notes.png: {refusal}"]
    page.choose(slices[0])
    assert not page.text("[role=alert]")


def test_it_tells_what_the_model_is(page: Page, server: Server) -> None:
    info = json.loads(server.ask("/info")[1])
    facts = " ".join(page.text("#facts tr"))
    for fact in (info["model_version"], *CLASSES, "32 × 32 pixels", "Accuracy", "Trained on"):
        assert fact in facts
    baseline = info["metrics"]["test"]["baselines"]["nearest_neighbour"]["accuracy"]["value"]
    assert f"1-NN baseline {baseline:.3f}" in facts
    assert any("not a diagnostic device" in line for line in page.text(".notice"))
    page.find("summary")[0].click()
    card = page.text("#card")[0]
    assert "What the figures measure" in card
    assert "**" not in card
    assert page.find("#card table td")


def test_the_keyboard_is_enough(page: Page) -> None:
    press = webdriver.ActionChains(page.browser)
    press.send_keys(Keys.TAB).perform()
    focused = page.browser.switch_to.active_element
    assert focused.get_attribute("id") == "files"
    assert focused.accessible_name.startswith("Choose images")
    outline = page.find("#drop")[0].value_of_css_property("outline-style")
    assert outline == "solid"
    press.send_keys(Keys.TAB).perform()
    summary = page.browser.switch_to.active_element
    assert summary.tag_name == "summary"
    summary.send_keys(Keys.ENTER)
    assert page.text("#card")


def test_a_dropped_image_is_asked_about_and_its_name_is_only_text(
    page: Page, slices: list[Path]
) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    page.browser.execute_script(DROP, base64.b64encode(slices[0].read_bytes()).decode(), name)
    page.wait_for_answer()
    assert page.text("#images h3") == [name]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_readable(
    page: Page, slices: list[Path], tmp_path: Path, width: int, scheme: str
) -> None:
    show_as(page.browser, width, scheme)
    Image.effect_noise((64, 64), 120).save(tmp_path / "noise.png")
    page.choose(*slices[:2], tmp_path / "noise.png")
    page.find("summary")[0].click()
    check_readable(page.browser, width)


def test_it_asks_nobody_but_its_server_and_keeps_to_its_policy(
    page: Page, server: Server, slices: list[Path]
) -> None:
    page.complaints()
    page.choose(*slices[:2])
    assert page.complaints() == []
    script = "return performance.getEntriesByType('resource').map((each) => each.name)"
    own = f"http://127.0.0.1:{server.port}/"
    for address in page.browser.execute_script(script):
        assert address.startswith((own, f"blob:{own}", "data:"))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    html = answer.read().decode()
    connection.close()
    assert "http://" not in html
    assert "https://" not in html
    # The policy holds: a script that is not the page's own does not run.
    page.browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1';"
        "document.body.append(s)"
    )
    assert page.browser.execute_script("return window.foreign") is None
    assert any("Content Security Policy" in message for message in page.complaints())
