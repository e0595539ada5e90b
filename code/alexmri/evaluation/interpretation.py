"""Say in words what an evaluation measures, and whether it beats the baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexmri.errors import option
from alexmri.evaluation.formatting import figure, lead

# Accuracies closer than this are called alike: two test sets of 30 people differ by as much
# (on the public slices by 0.04 from one such set to the next).
NEAR = 0.05
# Below this, bootstrap intervals over people come out too narrow to be left without a word.
FEW_PEOPLE = 50
# Differences with a larger p-value are not called differences.
SIGNIFICANT = 0.05
BASELINES = {
    "nearest_neighbour": "the 1-NN baseline",
    "majority": "always answering {}",
}
ONE_NN = (
    "The 1-NN baseline, which only compares pixels and answers with the label of the most similar"
    " training image,"
)


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in one sentence; good where every test beats both baselines on new people."""

    text: str
    good: bool


def headline(protocol: Mapping[str, Any], test: Mapping[str, Any] | None) -> Headline:
    """Return what a reader of one sentence must know; arguments as of `interpret`."""
    shared, subjects = protocol["subjects_shared"], protocol["subjects"]
    if test is None:
        text = "No test set: nothing here was measured on images kept aside."
        if shared:
            text += f" {shared} of {subjects} people have images in both training and validation."
        return Headline(text, False)
    if protocol["split_by"] == "none":
        where = {
            None: "the images given, which may have been in its training",
            False: "the images given",
            True: "the very images it was trained with",
        }[protocol["trained_on_these_images"]]
        if known := protocol["images_in_training"]:
            where = f"images of which it was trained with {known}"
    elif _kept_apart(protocol):
        where = "people it has not seen"
    elif shared is None:
        where = "images of unknown people"
    elif shared < test["subjects"]:
        where = f"{test['subjects']} people, {shared} of them in its training too"
    else:
        where = "slices of people it was trained on"
    found = _baselines(test)
    said = "; ".join(
        f"{_standing(baseline)} than {_baseline_name(name, baseline)}" for name, baseline in found
    )
    good = _kept_apart(protocol) and all(_is_beaten(baseline) for _, baseline in found)
    return Headline(f"Accuracy {figure(test['accuracy'])} on {where}: {said}.", good)


def compared(measured: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Return a paired test in words for each baseline of `measured`, and whether it is beaten.

    Beaten means by every test, that of accuracy and that of macro F1.
    `measured` is what `metrics.measure` returned, or its "subject_level".
    """
    return [
        (
            _compared(_baseline_name(name, baseline), baseline),
            _is_beaten(baseline),
        )
        for name, baseline in _baselines(measured)
    ]


def compared_with_model(against: Mapping[str, Any]) -> list[str]:
    """Return what the paired tests found against another model, a sentence for each level.

    `against` is the part of evaluation.json of that name.
    """
    name = f"model {against['model']}"
    levels = (("slice by slice", against), ("person by person", against["subject_level"]))
    return [f"{how}: {_compared(name, level)}" for how, level in levels if level]


def _baselines(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = measured["baselines"]
    return [(name, found[name]) for name in BASELINES if found[name] is not None]


def _baseline_name(name: str, baseline: Mapping[str, Any]) -> str:
    return BASELINES[name].format(baseline.get("class"))


def _outcome(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference["p_value"] is None or difference["p_value"] > SIGNIFICANT:
        return "open"
    return "better" if difference["value"] > 0 else "worse"


def _gaps(baseline: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """Return the difference to a baseline by the metric's name."""
    difference = baseline["difference"]
    return {"accuracy": difference["accuracy"], "macro F1": difference["macro_f1"]}


def _compared(name: str, other: Mapping[str, Any]) -> str:
    leads = ", ".join(f"{lead(gap)} in {metric}" for metric, gap in _gaps(other).items())
    return f"{_standing(other)} than {name}. Lead: {leads}."


def _is_beaten(baseline: Mapping[str, Any]) -> bool:
    return all(_outcome(gap) == "better" for gap in _gaps(baseline).values())


def _standing(baseline: Mapping[str, Any]) -> str:
    """Say what the paired test of each metric found, the bad news first."""
    gaps = _gaps(baseline)
    found = {
        words: " and ".join(metric for metric, gap in gaps.items() if _outcome(gap) == outcome)
        for outcome, words in (
            ("worse", "WORSE"),
            ("open", "NOT shown to be better"),
            ("better", "better"),
        )
    }
    return ", ".join(f"{words} in {metrics}" for words, metrics in found.items() if metrics)


def _kept_apart(protocol: Mapping[str, Any]) -> bool:
    shared = protocol["subjects_shared"]
    return bool(shared == 0 or (shared is None and protocol["split_by"] == "subject"))


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
    paragraphs = [describe_split(protocol)]
    if test is None:
        paragraphs.append(
            "There is no test set: no figure here was measured on images kept aside. Validation "
            "figures also chose which epoch to keep, so they are somewhat too good."
        )
    if apart:
        paragraphs.append(_baseline_on_new_people(protocol, leak_probe, test))
    else:
        paragraphs.append(_baseline_on_known_people(protocol, leak_probe, test))
    if test is not None:
        paragraphs += _trust(test)
    if not apart and protocol["split_by"] == "folders":
        paragraphs.append(
            "For a figure about people the network has not seen, put all images of a person into "
            "one of the folders. Or put all images into one folder and set "
            f"{option('split_by', 'subject')}."
        )
    elif not apart and protocol["split_by"] == "slice":
        means = f" say which image is whose by {option('group_regex')} and"
        paragraphs.append(
            "For a figure about people the network has not seen,"
            f"{'' if protocol['subjects'] else means} set {option('split_by', 'subject')}."
        )
    return paragraphs


def describe_split(protocol: Mapping[str, Any]) -> str:
    """Say how images were split and how many people stand on both sides."""
    split_by, people, shared = (protocol[k] for k in ("split_by", "subjects", "subjects_shared"))
    source = protocol["groups_from"]
    told = f" Who is who was taken from: {source}; if that is wrong, so is this." if source else ""
    if split_by == "none" and (known := protocol["images_in_training"]):
        return (
            f"The model was trained with {known} of the images measured here: the figures"
            " are no test of anything."
        )
    if split_by == "none" and protocol["trained_on_these_images"]:
        return "These are the very images the model was trained with: this is no test of anything."
    if split_by == "none":
        same = "images of the same people"
        if protocol["trained_on_these_images"] is None:
            same = "these very images, or on others of the same people,"
        return (
            f"An existing model was measured. Whether it was trained on {same} "
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
    measured = protocol.get("compared_with") or "test"
    both = f"images in both training and {measured}"
    if shared is None:
        return (
            f"{how}. How many people have {both} is unknown; where people have several images each,"
            " expect that many do. Images of one person look alike, so the figures may be far too "
            "good for people the network has not seen."
        )
    of_people = "people" if people is None else f"{people} people"
    if shared == 0:
        return f"{how}: none of the {of_people} has {both}. {_about_new_people(protocol)}{told}"
    failed = " It was meant to keep people apart and did not." if split_by == "subject" else ""
    return (
        f"{how}: {shared} of the {of_people} have {both}.{failed} Images of one person look alike,"
        f" so a figure on known people is not one on new people.{told}"
    )


def _about_new_people(protocol: Mapping[str, Any]) -> str:
    """Say what the figures are about where training shares nobody with the split measured."""
    if protocol.get("compared_with") == "validation":
        return (
            "The validation figures are about people the network was not trained on, but these "
            "people chose the epoch."
        )
    between = protocol.get("subjects_between") or {}
    said = ["The figures are about people the network has not seen."]
    if known := between.get("train_validation"):
        said.append(
            f"But {known} people have images in both training and validation: validation figures, "
            "which chose the epoch, are too good."
        )
    if known := between.get("validation_test"):
        said.append(
            f"But {known} people have images in both validation and test: they helped to choose the"
            " epoch and the temperature, so test figures are somewhat too good."
        )
    return " ".join(said)


def _baseline_on_known_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> str:
    """Say what the 1-NN baseline shows where people may stand on both sides."""
    found, new, shuffled = (leak_probe[k] for k in ("slice", "subject", "shuffled"))
    if found is None:
        return "How far recognising people alone would get was not measured."
    said = [
        f"{ONE_NN} scores {figure(found)} "
        + (
            "on this very split."
            if protocol["split_by"] == "folders"
            else "when images are split one by one."
        )
    ]
    if new is not None:
        said.append(f"On people it has not seen it scores {figure(new)}.")
    by_person = False
    if shuffled is not None:
        said.append(
            "With labels shuffled between people, which leaves no disease to find, it scores "
            f"{figure(shuffled)}."
        )
        # How low it could fall: guessing where that is known, else its own score on new people.
        floor = new if test is None else test["majority_class"]["accuracy"]
        # Half the way up from there is not a small part of what the baseline found.
        by_person = floor is not None and shuffled - floor > max(NEAR, (found - floor) / 2)
        if by_person:
            said.append("It does so by recognising people.")
    if test is None:
        return " ".join(said)
    accuracy = test["accuracy"]["value"]
    said.append(f"The network scores {figure(accuracy)}.")
    if protocol["split_by"] == "subject":
        said.append(
            "The baseline used splits of its own, not this one: it tells how far recognising "
            "people can go, not how far it went here."
        )
    elif found < accuracy - NEAR:
        said.append("That is more than the baseline; how much of it is disease, this cannot tell.")
    elif by_person and accuracy < found - NEAR:
        said.append("Recognising people would be enough for that: it is no evidence of disease.")
    elif by_person:
        said.append("So this accuracy mostly measures recognising people, not disease.")
    else:
        said.append("So copying the label of the most similar image is enough for this accuracy.")
    return " ".join(said)


def _baseline_on_new_people(
    protocol: Mapping[str, Any], leak_probe: Mapping[str, Any], test: Mapping[str, Any] | None
) -> str:
    """Say what the 1-NN baseline shows where nobody stands on both sides."""
    found, by_slice = leak_probe["subject"], leak_probe["slice"]
    if protocol["split_by"] == "folders":
        # Given folders were probed as they are, so `slice` is the figure on new people here.
        found, by_slice = by_slice, None
    said = []
    if found is not None:
        said.append(f"{ONE_NN} scores {figure(found)} on people it has not seen.")
    if found is not None and test is not None:
        said.append(f"The network scores {figure(test['accuracy'])}.")
    if by_slice is not None and (found is None or by_slice > found + NEAR):
        said.append(
            f"Split image by image, the baseline scores {figure(by_slice)} on these data: figures "
            "from such splits are not comparable with this one."
        )
    return " ".join(said) or "How far the 1-NN baseline would get was not measured."


def _trust(test: Mapping[str, Any]) -> list[str]:
    """Say how far intervals and tests can be trusted."""
    if test["accuracy"]["ci95"] is None:
        one = "person" if test["resampled_by"] == "subject" else "image"
        return [f"One {one} is too few for an interval or a test."]
    if test["resampled_by"] == "image":
        return [
            "Intervals and tests treat every image as independent; where people have several "
            "images each, the true ones are wider and differences less certain."
        ]
    if test["subjects"] < FEW_PEOPLE:
        return [
            f"The test set holds {test['subjects']} people: as many others could give quite "
            "different figures."
        ]
    return []
