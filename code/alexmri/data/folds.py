"""Deal images to the folds of a cross-validation: every image is tested once, people stay whole.

Other than a single split (data/split.py), where each image's place depends on itself alone, folds
count: with 22 people in a class no hash gives every fold its fifth of them. The price is that one
more person may move others. The order of files changes nothing, nor does one more image of a
person who is there already.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alexmri.data.split import Split, place
from alexmri.errors import UserError


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
        if len(own) == 1:
            thing = "person" if split_by == "subject" else "image"
            raise UserError(
                f"class '{label}' has only one {thing}, which cannot be both trained on and"
                " tested; add more or remove the class"
            )
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
