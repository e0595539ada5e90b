"""The report says first what the number measures, is whole, escaped and needs nothing outside."""

import base64
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from alexmri.evaluation import metrics
from alexmri.evaluation.interpretation import compared, headline, interpret
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.report import DISCLAIMER, audit_findings, render_report
from alexmri.evaluation.top_losses import TopLoss

from .report_facts import (
    CLASSES,
    EXISTING,
    LEAKY,
    NOBODY,
    SHARED,
    UNKNOWN,
    external,
    facts,
    predictions,
    subgroups,
)


class Page(HTMLParser):
    """Collect a page's elements, and check that they close in order."""

    VOID = frozenset({"meta", "img", "link", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_verdict_comes_before_any_figure_and_the_disclaimer_on_both_ends() -> None:
    page = render_report(facts())
    assert page.count(DISCLAIMER) == 2
    assert page.index("What this number measures") < page.index("Headline figures")
    body = page[page.index("<body>") :]
    assert body.index(DISCLAIMER) < body.index("<h1>")
    assert body.rindex(DISCLAIMER) > body.index("Where this comes from")
    test = facts()["test"]
    for paragraph in (headline(SHARED, test).text, *interpret(SHARED, LEAKY, test)):
        assert paragraph in page


def test_figures_stand_beside_their_intervals_and_both_baselines() -> None:
    given = facts()
    page = " ".join(render_report(given).split())
    for level in (given["test"], given["test"]["subject_level"]):
        for key in ("accuracy", "balanced_accuracy", "macro_f1"):
            others = [level["baselines"][name][key] for name in ("nearest_neighbour", "majority")]
            own, *beside = (
                f"{e['value']:.3f}{{}} <small>{e['ci95'][0]:.3f} to {e['ci95'][1]:.3f}</small></td>"
                for e in (level[key], *others)
            )
            own = f"<td><strong>{own.format('</strong>')}"
            cells = " ".join([own, "".join(f"<td>{cell.format('')}" for cell in beside)])
            assert cells in page
        unit = "Slices" if level is given["test"] else "People"
        for each in compared(level, unit):
            css = "good" if each.beaten else "loud"
            box = f'<li class="{css}"><strong>{each.finding}</strong><br>{each.difference}</li>'
            assert box in page
    calibration = given["test"]["calibration"]
    for name in ("before", "after"):
        assert f"<td>{calibration[name]['ece']:.3f}</td>" in page
    for expected in (
        "24,700,000",
        "torch 2.14.1",
        "version 7.8.9",
        "It leaks.",
        "of which 2 are in different splits",
    ):
        assert expected in page


def test_demented_against_healthy_is_shown_for_slices_and_people() -> None:
    page = render_report(facts())
    assert "demented against" not in page
    measured = metrics.measure(predictions(), negative_class="NonDemented", replicates=20)
    page = render_report(facts(test=measured))
    for level in (measured, measured["subject_level"]):
        for key in ("auc", "sensitivity", "specificity"):
            assert f"<td>{level['demented'][key]['value']:.3f} <small>" in page


def test_mistakes_are_pictures_with_names_and_escaped() -> None:
    one = TopLoss(
        path="<b>/1.jpg",
        true="Mild",
        predicted="NonDemented",
        probability=0.9876,
        image=b"picture",
        overlay=b"overlay",
    )
    text = render_report(facts(top_losses=[one]))
    page = Page(text)
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    for content in (b"picture", b"overlay"):
        assert f"data:image/png;base64,{base64.b64encode(content).decode()}" in sources
    assert "&lt;b&gt;/1.jpg" in text
    assert "0.988" in text


@pytest.mark.parametrize(
    ("audit", "expected"),
    [
        (None, ["w"]),
        ({"verdict": ["a", "W."], "near_duplicate_counts": {"pairs": 0}}, ["a", "W."]),
        (
            {"verdict": ["a"], "near_duplicate_counts": {"pairs": 9, "across_splits": 4}},
            [
                "a",
                "Pairs of slices that are nearly the same: 9, of which 4 are in different splits."
                " Such pairs are often neighbouring slices of one person.",
                "w",
            ],
        ),
    ],
)
def test_findings_are_those_of_the_audit_and_what_it_does_not_repeat(
    audit: Any, expected: list[str]
) -> None:
    assert audit_findings(audit, ["w"]) == expected


def test_page_is_well_formed_and_asks_for_nothing_outside() -> None:
    page = Page(render_report(facts()))
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe"}
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", render_report(facts()))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 1  # the only plot given
    assert images[0]["alt"]


def test_markup_in_folder_names_and_settings_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    page = render_report(
        facts((evil, "b&c"), settings={evil: evil}, run={"host": {evil: [evil]}}, title=f'"{evil}')
    )
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "b&amp;c" in page
    Page(page)


def test_missing_test_set_missing_plots_missing_people() -> None:
    given = facts(test=None, protocol=NOBODY, leak_probe=UNKNOWN, plots={})
    given["data"]["counts"].pop("test")
    page = render_report(given)
    Page(page)
    assert "There is no test set, so there are no test figures." in page
    assert "Class by class (validation set)" in page
    assert "<img" not in page
    assert ">None<" not in page
    neither = render_report(given | {"validation": None})
    assert "Class by class" not in neither


def test_without_a_training_only_what_was_measured_is_shown() -> None:
    given = facts(
        protocol=EXISTING,
        leak_probe=UNKNOWN,
        validation=None,
        history=[],
        best_epoch=None,
        audit=None,
    )
    given["data"]["counts"] = {"test": given["data"]["counts"]["test"]}
    page = render_report(given)
    Page(page)
    for absent in ("<h2>Training</h2>", "Validation", ">Training<", "epoch", ">None<"):
        assert absent not in page.replace('<th scope="row">epochs</th>', "")
    assert "fitted on the validation" not in page
    assert page.count('<th scope="col">Test</th>') == 1
    assert "Class by class (test set)" in page


def test_undefined_figures_are_dashes() -> None:
    p = predictions()
    absent = Predictions(
        classes=(*CLASSES, "Nobody"),
        labels_N=p.labels_N,
        probabilities_NK=np.pad(p.probabilities_NK, ((0, 0), (0, 1))),
        subjects_N=p.subjects_N,
        paths=p.paths,
    )
    page = render_report(facts(test=metrics.measure(absent, replicates=5)))
    row = '<th scope="row">Nobody</th><td>0</td>' + "<td>–</td>" * 4
    assert row in page


def test_forgotten_fact_is_an_error_not_a_hole() -> None:
    given = facts()
    given["model"].pop("temperature")
    with pytest.raises(UndefinedError, match="temperature"):
        render_report(given)


def test_subgroups_stand_with_their_people_figures_and_test() -> None:
    given = subgroups()
    text = render_report(facts(subgroups=given))
    Page(text)
    page = " ".join(text.split())
    assert "<h3>By site</h3>" in page
    assert "&lt;b&gt;north" in page
    assert "<b>north</b>" not in page
    site = given["columns"][0]
    _, south, missing = site["subgroups"]
    low, high = south["accuracy"]["ci95"]
    assert f"{south['accuracy']['value']:.3f} <small>{low:.3f} to {high:.3f}</small>" in page
    assert "<td>15 (150)</td>" in page
    assert 'missing <small class="few">fewer than 10 subjects</small>' in page
    assert (missing["subjects"], missing["accuracy"]["ci95"]) == (5, None)
    assert f"(p = {site['p_value_holm']:.3f}, corrected for 2 tests)" in page
    assert "Null hypothesis: " in page
    assert "<h2>Subgroups</h2>" not in render_report(facts())


def test_external_data_are_called_so_and_stand_beside_the_own() -> None:
    page = " ".join(render_report(facts(external=external())).split())
    assert "<h2>External data</h2> <p>External: none of the 400 images is in" in page
    row = page[page.index("Calibration error (ECE)</th><td>0.040") :]
    assert row.startswith("Calibration error (ECE)</th><td>0.040</td><td>0.200</td><td>0.050</td>")
    assert "0.120 (0.100 to 0.200) of all have an ood_percentile above 0.99" in page
    assert "External data" not in render_report(facts())


def test_images_of_the_training_are_not_called_external() -> None:
    known = external(is_external=False, images_in_training=3, subjects_in_training=1)
    known["calibration"] |= {"own_split": None, "own": None, "recalibrated": None}
    page = " ".join(render_report(facts(external=known | {"unusual": None})).split())
    assert "<h2>External data</h2>" not in page
    assert (
        '<p class="loud">NOT external: 3 of the 400 images were in the training (1 person).' in page
    )
    assert '<th scope="col">Here</th></tr>' in page
    assert "too few people here" in page
    assert "The model cannot tell how unusual the images are." in page
