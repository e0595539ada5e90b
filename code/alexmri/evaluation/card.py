"""Write MODEL_CARD.md: what a model is for, what it was trained on, what it reached."""

from collections.abc import Mapping
from typing import Any

from alexmri.evaluation.report import verdict


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    `facts` has protocol, leak_probe, test, validation (as `metrics.measure` returns them), data
    (classes, counts, fingerprint, warnings), settings and model (parameters, temperature).
    """
    data, test = facts["data"], facts["test"]
    lines = [
        "# Model card: AlexNet for brain-MRI slices",
        "",
        "**Research software. Not a medical device; not for diagnosis.**",
        "",
        "## What the figures measure",
        "",
    ]
    for paragraph in verdict(facts["protocol"], facts["leak_probe"], test):
        lines += [paragraph, ""]
    lines += ["## Figures", ""]
    if test is None:
        lines += ["No test split, so no test figures. On the validation split:", ""]
    measured = test or facts["validation"]
    lines += [
        f"{measured['images']} {'test' if test else 'validation'} images; 95 % bootstrap intervals"
        f" over {'people' if measured['resampled_by'] == 'subject' else 'images'}.",
        "",
        "| figure | value | 95 % interval |",
        "| --- | ---: | --- |",
        *(
            _row(name.replace("_", " "), measured[name])
            for name in ("accuracy", "balanced_accuracy", "macro_f1")
        ),
        _row("AUC, one against the rest, mean", measured["auc"]["macro"]),
        f"| always answering {measured['majority_class']['class']} |"
        f" {measured['majority_class']['accuracy']:.3f} | |",
        "",
        "| class | images | precision | recall | F1 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, rates in measured["per_class"].items():
        shown = " | ".join(_value(rates[rate]) for rate in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {rates['images']} | {shown} |")
    lines += ["", "## Data", "", "| split | " + " | ".join(data["classes"]) + " |"]
    lines.append("| --- |" + " ---: |" * len(data["classes"]))
    for split, counts in data["counts"].items():
        lines.append(f"| {split} | " + " | ".join(str(n) for n in counts.values()) + " |")
    lines += ["", f"Fingerprint of the data: `{data['fingerprint']}`", ""]
    lines += [f"- {warning}" for warning in data["warnings"]]
    settings = facts["settings"]
    lines += [
        "",
        "## Model",
        "",
        f"AlexNet with batch norm, {facts['model']['parameters']:,} parameters, input"
        f" {settings['image_size']} x {settings['image_size']} pixels with {settings['channels']}"
        f" channel(s). Probabilities are calibrated by temperature"
        f" {facts['model']['temperature']:.3f}, fitted on the validation split.",
        "",
        "Each answer of the server has a score from 0 to 1 for how unlike the training data the"
        " picture is: the share of validation slices that are less unlike. Above 0.99, distrust the"
        " answer; below, the score does not say that the answer is right.",
        "",
        "Intended use: research and teaching on slices like those it was trained on. It has never"
        " been tested on patients, scanners or protocols outside its data set.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return f"| {name} | - | |"
    interval = figure["ci95"]
    shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"| {name} | {figure['value']:.3f} | {shown} |"


def _value(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['value']:.3f}"
