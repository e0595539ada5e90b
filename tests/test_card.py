"""The model card says what the figures are worth and which classes have too few people."""

import html
import re
from typing import Any

from alexmri.evaluation import metrics
from alexmri.evaluation.report import model_card

from .report_facts import APART, CLASSES, NOBODY, UNKNOWN, facts, predictions

SETTINGS = {
    "split_ratios": [0.7, 0.15, 0.15],
    "seed": 3,
    "early_stopping_metric": "macro_f1",
    "image_size": 32,
    "channels": 1,
    "center": "moments",
    "intensity": "median",
}


def card(**changes: Any) -> str:
    measured = metrics.measure(predictions(), negative_class="NonDemented", replicates=20)
    return model_card(facts(test=measured, settings=SETTINGS, **changes))


def people(**whole: int) -> dict[str, dict[str, int]]:
    some = dict.fromkeys(CLASSES, 1)
    return {"train": some, "validation": some, "test": some, "all": some | whole}


def test_figures_stand_beside_baselines_with_intervals() -> None:
    given = facts(settings=SETTINGS)
    text, test = model_card(given), given["test"]
    for level in (test, test["subject_level"]):
        for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
            cells = " | ".join(
                f"{e['value']:.3f} ({e['ci95'][0]:.3f} to {e['ci95'][1]:.3f})"
                for e in (level[key], *(level["baselines"][b][key] for b in BASELINES))
            )
            assert f"| {name} | {cells} |" in text
    for expected in ("not a medical device", "calibration error (ECE)", "70% / 15% / 15%, seed 3"):
        assert expected.lower() in text.lower()


BASELINES = ("nearest_neighbour", "majority")


def test_headline_comes_before_the_figures_and_limits_name_small_classes() -> None:
    text = card(protocol=APART | {"subjects": 90}, **{"data": small_data()})
    assert text.index("**Accuracy") < text.index("## Figures")
    limits = text[text.index("## Limits") : text.index("## Model\n")]
    assert "- Moderate has 2 people in the whole data set" in limits
    assert "- VeryMild has 1 person in the whole data set" in limits
    assert "NonDemented has" not in limits
    assert "- It leaks." in limits
    assert "AUC, demented against NonDemented" in text


def small_data() -> dict[str, Any]:
    data: dict[str, Any] = facts()["data"]
    return data | {"subjects": people(Mild=28, Moderate=2, NonDemented=60, VeryMild=1)}


def test_what_is_unknown_is_said() -> None:
    text = card(protocol=NOBODY, leak_probe=UNKNOWN)
    assert "nothing here is a figure about new people" in text
    none = model_card(facts(test=None, settings=SETTINGS))
    assert "No test split, so no test figures." in none
    assert "None" not in re.sub("NonDemented", "", none)


def test_every_table_is_whole() -> None:
    """The page of the server and other readers of Markdown want as many cells in every row."""
    for block in card(**{"data": small_data()}).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
            assert set(block.splitlines()[1]) <= set("|-: ")


HOSTILE = (
    *("<script>alert(1)</script>", "a|b", "**bold**", "_it_", "[x](javascript:1)", "`code`"),
    *("# head", "- item", "1. one", "a\nb", "&lt;", "\\*", "NonDemented", "Very_Mild"),
)


def test_a_name_stands_for_itself_in_the_card() -> None:
    hostile = metrics.measure(predictions(HOSTILE), negative_class="NonDemented", replicates=5)
    given = facts(HOSTILE, test=hostile, settings=SETTINGS)
    given["data"] |= {
        "subjects": {s: dict.fromkeys(HOSTILE, 1) for s in ("train", "validation", "test", "all")},
        "warnings": ["<img src=x onerror=alert(1)> cannot be read."],
    }
    text = model_card(given)
    shown = html.unescape(text)
    for name in HOSTILE:
        assert name.replace("\n", "\\u000a") in shown
    assert "<" not in text
    for raw in ("**bold**", "](", "a|b", " _it_", "`code`", "\n# head", "- - item", "\nb"):
        assert raw not in text
    assert "Very_Mild" in text  # nothing is escaped that needs no escape
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
