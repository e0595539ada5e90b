"""Subgroups: who is in which, their figures, and a test that finds what is really there."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from alexmri.data.folders import ImageFile
from alexmri.data.groups_table import Column, parse_columns, read_columns
from alexmri.errors import UserError
from alexmri.evaluation.interpretation import describe_subgroups
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.resampling import difference_test, holm
from alexmri.evaluation.subgroups import SEVERAL, measure_subgroups
from alexmri.model.alexnet import build

from .bundles import save
from .command_line import run
from .conftest import ImageMaker

SLICES = 8


def population(
    accuracy_of_site: dict[str, float], *, people: int, seed: int
) -> tuple[Predictions, Column]:
    """Return answers about people of sites in turn, and their sites; a person's slices are alike.

    How often a person's slices are answered right varies about the accuracy of the person's site.
    """
    rng = np.random.default_rng(seed)
    sites = [list(accuracy_of_site)[i % len(accuracy_of_site)] for i in range(people)]
    chance_S = np.array([accuracy_of_site[site] for site in sites])
    chance_S = rng.beta(4 * chance_S, 4 * (1 - chance_S))
    subjects_N = np.repeat(np.arange(people), SLICES)
    labels_N = rng.integers(0, 2, people)[subjects_N]
    right_N = rng.random(len(subjects_N)) < chance_S[subjects_N]
    sure_N = rng.uniform(0.5, 1, len(subjects_N))
    answers_N = np.where(right_N, labels_N, 1 - labels_N)
    paths = tuple(f"{i}.png" for i in range(len(subjects_N)))
    predictions = Predictions(
        classes=("AD", "CN"),
        labels_N=labels_N,
        probabilities_NK=np.where(
            np.arange(2) == answers_N[:, None], sure_N[:, None], 1 - sure_N[:, None]
        ),
        subjects_N=tuple(f"p{s:03}" for s in subjects_N),
        paths=paths,
    )
    values = dict(zip(paths, (sites[s] for s in subjects_N), strict=True))
    return predictions, Column("site", values=values)


def column_of(predictions: Predictions, values_S: dict[str, str], *bounds: float) -> Column:
    """Return a column with a value for each subject."""
    assert predictions.subjects_N
    pairs = zip(predictions.paths, predictions.subjects_N, strict=True)
    return Column("age", bounds, {path: values_S[s] for path, s in pairs if s in values_S})


def measured(predictions: Predictions, *columns: Column, **more: Any) -> list[dict[str, Any]]:
    more = {"replicates": 50, "negative_class": "CN"} | more
    found: list[dict[str, Any]] = measure_subgroups(predictions, columns, **more)["columns"]
    return found


def test_figures_of_a_subgroup_are_those_of_scikit_learn() -> None:
    predictions, site = population({"a": 0.9, "b": 0.7}, people=40, seed=0)
    (column,) = measured(predictions, site)
    assert [group["name"] for group in column["subgroups"]] == ["a", "b"]
    for group in column["subgroups"]:
        rows = [i for i, path in enumerate(predictions.paths) if site.values[path] == group["name"]]
        labels, p_NK = predictions.labels_N[rows], predictions.probabilities_NK[rows]
        answers = p_NK.argmax(axis=1)
        assert group["images"] == len(rows) == 20 * SLICES
        assert group["subjects"] == 20
        assert group["small"] is None
        assert group["accuracy"]["value"] == pytest.approx(accuracy_score(labels, answers))
        assert group["macro_f1"]["value"] == pytest.approx(
            f1_score(labels, answers, average="macro")
        )
        by_person = p_NK.reshape(20, SLICES, 2).mean(axis=1)
        area = roc_auc_score(1 - labels[::SLICES], 1 - by_person[:, 1])
        assert group["auc_demented"]["value"] == pytest.approx(area)
        low, high = group["accuracy"]["ci95"]
        assert low < group["accuracy"]["value"] < high


def test_a_site_that_is_really_worse_is_found() -> None:
    predictions, site = population({"a": 0.85, "b": 0.85, "c": 0.55}, people=90, seed=1)
    (column,) = measured(predictions, site, replicates=1000)
    assert column["p_value"] <= 0.01
    sentence = describe_subgroups({"columns": [column]})[0]
    assert sentence.startswith("site: accuracy differs between subgroups")


def test_sites_that_are_alike_are_not_told_apart() -> None:
    predictions, site = population({"a": 0.8, "b": 0.8, "c": 0.8}, people=90, seed=2)
    found = measure_subgroups(predictions, [site], replicates=1000)
    assert found["columns"][0]["p_value"] > 0.05
    assert "NOT shown to differ" in describe_subgroups(found)[0]


def test_among_sites_that_are_alike_one_in_twenty_is_found() -> None:
    found = 0
    for seed in range(400):
        predictions, site = population({"a": 0.8, "b": 0.8, "c": 0.8}, people=45, seed=seed)
        right_N = predictions.probabilities_NK.argmax(axis=1) == predictions.labels_N
        accuracy_U = right_N.reshape(45, SLICES).mean(axis=1)
        groups_U = np.array([ord(site.values[path]) for path in predictions.paths[::SLICES]])
        p = difference_test(accuracy_U, groups_U, permutations=199, seed=seed)
        assert p is not None
        found += p <= 0.05
    # Binomial(400, 0.05): 20 expected, and outside 8 to 34 in one of 500 such tests.
    assert 8 <= found <= 34


@pytest.mark.parametrize(
    "people", [((3, 100), (60, 10)), ((10, 40), (60, 10)), ((30, 60), (30, 3))]
)
def test_a_site_with_more_images_a_person_is_not_found_for_that(
    people: tuple[tuple[int, int], ...],
) -> None:
    """How often people are right differs between people, and not between sites."""
    groups_U = np.concatenate([np.full(count, i) for i, (count, _) in enumerate(people)])
    images_U = np.concatenate([np.full(count, images) for count, images in people])
    found = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        accuracy_U = rng.binomial(images_U, rng.beta(4, 1, len(images_U))) / images_U
        p = difference_test(accuracy_U, groups_U, permutations=199, seed=seed)
        assert p is not None
        found += p <= 0.05
    assert 4 <= found <= 34


def test_p_is_the_share_of_all_dealings_that_differ_as_much() -> None:
    accuracy_U = np.array([1.0, 0.75, 0.8, 0.3, 0.0, 0.4])

    def statistic(order: tuple[int, ...]) -> float:
        parts = (list(order[:2]), list(order[2:]))
        return float(sum(len(p) * (accuracy_U[p].mean() - accuracy_U.mean()) ** 2 for p in parts))

    seen = statistic((4, 5, 0, 1, 2, 3))  # units 4 and 5 are group 0
    every = [statistic(order) for order in permutations(range(6))]
    exact = np.mean([each >= seen - 1e-9 for each in every])
    groups_U = np.array([1, 1, 1, 1, 0, 0])
    p = difference_test(accuracy_U, groups_U, permutations=20_000, seed=0)
    assert p == pytest.approx(exact, abs=0.012)
    assert 0.02 < exact < 0.5
    assert difference_test(accuracy_U, np.zeros(6, int), permutations=9, seed=0) is None


def test_holm_gives_hand_computed_values() -> None:
    # 4 tests: 0.01 x 4, 0.02 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # R: p.adjust(c(0.01, 0.013, 0.014, 0.19, 0.35), "holm")
    found = holm([0.35, 0.013, 0.19, 0.01, 0.014])
    assert found == pytest.approx([0.38, 0.052, 0.38, 0.05, 0.052])
    # What was not tested is not corrected for.
    assert holm([0.03, None, 0.01]) == pytest.approx([0.03, None, 0.02])
    assert holm([]) == []


def test_several_columns_are_corrected() -> None:
    predictions, site = population({"a": 0.85, "b": 0.55}, people=60, seed=1)
    assert predictions.subjects_N
    sex = {s: "FM"[i % 4 // 2] for i, s in enumerate(sorted(set(predictions.subjects_N)))}
    columns = measured(predictions, site, replace(column_of(predictions, sex), name="sex"))
    p_values = [column["p_value"] for column in columns]
    assert [column["p_value_holm"] for column in columns] == holm(p_values)
    assert columns[0]["p_value_holm"] == pytest.approx(2 * p_values[0])


def test_numbers_are_cut_at_thirds_of_the_subjects() -> None:
    predictions, _ = population({"a": 0.8}, people=30, seed=0)
    ages = {f"p{i:03}": str(60 + i) for i in range(30)}
    (column,) = measured(predictions, column_of(predictions, ages))
    assert [group["name"] for group in column["subgroups"]] == [
        *("under 70", "70 to under 79", "79 or more"),
    ]
    assert [group["subjects"] for group in column["subgroups"]] == [10, 9, 11]
    assert (
        column["bounds"]
        == np.quantile(np.arange(60, 90), [1 / 3, 2 / 3], method="nearest").tolist()
    )


def test_numbers_are_cut_at_the_bounds_given() -> None:
    predictions, _ = population({"a": 0.8}, people=30, seed=0)
    ages = {f"p{i:03}": str(60 + i) for i in range(30)}
    (column,) = measured(predictions, column_of(predictions, ages, 65, 80.5))
    assert [(group["name"], group["subjects"]) for group in column["subgroups"]] == [
        *(("under 65", 5), ("65 to under 80.5", 16), ("80.5 or more", 9)),
    ]
    assert column["bounds"] == [65, 80.5]


def test_codes_are_no_quantity() -> None:
    predictions, _ = population({"a": 0.8}, people=12, seed=0)
    codes = {f"p{i:03}": str(i % 2) for i in range(12)}
    (column,) = measured(predictions, column_of(predictions, codes))
    assert [group["name"] for group in column["subgroups"]] == ["0", "1"]
    assert column["bounds"] is None


def test_who_has_no_value_or_several_is_apart_and_not_compared() -> None:
    predictions, site = population({"a": 0.9, "b": 0.9}, people=40, seed=3)
    wrong_N = np.arange(len(predictions.labels_N)) < 4 * SLICES
    flipped_NK = np.where(
        wrong_N[:, None], np.eye(2)[1 - predictions.labels_N], np.eye(2)[predictions.labels_N]
    )
    predictions = replace(predictions, probabilities_NK=flipped_NK)
    values = dict(site.values)
    for path in predictions.paths[: 2 * SLICES]:  # two people without a value
        del values[path]
    values[predictions.paths[2 * SLICES]] = "b"  # and two with two: 2 is of a, 3 of b
    values[predictions.paths[3 * SLICES]] = "a"
    (column,) = measured(predictions, replace(site, values=values))
    groups = {group["name"]: group["subjects"] for group in column["subgroups"]}
    assert groups == {"a": 18, "b": 18, "several values": 2, "missing": 2}
    # Everybody else is answered right, so nothing differs between a and b.
    assert column["p_value"] == 1


def test_a_value_of_one_image_is_that_of_the_subject() -> None:
    predictions, _ = population({"a": 0.9}, people=8, seed=3)
    ages = {
        path: str(70 + i // SLICES) for i, path in enumerate(predictions.paths) if i % SLICES < 2
    }
    ages[predictions.paths[1]] = "90"  # scanned at 70 and at 90: 80 on average
    (column,) = measured(predictions, Column("age", (75, 79, 85), ages))
    assert {group["name"]: group["subjects"] for group in column["subgroups"]} == {
        "under 75": 4,
        "75 to under 79": 3,
        "79 to under 85": 1,
    }


def test_small_subgroups_are_named_and_have_no_intervals() -> None:
    predictions, site = population({"a": 0.8, "b": 0.8}, people=21, seed=0)
    values = {
        path: "few" if path in predictions.paths[: 9 * SLICES] else "enough" for path in site.values
    }
    (column,) = measured(predictions, replace(site, values=values))
    enough, few = column["subgroups"]
    assert (enough["small"], few["small"]) == (None, "fewer than 10 subjects")
    assert all(few[name]["ci95"] is None for name in ("accuracy", "macro_f1", "auc_demented"))
    assert few["accuracy"]["value"] > 0


def test_a_subgroup_of_one_class_has_no_intervals() -> None:
    predictions, site = population({"a": 0.8}, people=40, seed=0)
    values = {p: str(k) for p, k in zip(predictions.paths, predictions.labels_N, strict=True)}
    (column,) = measured(predictions, replace(site, values=values))
    assert {group["small"] for group in column["subgroups"]} == {"fewer than 2 classes"}
    assert all(group["auc_demented"] is None for group in column["subgroups"])


def test_without_subjects_images_are_counted() -> None:
    predictions, site = population({"a": 0.8, "b": 0.8}, people=12, seed=0)
    found = measure_subgroups(replace(predictions, subjects_N=None), [site], replicates=20)
    assert found["resampled_by"] == "image"
    assert [group["subjects"] for group in found["columns"][0]["subgroups"]] == [None, None]
    assert [group["small"] for group in found["columns"][0]["subgroups"]] == [None, None]


def test_options_name_columns_and_bounds() -> None:
    assert parse_columns("sex, age:65:80") == (Column("sex"), Column("age", (65.0, 80.0)))


@pytest.mark.parametrize(
    "text", ["", "sex,", "age:old", "age:80:65", "age:65:65", ":65", "age:nan"]
)
def test_other_options_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="name columns of groups"):
        parse_columns(text)
    with pytest.raises(UserError, match="'sex' twice"):
        parse_columns("sex,sex")


IMAGES = [ImageFile(f"test/A/{i}.png", "A", "test", Path(f"{i}.png")) for i in range(60)]


def read(tmp_path: Path, text: str, cells: list[str]) -> tuple[Column, ...]:
    rows = "".join(f"A/{i}.png,p{i},{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "groups.csv").write_text(f"path,subject,site\n{rows}")
    return read_columns(parse_columns(text), IMAGES, tmp_path, None)


def test_missing_cells_are_no_values(tmp_path: Path) -> None:
    missing = ["", " n/a ", "NaN", "Unknown", "unk", "-", ".", "missing"]
    (column,) = read(tmp_path, "site", ["a", *missing, "b "])
    assert column.values == {"test/A/0.png": "a", "test/A/9.png": "b"}


def test_equal_numbers_are_one_value_and_letters_keep_their_case(tmp_path: Path) -> None:
    (column,) = read(tmp_path, "site", ["0", "0.0", "1", "01", "1.00", "0e0", "-0", "+1"])
    assert list(column.values.values()) == ["0", "0", "1", "1", "1", "0", "0", "1"]
    assert not column.is_quantity
    (column,) = read(tmp_path, "site", ["M", "m"])
    assert list(column.values.values()) == ["M", "m"]


def test_a_few_numbers_among_texts_are_texts(tmp_path: Path) -> None:
    cells = ["north", "south", "east", "west", "1", "2", "3", "up"]
    (column,) = read(tmp_path, "site", cells)
    assert list(column.values.values()) == cells


def test_a_few_codes_may_be_numbers_and_texts(tmp_path: Path) -> None:
    (column,) = read(tmp_path, "site", ["1", "2", "3", "other"])
    assert list(column.values.values()) == ["1", "2", "3", "other"]


def test_a_row_without_a_subject_keeps_its_other_cells(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("path,subject,site\nA/0.png,,a\nA/1.png,p1,b\n")
    (column,) = read_columns(parse_columns("site"), IMAGES, tmp_path, None)
    assert column.values == {"test/A/0.png": "a", "test/A/1.png": "b"}


AGES = [str(age) for age in range(60, 90)]


@pytest.mark.parametrize(
    ("text", "cells", "sentence"),
    [
        ("sex", ["a"], r"groups\.csv has no column 'sex' for subgroups; .* it has site$"),
        (
            *("site", ["", "na"]),
            r"no value of 'site' for any of the 60 images: its first path is 'A/0\.png', that of"
            r" the images 'A/0\.png'",
        ),
        ("site:65", ["66", "90+"], r"cells of 'site' that are not numbers: '90\+'; .* bounds out"),
        ("site", [*AGES, "90+", "060Y"], r"'site' that are not numbers: '060Y', '90\+'; write"),
        ("site", [*AGES, *"abcdef"], "not numbers: 'a', 'b', 'c', 'd', 'e', and 1 more; write"),
        ("site", ["a", SEVERAL], "has 'several values' as 'site', which is how"),
        ("site", [f"name {i}" for i in range(60)], "has 60 different values of 'site'"),
    ],
)
def test_columns_that_make_no_subgroups_are_refused(
    tmp_path: Path, text: str, cells: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, text, cells)


def test_evaluate_measures_by_columns_of_the_folder(
    make_images: ImageMaker, tmp_path: Path
) -> None:
    names = [f"{label}/{i}.png" for label in "AB" for i in range(12)]
    root = make_images(*names)
    cells = [f"{name},person-{i // 2},{'xy'[i % 4 // 2]}\n" for i, name in enumerate(names)]
    (root / "groups.csv").write_text("path,subject,site\n" + "".join(cells))
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    bundle = save(tmp_path / "model", network, ("A", "B"))
    written = tmp_path / "evaluation.json"
    done = run("evaluate", bundle, root, "--subgroups", "site", "--json", written, COLUMNS="200")
    evaluation = json.loads(written.read_text())
    assert evaluation["test"]["subjects"] == 12
    (column,) = evaluation["subgroups"]["columns"]
    assert [(group["name"], group["subjects"]) for group in column["subgroups"]] == [
        *(("x", 6), ("y", 6)),
    ]
    assert "x (fewer than 10 subjects)" in done.stdout
    assert "site: accuracy" in done.stdout
    assert "the table of the training" not in done.stdout
    refused = run("evaluate", bundle, root, "--subgroups", "sex", check=False)
    assert refused.returncode == 2
    assert "has no column 'sex' for subgroups" in refused.stderr


def test_the_table_of_the_training_is_named(make_images: ImageMaker, tmp_path: Path) -> None:
    """It stands in the settings of the model, and its people may be others."""
    names = [f"{label}/{i}.png" for label in "AB" for i in range(2)]
    root = make_images(*names)
    table = tmp_path / "training.csv"
    table.write_text("path,subject,site\n" + "".join(f"{name},{name},x\n" for name in names))
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    settings = {"groups_file": str(table)}
    bundle = save(tmp_path / "model", network, ("A", "B"), facts={"settings": settings})
    done = run("evaluate", bundle, root, "--subgroups", "site")
    assert f"subgroups and people are read from {table}, the table of the training" in done.stdout


@pytest.mark.parametrize(
    "command", [("evaluate", "{0}", "{0}"), ("crossval", "--data", "{0}", "--out", "{0}/out")]
)
def test_no_column_at_all_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [word.format(tmp_path) for word in command]
    refused = run(*arguments, "--subgroups", "", check=False)
    assert refused.returncode == 2
    assert "subgroups have ''; name columns of groups.csv" in refused.stderr


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"columns of groups\.csv, which is not in .*; write one"):
        read_columns(parse_columns("sex"), IMAGES, tmp_path, None)
