"""Folds test every image once, keep people whole, and share out every class evenly."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexmri.data.dataset import load_dataset
from alexmri.data.split import Fold, Split, deal, split_for_fold
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.crossval import choose_split_by

from .conftest import ImageMaker

SHARE = 0.15 / 0.85
# Images of one person each: (person, class) repeated.
Images = list[tuple[str, str]]


def images_of(people_by_class: dict[str, int], each: int = 3) -> Images:
    return [
        (f"{label}/{person}", label)
        for label, people in people_by_class.items()
        for person in range(people)
        for _ in range(each)
    ]


def split_of(images: Images, fold: Fold, seed: int = 0) -> Split:
    keys, labels = zip(*images, strict=True)
    return split_for_fold(
        keys, labels, fold=fold, validation_share=SHARE, seed=seed, split_by="subject"
    )


def subjects_by_split(images: Images, split: Split) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for image, name in zip(images, split.assigned, strict=True):
        found[name].add(image)
    return found


def spread(counts: Counter[int], folds: int) -> int:
    numbers = [counts[fold] for fold in range(1, folds + 1)]
    return max(numbers) - min(numbers)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=2, max_size=5),
    st.integers(2, 8),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_folds_are_disjoint_complete_grouped_even_and_blind_to_order(
    sizes: list[int], folds: int, seed: int, random: st.DataObject
) -> None:
    people = {f"class {i}": size for i, size in enumerate(sizes)}
    images = images_of(people)
    if sum(sizes) < folds:
        return
    tested: Counter[tuple[str, str]] = Counter()
    fold_of: dict[tuple[str, str], int] = {}
    shuffled = images.copy()
    random.shuffle(shuffled)
    for number in range(1, folds + 1):
        found = subjects_by_split(images, split_of(images, Fold(number, folds), seed))
        # Grouped: nobody stands in two splits of a fold.
        assert sum(map(len, found.values())) == sum(sizes)
        assert found == subjects_by_split(shuffled, split_of(shuffled, Fold(number, folds), seed))
        tested.update(found["test"])
        fold_of.update(dict.fromkeys(found["test"], number))
        for label, size in people.items():
            tested_here = sum(lab == label for _, lab in found["test"])
            rest = size - tested_here
            validated = sum(lab == label for _, lab in found["validation"])
            assert tested_here in (size // folds, -(-size // folds))
            assert validated == min(max(1, round(SHARE * rest)), rest - 1)
    # Disjoint and complete: everybody is tested once.
    assert set(tested.values()) == {1}
    assert len(tested) == sum(sizes)
    assert spread(Counter(fold_of.values()), folds) <= 1
    for label in people:
        own = Counter(fold for (_, lab), fold in fold_of.items() if lab == label)
        assert spread(own, folds) <= 1


def test_another_image_of_a_person_moves_nobody() -> None:
    images = images_of({"a": 9, "b": 12})
    more = [("b/3", "b"), *images]
    before = deal(*zip(*images, strict=True), folds=4, seed=1)  # type: ignore[arg-type]
    assert deal(*zip(*more, strict=True), folds=4, seed=1) == before  # type: ignore[arg-type]


def test_another_seed_deals_anew_and_validation_changes_from_fold_to_fold() -> None:
    images = images_of({"a": 40, "b": 40}, each=1)
    keys, labels = zip(*images, strict=True)
    first, second = (deal(keys, labels, folds=5, seed=seed) for seed in (0, 1))
    assert 40 < sum(first[key] != second[key] for key in keys) < 80
    validated: Counter[tuple[str, str]] = Counter()
    for number in range(1, 6):
        validated.update(subjects_by_split(images, split_of(images, Fold(number, 5)))["validation"])
    # 11 of 64 in each fold: were it the same ones, 22 at most would ever be in validation.
    assert len(validated) > 35


def test_the_one_who_is_left_of_two_is_trained_on() -> None:
    images = images_of({"big": 20, "tiny": 2})
    testing = 0
    for number in range(1, 6):
        split = split_of(images, Fold(number, 5))
        found = subjects_by_split(images, split)
        tiny = {name: sum(lab == "tiny" for _, lab in found[name]) for name in found}
        assert tiny["train"] == 1
        assert tiny["test"] + tiny["validation"] == 1
        testing += tiny["test"]
        assert split.notes == ("class 'tiny' has 2 people: only 2 of the 5 folds test it",)
    assert testing == 2


def test_a_person_with_several_classes_stays_whole() -> None:
    images = [*images_of({"a": 10, "b": 10}), ("a/1", "b"), ("b/2", "a")]
    for number in range(1, 4):
        split = split_of(images, Fold(number, 3))
        homes: dict[str, set[str]] = defaultdict(set)
        for (person, _), name in zip(images, split.assigned, strict=True):
            homes[person].add(name)
        assert all(len(home) == 1 for home in homes.values())


@pytest.mark.parametrize(
    ("images", "folds", "message"),
    [
        (images_of({"a": 2, "b": 2}), 5, "5 folds need at least as many different people"),
        (images_of({"a": 9, "b": 1}), 5, "class 'b' has only one person"),
        (
            [("p", "a"), ("q", "a"), ("p", "b"), ("q", "c"), ("r", "b"), ("s", "c")],
            2,
            "all of them are in fold 1",
        ),
    ],
)
def test_what_cannot_be_dealt_is_refused(images: Images, folds: int, message: str) -> None:
    def split_every_fold() -> None:
        for number in range(1, folds + 1):
            split_of(images, Fold(number, folds))

    with pytest.raises(UserError, match=message):
        split_every_fold()


def test_images_of_given_folders_are_dealt_anew_and_equal_files_stay_together(
    make_images: ImageMaker,
) -> None:
    names = [
        f"{split}/{label}/{i}.png"
        for split in ("train", "test")
        for label in "ab"
        for i in range(6)
    ]
    root = make_images(*names)
    (root / "test/a/copy.png").write_bytes((root / "train/a/0.png").read_bytes())
    settings = resolve([Layer("test", {})]).settings
    tested: Counter[str] = Counter()
    for number in range(1, 4):
        dataset = load_dataset(
            {"train": root}, settings, workers=1, terminal=PlainTerminal(), fold=Fold(number, 3)
        )
        found = dataset.part("test").names
        assert ("train/a/0.png" in found) == ("test/a/copy.png" in found)
        assert dataset.split.split_by == "slice"
        assert "the folds are dealt from all of its images" in dataset.split.notes[-1]
        tested.update(found)
    assert tested == Counter([*names, "test/a/copy.png"])


def test_people_are_kept_together_where_they_are_known(
    make_images: ImageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = resolve([Layer("test", {})]).settings
    root = make_images("a/scan1.png", "a/scan2.png", "b/scan3.png", "b/scan4.png")
    assert choose_split_by(root, settings, PlainTerminal()) == "slice"
    assert "folds are dealt slice by slice" in capsys.readouterr().out
    for told in ({"group_regex": r"scan(\d)"}, {"groups": "inferred"}):
        assert choose_split_by(root, settings.model_copy(update=told), PlainTerminal()) == "subject"
    assert capsys.readouterr().out == ""
