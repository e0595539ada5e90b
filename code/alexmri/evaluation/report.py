"""Turn an evaluation into words and one HTML page that says first what the number measures."""

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

DISCLAIMER = "Research software. Not a medical device; not for diagnosis."

# Accuracies closer than this are called alike: two test sets of 30 people differ by as much
# (dataset.md, section 2: 0.04 from one such set to the next).
NEAR = 0.05
# Below this, bootstrap intervals over people come out too narrow to be left without a word.
FEW_PEOPLE = 50


def verdict(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> list[str]:
    """Return what the test accuracy measures, as paragraphs of plain sentences.

    `protocol` has split_by (slice, subject or folders; none where an existing model was measured,
    and then trained_on_these_images), subjects (people in the data, or None), subjects_shared
    (people with images in both training and test, or None) and groups_from;
    `leak_probe` the accuracies (or None) of a 1-nearest-neighbour look-up: on a slice split (or on
    the folders' own split), on a subject split, and "shuffled", the first with labels shuffled
    between people. `test` is
    what `metrics.measure` returned, None where there is no test split.
    """
    shared = protocol["subjects_shared"]
    apart = shared == 0 or (shared is None and protocol["split_by"] == "subject")
    paragraphs = [_split(protocol)]
    if test is None:
        paragraphs.append(
            "There is no test set: no figure here was measured on images kept aside. Validation "
            "figures also chose which epoch to keep, so they are somewhat too good."
        )
    if apart:
        paragraphs.append(_look_up_on_new_people(protocol, leak_probe, test))
    else:
        paragraphs.append(_look_up_on_known_people(protocol, leak_probe, test))
    if test is not None:
        paragraphs.append(_strength(test))
    if not apart and protocol["split_by"] == "folders":
        paragraphs.append(
            "For a figure about people the network has not seen, put all images of a person into "
            "one of the folders, or all images into one folder and train with split_by=subject."
        )
    elif not apart and protocol["split_by"] == "slice":
        means = "" if protocol["subjects"] else "say which image is whose (group_regex) and "
        paragraphs.append(
            f"For a figure about people the network has not seen, {means}train with "
            "split_by=subject."
        )
    return paragraphs


def render_report(facts: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that needs nothing from outside.

    `facts` has title, generated, protocol, leak_probe, test, validation, history, best_epoch,
    data (classes, counts by split, fingerprint, warnings), settings, run, model (parameters,
    temperature) and plots (PNG bytes by name; missing ones are left out). Without a training
    `history` is empty, and only the splits that `counts` names are shown. Everything in it is
    escaped: class names are folder names. Raises jinja2.UndefinedError where a key is missing.
    """
    environment = Environment(
        loader=PackageLoader("alexmri", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "interval": _interval, "shown": _shown}
    images = {name: base64.b64encode(png).decode() for name, png in facts["plots"].items()}
    return environment.get_template("report.html").render(
        **dict(facts) | {"plots": images},
        disclaimer=DISCLAIMER,
        verdict=verdict(facts["protocol"], facts["leak_probe"], facts["test"]),
    )


def _split(protocol: Mapping[str, Any]) -> str:
    """Say how images were split and how many people stand on both sides."""
    split_by, people, shared = (protocol[k] for k in ("split_by", "subjects", "subjects_shared"))
    source = protocol["groups_from"]
    told = f" Who is who was taken from: {source}; if that is wrong, so is this." if source else ""
    if split_by == "none" and protocol["trained_on_these_images"]:
        return "These are the very images the model was trained with: this is no test of anything."
    if split_by == "none":
        return (
            "An existing model was measured. Whether it was trained on images of the same people "
            "cannot be told from here; if so, the figures are far too good for people it has not "
            f"seen, since images of one person look alike.{told}"
        )
    how = {
        "slice": "The images were split one by one, without regard to whose they are",
        "subject": "The images were split by person",
        "folders": "The split came with the data",
    }[split_by]
    if shared is None and split_by == "subject":
        return f"{how}.{told}"
    if shared is None:
        return (
            f"{how}. How many people have images in both training and test is unknown; where "
            "people have several images each, expect that many do. Images of one person look "
            "alike, so the figures may be far too good for people the network has not seen."
        )
    of_people = "people" if people is None else f"{people} people"
    if shared == 0:
        return (
            f"{how}: none of the {of_people} has images in both training and test. The figures "
            f"are about people the network has not seen.{told}"
        )
    failed = " It was meant to keep people apart and did not." if split_by == "subject" else ""
    return (
        f"{how}: {shared} of the {of_people} have images in both training and test.{failed} Images "
        f"of one person look alike, so a figure on known people is not one on new people.{told}"
    )


def _look_up_on_known_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> str:
    """Say what the look-up shows where people may stand on both sides."""
    found, new, shuffled = (leak_probe[k] for k in ("slice", "subject", "shuffled"))
    if found is None:
        return "How far recognising people alone would get was not measured."
    said = [
        "A look-up of the most similar training image, which only compares pixels, scores "
        f"{_figure(found)} "
        + (
            "on this very split."
            if protocol["split_by"] == "folders"
            else "when images are split one by one."
        )
    ]
    if new is not None:
        said.append(f"On people it has not seen it scores {_figure(new)}.")
    by_person = False
    if shuffled is not None:
        said.append(
            "With labels shuffled between people, which leaves no disease to find, it scores "
            f"{_figure(shuffled)}."
        )
        # How low it could fall: guessing where that is known, else its own score on new people.
        floor = new if test is None else test["majority_class"]["accuracy"]
        # Half the way up from there is not a small part of what the look-up found.
        by_person = floor is not None and shuffled - floor > max(NEAR, (found - floor) / 2)
        if by_person:
            said.append("It does so by recognising people.")
    if test is None:
        return " ".join(said)
    accuracy = test["accuracy"]["value"]
    said.append(f"The network scores {_figure(accuracy)}.")
    if protocol["split_by"] == "subject":
        said.append(
            "The look-up used splits of its own, not this one: it tells how far recognising people "
            "can go, not how far it went here."
        )
    elif found < accuracy - NEAR:
        said.append("That is more than the look-up; how much of it is disease, this cannot tell.")
    elif by_person and accuracy < found - NEAR:
        said.append("Recognising people would be enough for that: it is no evidence of disease.")
    elif by_person:
        said.append("So this accuracy mostly measures recognising people, not disease.")
    else:
        said.append("So this accuracy takes no more than looking up the most similar image.")
    return " ".join(said)


def _look_up_on_new_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> str:
    """Say what the look-up shows where nobody stands on both sides."""
    found, by_slice = leak_probe["subject"], leak_probe["slice"]
    if protocol["split_by"] == "folders":
        # Given folders were probed as they are, so `slice` is the figure on new people here.
        found, by_slice = by_slice, None
    said = []
    if found is not None:
        said.append(
            "A look-up of the most similar training image, which only compares pixels, scores "
            f"{_figure(found)} on people it has not seen."
        )
    if found is not None and test is not None:
        said.append(f"The network scores {_figure(test['accuracy'])}.")
        interval = test["accuracy"]["ci95"]
        if interval is not None and interval[0] > found:
            said.append("Its whole 95 % interval lies above the look-up.")
        else:
            said.append("That is no clear gain over the look-up.")
    if by_slice is not None and (found is None or by_slice > found + NEAR):
        said.append(
            f"Split image by image, the look-up scores {_figure(by_slice)} on these data: figures "
            "from such splits are not comparable with this one."
        )
    return " ".join(said) or "How far a look-up of similar images would get was not measured."


def _strength(test: Mapping[str, Any]) -> str:
    """Say how the accuracy compares with guessing, and how far its interval can be trusted."""
    majority, interval = test["majority_class"], test["accuracy"]["ci95"]
    guess = f"always answering {majority['class']} would score {_figure(majority['accuracy'])}"
    if interval is None:
        one = "person" if test["resampled_by"] == "subject" else "image"
        return f"One {one} is too few for an interval; {guess}."
    if interval[1] < majority["accuracy"]:
        said = f"The network does worse than guessing: {guess}."
    elif interval[0] <= majority["accuracy"]:
        said = (
            f"This test does not show that the network beats guessing: {guess}, which lies inside "
            f"the network's 95 % interval, {_interval(test['accuracy'])}."
        )
    else:
        said = f"For comparison, {guess}."
    if test["resampled_by"] == "image":
        said += (
            " The intervals treat every image as independent; where people have several images "
            "each, the true ones are wider."
        )
    elif test["subjects"] < FEW_PEOPLE:
        said += (
            f" The test set holds {test['subjects']} people: as many others could give quite "
            "different figures."
        )
    return said


def _figure(value: float | Mapping[str, Any] | None) -> str:
    """Write a number, or the value of an estimate, with three decimals."""
    if isinstance(value, Mapping):
        value = value["value"]
    return "–" if value is None else f"{value:.3f}"


def _interval(estimate: Mapping[str, Any] | None) -> str:
    """Write an estimate's interval, or nothing where there is none."""
    if estimate is None or estimate["ci95"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"{low:.3f} to {high:.3f}"


def _shown(value: Any) -> str:
    """Write a setting's value for people."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)
