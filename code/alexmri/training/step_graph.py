"""Replay training steps on a GPU as CUDA graphs: one launch instead of 160 for each step."""

from typing import Any, Protocol

import torch
from torch import Tensor

from alexmri.training.distributed import Workers


class Step(Protocol):
    """Moves the weights once; see `alexmri.training.loop.train_step`."""

    def __call__(
        self, pixels_NCHW: Tensor, labels_N: Tensor, *, share: float
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the number of right answers, on the device."""


def step_on(device: torch.device, step: Step, workers: Workers) -> Step:
    """Return `step` as it is fastest on `device`: captured on a GPU that one worker has alone."""
    return StepGraph(step) if device.type == "cuda" and workers.alone else step


class StepGraph:
    """A step that is captured once for every shape of a batch (full ones, the last one).

    Launching its kernels one by one took an H100 five times as long as computing them (batch 64 at
    32 x 32, see docs/benchmarks.md). What a captured step reads must stay where it is: learning
    rate, dropout's seed and gradient scale are tensors or the generator's state, set before each
    replay. The first batch of a shape runs as it is, so that optimiser and gradient scaler are set
    up outside the capture.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        # Both graphs take their memory from one pool: they never run at the same time.
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[torch.Size, _Captured] = {}

    def __call__(
        self, pixels_NCHW: Tensor, labels_N: Tensor, *, share: float
    ) -> tuple[Tensor, Tensor]:
        """Return what `step` returns; the two tensors hold it until the next call."""
        captured = self._captured.get(pixels_NCHW.shape)
        if captured:
            return captured.replay(pixels_NCHW, labels_N)
        loss, right = self._step(pixels_NCHW, labels_N, share=share)
        self._captured[pixels_NCHW.shape] = _Captured(
            self._step, pixels_NCHW, labels_N, share, self._pool
        )
        return loss, right


class _Captured:
    """A step over one shape of batch, its inputs and its results."""

    def __init__(
        self, step: Step, pixels_NCHW: Tensor, labels_N: Tensor, share: float, pool: Any
    ) -> None:
        self._pixels_NCHW, self._labels_N = pixels_NCHW.clone(), labels_N.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Capturing computes nothing. A checkpoint may be written by another thread meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._results = step(self._pixels_NCHW, self._labels_N, share=share)

    def replay(self, pixels_NCHW: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        self._pixels_NCHW.copy_(pixels_NCHW)
        self._labels_N.copy_(labels_N)
        self._graph.replay()
        return self._results
