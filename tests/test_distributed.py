"""Workers that train one model: gradients, sums and rows are those of the whole batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from .side_by_side import side_by_side

pytestmark = pytest.mark.slow

SIZES = [1, 2, 3]

# Without batch norm and dropout, which each worker has for itself, parts add up to the whole.
EPOCH = """
from alexmri.data.dataset import Part
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.loop import Run
settings = resolve([Layer("test", {
    "epochs": 1, "batch_size": 5, "augment": "none", "dropout": 0, "schedule": "constant",
    "learning_rate": 0.01, "class_weights": "balanced", "checkpoint_every_seconds": None,
})]).settings
network = build(classes=3, image_size=32, channels=1, dropout=0.0, seed=0)
for block in network.features:
    for name, layer in block.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            setattr(block, name, nn.Identity())
generator = np.random.default_rng(0)
def part(images):
    pixels = generator.integers(0, 256, (images, 1, 32, 32), dtype=np.uint8)
    return Part(pixels, np.arange(images) % 3, None, ("",) * images)
# Batches of 5, 5 and 2: none can be dealt evenly to two workers, the last not at all to three.
run = Run(network, part(12), part(7), settings, Compute(torch.device("cpu"), "fp32"), None, workers)
(metrics,) = run.epochs(StopRequest(), PlainTerminal())
results["metrics"] = {k: v for k, v in metrics.items() if k != "images_per_second"}
results["weights"] = run.state.network.state_dict()
"""


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest wanted value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """An epoch of one, two and three workers."""
    return {
        size: side_by_side(tmp_path_factory.mktemp(f"team-of-{size}"), size, EPOCH)
        for size in SIZES
    }


@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_are_means_over_the_images_of_the_whole_batch(
    teams: dict[int, list[dict[str, Any]]], size: int
) -> None:
    """With class weights, and for batches that the workers cannot share evenly."""
    (alone,) = teams[1]
    for worker in teams[size]:
        for name, wanted in alone["weights"].items():
            assert gap(worker["weights"][name], wanted) < 1e-4, name
            # All move to the very same weights.
            assert torch.equal(worker["weights"][name], teams[size][0]["weights"][name]), name


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_worker_has_the_metrics_of_the_whole_epoch(
    teams: dict[int, list[dict[str, Any]]], size: int
) -> None:
    (alone,) = teams[1]
    for worker in teams[size]:
        assert worker["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)


# As people train: batch norm, dropout, low precision, averaged weights.
RECIPE = """
from alexmri.data.dataset import Part
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.loop import Run
settings = resolve([Layer("test", {
    "epochs": 2, "batch_size": 5, "ema_decay": 0.9, "checkpoint_every_seconds": None,
})]).settings
network = build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0)
pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 32, 32), dtype=np.uint8)
data = Part(pixels, np.arange(12) % 3, None, ("",) * 12)
run = Run(network, data, data, settings, Compute(torch.device("cpu"), "bf16"), None, workers)
for metrics in run.epochs(StopRequest(), PlainTerminal()):
    pass
results["weights"] = dict(run.state.network.named_parameters())
results["average"] = run.state.average.network.state_dict()
"""


def test_two_workers_hold_the_same_weights_and_averages(tmp_path: Path) -> None:
    first, second = side_by_side(tmp_path, 2, RECIPE)
    for name in ("weights", "average"):
        assert first[name]
        for key, tensor in first[name].items():
            assert torch.equal(tensor, second[name][key]), key


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    from alexmri.training.loop import _seed_dropout

    def dropped(seed: int, step: int, rank: int) -> tuple[float, ...]:
        _seed_dropout(torch.device("cpu"), seed, step, rank)
        return tuple(torch.nn.functional.dropout(torch.ones(64)).tolist())

    different = [(0, 5, 0), (0, 5, 1), (0, 5, 2), (0, 6, 0), (1, 5, 0)]
    assert len({dropped(*each) for each in different}) == len(different)
    assert dropped(0, 5, 1) == dropped(0, 5, 1)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[enforce fail] Connection closed by peer [10.0.0.2]:4711"), True),
        (RuntimeError("Read error: Connection reset by peer"), True),
        (dist.DistNetworkError("The client socket has timed out"), True),
        (dist.DistStoreError("wait timeout after 1000ms"), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (dist.DistNetworkError("EADDRINUSE, address already in use"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ConnectionError("Connection reset by peer"), False),  # of S3, say
    ],
)
def test_what_another_workers_end_looks_like(error: Exception, lost: bool) -> None:
    from alexmri.training.distributed import is_lost_peer

    assert is_lost_peer(error) == lost


TALK = """
from alexmri.errors import UserError
total = 7
own = torch.arange(total)[workers.local_slice(total)].float()[:, None] * torch.ones(1, 2)
results["rows"] = workers.gather_rows(own, total)
results["bytes"] = workers.from_first(b"from the first" if workers.is_first else b"another")
results["nothing"] = workers.from_first(b"")
results["max"] = workers.max(workers.rank, -workers.rank)
stop = StopRequest()
if workers.rank == 1:
    stop.join(15)
results["stops"] = [workers.agree_to_stop(stop), int(stop.signal)]
workers.require_same({"images": "the same"})
try:
    workers.require_same({"images": min(workers.rank, 1)})
    results["differs"] = ""
except UserError as error:
    results["differs"] = str(error)
batch_norm = nn.BatchNorm2d(2)
batch_norm.running_mean += workers.rank + 1
workers.broadcast_buffers(batch_norm)
results["mean"] = batch_norm.running_mean
"""


def test_what_the_workers_tell_each_other(tmp_path: Path) -> None:
    team = side_by_side(tmp_path, 3, TALK)
    for rank, worker in enumerate(team):
        assert worker["rows"].tolist() == [[float(row)] * 2 for row in range(7)]
        assert (worker["bytes"], worker["nothing"]) == (b"from the first", b"")
        assert worker["max"] == [2, 0]
        assert worker["stops"] == [True, 15]
        assert ("give all hosts one data set" in worker["differs"]) == (rank > 0)
        assert worker["mean"].tolist() == [1.0, 1.0]


def test_a_team_shares_all_rows_in_order() -> None:
    from alexmri.training.distributed import Workers

    for size in SIZES:
        for total in range(8):
            rows = [
                np.arange(total)[Workers(rank=r, size=size).local_slice(total)] for r in range(size)
            ]
            assert np.concatenate(rows).tolist() == list(range(total))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1
