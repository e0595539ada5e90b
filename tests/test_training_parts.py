"""Order, augmentation, learning rates, averages, checkpoints: the parts of a training."""

import errno
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alexmri.contract.metric_lines import metric_line
from alexmri.contract.signals import StopRequest
from alexmri.data.loader import epoch_order, steps_per_epoch, train_batches
from alexmri.errors import UserError
from alexmri.files import appearing, write_atomically, write_json
from alexmri.model.alexnet import build
from alexmri.settings import Layer, Settings, resolve
from alexmri.training.loop import best_epoch
from alexmri.training.optim import AveragedWeights, build_optimizer, class_weights, learning_rate_at
from alexmri.training.run_folder import clear


def settings_of(**values: object) -> Settings:
    return resolve([Layer("test", values)]).settings


# --- order and batches


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (3, 4, [3]), (1, 4, [1]), (5, 4, [5])],
)
def test_every_image_is_seen_once_and_no_batch_is_a_single_image(
    images: int, batch_size: int, sizes: list[int]
) -> None:
    batches = list(train_batches(epoch_order(images, seed=0, epoch=1), batch_size))
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == steps_per_epoch(images, batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(images))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=1, epoch=2))
    assert not np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=1, epoch=3))
    assert not np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=2, epoch=2))


# --- learning rates, optimiser, averages


def rates(**values: object) -> list[float]:
    chosen = settings_of(**{"epochs": 10, "learning_rate": 0.1, **values})
    return [learning_rate_at(step, 10, chosen) for step in range(100)]


def test_schedules() -> None:
    assert set(rates(schedule="constant")) == {0.1}
    cosine = rates(schedule="cosine", warmup_epochs=1)
    assert cosine[:10] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert cosine[-1] == pytest.approx(0, abs=1e-9)


def test_onecycle_is_pytorchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    for step, rate in enumerate(rates(schedule="onecycle")):
        # PyTorch puts the peak one step earlier: at 0.3 * 100 - 1.
        assert rate == pytest.approx(reference.get_last_lr()[0], rel=0.13), step
        optimizer.step()
        if step < 99:
            reference.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_and_batch_norm_do_not_decay(optimizer: str) -> None:
    network = build(classes=4, image_size=32, channels=1, dropout=0.5, seed=0)
    decayed, rest = build_optimizer(
        network, settings_of(optimizer=optimizer, weight_decay=0.1)
    ).param_groups
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in rest["params"])
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0)


def test_class_weights_balance_the_classes() -> None:
    weights = class_weights([0] * 30 + [1] * 10, 2)
    assert weights.tolist() == pytest.approx([40 / 60, 40 / 20])


def test_averaged_weights_follow_slowly_and_keep_batch_norm() -> None:
    network = build(classes=4, image_size=32, channels=1, dropout=0.5, seed=0)
    average = AveragedWeights(network, 0.9)
    start = network.classifier[-1].weight.detach().clone()
    with torch.no_grad():
        network.classifier[-1].weight.add_(1)
        network.features[0][1].running_mean.add_(1)
    average.update(10_000)
    moved = average.network.classifier[-1].weight - start
    assert torch.allclose(moved, torch.full_like(moved, 0.1), atol=1e-6)
    assert torch.allclose(average.network.features[0][1].running_mean, torch.tensor(0.1))
    average.update(0)  # early steps forget the start: decay 1 / 10
    assert torch.allclose(average.network.classifier[-1].weight, start + 0.1 + 0.9 * 0.9, atol=1e-6)


# --- which epoch is best


def history(*rows: tuple[float, float]) -> list[dict[str, float]]:
    return [
        {"epoch": i, "val_macro_f1": f1, "val_accuracy": 1 - f1, "val_loss": loss}
        for i, (f1, loss) in enumerate(rows, start=1)
    ]


def test_the_best_epoch_breaks_ties_by_loss_then_takes_the_first() -> None:
    rows = history((0.5, 1.0), (0.9, 0.8), (0.9, 0.3), (0.9, 0.3), (0.7, 0.1))
    assert best_epoch(rows, "macro_f1") == 3
    assert best_epoch(rows, "accuracy") == 1
    assert best_epoch(rows, "loss") == 5
    assert best_epoch([], "loss") == 0


# --- files


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")

    def fail_half_way() -> None:
        with appearing(path) as temporary:
            temporary.write_text("ne")
            raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(UserError, match=r"file\.txt cannot be written: No space left on device"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": math.nan})
    assert path.read_text() == "old"


def test_clearing_a_run_leaves_what_others_put_there(tmp_path: Path) -> None:
    for name in ("mine.json", "photo.png", "report.html", "model/mine.bin"):
        write_atomically(tmp_path / name, "mine")
    folders = (tmp_path, tmp_path / "model", tmp_path / "checkpoints")
    clear(*folders)
    assert (tmp_path / "model" / "mine.bin").exists()  # no run stands here: nothing is touched
    write_atomically(tmp_path / "run.json", "{}")
    clear(*folders)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "photo.png"]


# --- contract


def test_metric_lines_are_stable() -> None:
    metrics = {"epoch": 3, "train_loss": 0.41, "val_macro_f1": 1.0, "images_per_second": 12345.4}
    assert metric_line({**metrics, "test_loss": None}) == (
        "epoch=3; train_loss=0.41; val_macro_f1=1; images_per_second=12345;"
    )


def test_a_signal_asks_once_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().on() as stop:
        assert not stop
        assert (stop.number, stop.seconds_ago) == (0, 0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal is signal.SIGTERM
        assert stop.seconds_ago > 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_shall_outlive_its_terminal_does_not_stop_with_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest().on() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
