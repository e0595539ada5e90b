"""Decide what can be said of an evaluation: what it measures, and whether it beats the baselines.

The words stand in interpretation.txt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Template

from alexmri.errors import option
from alexmri.evaluation.formatting import text_templates

# Accuracies closer than this are called alike: two test sets of 30 people differ by as much
# (on the public slices by 0.04 from one such set to the next).
NEAR = 0.05
# Below this, bootstrap intervals over people come out too narrow to be left without a word.
FEW_PEOPLE = 50
# Differences with a larger p-value are not called differences.
SIGNIFICANT = 0.05
BASELINES = ("nearest_neighbour", "majority")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
ADVICE = {"folders": "advice_on_folders", "slice": "advice_on_slices"}


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in short; good where every test beats both baselines on new people."""

    text: str
    good: bool


def headline(protocol: Mapping[str, Any], test: Mapping[str, Any] | None) -> Headline:
    """Return what a reader of one line must know; arguments as of `interpret`."""
    if test is None:
        return Headline(_say("headline_without_test", protocol=protocol), False)
    others = _baselines(test)
    where = _whose_images(protocol, test)
    text = _say("headline", protocol=protocol, test=test, others=others, where=where)
    return Headline(text, where == "new_people" and all(_is_beaten(each) for each in others))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the paired tests of accuracy and macro F1 found against another answer, in words.

    `beaten` is whether every test found the network better.
    """

    finding: str
    difference: str
    beaten: bool


def compared(measured: Mapping[str, Any], unit: str) -> list[Comparison]:
    """Return the comparison with each baseline.

    `measured` is what `metrics.measure` returned, or its "subject_level", and `unit` the name of
    what was counted there: slices or people.
    """
    return [_comparison(each, unit) for each in _baselines(measured)]


def compared_with_model(against: Mapping[str, Any]) -> list[Comparison]:
    """Return the comparison with another model, of slices and, where people are known, of people.

    `against` is the part of evaluation.json of that name.
    """
    levels = (("Slices", against), ("People", against["subject_level"]))
    return [
        _comparison(_tested("model", level, model=against["model"]), unit)
        for unit, level in levels
        if level
    ]


def describe_subgroups(subgroups: Mapping[str, Any]) -> list[str]:
    """Return what the test of each column found; `subgroups` is what `measure_subgroups` returned.

    The answer is about accuracy alone.
    """
    columns = subgroups["columns"]
    tests = sum(column["p_value"] is not None for column in columns)
    return [
        _say("subgroups_tested", column=column, tests=tests, significant=SIGNIFICANT)
        for column in columns
    ]


def describe_external(external: Mapping[str, Any]) -> list[str]:
    """Return whether data are external, and what changed there, as sentences.

    `external` is what `measure_external` returned.
    """
    found = [_say("overlap", external=external), _say("calibration_here", **external)]
    return [*found, _say("unusual_images", **external)]


def interpret(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> list[str]:
    """Return what the test accuracy measures, as paragraphs of plain sentences.

    `protocol` has split_by (slice, subject or folders; none where an existing model was measured,
    and then trained_on_these_images and images_in_training, how many of them, both None where
    unknown), compared_with (test, or validation where there is no test split), subjects (in the
    data, or None), subjects_shared (those with images in both training and that split, or None),
    subjects_between (the same for any two splits, or None) and groups_from.
    `leak_probe` has the accuracies (or None) of the 1-NN baseline: on a slice split (or on the
    folders' own split), on a subject split, and "shuffled", the first with labels shuffled between
    people. `test` is what `metrics.measure` returned, None where there is no test split.
    """
    apart = _kept_apart(protocol)
    probe = (_probe_of_new_people if apart else _probe_of_known_people)(protocol, leak_probe, test)
    paragraphs = [
        "no_test_set" if test is None else None,
        probe["paragraph"],
        _caution(test) if test else None,
        None if apart else ADVICE.get(protocol["split_by"]),
    ]
    facts = {"protocol": protocol, "probe": probe, "test": test}
    return [describe_split(protocol), *(_say(name, **facts) for name in paragraphs if name)]


def describe_split(protocol: Mapping[str, Any]) -> str:
    """Say how images were split and how many people stand on both sides."""
    people = protocol["subjects"]
    return _say(
        _split_paragraph(protocol),
        protocol=protocol,
        measured=protocol.get("compared_with") or "test",
        people="people" if people is None else f"{people} people",
        between={"train_validation": 0, "validation_test": 0}
        | (protocol.get("subjects_between") or {}),
    )


def _split_paragraph(protocol: Mapping[str, Any]) -> str:
    split_by, shared = protocol["split_by"], protocol["subjects_shared"]
    if split_by == "none":
        where = _whose_images(protocol, None)
        return where if where.endswith("training_images") else "existing_model"
    if shared is None:
        return "split_by_person" if split_by == "subject" else "sharing_unknown"
    return "sharing_people" if shared else "sharing_nobody"


def _whose_images(protocol: Mapping[str, Any], test: Mapping[str, Any] | None) -> str:
    """Return on whom was measured, by the names that the template knows."""
    shared = protocol["subjects_shared"]
    if protocol["split_by"] == "none":
        if protocol["images_in_training"]:
            return "some_training_images"
        return {
            None: "images_perhaps_in_training",
            False: "other_images",
            True: "training_images",
        }[protocol["trained_on_these_images"]]
    if _kept_apart(protocol):
        return "new_people"
    if shared is None:
        return "unknown_people"
    return "some_known_people" if test and shared < test["subjects"] else "known_people"


def _kept_apart(protocol: Mapping[str, Any]) -> bool:
    shared = protocol["subjects_shared"]
    return bool(shared == 0 or (shared is None and protocol["split_by"] == "subject"))


def _probe_of_known_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what the 1-NN baseline shows where people may stand on both sides."""
    known, new, shuffled = (leak_probe[k] for k in ("slice", "subject", "shuffled"))
    by_person = False
    if known is not None and shuffled is not None:
        # How low it could fall: guessing where that is known, else its own score on new people.
        floor = new if test is None else test["majority_class"]["accuracy"]
        # Half the way up from there is not a small part of what the baseline found.
        by_person = floor is not None and shuffled - floor > max(NEAR, (known - floor) / 2)
    below = bool(test and known is not None and known < test["accuracy"]["value"] - NEAR)
    return {
        "paragraph": "known_people_not_probed" if known is None else "probe_on_known_people",
        **{"known": known, "new": new, "shuffled": shuffled},
        **{"by_person": by_person, "below_network": below},
    }


def _probe_of_new_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what the 1-NN baseline shows where nobody stands on both sides."""
    new, known = leak_probe["subject"], leak_probe["slice"]
    if protocol["split_by"] == "folders":
        # Given folders were probed as they are, so `slice` is the figure on new people here.
        new, known = known, None
    if known is not None and new is not None and known <= new + NEAR:
        known = None  # no other figure than this one
    nothing = known is None and new is None
    return {
        "paragraph": "new_people_not_probed" if nothing else "probe_on_new_people",
        **{"known": known, "new": new},
    }


def _caution(test: Mapping[str, Any]) -> str | None:
    """Return how far intervals and tests can be trusted, where that must be said."""
    if test["accuracy"]["ci95"] is None:
        return "one_unit"
    if test["resampled_by"] == "image":
        return "images_resampled"
    return "few_people" if test["subjects"] < FEW_PEOPLE else None


def _baselines(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = measured["baselines"]
    return [
        _tested(name, found[name], **{"class": found[name].get("class")})
        for name in BASELINES
        if found[name] is not None
    ]


def _tested(name: str, other: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Return the differences to another answer, and the metrics by what their tests found."""
    outcomes: dict[str, list[str]] = {"worse": [], "open": [], "better": []}
    for key, metric in METRICS.items():
        outcomes[_outcome(other["difference"][key])].append(metric)
    gaps = {key: other["difference"][key] for key in METRICS}
    return {"name": name, **gaps, "outcomes": outcomes, **facts}


def _comparison(tested: Mapping[str, Any], unit: str) -> Comparison:
    facts = {"other": tested, "unit": unit}
    return Comparison(_say("finding", **facts), _say("difference", **facts), _is_beaten(tested))


def _outcome(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference["p_value"] is None or difference["p_value"] > SIGNIFICANT:
        return "open"
    return "better" if difference["value"] > 0 else "worse"


def _is_beaten(tested: Mapping[str, Any]) -> bool:
    return not tested["outcomes"]["worse"] and not tested["outcomes"]["open"]


def _say(macro: str, **facts: Any) -> str:
    module: Any = _template().make_module({"option": option, **facts})
    return " ".join(getattr(module, macro)().split())


@cache
def _template() -> Template:
    return text_templates().get_template("interpretation.txt")
