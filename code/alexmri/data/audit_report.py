"""Say what an audit found: in plain sentences, as tables on the terminal, and as one HTML page."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alexmri.data.decode import read_image
from alexmri.data.synthetic import NOTICE

# So many findings of a kind are printed; the JSON file and the page have more.
MAX_PRINTED = 10
# Findings of a kind on the page, images of a finding, and the longer side of an image.
MAX_FINDINGS, MAX_IMAGES, THUMBNAIL = 40, 4, 176


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Return what the findings mean; the first sentence says what a score on this split measures.

    `found` is the document of the audit.
    """
    sentences = [_what_a_score_measures(found), *_also_shared(found)]
    probe = found["leak_probe"]
    if probe["slice"] is not None:
        own = "this split" if found["split_by"] == "folders" else "a split image by image"
        scores = [f"{probe['slice']:.3f} on {own}"]
        if probe["subject"] is not None:
            scores.append(f"{probe['subject']:.3f} on a split by person")
        if probe["shuffled"] is not None:
            scores.append(f"{probe['shuffled']:.3f} with labels shuffled between people")
        sentences.append(
            "The 1-NN baseline answers with the label of the most similar training image and knows"
            f" nothing of any disease. It scores {', '.join(scores)}."
        )
    findings = describe_findings(found)
    if found["skipped_images"]:
        findings = [f"unreadable files: {len(found['skipped_images'])}", *findings]
    sentences += map(_sentence, findings)
    if not findings:
        sentences.append("No copies, no misfiled people and no unreadable files were found.")
    return sentences


def _what_a_score_measures(found: Mapping[str, Any]) -> str:
    shared, subjects, other = (found[k] for k in ("subjects_shared", "subjects", "compared_with"))
    pixels = found["inferred_subjects"]
    if other is None:
        return (
            "Whether a score measures recognition of people is unknown, because the images could"
            " not be split."
        )
    both = f"{'has' if shared == 1 else 'have'} images in both training and {other}"
    if shared is None:
        return (
            "Whether a score on this split measures recognition of people is unknown, because who"
            " is on which image is unknown. Where people have several images, expect that it does."
            f" The pixels alone do not tell: {pixels['subjects']} people with a confidence of only"
            f" {pixels['confidence']:.2f}."
        )
    if not found["groups_believed"]:
        return (
            "Whether a score on this split measures recognition of people is uncertain: of the"
            f" {subjects} people told apart by pixels {shared} {both}. The confidence is only"
            f" {pixels['confidence']:.2f}: slices of one person probably count as several people."
        )
    if shared:
        return (
            f"A score on this split measures recognition of people: {shared} of {subjects} people"
            f" {both}."
        )
    return (
        "A score on this split does not measure recognition of people: none of the"
        f" {subjects} people has images in both training and {other}."
    )


def _also_shared(found: Mapping[str, Any]) -> Iterator[str]:
    """Name people who are shared beside training and test, where those two share nobody."""
    between = found["subjects_between"] or {}
    if found["compared_with"] != "test" or found["subjects_shared"] != 0:
        return
    for key, effect in (
        (
            "train_validation",
            "so validation figures, which choose the epoch, are too good",
        ),
        ("validation_test", "so the epoch is chosen with the help of people of the test split"),
    ):
        if between.get(key):
            first, second = (name.replace("train", "training") for name in key.split("_"))
            who = "1 person has" if between[key] == 1 else f"{between[key]} people have"
            yield f"{who} images in both {first} and {second}, {effect}."


def describe_findings(found: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each kind of finding among the images."""
    notes = []
    exact, near = found["exact_duplicates"], found["near_duplicates"]
    copies = [pair for pair in near if pair["kind"] == "copy"]
    alike = [pair for pair in near if pair["kind"] == "look-alike"]
    for what, pairs in (("exact copies", exact), ("copies that were changed", copies)):
        if pairs:
            across = [
                f"{sum(len(pair[key]) > 1 for pair in pairs)} across {key}"
                for key in ("classes", "splits")
            ]
            notes.append(
                f"{what}: {len(pairs)} ({', '.join(across)}), the first being"
                f" {' = '.join(pairs[0]['paths'][:3])}"
            )
    if alike:
        counts = found["near_duplicate_counts"]
        notes.append(
            "pairs of images of different classes or people that are nearly the same:"
            f" {counts['suspicious']}, the first being {' and '.join(alike[0]['paths'])}"
        )
    if found["misfiled"]:
        first = found["misfiled"][0]
        notes.append(
            "people who appear in several classes or under several names:"
            f" {len(found['misfiled'])};"
            f" the first stray images are {', '.join(first['paths'][:3])}"
        )
    return notes


def show_audit(found: Mapping[str, Any]) -> None:
    """Print counts, findings, warnings and, last, what they mean."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from alexmri.terminal import print_table

    console = Console(highlight=False)
    if found["synthetic"]:
        console.print(NOTICE, markup=False, style="bold", soft_wrap=True)
    counts = found["counts"]
    table = Table("class", *counts, "image sizes", title="images")
    for label, sizes in found["sizes"].items():
        shown = ", ".join(f"{size} ({count})" for size, count in list(sizes.items())[:3])
        more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        numbers = (str(split[label]) for split in counts.values())
        table.add_row(escape(label), *numbers, shown + more)
    print_table(table)
    findings = list(_rows(found))
    if findings:
        table = Table("images", "finding", "where", title="findings", show_lines=True)
        for row in findings[:MAX_PRINTED]:
            table.add_row(*map(escape, row))
        print_table(table)
    if len(findings) > MAX_PRINTED:
        console.print(f"and {len(findings) - MAX_PRINTED} more: see --json and --html")
    for note in _notes(found):
        console.print(f"warning: {note}", markup=False, soft_wrap=True)
    for sentence in found["verdict"]:
        console.print(sentence, markup=False, soft_wrap=True)
    console.print("Research software, not a diagnostic device.")


def render_audit(found: Mapping[str, Any], paths: Mapping[str, Path], *, title: str) -> str:
    """Return the page, which needs no network; names are escaped, images of findings embedded.

    `paths` are those of the images by name.
    """
    from alexmri.data.pages import page_templates  # jinja2, which no training step waits for

    def thumbnail(name: str) -> str:
        read = read_image(paths[name])
        if isinstance(read, str):
            return ""
        image = read[1]
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    environment = page_templates()
    environment.filters["thumbnail"] = thumbnail
    return environment.get_template("audit.html").render(
        title=title,
        found=found,
        notes=list(map(_sentence, _notes(found))),
        notice=NOTICE if found["synthetic"] else None,
        shown=MAX_FINDINGS,
        images=MAX_IMAGES,
    )


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the images, the kind and the place of each finding."""
    for name, reason in found["skipped_images"].items():
        yield name, reason, ""
    for pair in found["exact_duplicates"]:
        yield " = ".join(pair["paths"][:3]), f"equal {pair['kind']}", _where(pair)
    for pair in found["near_duplicates"]:
        yield " = ".join(pair["paths"]), f"{pair['kind']}: {pair['how']}", _where(pair)
    for subject in found["misfiled"]:
        yield (
            ", ".join(subject["paths"][:3]),
            f"most of this person, {len(subject['belong_to'])} images, stand elsewhere",
            ", ".join(f"{name} {count}" for name, count in subject["classes"].items()),
        )


def _notes(found: Mapping[str, Any]) -> list[str]:
    """Return the warnings that the verdict does not repeat."""
    return [note for note in found["warnings"] if _sentence(note) not in found["verdict"]]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _where(pair: Mapping[str, Any]) -> str:
    return f"{', '.join(pair['classes'])}; {', '.join(pair['splits'])}"
