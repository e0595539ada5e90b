"""Say in plain sentences what an audit found, and what a score on this data measures."""

from collections.abc import Mapping
from typing import Any


def verdict(found: Mapping[str, Any]) -> list[str]:
    """Return what the findings mean, in plain sentences; the first says what a score measures."""
    shared, people, probe = found["subjects_shared"], found["subjects"], found["leak_probe"]
    pixels = found["inferred_subjects"]
    if shared is None:
        first = (
            "Whether a score on this split measures recognition of people is unknown, because who"
            " is on which image is unknown; where people have several images, expect that it does."
            f" The pixels alone do not tell: {pixels['people']} people with a confidence of only"
            f" {pixels['confidence']:.2f}."
        )
    elif not found["groups_believed"]:
        first = (
            "Whether a score on this split measures recognition of people is uncertain: of the"
            f" {people} people that were told by pixels {shared} have images in both training and"
            f" test, but the confidence is only {pixels['confidence']:.2f}: slices of one person"
            " probably stand as several people."
        )
    elif shared:
        first = (
            f"A score on this split measures recognition of people: {shared} of {people} people"
            " have images in both training and test."
        )
    else:
        first = (
            "A score on this split does not measure recognition of people: none of the"
            f" {people} people has images in both training and test."
        )
    said = [first]
    if probe["slice"] is not None:
        said.append(
            "A look-up of the most similar training image, which has learned nothing of any"
            f" disease, scores {probe['slice']:.3f} on a split image by image"
            + (f", {probe['subject']:.3f} by person" if probe["subject"] is not None else "")
            + (
                f", and {probe['shuffled']:.3f} with labels shuffled between people."
                if probe["shuffled"] is not None
                else "."
            )
        )
    faults = findings_in_words(found)
    if found["skipped_images"]:
        faults = [f"unreadable files: {len(found['skipped_images'])}", *faults]
    said += [f"{fault[0].upper()}{fault[1:]}." for fault in faults]
    if not faults:
        said.append("No copies, no misfiled people and no unreadable files were found.")
    return said


def findings_in_words(found: Mapping[str, Any]) -> list[str]:
    """Return one sentence per kind of finding among the pictures."""
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
            f"people who stand in several classes or under several names: {len(found['misfiled'])};"
            f" the first stray images are {', '.join(first['paths'][:3])}"
        )
    return notes
