"""The split is a function of each image alone, stratified, and the same for everybody."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexmri.data.split import SPLITS, split_as_given, split_randomly, subjects_shared
from alexmri.errors import UserError

RATIOS = (0.70, 0.15, 0.15)


def keys_of(count: int) -> list[str]:
    return [f"image {i}" for i in range(count)]


def assign(keys: list[str], labels: list[str], seed: int = 0) -> dict[str, str]:
    split = split_randomly(keys, labels, ratios=RATIOS, seed=seed, split_by="slice")
    return dict(zip(keys, split.assigned, strict=True))


def test_shares_are_those_asked_for_in_every_class() -> None:
    keys = keys_of(8000)
    labels = ["big"] * 6000 + ["small"] * 2000
    assigned = assign(keys, labels)
    for label in ("big", "small"):
        own = [assigned[key] for key, lab in zip(keys, labels, strict=True) if lab == label]
        for split, share in zip(SPLITS, RATIOS, strict=True):
            # Four standard deviations of a binomial share of 2,000.
            assert own.count(split) / len(own) == pytest.approx(share, abs=0.041)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(60)), st.integers(0, 5), st.integers(30, 60))
def test_neither_order_nor_other_images_move_an_image(
    order: list[int], seed: int, kept: int
) -> None:
    keys = keys_of(60)
    labels = ["a" if i % 2 else "b" for i in range(60)]
    everything = split_randomly(keys, labels, ratios=RATIOS, seed=seed, split_by="slice")
    rows = order[:kept]
    part = split_randomly(
        [keys[i] for i in rows],
        [labels[i] for i in rows],
        ratios=RATIOS,
        seed=seed,
        split_by="slice",
    )
    moved = sum(everything.assigned[i] != name for i, name in zip(rows, part.assigned, strict=True))
    # Only a class that chance left without a split borrows an image, and each time says so.
    assert moved <= len(everything.notes) + len(part.notes)


def test_another_seed_is_another_split() -> None:
    keys = keys_of(200)
    first, second = (assign(keys, ["a"] * 100 + ["b"] * 100, seed) for seed in (0, 1))
    assert 50 < sum(first[key] != second[key] for key in keys) < 130


def test_images_with_one_key_stay_together() -> None:
    keys = [f"person {i % 40}" for i in range(400)]
    labels = ["a" if i % 40 < 20 else "b" for i in range(400)]
    split = split_randomly(keys, labels, ratios=RATIOS, seed=0, split_by="subject")
    homes: dict[str, set[str]] = {}
    for key, name in zip(keys, split.assigned, strict=True):
        homes.setdefault(key, set()).add(name)
    assert all(len(home) == 1 for home in homes.values())
    assert subjects_shared(split, keys) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300))
def test_a_class_of_two_is_trained_on_and_tested(seed: int) -> None:
    keys = [*keys_of(50), "one", "two"]
    labels = ["big"] * 50 + ["tiny"] * 2
    split = split_randomly(keys, labels, ratios=RATIOS, seed=seed, split_by="subject")
    assert sorted(split.assigned[50:]) == ["test", "train"]


def test_a_class_whose_people_other_classes_take_is_refused() -> None:
    with pytest.raises(UserError, match="class 'A' shares all its people with other classes"):
        split_randomly(
            ["s1", "s2", "s2", "s3"],
            ["A", "A", "B", "B"],
            ratios=RATIOS,
            seed=0,
            split_by="subject",
        )


def test_a_class_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="class 'tiny' has only one person"):
        split_randomly(
            [*keys_of(9), "x"], ["a"] * 9 + ["tiny"], ratios=RATIOS, seed=0, split_by="subject"
        )


def test_a_given_split_is_kept_and_validation_is_carved_from_train_alone() -> None:
    keys = keys_of(600)
    labels = ["a", "b"] * 300
    given_split = ["train"] * 400 + ["test"] * 200
    split = split_as_given(given_split, keys, labels, seed=0, split_by="slice")
    assert split.assigned[400:] == ("test",) * 200
    carved = split.assigned[:400].count("validation") / 400
    assert carved == pytest.approx(0.176, abs=0.08)
    assert "test" not in split.assigned[:400]
    complete = ["train", "validation", "test"]
    again = split_as_given(complete, keys[:3], labels[:3], seed=0, split_by="slice")
    assert again.assigned == tuple(complete)


def test_without_a_test_share_nothing_is_tested() -> None:
    split = split_randomly(
        keys_of(100), ["a", "b"] * 50, ratios=(0.8, 0.2, 0.0), seed=0, split_by="slice"
    )
    assert set(split.assigned) == {"train", "validation"}


def test_a_class_with_a_handful_of_people_in_the_test_is_told() -> None:
    keys = [*keys_of(200), *(f"rare {i}" for i in range(12))]
    labels = ["common"] * 200 + ["rare"] * 12
    split = split_randomly(keys, labels, ratios=RATIOS, seed=0, split_by="subject")
    tested = split.assigned[200:].count("test")
    assert split.notes == (
        f"few people are tested: rare {tested} of 12; alexmri crossval tests everybody once",
    )
    by_slice = split_randomly(keys, labels, ratios=RATIOS, seed=0, split_by="slice")
    assert by_slice.notes == ()
