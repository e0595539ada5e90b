"""What a run leaves in its folders is known by name, and damaged files there are no traceback."""

from pathlib import Path
from typing import Any

import pytest

from alexmri.contract.signals import StopRequest
from alexmri.errors import UserError
from alexmri.evaluation.report import write_measured
from alexmri.settings import Layer, resolve
from alexmri.terminal import SilentTerminal
from alexmri.training.crossval import Crossval, run_crossval
from alexmri.training.resume_check import changes
from alexmri.training.run_folder import PLOTS, RESULTS, archive_run, clear, is_finished

from .report_facts import draw_all, facts

DAMAGED = ["[]", "null", "1", "", "{", "[" * 200_000, '{"a": NaN}', "\0", '{"finished": "no"}']


def test_all_that_a_run_writes_is_removed_with_it(tmp_path: Path) -> None:
    """The writers run here, so a plot or file with a new name is missed at once."""
    plots = draw_all()
    assert {"confusion_subjects", "roc_demented", "precision_recall"} <= plots.keys()
    assert plots.keys() <= set(PLOTS)
    given: dict[str, Any] = facts(plots=plots)
    write_measured(tmp_path, {"schema": "alexmri.evaluation/1"}, given)
    (tmp_path / "run.json").write_text("{}")
    written = {path.name for path in tmp_path.iterdir()}
    assert len(written) > len(plots)
    assert written <= set(RESULTS)
    (tmp_path / "mine.png").touch()
    clear(tmp_path, tmp_path / "model", tmp_path / "checkpoints")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_run_json_is_no_finished_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert not is_finished(tmp_path)


def test_a_finished_run_without_a_time_is_kept_all_the_same(tmp_path: Path) -> None:
    output, model = tmp_path / "output", tmp_path / "model"
    output.mkdir()
    model.mkdir()
    for started in ("", ', "started": 5', ', "started": "../../x"', f', "started": "{"7" * 999}"'):
        (output / "run.json").write_text(f'{{"finished": true{started}}}')
        assert is_finished(output)
        kept = archive_run(output, model, tmp_path / "checkpoints", tmp_path / "archive")
        assert kept.parent == tmp_path / "archive"
        assert (kept / "data" / "run.json").is_file()


@pytest.mark.parametrize("text", [*DAMAGED, '{"folds": 2}', '{"folds": 2, "settings": []}'])
def test_a_damaged_plan_of_a_crossvalidation_is_one_sentence(
    twelve_people: Path, tmp_path: Path, text: str
) -> None:
    settings = resolve([Layer("test", {"split_by": "subject", "epochs": 1})]).settings
    (tmp_path / "crossval.json").write_text(text)
    plan = Crossval(twelve_people, settings, tmp_path, folds=2)
    with pytest.raises(UserError, match=r"crossval\.json is damaged; start anew with --overwrite"):
        run_crossval(plan, SilentTerminal(), StopRequest())


def test_a_checkpoint_that_does_not_say_what_it_is_about_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not say which run they belong to"):
        changes({"data": "x"}, {}, tmp_path, allowed=True)


@pytest.mark.parametrize("key", ["center", "intensity"])
def test_a_run_does_not_go_on_with_other_pixels(tmp_path: Path, key: str) -> None:
    settings = resolve([]).settings.model_dump(mode="json")
    now = {"settings": settings, "data": "x", "preprocessing": "z", "split": "y"}
    before = {**now, "settings": {**settings, key: "none"}}
    for allowed in (False, True):
        with pytest.raises(UserError, match=f"another run: {key} was none, is {settings[key]}"):
            changes(before, now, tmp_path, allowed=allowed)
