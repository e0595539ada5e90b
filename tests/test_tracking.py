"""Weights & Biases is a copy of the record that can break, and training goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb

from alexmri.evaluation.plots import confusion
from alexmri.settings import Layer as SettingsLayer
from alexmri.settings import Settings, resolve
from alexmri.tracking import MetricsFile, WandbSink

PICTURE = confusion([[2, 0], [1, 1]], ["A", "B"], "test")


def settings_of(**values: object) -> Settings:
    return resolve([SettingsLayer("test", values)]).settings


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_metrics_file_starts_with_the_history_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    record = MetricsFile(path, [{"epoch": 1.0}])
    record.append({"epoch": 2.0, "val_loss": 0.5})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"epoch": 1}, {"epoch": 2, "val_loss": 0.5}]


@pytest.mark.slow
def test_without_a_key_the_run_is_kept_offline(tmp_path: Path, warnings: list[str]) -> None:
    sink = WandbSink(settings_of(), tmp_path, None, {"images": 3}, warnings.append)
    assert sink.run_id
    sink.log({"epoch": 1, "val_loss": 0.5})
    sink.finish({"test_accuracy": 0.9, "test_loss": None}, {"confusion": PICTURE})
    assert warnings == []
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    assert list(runs[0].glob("*.wandb"))
    assert list(runs[0].rglob("confusion*.png"))


def test_a_resumed_run_keeps_its_id(tmp_path: Path, warnings: list[str]) -> None:
    sink = WandbSink(settings_of(), tmp_path, "abc123", {}, warnings.append)
    assert sink.run_id == "abc123"
    sink.close()
    assert warnings == []


def test_disabled_leaves_no_trace(tmp_path: Path, warnings: list[str]) -> None:
    sink = WandbSink(settings_of(wandb_mode="disabled"), tmp_path, None, {}, warnings.append)
    sink.log({"epoch": 1})
    sink.finish({}, {"confusion": PICTURE})
    sink.close()
    assert sink.run_id is None
    assert list(tmp_path.iterdir()) == []
    assert warnings == []


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "online"),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_mode_follows_key_and_environment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    environment: dict[str, str],
    mode: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options["mode"]))
    WandbSink(settings_of(), tmp_path, None, {}, warnings.append)
    assert asked == ([] if mode == "disabled" else [mode])


def test_no_network_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    real = wandb.init

    def unreachable(**options: Any) -> Any:
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route\nlong trace")
        return real(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    sink = WandbSink(settings_of(wandb_mode="online"), tmp_path, None, {}, warnings.append)
    sink.close()
    assert warnings == ["W&B cannot be reached (no route); the run is kept offline"]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_there_are_no_links_for_a_platform_to_stumble_over(
    tmp_path: Path, warnings: list[str]
) -> None:
    sink = WandbSink(settings_of(wandb_mode="offline"), tmp_path, None, {}, warnings.append)
    sink.log({"epoch": 1, "loss": 0.5})
    sink.finish({}, {})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []
    assert warnings == []


def test_a_failure_half_way_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    class Broken:
        id = "x"

        def log(self, *_: object, **__: object) -> None:
            raise RuntimeError("service died")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    sink = WandbSink(settings_of(), tmp_path, None, {}, warnings.append)
    sink.log({"epoch": 1})
    sink.log({"epoch": 2})
    sink.finish({}, {})
    assert warnings == ["W&B failed (service died); training goes on without it"]
