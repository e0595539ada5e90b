"""Write MODEL_CARD.md: what a model is for, what it was trained on, what it reached."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alexmri.data.synthetic import NOTICE
from alexmri.evaluation.formatting import estimate, figure
from alexmri.evaluation.interpretation import compared, headline, interpret
from alexmri.evaluation.report import audit_findings

# A class of fewer subjects is named among the limits: leaving one out changes its figures visibly.
MIN_SUBJECTS_PER_CLASS = 10
AVERAGES = (
    ("accuracy", "accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("macro F1", "macro_f1"),
)
# What Markdown or HTML takes for more than itself; an underscore within a word is itself.
SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|^[#+=\-]|^\d+(?=[.)]\s)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card as Markdown; equal runs give equal cards.

    `facts` has protocol, leak_probe, audit, test, validation (as `metrics.measure` returns them),
    data (classes, counts, subjects, fingerprint, warnings), settings and model (parameters,
    temperature). Every text in it is escaped: classes and files are named by whoever made the data.
    """
    facts = escaped(facts)
    test = facts["test"]
    measured = test or facts["validation"]
    blocks = [
        ["# Model card: AlexNet for brain-MRI slices"],
        *([[f"**{NOTICE}**"]] if facts["protocol"].get("synthetic") else []),
        ["**Research software. Not a medical device; not for diagnosis.**"],
        ["## Intended use"],
        [
            "Research and teaching on slices like those it was trained on: to learn how such"
            " networks are made, measured and served. Not for decisions about people: it is no"
            " diagnostic device, nobody has examined it as one, and it has never been tested on"
            " patients, scanners or protocols outside its data set."
        ],
        ["## What the figures measure"],
        [f"**{headline(facts['protocol'], test).text}**"],
        *([words] for words in interpret(facts["protocol"], facts["leak_probe"], test)),
        ["## Figures"],
        *_figures(measured, "test" if test else "validation"),
        ["## Data"],
        list(_data(facts["data"])),
        [f"Fingerprint of the data: `{facts['data']['fingerprint']}`"],
        ["## How it was measured"],
        [_protocol(facts)],
        ["## Limits"],
        [f"- {words}" for words in _limits(facts)],
        ["## Model"],
        [_model(facts)],
        [
            "Each answer of the server says how unusual the image is, as a percentile of the"
            " validation slices. Above 0.99, distrust the answer. A lower percentile does not say"
            " that the answer is right."
        ],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def escaped(value: Any) -> Any:
    """Return `value` with every text in it, keys too, made to stand for itself in Markdown."""
    if isinstance(value, str):
        text = SPECIAL.sub(lambda found: "".join(f"&#{ord(each)};" for each in found[0]), value)
        return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if isinstance(value, Mapping):
        return {escaped(key): escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(each) for each in value]
    return value


def _figures(measured: Mapping[str, Any], split: str) -> Iterator[Sequence[str]]:
    if split == "validation":
        yield ["No test split, so no test figures. On the validation split:"]
    people = measured["subject_level"]
    unit = "people" if measured["resampled_by"] == "subject" else "images, as people are unknown"
    yield [
        f"In brackets 95 % bootstrap intervals over {unit}. The 1-NN baseline answers with the"
        " label of the most similar training slice."
    ]
    levels = [(f"{measured['images']} {split} images", measured)]
    if people:
        levels.append((f"{people['subjects']} people, by the mean of their slices", people))
    for title, level in levels:
        yield list(_beside_baselines(title, level))
    yield [
        f"- {unit}: {words}"
        for unit, (_, level) in zip(("Slices", "People"), levels, strict=False)
        for words, _ in compared(level)
    ]
    yield list(_ranking([level for _, level in levels]))
    yield list(_calibration(measured["calibration"]))
    yield list(_classes(measured))


def _beside_baselines(title: str, level: Mapping[str, Any]) -> Iterator[str]:
    one_nn, always = (level["baselines"][name] for name in ("nearest_neighbour", "majority"))
    yield f"| {title} | network | 1-NN baseline | always {always['class']} |"
    yield "| --- | ---: | ---: | ---: |"
    for name, key in AVERAGES:
        shown = (estimate(each and each[key]) for each in (level, one_nn, always))
        yield f"| {name} | {' | '.join(shown)} |"


def _ranking(levels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| network | slices |" + (" people |" if len(levels) > 1 else "")
    yield "| --- |" + " ---: |" * len(levels)
    rows = [("AUC, one class against the rest, mean", [m["auc"]["macro"] for m in levels])]
    demented = [level["demented"] for level in levels if level["demented"]]
    if demented:
        healthy = demented[0]["negative_class"]
        rows.append((f"AUC, demented against {healthy}", [m["auc"] for m in demented]))
        rows.append(("sensitivity: demented found", [m["sensitivity"] for m in demented]))
        rows.append(("specificity: healthy found", [m["specificity"] for m in demented]))
    for name, values in rows:
        yield f"| {name} | {' | '.join(map(estimate, values))} |"


def _calibration(calibration: Mapping[str, Any]) -> Iterator[str]:
    before, after = calibration["before"], calibration["after"]
    stages = [stage for stage in (before, after) if stage]
    yield (
        "| probabilities, lower is better |" + (" as trained |" if before else "") + " calibrated |"
    )
    yield "| --- |" + " ---: |" * len(stages)
    yield f"| calibration error (ECE) | {' | '.join(figure(stage['ece']) for stage in stages)} |"
    for name, key in (("Brier score (0 to 2)", "brier"), ("log loss", "log_loss")):
        yield f"| {name} | {' | '.join(estimate(stage[key]) for stage in stages)} |"


def _classes(measured: Mapping[str, Any]) -> Iterator[str]:
    yield "| class | images | precision | recall | F1 | AUC |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, rates in measured["per_class"].items():
        values = [*(rates[rate] for rate in ("precision", "recall", "f1"))]
        values.append(measured["auc"]["per_class"][name])
        yield f"| {name} | {rates['images']} | {' | '.join(map(estimate, values))} |"


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    """Count images, and people in brackets where they are known."""
    subjects = data["subjects"]
    yield f"| {'images (people)' if subjects else 'images'} | {' | '.join(data['classes'])} |"
    yield "| --- |" + " ---: |" * len(data["classes"])
    for split, counts in data["counts"].items():
        shown = [
            f"{number} ({subjects[split][name]})" if subjects else str(number)
            for name, number in counts.items()
        ]
        yield f"| {split} | {' | '.join(shown)} |"


def _protocol(facts: Mapping[str, Any]) -> str:
    protocol, settings = facts["protocol"], facts["settings"]
    how = {
        "slice": "slice by slice",
        "subject": "person by person",
        "folders": "as the data came in folders",
    }[protocol["split_by"]]
    shares = " / ".join(f"{share:.0%}" for share in settings["split_ratios"])
    drawn = "" if protocol["split_by"] == "folders" else f" ({shares}, seed {settings['seed']})"
    test = "the test split chose nothing" if facts["test"] else "there is no test split"
    return (
        f"Split {how}{drawn}. The validation split chose the epoch, by"
        f" {settings['early_stopping_metric'].replace('_f', ' F')}, and the temperature; {test}."
        " A person's answer is the mean of the calibrated"
        " probabilities of their slices. The interval of a lead is over the same resamples, p by"
        " swapping the answers of random people (of images, where people are unknown)."
    )


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    data = facts["data"]
    if data["subjects"] is None:
        yield "Who is on which image is unknown, so nothing here is a figure about new people."
    else:
        for name, number in data["subjects"]["all"].items():
            if number < MIN_SUBJECTS_PER_CLASS:
                one = "1 person" if number == 1 else f"{number} people"
                yield (
                    f"{name} has {one} in the whole data set: figures about this class say"
                    " next to nothing about other people, and every macro average hangs on it."
                )
    yield from audit_findings(facts["audit"], data["warnings"])
    yield "Slices were treated as pictures: no age, no sex, no scanner, no third dimension."


def _model(facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    return (
        f"AlexNet with batch norm, {facts['model']['parameters']:,} parameters, input"
        f" {settings['image_size']} x {settings['image_size']} pixels with {settings['channels']}"
        f" channel(s). Probabilities are calibrated by temperature"
        f" {facts['model']['temperature']:.3f}, fitted on the validation split."
    )
