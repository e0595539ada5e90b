"""The report says first what the number measures; plots are plain, legible PNG bytes."""

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from alexmri.evaluation import metrics, plots
from alexmri.evaluation.mistakes import Mistake
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.report import DISCLAIMER, audit_findings, render_report
from alexmri.evaluation.verdict import compared, headline, verdict

CLASSES = ("Mild", "Moderate", "NonDemented", "VeryMild")
LEAKY = {"slice": 0.992, "subject": 0.462, "shuffled": 0.989}
EXISTING = {
    "split_by": "none",
    "subjects": 40,
    "subjects_shared": None,
    "groups_from": "names",
    "trained_on_these_images": False,
}
UNKNOWN = {"slice": None, "subject": None, "shuffled": None}
SHARED = {"split_by": "slice", "subjects": 200, "subjects_shared": 198, "groups_from": "names"}
APART = {"split_by": "subject", "subjects": 200, "subjects_shared": 0, "groups_from": "names"}
NOBODY = {"split_by": "slice", "subjects": None, "subjects_shared": None, "groups_from": None}


def predictions(classes: tuple[str, ...] = CLASSES, people: int | None = 40) -> Any:
    rng = np.random.default_rng(0)
    subjects_N = np.arange(400) % (people or 40)
    labels_N = rng.integers(0, len(classes), people or 40)[subjects_N]
    logits_NK = rng.normal(size=(400, len(classes)))
    logits_NK[np.arange(400), labels_N] += 2
    odds_NK = np.exp(logits_NK)
    return Predictions(
        classes=classes,
        labels_N=labels_N,
        probabilities_NK=odds_NK / odds_NK.sum(axis=1, keepdims=True),
        subjects_N=tuple(f"p{s}" for s in subjects_N) if people else None,
        paths=("x.png",) * 400,
        uncalibrated_NK=np.full((400, len(classes)), 1 / len(classes)),
        nearest_N=rng.integers(0, len(classes), 400),
    )


def lead(value: float, p_value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.1, value + 0.1], "p_value": p_value}


def baseline(accuracy: dict[str, Any], macro_f1: dict[str, Any], **more: str) -> dict[str, Any]:
    figures = {name: {"value": 0.5, "ci95": None} for name in ("accuracy", "macro_f1")}
    return {**figures, "difference": {"accuracy": accuracy, "macro_f1": macro_f1}, **more}


ABOVE, LEVEL, BELOW = lead(0.2, 0.001), lead(0.01, 0.6), lead(-0.2, 0.001)


def result(value: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    """Return the part of `measure`'s block that the verdict reads."""
    return {
        "accuracy": {"value": value, "ci95": [low, high]},
        "majority_class": {"class": "NonDemented", "accuracy": 0.5},
        "baselines": {
            "majority": baseline(ABOVE, ABOVE, **{"class": "NonDemented"}),
            "nearest_neighbour": baseline(ABOVE, ABOVE),
        },
        "resampled_by": "subject",
        "subjects": 60,
    } | changes


def said(protocol: dict[str, Any], leak_probe: dict[str, Any], test: Any) -> str:
    return " ".join(verdict(protocol, leak_probe, test))


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.2 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "val_macro_f1": 1 - 0.7 / epoch,
            "learning_rate": 0.001,
        }
        for epoch in range(1, epochs + 1)
    ]


def facts(classes: tuple[str, ...] = CLASSES, **changes: Any) -> dict[str, Any]:
    p = predictions(classes)
    measured = metrics.measure(p, replicates=20)
    counts = {name: 10 + k for k, name in enumerate(classes)}
    return {
        "title": "AlexNet on brain MRI",
        "generated": None,
        "protocol": SHARED,
        "leak_probe": LEAKY,
        "test": measured,
        "validation": measured,
        "history": history(3),
        "best_epoch": 2,
        "data": {
            "classes": list(classes),
            "counts": {"train": counts, "validation": counts, "test": counts},
            "people": None,
            "fingerprint": "sha256:abc",
            "warnings": ["Two images are the same."],
        },
        "audit": {"verdict": "It leaks.", "exact_duplicates": [1, 2], "leak_probe": LEAKY},
        "mistakes": [],
        "code": {"version": "0.1.0"},
        "settings": {"epochs": 3, "split_ratios": [0.7, 0.15, 0.15], "group_regex": None},
        "run": {"device": "cpu", "versions": {"torch": "2.14.1"}},
        "model": {"parameters": 24_700_000, "temperature": 1.25},
        "plots": {"roc": plots.roc(p)},
    } | changes


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


# The verdict, branch by branch.


def test_people_on_both_sides_and_probe_as_good_is_called_recognising_people() -> None:
    words = said(SHARED, LEAKY, result(0.98, 0.97, 0.99))
    assert "198 of the 200 people have images in both training and test" in words
    assert "taken from: names; if that is wrong, so is this" in words
    assert "scores 0.992 when images are split one by one" in words
    assert "it scores 0.989. It does so by recognising people." in words
    assert "So this accuracy mostly measures recognising people, not disease." in words
    assert words.endswith("train with split_by=subject.")


def test_network_far_below_the_look_up_is_not_said_to_recognise_people() -> None:
    words = said(SHARED, LEAKY, result(0.60, 0.57, 0.63))
    assert "Recognising people would be enough for that: it is no evidence of disease." in words
    assert "mostly measures" not in words


def test_recognising_people_is_not_claimed_when_shuffled_labels_defeat_the_probe() -> None:
    words = said(SHARED, LEAKY | {"shuffled": 0.55}, result(0.98, 0.97, 0.99))
    assert "recognising" not in words
    assert "takes no more than looking up the most similar image" in words


@pytest.mark.parametrize("probe", [LEAKY | {"shuffled": None}, UNKNOWN | {"slice": 0.992}])
def test_recognising_people_is_not_claimed_without_shuffled_labels(probe: Any) -> None:
    words = said(NOBODY, probe, result(0.98, 0.97, 0.99))
    assert "mostly measures" not in words
    assert "takes no more than looking up the most similar image" in words


def test_recognising_people_is_not_claimed_when_the_probe_only_guesses() -> None:
    probe = {"slice": 0.52, "subject": 0.50, "shuffled": 0.52}
    assert "recognising" not in said(SHARED, probe, result(0.55, 0.52, 0.58))


def test_network_far_above_the_look_up_is_not_called_a_look_up() -> None:
    probe = {"slice": 0.70, "subject": 0.50, "shuffled": 0.69}
    words = said(SHARED, probe, result(0.95, 0.93, 0.97))
    assert "more than the look-up; how much of it is disease, this cannot tell" in words
    assert "mostly measures" not in words


def test_given_folders_are_judged_by_a_probe_on_their_own_split() -> None:
    words = said(SHARED | {"split_by": "folders"}, LEAKY, result(0.98, 0.97, 0.99))
    assert "The split came with the data: 198 of the 200 people" in words
    assert "scores 0.992 on this very split" in words
    assert "mostly measures recognising people" in words
    assert "put all images of a person into one of the folders" in words


def test_given_folders_that_keep_people_apart_are_probed_on_new_people() -> None:
    probe = {"slice": 0.48, "subject": 0.45, "shuffled": 0.41}
    words = said(APART | {"split_by": "folders"}, probe, result(0.60, 0.55, 0.65))
    assert "scores 0.480 on people it has not seen" in words
    assert "Split image by image" not in words


def test_unknown_people_are_said_to_be_unknown() -> None:
    words = said(NOBODY, UNKNOWN, result(0.9, 0.88, 0.92, resampled_by="image", subjects=None))
    assert "is unknown; where people have several images each, expect that many do" in words
    assert "was not measured" in words
    assert "the true ones are wider" in words
    assert "say which image is whose (group_regex)" in words


def test_of_an_existing_model_it_is_said_what_cannot_be_known() -> None:
    words = said(EXISTING, UNKNOWN, result(0.98, 0.97, 0.99))
    assert words.startswith("An existing model was measured. Whether it was trained on images of")
    assert "Who is who was taken from: names" in words
    assert "split_by=subject" not in words
    trained_on = EXISTING | {"trained_on_these_images": True}
    words = said(trained_on, UNKNOWN, result(0.98, 0.97, 0.99))
    assert words.startswith("These are the very images the model was trained with: this is no test")


def test_people_kept_apart_are_said_to_be_new_and_need_no_advice() -> None:
    words = said(APART, LEAKY, result(0.60, 0.55, 0.65))
    assert "none of the 200 people has images in both training and test" in words
    assert "scores 0.462 on people it has not seen" in words
    assert "scores 0.992 on these data: figures from such splits are not comparable" in words
    assert "train with" not in words
    assert "recognising" not in words


@pytest.mark.parametrize(
    ("accuracy", "macro_f1", "words", "loud"),
    [
        (ABOVE, LEVEL, "better than a look-up", False),
        (ABOVE, ABOVE, "better than a look-up", False),
        (LEVEL, LEVEL, "NOT better than a look-up", True),
        (ABOVE, BELOW, "NOT better than a look-up", True),
        (LEVEL, BELOW, "WORSE than a look-up", True),
        (None, LEVEL, "NOT better than a look-up", True),
        (lead(0.2, 0.001) | {"p_value": None}, LEVEL, "NOT better than a look-up", True),
    ],
)
def test_headline_says_loudly_what_is_not_better_than_a_look_up(
    accuracy: Any, macro_f1: Any, words: str, loud: bool
) -> None:
    test = result(0.6, 0.5, 0.7)
    test["baselines"]["nearest_neighbour"] = baseline(accuracy, macro_f1)
    said_first = headline(APART, test)
    assert "Accuracy 0.600 on people it has not seen: " in said_first.text
    assert words in said_first.text.split(": ")[1]
    assert loud == (not said_first.good)
    assert "always answering NonDemented" in said_first.text
    assert compared(test)[0][1] != loud


def test_beating_the_look_up_on_known_people_is_no_good_headline() -> None:
    said_first = headline(SHARED, result(0.99, 0.98, 1))
    assert "on slices of people it was trained on: better than a look-up" in said_first.text
    assert not said_first.good
    assert headline(APART, result(0.99, 0.98, 1)).good


def test_headline_of_other_measurements() -> None:
    assert "No test set" in headline(SHARED, None).text
    test = result(0.9, 0.8, 1)
    test["baselines"]["nearest_neighbour"] = None
    few = headline(SHARED | {"subjects_shared": 3}, test)
    assert "on 60 people, 3 of them in its training too: better" in few.text
    assert not few.good
    assert "on images of unknown people: better than always" in headline(NOBODY, test).text
    assert "on the images given" in headline(EXISTING, test).text
    own = headline(EXISTING | {"trained_on_these_images": True}, test)
    assert "on the very images it was trained with" in own.text
    assert not own.good


def test_paired_test_in_words() -> None:
    test = result(0.6, 0.5, 0.7)
    test["baselines"]["nearest_neighbour"] = baseline(LEVEL, BELOW)
    (look_up, beaten), (guess, beats_guess) = compared(test)
    assert (beaten, beats_guess) == (False, True)
    assert look_up.startswith(
        "WORSE in macro F1, NOT shown to be better in accuracy than a look-up"
    )
    assert "Lead: +0.010 (−0.090 to +0.110, p = 0.600) in accuracy" in look_up
    assert "−0.200 (−0.300 to −0.100, p ≤ 0.001) in macro F1" in look_up
    assert guess.startswith("better in accuracy and macro F1 than always answering NonDemented.")


def test_comparable_splits_get_no_warning_about_other_figures() -> None:
    probe = {"slice": 0.47, "subject": 0.46, "shuffled": None}
    assert "not comparable" not in said(APART, probe, result(0.6, 0.55, 0.65))


def test_split_by_person_that_shares_people_is_called_failed() -> None:
    words = said(APART | {"subjects_shared": 3}, LEAKY, result(0.6, 0.55, 0.65))
    assert "3 of the 200 people" in words
    assert "meant to keep people apart and did not" in words
    assert "train with split_by=subject" not in words  # it was, and that did not help


@pytest.mark.parametrize("protocol", [SHARED, APART, NOBODY, APART | {"subjects_shared": None}])
@pytest.mark.parametrize("probe", [LEAKY, UNKNOWN])
def test_no_test_set_is_said_plainly(protocol: Any, probe: Any) -> None:
    words = said(protocol, probe, None)
    assert "There is no test set" in words
    assert "The network scores" not in words
    assert "None" not in words


def test_few_people_and_single_people_are_pointed_out() -> None:
    assert "holds 30 people" in said(APART, LEAKY, result(0.6, 0.55, 0.65, subjects=30))
    one = result(0.6, 0, 0, subjects=1) | {"accuracy": {"value": 0.6, "ci95": None}}
    assert "One person is too few for an interval or a test." in said(APART, LEAKY, one)


def test_verdict_reads_what_measure_writes() -> None:
    measured = metrics.measure(predictions(), replicates=50)
    assert f"The network scores {measured['accuracy']['value']:.3f}." in said(
        APART, LEAKY, measured
    )


# The page.


def test_verdict_comes_before_any_figure_and_the_disclaimer_on_both_ends() -> None:
    page = render_report(facts())
    assert page.count(DISCLAIMER) == 2
    assert page.index("What this number measures") < page.index("Headline figures")
    body = page[page.index("<body>") :]
    assert body.index(DISCLAIMER) < body.index("<h1>")
    assert body.rindex(DISCLAIMER) > body.index("Where this comes from")
    test = facts()["test"]
    for paragraph in (headline(SHARED, test).text, *verdict(SHARED, LEAKY, test)):
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
        for words, beaten in compared(level):
            assert f'<li class="{"good" if beaten else "loud"}">' in page
            assert words in page
    calibration = given["test"]["calibration"]
    for name in ("before", "after"):
        assert f"<td>{calibration[name]['ece']:.3f}</td>" in page
    for expected in ("24,700,000", "torch 2.14.1", "version 0.1.0", "It leaks.", "exact copies: 2"):
        assert expected in page


def test_demented_against_healthy_is_shown_for_slices_and_people() -> None:
    page = render_report(facts())
    assert "demented against" not in page
    measured = metrics.measure(predictions(), healthy_class="NonDemented", replicates=20)
    page = render_report(facts(test=measured))
    for level in (measured, measured["subject_level"]):
        for key in ("auc", "sensitivity", "specificity"):
            assert f"<td>{level['demented'][key]['value']:.3f} <small>" in page


def test_mistakes_are_pictures_with_names_and_escaped() -> None:
    one = Mistake(
        path="<b>/1.jpg",
        true="Mild",
        predicted="NonDemented",
        probability=0.9876,
        picture=b"picture",
        overlay=b"overlay",
    )
    text = render_report(facts(mistakes=[one]))
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
        ({"verdict": ["a", "W."], "leak_probe": LEAKY}, ["a", "W."]),
        ({"exact_duplicates": [], "leak_probe": UNKNOWN}, ["Groups of exact copies: 0.", "w"]),
        (
            {"near_duplicates": [{}, {}], "leak_probe": UNKNOWN},
            ["Pairs that are changed copies or suspiciously alike: 2.", "w"],
        ),
        (
            {"near_duplicate_counts": {"pairs": 9, "across_classes": 0}, "leak_probe": UNKNOWN},
            [
                "Pairs of slices that are nearly the same, neighbouring slices of one person among"
                " them: pairs 9, across classes 0.",
                "w",
            ],
        ),
        (
            {"leak_probe": LEAKY},
            [
                "A look-up of the most similar slice scores 0.992 on a split by slice, 0.462 by"
                " person, 0.989 with labels shuffled between people.",
                "w",
            ],
        ),
    ],
)
def test_findings_of_the_audit_are_read_whatever_it_knows(audit: Any, expected: list[str]) -> None:
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


# The plots.


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert not {str(key).lower() for key in image.info} & {"software", "creation time", "date"}
        return image.size


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def draw_all() -> dict[str, bytes]:
    p = predictions()
    measured = metrics.measure(p, healthy_class="NonDemented", replicates=5)
    return {
        "curves": plots.curves(history(5), best_epoch=3),
        **plots.measured_plots(measured, p, "Test"),
    }


def test_plots_are_900_pixels_wide_and_equal_every_time() -> None:
    first, second = draw_all(), draw_all()
    assert first == second
    drawn = {"curves", "confusion", "confusion_people", "reliability", "roc", "precision_recall"}
    assert set(first) == drawn | {"roc_demented"}
    assert {size(png)[0] for png in first.values()} == {900}


def test_plots_show_what_they_are_given() -> None:
    rows = history(5)
    assert plots.curves(rows, best_epoch=2) != plots.curves(rows, best_epoch=4)
    # Without a word about it, the kept epoch is the one with the highest macro F1: the last here.
    assert plots.curves(rows) == plots.curves(rows, best_epoch=5)
    good = pixels(plots.confusion([[9, 0], [0, 9]], ("a", "b"), "t"))
    bad = pixels(plots.confusion([[0, 9], [9, 0]], ("a", "b"), "t"))
    height, width = good.shape[:2]
    corner = (height // 4, width - 60)  # the upper right cell
    assert good[corner].mean() > 230  # empty: light
    assert bad[corner].mean() < 120  # full: dark


def test_single_epoch_is_visible() -> None:
    ink = {tuple(rgb) for rgb in pixels(plots.curves(history(1)))[:, 150:600].reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in ink


@pytest.mark.parametrize("name", ["_hidden", "price $a$ $b$", r"\frac{", "健康", "x" * 300, ""])
def test_any_folder_name_can_be_drawn(name: str) -> None:
    p = predictions((name, "other"))
    assert size(plots.roc(p))[0] == 900
    assert size(plots.precision_recall(p))[0] == 900
    assert size(plots.roc_demented(p, name))[0] == 900
    assert size(plots.confusion([[3, 1], [0, 2]], (name, "other"), name))[0] == 900


def test_roc_and_confusion_of_a_split_with_one_class() -> None:
    one = Predictions(
        classes=("a", "b"),
        labels_N=np.zeros(3, dtype=np.int64),
        probabilities_NK=np.full((3, 2), 0.5),
        subjects_N=None,
        paths=("x.png",) * 3,
    )
    for draw in (plots.roc, plots.precision_recall):
        assert size(draw(one))[0] == 900
    assert size(plots.roc_demented(one, "a"))[0] == 900
    assert size(plots.confusion([[3, 0], [0, 0]], ("a", "b"), "one class"))[0] == 900


def test_no_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="no epochs"):
        plots.curves([])


def test_drawing_never_loads_pyplot() -> None:
    program = (
        "import sys; from alexmri.evaluation import plots; plots.confusion([[1]], ['a'], 't'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
