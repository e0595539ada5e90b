"""The interpretation says what a number measures, branch by branch."""

from typing import Any

import pytest

from alexmri.evaluation import metrics
from alexmri.evaluation.interpretation import compared, headline, interpret

from .report_facts import (
    ABOVE,
    APART,
    BELOW,
    EXISTING,
    LEAKY,
    LEVEL,
    NOBODY,
    SHARED,
    UNKNOWN,
    baseline,
    lead,
    predictions,
    result,
)


def said(protocol: dict[str, Any], leak_probe: dict[str, Any], test: Any) -> str:
    return " ".join(interpret(protocol, leak_probe, test))


def test_people_on_both_sides_and_probe_as_good_is_called_recognising_people() -> None:
    words = said(SHARED, LEAKY, result(0.98, 0.97, 0.99))
    assert "198 of the 200 people have images in both training and test" in words
    one = said(SHARED | {"subjects_shared": 1}, LEAKY, result(0.97, 0.96, 0.98))
    assert "1 of the 200 people has images in both training and test" in one
    assert "People were told apart by: names. If that is wrong, so is this paragraph." in words
    assert "scores 0.992 when images are split one by one" in words
    assert "it scores 0.989. So it works by recognising people." in words
    assert (
        "Recognising people is enough for this accuracy, so it is no evidence of disease." in words
    )
    assert words.endswith("set split_by to subject (--split-by subject).")


def test_network_far_below_the_one_nn_is_not_said_to_recognise_people() -> None:
    words = said(SHARED, LEAKY, result(0.60, 0.57, 0.63))
    assert (
        "Recognising people is enough for this accuracy, so it is no evidence of disease." in words
    )


def test_recognising_people_is_not_claimed_when_shuffled_labels_defeat_the_probe() -> None:
    words = said(SHARED, LEAKY | {"shuffled": 0.55}, result(0.98, 0.97, 0.99))
    assert "recognising" not in words
    assert "Copying the label of the most similar image is enough for this accuracy." in words


@pytest.mark.parametrize("probe", [LEAKY | {"shuffled": None}, UNKNOWN | {"slice": 0.992}])
def test_recognising_people_is_not_claimed_without_shuffled_labels(probe: Any) -> None:
    words = said(NOBODY, probe, result(0.98, 0.97, 0.99))
    assert "no evidence of disease" not in words
    assert "Copying the label of the most similar image is enough for this accuracy." in words


def test_recognising_people_is_not_claimed_when_the_probe_only_guesses() -> None:
    probe = {"slice": 0.52, "subject": 0.50, "shuffled": 0.52}
    assert "recognising" not in said(SHARED, probe, result(0.55, 0.52, 0.58))


def test_network_far_above_the_one_nn_is_not_called_a_one_nn() -> None:
    probe = {"slice": 0.70, "subject": 0.50, "shuffled": 0.69}
    words = said(SHARED, probe, result(0.95, 0.93, 0.97))
    assert (
        "more than the baseline. How much of it is disease, this comparison cannot tell." in words
    )
    assert "is enough for this accuracy" not in words


def test_given_folders_are_judged_by_a_probe_on_their_own_split() -> None:
    words = said(SHARED | {"split_by": "folders"}, LEAKY, result(0.98, 0.97, 0.99))
    assert "The split came with the data: 198 of the 200 people" in words
    assert "scores 0.992 on this split" in words
    assert "Recognising people is enough for this accuracy" in words
    assert "put all images of a person into one of the folders" in words


def test_given_folders_that_keep_people_apart_are_probed_on_new_people() -> None:
    probe = {"slice": 0.48, "subject": 0.45, "shuffled": 0.41}
    words = said(APART | {"split_by": "folders"}, probe, result(0.60, 0.55, 0.65))
    assert "scores 0.480 on people it has not seen" in words
    assert "one by one" not in words


def test_unknown_people_are_said_to_be_unknown() -> None:
    words = said(NOBODY, UNKNOWN, result(0.9, 0.88, 0.92, resampled_by="image", subjects=None))
    assert "It is not known how many people have images in both training and test." in words
    assert "was not measured" in words
    assert "the true intervals are wider" in words
    assert "name the person on each image by group_regex (--group-regex) and set" in words


def test_of_an_existing_model_it_is_said_what_cannot_be_known() -> None:
    words = said(EXISTING, UNKNOWN, result(0.98, 0.97, 0.99))
    assert words.startswith(
        "An existing model was measured. It is not known whether it was trained on"
    )
    assert "was trained on images of the same people. If it was, the figures are" in words
    assert "told apart by: names" in words
    assert "split_by" not in words
    old = EXISTING | {"trained_on_these_images": True, "images_in_training": None}
    words = said(old, UNKNOWN, result(0.98, 0.97, 0.99))
    assert words.startswith("The model was trained with the images measured here, so the figures")
    some = EXISTING | {"trained_on_these_images": True, "images_in_training": 33}
    words = said(some, UNKNOWN, result(0.98, 0.97, 0.99))
    assert words.startswith("The model was trained with 33 of the images measured here, so the")
    unknown = EXISTING | {"trained_on_these_images": None, "images_in_training": None}
    words = said(unknown, UNKNOWN, result(0.98, 0.97, 0.99))
    assert "It is not known whether it was trained on these images, or on others of" in words


def test_people_kept_apart_are_said_to_be_new_and_need_no_advice() -> None:
    words = said(APART, LEAKY, result(0.60, 0.55, 0.65))
    assert "none of the 200 people has images in both training and test" in words
    assert "scores 0.462 on people it has not seen" in words
    assert "scores 0.992 on these data. Figures from such splits cannot be compared" in words
    assert "set split_by" not in words
    assert "recognising" not in words


@pytest.mark.parametrize(
    ("accuracy", "macro_f1", "words", "loud"),
    [
        (ABOVE, LEVEL, "NOT shown to be better in macro F1, better in accuracy", True),
        (ABOVE, ABOVE, "better in accuracy and macro F1", False),
        (LEVEL, LEVEL, "NOT shown to be better in accuracy and macro F1", True),
        (ABOVE, BELOW, "WORSE in macro F1, better in accuracy", True),
        (LEVEL, BELOW, "WORSE in macro F1, NOT shown to be better in accuracy", True),
        (None, LEVEL, "NOT shown to be better in accuracy and macro F1", True),
        (
            lead(0.2, 0.001) | {"p_value": None},
            LEVEL,
            "NOT shown to be better in accuracy and macro F1",
            True,
        ),
    ],
)
def test_headline_names_each_metric_and_says_what_its_test_found(
    accuracy: Any, macro_f1: Any, words: str, loud: bool
) -> None:
    test = result(0.6, 0.5, 0.7)
    test["baselines"]["nearest_neighbour"] = baseline(accuracy, macro_f1)
    said_first = headline(APART, test)
    assert said_first.text == (
        "Accuracy 0.600 on people the network has not seen."
        f" Compared with the 1-NN baseline: {words}."
        " Compared with always answering NonDemented: better in accuracy and macro F1."
    )
    assert loud == (not said_first.good)
    # The box below the headline opens with the same words.
    first = compared(test, "Slices")[0]
    assert first.finding == f"Slices, compared with the 1-NN baseline: {words}."
    assert first.beaten != loud


def test_beating_the_one_nn_on_known_people_is_no_good_headline() -> None:
    said_first = headline(SHARED, result(0.99, 0.98, 1))
    assert "on slices of people the network was trained on. Compared with the" in said_first.text
    assert not said_first.good
    assert headline(APART, result(0.99, 0.98, 1)).good


def test_headline_of_other_measurements() -> None:
    assert "No test set" in headline(SHARED, None).text
    test = result(0.9, 0.8, 1)
    test["baselines"]["nearest_neighbour"] = None
    few = headline(SHARED | {"subjects_shared": 3}, test)
    assert "on 60 people, 3 of them in the training too. Compared with" in few.text
    assert not few.good
    assert headline(NOBODY, test).text == (
        "Accuracy 0.900 on images of unknown people."
        " Compared with always answering NonDemented: better in accuracy and macro F1."
    )
    assert "on images that were not in the training." in headline(EXISTING, test).text
    for known, number, words in (
        (True, None, "on the images the network was trained with."),
        (True, 7, "on images of which 7 were in the training."),
        (None, None, "on images that may have been in the training."),
    ):
        own = headline(
            EXISTING | {"trained_on_these_images": known, "images_in_training": number}, test
        )
        assert words in own.text
        assert not own.good


def test_paired_test_in_words() -> None:
    test = result(0.6, 0.5, 0.7)
    test["baselines"]["nearest_neighbour"] = baseline(LEVEL, BELOW)
    one_nn, guess = compared(test, "People")
    assert (one_nn.beaten, guess.beaten) == (False, True)
    assert one_nn.finding == (
        "People, compared with the 1-NN baseline: WORSE in macro F1,"
        " NOT shown to be better in accuracy."
    )
    assert one_nn.difference == (
        "Difference in accuracy +0.010 (−0.090 to +0.110, p = 0.600),"
        " in macro F1 −0.200 (−0.300 to −0.100, p ≤ 0.001)."
    )
    assert guess.finding == (
        "People, compared with always answering NonDemented: better in accuracy and macro F1."
    )


def test_comparable_splits_get_no_warning_about_other_figures() -> None:
    probe = {"slice": 0.47, "subject": 0.46, "shuffled": None}
    assert "cannot be compared" not in said(APART, probe, result(0.6, 0.55, 0.65))


def test_split_by_person_that_shares_people_is_called_failed() -> None:
    words = said(APART | {"subjects_shared": 3}, LEAKY, result(0.6, 0.55, 0.65))
    assert "3 of the 200 people" in words
    assert "meant to keep people apart and did not" in words
    assert "set split_by" not in words  # it was, and that did not help


@pytest.mark.parametrize("protocol", [SHARED, APART, NOBODY, APART | {"subjects_shared": None}])
@pytest.mark.parametrize("probe", [LEAKY, UNKNOWN])
def test_no_test_set_is_said_plainly(protocol: Any, probe: Any) -> None:
    words = said(protocol, probe, None)
    assert "There is no test set" in words
    assert "The network scores" not in words
    assert "None" not in words


def test_few_people_and_single_people_are_pointed_out() -> None:
    assert "rest on 30 people. Another 30 people could give" in said(
        APART, LEAKY, result(0.6, 0.55, 0.65, subjects=30)
    )
    one = result(0.6, 0, 0, subjects=1) | {"accuracy": {"value": 0.6, "ci95": None}}
    assert "One person is too few for an interval or a test." in said(APART, LEAKY, one)


def test_it_reads_what_measure_writes() -> None:
    measured = metrics.measure(predictions(), replicates=50)
    assert f"The network scores {measured['accuracy']['value']:.3f}." in said(
        APART, LEAKY, measured
    )


def test_the_split_that_was_compared_is_named() -> None:
    only = {"compared_with": "validation", "subjects_shared": 11, "split_by": "folders"}
    words = said(SHARED | only, LEAKY, None)
    assert "11 of the 200 people have images in both training and validation" in words
    assert "training and test" not in words
    assert "11 of 200 people" in headline(SHARED | only, None).text
    words = said(SHARED | only | {"subjects_shared": 0}, LEAKY, None)
    assert "none of the 200 people has images in both training and validation" in words
    assert "these people chose the epoch" in words


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train_validation", "7 people have images in both training and validation"),
        ("validation_test", "7 people have images in both validation and test"),
    ],
)
def test_subjects_shared_with_validation_are_named_beside_a_clean_test_split(
    key: str, expected: str
) -> None:
    between = {"train_validation": 0, "train_test": 0, "validation_test": 0}
    protocol = APART | {"split_by": "folders", "compared_with": "test"}
    test = result(0.6, 0.55, 0.65)
    assert expected in said(protocol | {"subjects_between": between | {key: 7}}, LEAKY, test)
    one = said(protocol | {"subjects_between": between | {key: 1}}, LEAKY, test)
    assert expected.replace("7 people have", "1 person has") in one
    assert "But" not in said(protocol | {"subjects_between": between}, LEAKY, test)
