"""Print measured figures as tables on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from alexmri.evaluation.formatting import estimate, figure
from alexmri.evaluation.interpretation import describe_subgroups
from alexmri.terminal import print_table


def show_folds(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of each fold of a cross-validation, with their mean and deviation."""
    over = {
        name: each for name, each in evaluation["over_folds"].items() if each["mean"] is not None
    }
    people = evaluation["protocol"]["subjects"] is not None
    titles = {"demented_auc_by_subject": "AUC by person", "macro_f1": "macro F1"}
    heads = [titles.get(name, name.replace("_", " ")) for name in over]
    table = Table("fold", *(["people"] if people else []), "images", "epoch kept", *heads)
    for row in evaluation["folds"]:
        own = [
            row["fold"],
            *([row["subjects"]] if people else []),
            row["images"],
            row["best_epoch"],
        ]
        table.add_row(*map(str, own), *(figure(row[name]) for name in over))
    table.add_section()
    empty = [""] * (3 if people else 2)
    for key, title in (("mean", "mean"), ("standard_deviation", "sd")):
        table.add_row(title, *empty, *(figure(each[key]) for each in over.values()))
    print_table(table)


def show_pooled(evaluation: Mapping[str, Any]) -> None:
    """Print what all folds together reach, beside baselines that have learned nothing."""
    test, unit = evaluation["test"], "people"
    if test["resampled_by"] == "image":
        unit = "images"
    table = Table(
        *("", "accuracy", "macro F1"), title=f"all folds pooled, 95 % intervals over {unit}"
    )
    small = evaluation["without_small_classes"]
    for measured in (test, small) if small else (test,):
        if measured is small:
            table.add_section()
            table.add_row(escape(f"between {', '.join(small['classes'])} alone:"))
        for name, figures in (("the network", measured), *_baselines(measured)):
            shown = (estimate(figures[key]) for key in ("accuracy", "macro_f1"))
            table.add_row(name, *shown)
    print_table(table)
    by_person = test["subject_level"]
    if by_person and by_person["demented"]:
        print(
            f"person by person, demented against {by_person['demented']['negative_class']}: AUC"
            f" {estimate(by_person['demented']['auc'])}"
        )


def _baselines(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = measured["baselines"]
    always = escape(f"always {found['majority']['class']}")
    titles = {"majority": always, "nearest_neighbour": "1-NN baseline"}
    return [(title, found[name]) for name, title in titles.items() if found[name]]


def show_run(evaluation: Mapping[str, Any]) -> None:
    """Print the figures of a training: those of the test split, or of validation without one."""
    if evaluation["test"]:
        show_measured(evaluation["test"], "test")
    else:
        show_measured(evaluation["validation"], "validation (there is no test split)")


def show_measured(measured: Mapping[str, Any], what: str) -> None:
    """Print the figures measured on `what`."""
    unit = "people" if measured["resampled_by"] == "subject" else "images"
    title = escape(f"{what}, 95 % intervals over {unit}")
    table = Table("class", "images", "precision", "recall", "F1", title=title)
    for name, rates in measured["per_class"].items():
        shown = (figure(rates[rate]) for rate in ("precision", "recall"))
        table.add_row(escape(name), str(rates["images"]), *shown, estimate(rates["f1"]))
    table.add_section()
    for key, name in (("accuracy", "accuracy"), ("macro_f1", "macro F1")):
        table.add_row(name, str(measured["images"]), "", "", estimate(measured[key]))
        for title, figures in _baselines(measured):
            table.add_row(f"  {title}", "", "", "", estimate(figures[key]))
    print_table(table)


def show_subgroups(subgroups: Mapping[str, Any]) -> None:
    """Print the figures of each subgroup, and what the test of each column found."""
    unit = "people" if subgroups["resampled_by"] == "subject" else "images"
    title = f"subgroups, 95 % intervals over {unit}"
    heads = ("accuracy", "macro F1", "AUC demented")
    table = Table("subgroup", "people", "images", *heads, title=title)
    for column in subgroups["columns"]:
        table.add_section()
        table.add_row(escape(f"by {column['column']}:"))
        for group in column["subgroups"]:
            name = group["name"] + (f" ({group['small']})" if group["small"] else "")
            people = "" if group["subjects"] is None else str(group["subjects"])
            figures = (estimate(group[key]) for key in ("accuracy", "macro_f1", "auc_demented"))
            table.add_row(f"  {escape(name)}", people, str(group["images"]), *figures)
    print_table(table)
    for sentence in describe_subgroups(subgroups):
        print(sentence)
