"""Workers that train as one: layers, gradients and data equal those of a single worker."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .side_by_side import side_by_side

SIZES = [1, 2, 3]


def joined_rows(team: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([worker[name] for worker in team])


def gap(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, as a share of the largest wanted value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


NORMALISE = """
from alexmri.training.global_layers import Batch, GlobalBatchNorm
CASES = (7, "float32", 0), (2, "float32", 0), (7, "bfloat16", 0), (7, "float32", 300)
for images, dtype, level in CASES:
    case = f"{images}-{dtype}-{level}"
    generator = torch.Generator().manual_seed(images)
    x = (torch.randn(images, 5, 6, 6, generator=generator) + level).to(getattr(torch, dtype))
    dy = torch.randn(images, 5, 6, 6, generator=generator).to(x.dtype)
    x = x.to(memory_format=torch.channels_last)
    layer = nn.BatchNorm2d(5)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    own = workers.share(images)
    part = x[own].clone().requires_grad_()
    network = layer if workers.alone else GlobalBatchNorm(layer, Batch(images), workers)
    y = network(part)
    y.backward(dy[own])
    sums = torch.stack([layer.weight.grad, layer.bias.grad])
    results[case] = {
        "rows": {"y": y.detach(), "dx": part.grad},
        "all": {
            "gradients": workers.sum(sums),
            "mean": layer.running_mean,
            "variance": layer.running_var,
            "count": layer.num_batches_tracked,
        },
    }
"""


def test_batch_norm_sees_the_whole_batch(tmp_path: Path) -> None:
    """Also where a worker has no image of it, and where values lie far from zero."""
    (alone,), *teams = side_by_side(tmp_path, SIZES, NORMALISE)
    for case, wanted in alone.items():
        # bfloat16 has 8 bits: two roundings are up to 2^-8 of the largest value.
        tolerance = 2**-7 if "bfloat16" in case else 2e-4 if case.endswith("300") else 2e-6
        for team in teams:
            for name, value in wanted["rows"].items():
                found = torch.cat([worker[case]["rows"][name] for worker in team])
                assert gap(found, value) < tolerance, (case, name, len(team))
            for worker in team:
                for name, value in wanted["all"].items():
                    assert gap(worker[case]["all"][name], value) < tolerance, (case, name)
                    assert torch.equal(worker[case]["all"][name], team[0][case]["all"][name])


DROP = """
from alexmri.training.global_layers import Batch, GlobalDropout
for images in (7, 2):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(images, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
        own, layer = workers.share(images), nn.Dropout(0.4)
        torch.manual_seed(5)
        first = (layer if workers.alone else GlobalDropout(layer, Batch(images), workers))
        results[f"{images}-{dtype}"] = torch.cat([first(x[own]), first(x[own])], dim=1)
"""


def test_dropout_is_drawn_for_the_whole_batch(tmp_path: Path) -> None:
    (alone,), *teams = side_by_side(tmp_path, SIZES, DROP)
    for case, wanted in alone.items():
        assert 0 < (wanted == 0).sum() < wanted.numel()
        for team in teams:
            assert torch.equal(joined_rows(team, case), wanted)


STEP = """
from alexmri.model.alexnet import build
from alexmri.settings import Layer, resolve
from alexmri.training.optim import build_optimizer
from alexmri.training.step import Whole, train_step
from alexmri.training.precision import Twin
settings = resolve([Layer("test", {"batch_size": 8})]).settings
network = build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0)
for part in [each for each in network.modules() if isinstance(each, nn.Sequential)]:
    for name, layer in part.named_children():
        if isinstance(layer, nn.ReLU):
            setattr(part, name, nn.GELU())
        elif isinstance(layer, nn.MaxPool2d):
            setattr(part, name, nn.AvgPool2d(2))
network = network.to(memory_format=torch.channels_last).train()
twin = Twin(network, getattr(torch, DTYPE), workers)
twin.take_weights()
optimizer = build_optimizer(network, settings)
scaler = torch.amp.GradScaler("cpu", enabled=False)
weights_K = torch.tensor([0.5, 1.0, 2.0])
for step, images in enumerate((8, 2)):
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(images, 1, 32, 32, generator=generator) * 2 - 1
    labels = torch.randint(0, 3, (images,), generator=generator)
    own = workers.share(images)
    torch.manual_seed(step)
    loss, right = train_step(
        twin, optimizer, scaler, x[own], labels[own],
        class_weights_K=weights_K, label_smoothing=0.1,
        whole=None if workers.alone else Whole(images, float(weights_K[labels].sum())),
        workers=workers,
    )
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    results[step] = {"loss": loss, "right": right, "gradients": gradients}
results["digest"] = sum(weight.double().sum() for weight in network.parameters())
"""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.06)])
def test_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    """With class weights, label smoothing, dropout; also for two images among three workers.

    Without ReLU and max pooling, at whose kinks a difference in rounding becomes a jump.
    """
    (alone,), *teams = side_by_side(tmp_path, SIZES, f"DTYPE = {dtype!r}\n{STEP}")
    for team in teams:
        for worker in team:
            assert worker["digest"] == team[0]["digest"]  # all move to the same weights
            assert worker[0]["right"] == alone[0]["right"]
            assert float(worker[0]["loss"]) == pytest.approx(float(alone[0]["loss"]), rel=tolerance)
            for name, wanted in alone[0]["gradients"].items():
                assert gap(worker[0]["gradients"][name], wanted) < tolerance, name
            # The second step begins where the first one led, so small differences have grown.
            assert float(worker[1]["loss"]) == pytest.approx(float(alone[1]["loss"]), rel=0.05)


SHARDS = """
import shutil
from pathlib import Path
from alexmri.data import shards
from alexmri.data.folders import discover
from alexmri.terminal import PlainTerminal
shards.PACK_BYTES = 100
source, mine = Path(SOURCE), Path(folder) / f"host{workers.rank}" / "data"
for number, path in enumerate(sorted(source.rglob("*.*"))):
    # The first host has no image of class a, the last one nothing at all.
    name = path.relative_to(source)
    holder = 1 if "a" in name.parts else number % 2
    if workers.rank == holder or (name.name == "both.png" and workers.rank < 2):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, mine / name)
os.environ["ALEXMRI_CACHE_DIR"] = f"{folder}/cache{workers.rank}"
whole = shards.gathered(mine, workers, PlainTerminal())
found = discover(whole / "train")
results["images"] = [(image.name, image.label, image.path.read_bytes()) for image in found.images]
results["again"] = shards.gathered(whole, workers, PlainTerminal()) == whole
"""


def test_hosts_with_parts_of_the_data_end_with_all_of_it(tmp_path: Path, make_images: Any) -> None:
    names = [f"train/{label}/{number}.png" for label in "abc" for number in range(3)]
    source = make_images(*names, "train/b/both.png")
    (team,) = side_by_side(tmp_path, [3], f"SOURCE = {str(source)!r}\n{SHARDS}")
    assert [name for name, _, _ in team[0]["images"]] == sorted(
        name.removeprefix("train/") for name in (*names, "train/b/both.png")
    )
    for worker in team:
        assert worker["images"] == team[0]["images"]
        assert worker["again"]
    for name, _, content in team[0]["images"]:
        assert content == (source / "train" / name).read_bytes()
