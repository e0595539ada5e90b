"""Headless Chromium for tests of pages: how it starts, and what a readable page is."""

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# WCAG 2.2, 1.4.3: contrast of a text with what is behind it.
ENOUGH_CONTRAST = 4.5
CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d");
const rgb = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const luminance = (colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
  const level = colour[i] / 255;
  return sum + weight * (level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4);
}, 0);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return rgb("white");
};
return [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
  const [one, other] = [luminance(rgb(getComputedStyle(e).color)), luminance(behind(e))];
  return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), e.textContent.trim()];
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        if os.environ.get("CI") == "true":
            pytest.fail("the page is tested in Chromium: apt-get install chromium chromium-driver")
        pytest.skip("Chromium is not here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def show_as(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    """Give the page a window of this width, and a reader who prefers light or dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wish = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wish})


def check_readable(browser: webdriver.Chrome, width: int) -> None:
    """Check that nothing needs sideways scrolling, and that every text stands out."""
    script = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wide, window = browser.execute_script(script)
    assert wide <= window == width
    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 30
    assert not [each for each in contrasts if each[0] < ENOUGH_CONTRAST]
