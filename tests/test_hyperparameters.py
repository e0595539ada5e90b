"""hyperparameters.json as the different clients write it, and the arguments that win over it."""

from pathlib import Path
from typing import Any

import pytest

from alexmri.errors import UserError
from alexmri.files import read_json_object
from alexmri.options import read_settings_of_job
from alexmri.settings import Settings


def settings_from(
    content: dict[str, Any], *arguments: str, environment: dict[str, str] | None = None
) -> Settings:
    return read_settings_of_job(arguments, environment or {}, content)


@pytest.mark.parametrize(
    "content",
    [
        {"epochs": "3", "learning_rate": "1e-3", "optimizer": "adamw"},
        {"epochs": "3", "learning_rate": "0.001", "optimizer": '"adamw"'},
        {"epochs": 3, "learning_rate": 0.001, "optimizer": "adamw", "sagemaker_region": "x"},
        {"epochs": "3.0", "learning_rate": "0.001", "optimizer": "adamw", "_tuning_o": "y"},
    ],
)
def test_every_client_spelling_means_the_same(content: dict[str, Any]) -> None:
    settings = settings_from(content)
    assert (settings.epochs, settings.learning_rate, settings.optimizer) == (3, 0.001, "adamw")


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("momentum = 0.5\nseed = 7\n", encoding="utf-8")
    settings = settings_from(
        {"epochs": "3", "seed": "1", "batch_size": "8"},
        *("--epochs", "5", "--batch-size=16", "--config", str(tmp_path / "mine.toml")),
        environment={"ALEXMRI_EPOCHS": "4", "ALEXMRI_DROPOUT": "0.1"},
    )
    assert (settings.epochs, settings.batch_size, settings.seed) == (5, 16, 1)
    assert (settings.dropout, settings.momentum) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("arguments", "value"), [(["--deterministic"], True), (["--no-deterministic"], False)]
)
def test_what_is_on_or_off_is_switched_by_its_name_alone(arguments: list[str], value: bool) -> None:
    """As on the command line; `--deterministic DIR` once swallowed DIR."""
    assert settings_from({"deterministic": "true"}, *arguments).deterministic is value
    with pytest.raises(UserError, match="unexpected extra argument .*DIR"):
        settings_from({}, *arguments, "DIR")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    path.write_text('{"epochs": "3"}', encoding="utf-8-sig")
    assert read_json_object(path) == {"epochs": "3"}


def test_a_missing_file_sets_nothing(tmp_path: Path) -> None:
    assert read_json_object(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ("\xff", "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"epochs": "1", "epochs": "2"}', "is not valid JSON: it has the key 'epochs' twice"),
        ('{"epochs": "\\ud800"}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hyperparameters.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"{path} {words}"):
        read_json_object(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["3"], "unexpected extra argument .*3"),
        (["--epochs"], "'--epochs' requires an argument"),
        (["--learning-rte", "1"], "no option --learning-rte. Did you mean --learning-rate\\?"),
    ],
)
def test_a_stray_argument_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings_from({}, *arguments)
