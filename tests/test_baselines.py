"""A model stands beside look-up and guessing, and is called better only where tests say so."""

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from alexmri.errors import UserError
from alexmri.evaluation.baselines import one_nearest_neighbour
from alexmri.evaluation.metrics import find_negative_class, measure
from alexmri.evaluation.predictions import OTHER, Predictions, pool, restrict
from alexmri.evaluation.resampling import paired_test
from alexmri.evaluation.tables import show_pooled
from alexmri.training.pooled import without_small_classes

CLASSES = ("Mild", "NonDemented", "VeryMild")


def made(
    labels: Any, answers: Any, nearest: Any = None, people: Any = None, sure: float = 0.8
) -> Predictions:
    """Return predictions that give `sure` to each answer and share the rest."""
    labels_N, answers_N = np.asarray(labels), np.asarray(answers)
    probabilities_NK = np.full((len(labels_N), 3), (1 - sure) / 2)
    probabilities_NK[np.arange(len(labels_N)), answers_N] = sure
    return Predictions(
        classes=CLASSES,
        labels_N=labels_N,
        probabilities_NK=probabilities_NK,
        subjects_N=None if people is None else tuple(f"p{person}" for person in people),
        paths=tuple(f"{n}.png" for n in range(len(labels_N))),
        nearest_N=None if nearest is None else np.asarray(nearest),
    )


def random_made(people: int, right: float, nearest_right: float, seed: int = 0) -> Predictions:
    """Return eight slices of each person, all answered alike by the model and by the look-up."""
    rng = np.random.default_rng(seed)
    labels_S = rng.integers(0, 3, people)
    labels_S[:3] = range(3)

    def answers(share: float) -> Any:
        return np.where(rng.random(people) < share, labels_S, (labels_S + 1) % 3)

    persons_N = np.repeat(np.arange(people), 8)
    parts = (labels_S, answers(right), answers(nearest_right))
    return made(*(part_S[persons_N] for part_S in parts), persons_N)


def test_baselines_have_scikit_learns_figures_and_the_lead_is_the_difference() -> None:
    p = random_made(40, 0.8, 0.5)
    measured = measure(p, replicates=200)
    commonest = np.bincount(p.labels_N).argmax()
    assert measured["baselines"]["majority"]["class"] == CLASSES[commonest]
    answers = {"nearest_neighbour": p.nearest_N, "majority": np.full_like(p.labels_N, commonest)}
    for name, answers_N in answers.items():
        found = measured["baselines"][name]
        expected = {
            "accuracy": sk.accuracy_score(p.labels_N, answers_N),
            "balanced_accuracy": sk.balanced_accuracy_score(p.labels_N, answers_N),
            "macro_f1": sk.f1_score(p.labels_N, answers_N, average="macro"),
        }
        for key, value in expected.items():
            assert found[key]["value"] == pytest.approx(value)
            assert found[key]["ci95"][0] <= value <= found[key]["ci95"][1]
        for key in ("accuracy", "macro_f1"):
            lead = found["difference"][key]
            assert lead["value"] == pytest.approx(measured[key]["value"] - expected[key])
            assert lead["ci95"][0] < lead["value"] < lead["ci95"][1]
            assert lead["p_value"] < 0.05


def test_the_lead_is_taken_on_the_same_resamples() -> None:
    """Who answers as the look-up does leads by nothing, however uncertain both figures are."""
    labels_N = np.zeros(100, dtype=np.int64)
    answers_N = (np.arange(100) % 2).astype(np.int64)
    measured = measure(made(labels_N, answers_N, answers_N), replicates=200)
    lead = measured["baselines"]["nearest_neighbour"]["difference"]
    assert lead["accuracy"] == {"value": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0}
    low, high = measured["accuracy"]["ci95"]
    assert high - low > 0.1


def test_p_values_are_those_of_all_swaps() -> None:
    rng = np.random.default_rng(5)
    one_UKK, other_UKK = rng.integers(0, 4, (2, 7, 3, 3)).astype(float)
    other_UKK *= one_UKK.sum(axis=2, keepdims=True) / np.maximum(
        other_UKK.sum(axis=2, keepdims=True), 1
    )  # the same images of each class

    def gap(swapped: tuple[bool, ...], key: str) -> float:
        matrices = [np.zeros((3, 3)), np.zeros((3, 3))]
        for unit, swap in enumerate(swapped):
            matrices[swap] += one_UKK[unit]
            matrices[not swap] += other_UKK[unit]
        figures = []
        for matrix_KK in matrices:
            hits_K = np.diag(matrix_KK)
            f1_K = 2 * hits_K / (matrix_KK.sum(axis=0) + matrix_KK.sum(axis=1))
            figures.append(f1_K.mean() if key == "macro_f1" else hits_K.sum() / matrix_KK.sum())
        return abs(figures[0] - figures[1])

    found = paired_test(one_UKK, other_UKK, permutations=4000, seed=0)
    for key in ("accuracy", "macro_f1"):
        seen = gap((False,) * 7, key)
        every = [gap(swapped, key) for swapped in itertools.product((False, True), repeat=7)]
        expected = np.mean([each >= seen - 1e-9 for each in every])
        assert found[key] == pytest.approx(expected, abs=0.03)


def test_equally_good_answers_are_rarely_called_different() -> None:
    """Over people: taking their like slices as independent would err in a third of the cases."""
    found = 0
    for seed in range(100):
        measured = measure(random_made(30, 0.6, 0.6, seed), seed=seed, replicates=100)
        found += (
            measured["baselines"]["nearest_neighbour"]["difference"]["accuracy"]["p_value"] <= 0.05
        )
    assert found <= 12


def test_one_person_has_a_lead_and_no_test() -> None:
    measured = measure(made([0, 0], [0, 0], [0, 1], people=[1, 1]))
    lead = measured["baselines"]["nearest_neighbour"]["difference"]["accuracy"]
    assert lead == {"value": 0.5, "ci95": None, "p_value": None}


def test_without_a_look_up_there_is_none() -> None:
    measured = measure(made([0, 1], [0, 1], people=[1, 2]), replicates=5)
    assert measured["baselines"]["nearest_neighbour"] is None
    assert measured["subject_level"]["baselines"]["nearest_neighbour"] is None
    assert measured["baselines"]["majority"]["accuracy"]["value"] == 0.5


def test_the_look_up_votes_for_a_person() -> None:
    p = made([0] * 3 + [1] * 3, [0] * 6, [0, 0, 1, 1, OTHER, OTHER], [1, 1, 1, 2, 2, 2])
    people = measure(p, replicates=5)["subject_level"]
    assert people["baselines"]["nearest_neighbour"]["accuracy"]["value"] == 1
    assert people["accuracy"]["value"] == 0.5


def test_the_look_up_finds_the_most_alike_picture_whatever_its_brightness() -> None:
    rng = np.random.default_rng(0)
    reference_NCHW = rng.integers(0, 100, (5, 1, 40, 40), dtype=np.uint8)
    queries_NCHW = reference_NCHW[[3, 0]] * 2 + 7
    labels = np.array([10, 11, 12, 13, 14])
    assert one_nearest_neighbour(queries_NCHW, reference_NCHW, labels).tolist() == [13, 10]


# Demented against healthy.


def test_demented_is_one_minus_the_probability_of_healthy() -> None:
    rng = np.random.default_rng(1)
    odds_NK = np.exp(rng.normal(size=(60, 3)))
    odds_NK[np.arange(60), np.arange(60) % 3] *= 3
    p = Predictions(
        classes=CLASSES,
        labels_N=np.arange(60) % 3,
        probabilities_NK=odds_NK / odds_NK.sum(axis=1, keepdims=True),
        subjects_N=tuple(f"p{n % 12}" for n in range(60)),  # 3 divides 12: one label each
        paths=("x.png",) * 60,
    )
    measured = measure(p, negative_class="NonDemented", replicates=50)
    score_N, ill_N = 1 - p.probabilities_NK[:, 1], p.labels_N != 1
    found = measured["demented"]
    assert (found["negative_class"], found["healthy"], found["demented"]) == ("NonDemented", 20, 40)
    assert found["auc"]["value"] == pytest.approx(sk.roc_auc_score(ill_N, score_N))
    assert found["sensitivity"]["value"] == pytest.approx(sk.recall_score(ill_N, score_N > 0.5))
    assert found["specificity"]["value"] == pytest.approx(sk.recall_score(~ill_N, score_N <= 0.5))
    means_S = np.array([score_N[person::12].mean() for person in range(12)])
    people = measured["subject_level"]["demented"]
    assert people["auc"]["value"] == pytest.approx(sk.roc_auc_score(ill_N[:12], means_S))
    for each in (found, people):
        for name in ("auc", "sensitivity", "specificity"):
            low, high = each[name]["ci95"]
            assert low <= each[name]["value"] <= high


def test_without_a_healthy_class_nothing_is_said_about_dementia() -> None:
    measured = measure(made([0, 1], [0, 1]), replicates=5)
    assert measured["demented"] is None
    with pytest.raises(ValueError, match="none of the classes"):
        measure(made([0, 1], [0, 1]), negative_class="Healthy")


@pytest.mark.parametrize(
    "name",
    [
        *("NonDemented", "Non Demented", "non_demented", "Non-Dementia", "No Impairment", "None"),
        *("no_dementia", "Normal", "normal control", "Cognitively Normal", "CN", "NC", "HC"),
        *("Healthy", "healthy_controls", "Control", "controls", "Not Demented", "0_NonDemented"),
    ],
)
def test_healthy_names_are_known(name: str) -> None:
    assert find_negative_class(["MildDemented", name, "AD"], None) == name


@pytest.mark.parametrize(
    "name", ["Abnormal", "Normal Pressure Hydrocephalus", "Uncontrolled", "MCI", "Demented", "EMCI"]
)
def test_other_names_are_not_healthy(name: str) -> None:
    assert find_negative_class(["MildDemented", name], None) is None


def test_two_healthy_names_are_one_too_many_and_the_setting_wins() -> None:
    assert find_negative_class(["CN", "Control"], None) is None
    assert find_negative_class(["CN", "Control"], "Control") == "Control"
    with pytest.raises(
        UserError, match="negative_class is 'Cn', which is not a class folder; .*CN, C"
    ):
        find_negative_class(["CN", "Control"], "Cn")


# Before and after calibration, pooled folds, fewer classes.


def test_calibration_is_measured_before_and_after() -> None:
    labels_N = np.arange(90) % 3
    answers_N = np.where(np.arange(90) < 60, labels_N, (labels_N + 1) % 3)  # two thirds are right
    before, after = made(labels_N, answers_N, sure=0.98), made(labels_N, answers_N, sure=2 / 3)
    both = Predictions(
        classes=CLASSES,
        labels_N=labels_N,
        probabilities_NK=after.probabilities_NK,
        subjects_N=None,
        paths=after.paths,
        uncalibrated_NK=before.probabilities_NK,
    )
    found = measure(both, replicates=20)["calibration"]
    assert found["before"]["ece"] == pytest.approx(0.98 - 2 / 3)
    assert found["after"]["ece"] == pytest.approx(0)
    alone = measure(before, replicates=20)
    assert alone["calibration"]["before"] is None
    for name in ("brier", "log_loss"):
        assert found["before"][name]["value"] == pytest.approx(alone[name]["value"])
        assert found["before"][name]["ci95"] == pytest.approx(alone[name]["ci95"])
        assert found["after"][name]["value"] < found["before"][name]["value"]


def test_pooled_folds_are_measured_as_one() -> None:
    whole = random_made(24, 0.7, 0.4)

    def part(rows: slice) -> Predictions:
        assert whole.subjects_N is not None
        assert whole.nearest_N is not None
        return Predictions(
            classes=CLASSES,
            labels_N=whole.labels_N[rows],
            probabilities_NK=whole.probabilities_NK[rows],
            subjects_N=whole.subjects_N[rows],
            paths=whole.paths[rows],
            nearest_N=whole.nearest_N[rows],
        )

    folds = [part(slice(0, 80)), part(slice(80, 192))]
    assert measure(pool(folds), replicates=30) == measure(whole, replicates=30)
    without = made([0, 1], [0, 1])
    assert pool([folds[0], without]).nearest_N is None
    assert pool([folds[0], without]).subjects_N is None
    with pytest.raises(ValueError, match="same classes"):
        pool([folds[0], restrict(folds[1], CLASSES[:2])])
    with pytest.raises(ValueError, match="same classes"):
        pool([])


def test_fewer_classes_are_asked_between_these_alone() -> None:
    p = Predictions(
        classes=CLASSES,
        labels_N=np.array([0, 1, 2, 0]),
        probabilities_NK=np.array(
            [[0.3, 0.5, 0.2], [0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.0, 1.0, 0.0]]
        ),
        subjects_N=("a", "b", "c", "a"),
        paths=("1", "2", "3", "4"),
        nearest_N=np.array([1, 1, 2, 0]),
    )
    fewer = restrict(p, ("VeryMild", "Mild"))
    assert fewer.classes == ("Mild", "VeryMild")  # in the order they had
    assert fewer.labels_N.tolist() == [0, 1, 0]
    assert fewer.probabilities_NK.tolist() == [
        pytest.approx([0.6, 0.4]),
        pytest.approx([0.5, 0.5]),
        pytest.approx([0.5, 0.5]),
    ]
    assert fewer.nearest_N is not None
    assert fewer.nearest_N.tolist() == [OTHER, 1, 0]
    assert (fewer.subjects_N, fewer.paths) == (("a", "c", "a"), ("1", "3", "4"))
    measured = measure(fewer, replicates=5)
    assert measured["macro_f1"]["value"] == pytest.approx(0.4)  # F1 0.8 and 0
    # One of three is another class: not right, and nobody else's mistake.
    look_up_of = measured["baselines"]["nearest_neighbour"]
    assert look_up_of["accuracy"]["value"] == pytest.approx(2 / 3)
    assert look_up_of["macro_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match="Severe is none of the classes"):
        restrict(p, ("Severe",))


def test_the_table_of_all_folds_shows_the_larger_classes_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = [0, 1, 1, 1, 2, 2]  # Mild has one person: too few for two folds
    p = made(labels, labels, nearest=[1, 1, 1, 1, 2, 2], people=range(6))
    small = without_small_classes(p, 2, "NonDemented", seed=0)
    show_pooled({"test": measure(p, replicates=20), "without_small_classes": small})
    title, *rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert title.startswith("all folds pooled")
    of_all = ["the network", "always NonDemented", "1-NN baseline"]
    assert rows[1:] == [*of_all, "between NonDemented, VeryMild alone:", *of_all]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncalibrated_NK": np.full((2, 2), 0.5)}, "uncalibrated"),
        ({"uncalibrated_NK": np.full((2, 3), 0.5)}, "sum to 1"),
        ({"nearest_N": np.array([0])}, "2 answers of the 1-NN baseline"),
        ({"nearest_N": np.array([0, 3])}, r"in -1\.\.2"),
        ({"nearest_N": np.array([0, -2])}, r"in -1\.\.2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: Any, message: str) -> None:
    p = made([0, 1], [0, 1])
    parts = {
        "classes": CLASSES,
        "labels_N": p.labels_N,
        "probabilities_NK": p.probabilities_NK,
        "subjects_N": None,
        "paths": p.paths,
    }
    with pytest.raises(ValueError, match=message):
        Predictions(**parts | changes)
