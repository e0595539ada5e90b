"""hyperparameters.json as the different clients write it, and the arguments that win over it."""

import json
from pathlib import Path

import pytest

from alexmri.contract.hyperparameters import read_arguments, read_hyperparameters
from alexmri.errors import UserError
from alexmri.settings import Settings, resolve


def settings_from(path: Path, content: object, *arguments: str) -> Settings:
    path.write_text(json.dumps(content), encoding="utf-8")
    return resolve([read_arguments(arguments), read_hyperparameters(path)]).settings


@pytest.mark.parametrize(
    "content",
    [
        {"epochs": "3", "learning_rate": "1e-3", "optimizer": "adamw"},
        {"epochs": "3", "learning_rate": "0.001", "optimizer": '"adamw"'},
        {"epochs": 3, "learning_rate": 0.001, "optimizer": "adamw", "sagemaker_region": "x"},
        {"epochs": "3.0", "learning_rate": "0.001", "optimizer": "adamw", "_tuning_o": "y"},
    ],
)
def test_every_client_spelling_means_the_same(tmp_path: Path, content: object) -> None:
    settings = settings_from(tmp_path / "hyperparameters.json", content)
    assert (settings.epochs, settings.learning_rate, settings.optimizer) == (3, 0.001, "adamw")


def test_arguments_win(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    settings = settings_from(path, {"epochs": "3", "seed": "1"}, "--epochs", "5", "--batch-size=16")
    assert (settings.epochs, settings.batch_size, settings.seed) == (5, 16, 1)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "hyperparameters.json"
    path.write_text('{"epochs": "3"}', encoding="utf-8-sig")
    assert read_hyperparameters(path).values == {"epochs": "3"}


def test_a_missing_file_sets_nothing(tmp_path: Path) -> None:
    assert read_hyperparameters(tmp_path / "none.json").values == {}


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
        read_hyperparameters(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["3"], "unexpected argument '3'"),
        (["--"], "unexpected argument '--'"),
        (["--epochs"], "'--epochs' has no value"),
        (["--epochs", "--seed", "1"], "'--epochs' has no value"),
    ],
)
def test_a_stray_argument_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_arguments(arguments)
