"""Divide images into train, validation and test, or into the folds of a cross-validation.

A single split is a function of each image alone: an image's place is the number its key hashes to,
below 0.70 train, below 0.85 validation, else test. The key is the SHA-256 of its bytes (split by
slice: copies of one file stay together) or the name of its subject (split by subject). So adding or
removing an image moves no other image, and the order of files does not matter. Every class is
divided by the same shares; with n images the share of a split has a standard deviation of
sqrt(p (1 - p) / n). See docs/decisions/0001.

Folds count instead: with 22 subjects in a class no hash gives every fold its fifth of them. The
price is that one more subject may move others. The order of files changes nothing, nor does one
more image of a subject who is there already.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from alexmri.errors import UserError

SPLITS = ("train", "validation", "test")
# The part of validation that calibrates prediction sets, and is used for nothing else.
CALIBRATION = "calibration"
# The part of the training folder that becomes validation where a data set brings none.
CARVED_SHARE = 0.15 / 0.85

# A class with fewer subjects than this in the test split is not measured, only sampled.
FEW_TESTED = 5

Protocol = Literal["slice", "subject", "folders"]


@dataclass(frozen=True, slots=True)
class Split:
    """The split of every image (same order), and how it was made."""

    assigned: tuple[str, ...]
    split_by: Protocol
    notes: tuple[str, ...]

    def indices(self, split: str) -> list[int]:
        return [i for i, assigned in enumerate(self.assigned) if assigned == split]


def place(key: str, seed: int) -> float:
    """Return the place of `key` in [0, 1): uniform over keys, independent between seeds."""
    digest = hashlib.sha256(f"alexmri.split/{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def split_randomly(
    keys: Sequence[str],
    labels: Sequence[str],
    *,
    ratios: tuple[float, float, float],
    seed: int,
    split_by: Literal["slice", "subject"],
) -> Split:
    """Divide images by the place of their keys; images with one key stay together.

    A class so small that chance gives it no train, test or validation image gets, in this order,
    the key whose place is nearest to that split: the only case in which images depend on others.

    Raises:
        UserError: a class with a single key, which cannot be both trained on and tested, or one
            whose people other classes need.
    """
    bounds = _bounds(ratios)
    wanted = [name for name in ("train", "test", "validation") if name in bounds]
    places = {key: place(key, seed) for key in keys}
    chosen = {key: next(n for n in wanted if _holds(bounds[n], places[key])) for key in places}
    notes: list[str] = []
    for label in sorted(set(labels)):
        own = sorted({key for key, lab in zip(keys, labels, strict=True) if lab == label})
        if len(wanted) > 1:
            _refuse_single(label, own, split_by)
        for rank, name in enumerate(wanted):
            counts = Counter(chosen[key] for key in own)
            less_important = wanted[rank + 1 :]
            spare = [k for k in own if counts[chosen[k]] > 1 or chosen[k] in less_important]
            if counts[name] or not spare:
                continue
            # min() over (distance, key): deterministic where two keys are equally near.
            moved = min(spare, key=lambda key: (_distance(bounds[name], places[key]), key))
            notes.append(
                f"class '{label}' would have had no {name} {split_by}; one was moved there"
            )
            chosen[moved] = name
    if split_by == "subject" and "test" in wanted:
        notes += _few_tested(keys, labels, chosen)
    assigned = tuple(chosen[key] for key in keys)
    trained = {label for label, name in zip(labels, assigned, strict=True) if name == "train"}
    for label in sorted(set(labels) - trained):
        raise UserError(
            f"class '{label}' shares all its people with other classes and has none left to train"
            " on; add more or split by slice"
        )
    return Split(assigned, split_by, tuple(notes))


def split_as_given(
    given: Sequence[str],
    keys: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
    split_by: Literal["slice", "subject"],
) -> Split:
    """Keep the split the folders have; without validation, carve one out of train, never of test.

    `keys` are what carving keeps together: people where they are known, else file contents.
    """
    if "validation" in given:
        return Split(tuple(given), "folders", ())
    train = [i for i, name in enumerate(given) if name == "train"]
    carved = split_randomly(
        [keys[i] for i in train],
        [labels[i] for i in train],
        ratios=(1 - CARVED_SHARE, CARVED_SHARE, 0.0),
        seed=seed,
        split_by=split_by,
    )
    assigned = list(given)
    for i, name in zip(train, carved.assigned, strict=True):
        assigned[i] = name
    note = "no validation folder: a part of train became validation"
    return Split(tuple(assigned), "folders", (note, *carved.notes))


def carve_calibration(
    split: Split,
    keys: Sequence[str],
    labels: Sequence[str],
    *,
    at_least: int,
    seed: int,
    things: str = "people",
) -> Split:
    """Move half of the keys of validation to `CALIBRATION`, of each class in the order of places.

    `things` is what the keys are, in words.

    Raises:
        UserError: half of them are fewer than `at_least`, or validation would have none left.
    """
    inside = split.indices("validation")
    strata = _strata([keys[i] for i in inside], [labels[i] for i in inside])
    moved: set[str] = set()
    dealt = 0
    for own in strata.values():
        # In turn over all classes, so that halves of small classes are not all rounded one way.
        for key in sorted(own, key=lambda key: (place(f"calibration/{key}", seed), key)):
            if dealt % 2 == 0:
                moved.add(key)
            dealt += 1
    if len(moved) < at_least or dealt < 2:
        raise UserError(
            f"coverage needs {at_least} or more {things} in half of validation, which has {dealt};"
            " give validation a larger share (split_ratios), or ask for less coverage"
        )
    assigned = list(split.assigned)
    for i in inside:
        if keys[i] in moved:
            assigned[i] = CALIBRATION
    note = f"{len(moved)} of {dealt} {things} of validation only calibrate the prediction sets"
    return Split(tuple(assigned), split.split_by, (*split.notes, note))


def compared_with(split: Split) -> str | None:
    """Return the split whose figures count beside train: test, or else validation."""
    return next((name for name in ("test", "validation") if name in split.assigned), None)


def subjects_shared(split: Split, subjects: Sequence[str]) -> int | None:
    """Return how many subjects have images both in train and in the split it is compared with."""
    other = compared_with(split)
    return None if other is None else subjects_between(split, subjects)[f"train_{other}"]


def subjects_between(split: Split, subjects: Sequence[str]) -> dict[str, int]:
    """Return how many subjects any two splits share, of those that have images.

    The keys are train_validation, train_test and validation_test; with `CALIBRATION` more.
    """
    names = (*SPLITS, CALIBRATION)
    sides: dict[str, set[str]] = {name: set() for name in names if name in split.assigned}
    for name, subject in zip(split.assigned, subjects, strict=True):
        sides[name].add(subject)
    return {f"{a}_{b}": len(sides[a] & sides[b]) for a, b in combinations(sides, 2)}


def _refuse_single(label: str, own: Collection[str], split_by: str) -> None:
    if len(own) == 1:
        thing = "person" if split_by == "subject" else "image"
        raise UserError(
            f"class '{label}' has only one {thing}, which cannot be both trained on and tested; add"
            " more or remove the class"
        )


def _few_tested(keys: Sequence[str], labels: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """Name the classes with a handful of subjects in the test split, in one note."""
    subjects = sorted({(label, key) for key, label in zip(keys, labels, strict=True)})
    counts = Counter(label for label, _ in subjects)
    tested = Counter(label for label, key in subjects if chosen[key] == "test")
    few = [
        f"{label} {tested[label]} of {count}"
        for label, count in counts.items()
        if tested[label] < FEW_TESTED
    ]
    told = f"few people are tested: {', '.join(few)}; alexmri crossval tests everybody once"
    return [told] if few else []


def _bounds(ratios: tuple[float, float, float]) -> dict[str, tuple[float, float]]:
    """Return the places of each split that has a share; together they cover [0, 1]."""
    bounds: dict[str, tuple[float, float]] = {}
    start = 0.0
    for i, (name, share) in enumerate(zip(SPLITS, ratios, strict=True)):
        if share > 0:
            end = start + share if any(ratios[i + 1 :]) else 1.0
            bounds[name] = (start, end)
            start = end
    return bounds


def _holds(bounds: tuple[float, float], value: float) -> bool:
    return bounds[0] <= value < bounds[1]


def _distance(bounds: tuple[float, float], value: float) -> float:
    return max(bounds[0] - value, value - bounds[1], 0.0)


@dataclass(frozen=True, slots=True)
class Fold:
    """One of the `of` folds of a cross-validation; `number` counts from 1."""

    number: int
    of: int


def deal(keys: Sequence[str], labels: Sequence[str], *, folds: int, seed: int) -> dict[str, int]:
    """Return the fold (from 1) that tests each key; images with one key stay together.

    Keys with the same classes are dealt in turn, in the order of their places, and the next classes
    go on where these ended. So the folds' shares of a class differ by at most one key, and so do
    whole folds. Keys with several classes are dealt apart from those with one.
    """
    dealt: dict[str, int] = {}
    for strata in _strata(keys, labels).values():
        for key in sorted(strata, key=lambda key: (place(key, seed), key)):
            dealt[key] = len(dealt) % folds + 1
    return dealt


def split_for_fold(
    keys: Sequence[str],
    labels: Sequence[str],
    *,
    fold: Fold,
    validation_share: float,
    seed: int,
    split_by: Literal["slice", "subject"],
) -> Split:
    """Return the split whose test part is `fold`; validation is carved from the rest by keys.

    Of each class `validation_share` of the keys that are not tested become validation, rounded, at
    least one; the only one that is left is trained on. Which ones differs from fold to fold.

    Raises:
        UserError: fewer keys than folds, a class with a single key, or one whose keys are all
            tested in this fold.
    """
    things = "people" if split_by == "subject" else "images"
    dealt = deal(keys, labels, folds=fold.of, seed=seed)
    if len(dealt) < fold.of:
        raise UserError(
            f"{fold.of} folds need at least as many different {things}, and there are {len(dealt)};"
            " ask for fewer folds"
        )
    keys_of = _keys_by_class(keys, labels)
    for label, own in keys_of.items():
        _refuse_single(label, own, split_by)
        if {dealt[key] for key in own} == {fold.number}:
            raise UserError(
                f"class '{label}' shares its {things} with other classes, and all of them are in"
                f" fold {fold.number}: none is left to train on; ask for another number of folds"
            )
    chosen = {key: "test" if number == fold.number else "train" for key, number in dealt.items()}
    for strata in _strata(keys, labels).values():
        rest = [key for key in strata if chosen[key] == "train"]
        rest.sort(key=lambda key: (place(f"validation of fold {fold.number}/{key}", seed), key))
        wanted = max(1, round(validation_share * len(rest)))
        for key in rest[: min(wanted, len(rest) - 1)]:
            chosen[key] = "validation"
    notes = tuple(
        f"class '{label}' has {len(own)} {things}: only {len({dealt[key] for key in own})} of the"
        f" {fold.of} folds test it"
        for label, own in keys_of.items()
        if len(own) < fold.of
    )
    return Split(tuple(chosen[key] for key in keys), split_by, notes)


def classes_of_enough(keys: Sequence[str], labels: Sequence[str], *, folds: int) -> list[str]:
    """Return the classes, by name, that have at least as many different keys as there are folds."""
    return [label for label, own in _keys_by_class(keys, labels).items() if len(own) >= folds]


def _strata(keys: Sequence[str], labels: Sequence[str]) -> Mapping[tuple[str, ...], Sequence[str]]:
    """Return the keys by the classes they have, in an order that is the same for any file order."""
    classes_of: dict[str, set[str]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        classes_of[key].add(label)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, classes in classes_of.items():
        strata[tuple(sorted(classes))].append(key)
    return dict(sorted(strata.items()))


def _keys_by_class(keys: Sequence[str], labels: Sequence[str]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key, label in zip(keys, labels, strict=True):
        found[label].add(key)
    return dict(sorted(found.items()))
