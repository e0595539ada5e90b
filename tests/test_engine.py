"""The engine of training: where batches come from, the step, and what it promises about both."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alexmri.contract.resources import free_memory_bytes
from alexmri.contract.signals import StopRequest
from alexmri.data import loader
from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Part, Rows
from alexmri.data.loader import Loader, epoch_order, train_batches
from alexmri.model.alexnet import AlexNet, build
from alexmri.model.forward import Compute, Precision, to_input
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.loop import Run, train_step
from alexmri.training.optim import build_optimizer, set_learning_rate
from alexmri.training.state import State
from alexmri.training.step_graph import Step, StepGraph

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def settings_of(**values: object) -> Settings:
    return resolve([Layer("test", {"batch_size": 8, **values})]).settings


def network_of() -> AlexNet:
    network = build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0)
    return network.to(memory_format=torch.channels_last).train()


def part_of(folder: Path, images: int) -> Part:
    """Return rows of noise, in another order than they have on disk."""
    generator = np.random.default_rng(1)
    path = folder / "slices.npy"
    np.save(path, generator.integers(0, 256, (images + 5, 1, 32, 32), dtype=np.uint8))
    rows = Rows(np.load(path, mmap_mode="r"), generator.permutation(images + 5)[:images])
    return Part(rows, generator.integers(0, 3, images), None, ("",) * images)


# --- where batches come from


@pytest.fixture(params=["resident", "mapped"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(loader, "MAX_MEMORY_SHARE", 0.5 if request.param == "resident" else 0.0)
    return str(request.param)


def test_batches_are_the_rows_asked_for(place: str, tmp_path: Path) -> None:
    part = part_of(tmp_path, 43)
    source = Loader(part, CPU)
    assert source.resident == (place == "resident")
    batches = list(train_batches(epoch_order(43, seed=0, epoch=1), 8))
    given = list(source.batches(batches))
    assert [len(labels_N) for _, labels_N in given] == [8, 8, 8, 8, 8, 3]
    for rows_N, (pixels_NCHW, labels_N) in zip(batches, given, strict=True):
        assert np.array_equal(pixels_NCHW.numpy(), part.pixels_NCHW[rows_N])
        assert np.array_equal(labels_N.numpy(), part.labels_N[rows_N])
    assert list(source.batches([])) == []


def test_an_epoch_that_is_left_early_leaves_no_reader_behind(tmp_path: Path) -> None:
    program = (
        "import threading, numpy as np, torch\n"
        "from alexmri.data import loader\n"
        "from alexmri.data.dataset import Part\n"
        "loader.MAX_MEMORY_SHARE = 0\n"
        "part = Part(np.zeros((64, 1, 32, 32), np.uint8), np.zeros(64, np.int64), None, ())\n"
        "for batch in loader.Loader(part, torch.device('cpu')).batches([np.arange(8)] * 8):\n"
        "    break\n"
        "del batch\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_memory_stays_bounded_on_a_map_that_does_not_fit(tmp_path: Path) -> None:
    """Train on 400 MB of slices, of which half the free memory is said to hold nothing."""
    program = f"""
import numpy as np, torch
from pathlib import Path
from alexmri.contract.signals import StopRequest
from alexmri.data import loader
from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Part, Rows
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training import loop

torch.set_num_threads(1)
images = 400_000
path = Path({str(tmp_path)!r}) / "slices.npy"
np.lib.format.open_memmap(path, "w+", np.uint8, (images, 1, 32, 32)).flush()
loader.free_memory_bytes = lambda: 2 * images * 1024 - 1
settings = resolve([Layer("test", {{"batch_size": 2000, "epochs": 1}})]).settings
rows = Rows(np.load(path, mmap_mode="r"), np.arange(images))
part = Part(rows, np.zeros(images, np.int64), None, ())
small = Part(np.zeros((2, 1, 32, 32), np.uint8), np.zeros(2, np.int64), None, ())
network = build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0)
compute = Compute(torch.device("cpu"), "fp32")
# Reading, augmenting and counting are what may fill the memory; the step may not, and is slow.
loop.train_step = lambda state, images, labels, **_: (images[0, 0, 0, 0].float(), labels.sum())

def own_memory():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

run = loop.Run(network, part, small, settings, compute, choose_augment(settings))
before = own_memory()
peak = []
class Watch(StopRequest):
    def __bool__(self):
        peak.append(own_memory())
        return False
next(run.epochs(Watch(), PlainTerminal()))
grown = max(peak) - before
assert run.progress.step == 200
assert grown < 150, f"{{grown:.0f}} MiB for 390 MiB of slices"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 800),
        ({"memory.max": "max", "memory.current": "300"}, 800),
        ({"memory.max": "900", "memory.current": "700", "memory.stat": "inactive_file 50"}, 250),
        ({"memory.max": "900", "memory.current": "900", "memory.stat": "anon 900"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "900",
                "memory/memory.usage_in_bytes": "300",
                "memory/memory.stat": "total_inactive_file 100",
            },
            700,
        ),
    ],
)
def test_free_memory_follows_the_container(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        scaled = [
            str(int(w) * 1024) if w.isdigit() else w
            for line in text.splitlines()
            for w in line.split()
        ]
        (tmp_path / name).write_text(" ".join(scaled) + "\n")
    (proc := tmp_path / "proc").mkdir()
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    assert free_memory_bytes(tmp_path, proc) == expected * 1024


# --- the step


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels_NCHW = torch.randint(256, (8, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels_NCHW, torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_steps_of_the_low_precision_copy_are_those_of_autocast(precision: Precision) -> None:
    compute, settings = Compute(CPU, precision), settings_of(learning_rate=0.05)

    network = network_of()
    optimizer = build_optimizer(network, settings)
    for seed in range(3):
        pixels_NCHW, labels_N = batch(seed)
        torch.manual_seed(seed)
        with compute.autocast():
            logits_NK = network(to_input(pixels_NCHW))
        optimizer.zero_grad()
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()

    state = State(network_of(), settings, compute)
    for seed in range(3):
        torch.manual_seed(seed)
        train_step(state, *batch(seed), class_weights_K=None, label_smoothing=0.0)
    found = state.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, found[name]), name


def test_state_read_from_a_file_is_laid_out_like_the_weights() -> None:
    """The fused optimisers on a CPU walk through weight and momentum in memory order."""
    network = network_of()
    optimizer = build_optimizer(network, settings_of())
    for weight in network.parameters():
        weight.grad = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    before = [optimizer.state[w]["momentum_buffer"].clone() for w in network.parameters()]
    state = optimizer.state_dict()
    for values in state["state"].values():  # as a file has them
        values["momentum_buffer"] = values["momentum_buffer"].contiguous()
    optimizer.load_state_dict(state)
    for weight, value in zip(network.parameters(), before, strict=True):
        momentum = optimizer.state[weight]["momentum_buffer"]
        assert momentum.stride() == weight.stride()
        assert torch.equal(momentum, value)


# --- the whole


def test_where_the_images_lie_does_not_change_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, settings = part_of(tmp_path, 43), settings_of(epochs=1, augment_probability=1)
    found = []
    for share in (0.5, 0.0):
        monkeypatch.setattr(loader, "MAX_MEMORY_SHARE", share)
        run = Run(
            build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0),
            *(part, part, settings, Compute(CPU, "bf16"), choose_augment(settings)),
        )
        metrics = next(run.epochs(StopRequest(), PlainTerminal()))
        del metrics["images_per_second"]
        found.append((metrics, run.state.best_network().state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_captured_steps_are_the_steps_themselves(
    precision: Precision, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Without this cuDNN's gradients in float32 differ from one eager step to the next, too.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    compute = Compute(torch.device("cuda"), precision)
    found = []
    for captured in (False, True):
        settings = settings_of(learning_rate=1e-3, optimizer=optimizer)
        state = State(network_of(), settings, compute)
        once = partial(train_step, state, class_weights_K=None, label_smoothing=0.0)
        step: Step = StepGraph(once) if captured else once
        for seed in range(6):
            set_learning_rate(state.optimizer, 1e-3 / (seed + 1))
            torch.cuda.manual_seed(seed)
            pixels_NCHW, labels_N = (tensor.cuda() for tensor in batch(seed))
            size = 5 if seed % 3 == 2 else 8
            step(pixels_NCHW[:size], labels_N[:size], share=1.0)
        found.append(state.network.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
