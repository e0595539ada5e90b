"""Order, augmentation, learning rates, averages, checkpoints: the parts of a training."""

import math
import os
import signal
from pathlib import Path

import albumentations
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from alexmri.contract.metric_lines import metric_line
from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data.augment import Augmenter
from alexmri.data.batches import epoch_order, steps_per_epoch, train_batches
from alexmri.errors import UserError
from alexmri.files import appearing, write_atomically, write_json
from alexmri.model.alexnet import build
from alexmri.settings import Layer, Settings, resolve
from alexmri.training.checkpoint import Progress, load_newest, save_checkpoint
from alexmri.training.folders import clear
from alexmri.training.loop import best_epoch
from alexmri.training.optim import AveragedWeights, build_optimizer, class_weights, learning_rate_at


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


# --- augmentation


def slices(count: int) -> np.ndarray:
    rows, columns = np.indices((32, 32))
    disc = ((rows - 15) ** 2 + (columns - 17) ** 2 < 120) * 200
    return np.repeat(disc[None, None].astype(np.uint8), count, axis=0)


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    augment = Augmenter(settings_of(augment_probability=1))
    whole = augment(slices(6), 3, range(6))
    assert np.array_equal(augment(slices(2), 3, [4, 5]), whole[4:])
    assert np.array_equal(
        Augmenter(settings_of(augment_probability=1))(slices(6), 3, range(6)), whole
    )
    assert not np.array_equal(augment(slices(6), 4, range(6)), whole)
    assert len({image.tobytes() for image in whole}) == 6


def test_the_probability_is_the_share_of_changed_images() -> None:
    augment = Augmenter(settings_of(augment_probability=0.2))
    images = slices(1000)
    changed = (augment(images, 1, range(1000)) != images).any(axis=(1, 2, 3)).mean()
    assert changed == pytest.approx(0.2, abs=0.05)
    none = Augmenter(settings_of(augment_probability=0))
    assert np.array_equal(none(images, 1, range(1000)), images)


def test_it_is_the_librarys_shift_scale_rotate() -> None:
    chosen = settings_of(augment_probability=1)
    ours = Augmenter(chosen)
    with pytest.warns(UserWarning, match="special case of Affine"):
        library = albumentations.ShiftScaleRotate(
            shift_limit=chosen.shift_limit,
            scale_limit=chosen.scale_limit,
            rotate_limit=chosen.rotate_limit,
            border_mode=cv2.BORDER_CONSTANT,
            fill=0,
            p=1,
        )
    ours._compose.transforms[0] = library
    assert np.array_equal(
        ours(slices(50), 1, range(50)), Augmenter(chosen)(slices(50), 1, range(50))
    )


def test_the_border_is_black() -> None:
    white = np.full((200, 1, 32, 32), 255, dtype=np.uint8)
    moved = Augmenter(settings_of(augment_probability=1))(white, 1, range(200))
    assert moved.min() == 0


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


# --- checkpoints and files


def checkpoint(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"network/w": torch.full((3,), float(step)), "scale": torch.tensor(2.0)}
    progress = Progress(step=step, loss_sum=0.1 + 0.2, history=[{"epoch": 1.0}])
    return save_checkpoint(folder, progress, tensors, {"data": "x"}, keep=keep)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7)
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.progress == Progress(step=7, loss_sum=0.1 + 0.2, history=[{"epoch": 1.0}])
    assert torch.equal(found.tensors["network/w"], torch.full((3,), 7.0))
    assert found.manifest == {"data": "x"}


def test_the_newest_stay_and_older_ones_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.{suffix}" for step in (10, 100) for suffix in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "garble"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, damage: str
) -> None:
    checkpoint(tmp_path, 1)
    document = checkpoint(tmp_path, 2)
    tensors = document.with_suffix(".safetensors")
    data = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "remove":
        tensors.unlink()
    else:
        document.write_text("{")
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found is not None
    assert found.progress.step == 1
    assert "step-00000002.json is damaged" in warnings[0]


def test_no_checkpoint_is_none_and_a_future_one_is_refused(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nowhere", pytest.fail) is None
    write_json(tmp_path / "step-00000001.json", {"schema": "alexmri.checkpoint/9"})
    with pytest.raises(UserError, match="has schema alexmri.checkpoint/9"):
        load_newest(tmp_path, pytest.fail)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")

    def fail_half_way() -> None:
        with appearing(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
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
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest().on(signal.SIGUSR1) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop
        assert stop.signal is signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cores_follow_the_quota(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def test_safetensors_reads_a_checkpoint_without_us(tmp_path: Path) -> None:
    document = checkpoint(tmp_path, 1)
    assert set(load_file(document.with_suffix(".safetensors"))) == {"network/w", "scale"}
