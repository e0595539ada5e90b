"""Layers that see the whole batch though each worker holds a part of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexmri.training.distributed import Workers


@dataclass(slots=True)
class Batch:
    """How many images, over all workers, the batch has that is computed now."""

    images: int = 0


class GlobalBatchNorm(nn.Module):
    """Batch norm over the batches of all workers, on the weights and statistics of `layer`.

    torch's SyncBatchNorm is for GPUs alone. The arithmetic of both passes is that of the kernels
    behind nn.BatchNorm2d; means and variances are combined as Chan, Golub and LeVeque (1979) do.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.BatchNorm2d, batch: Batch, workers: Workers) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)
        self.register_buffer("num_batches_tracked", layer.num_batches_tracked)
        assert layer.momentum is not None  # noqa: S101 - the network has no cumulative means
        self._momentum, self._eps = layer.momentum, layer.eps
        self._batch, self._workers = batch, workers

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean_C, var_C = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(x_NCHW, mean_C, var_C, self.weight, self.bias, False, 0, self._eps)
        pixels = self._batch.images * x_NCHW.shape[2] * x_NCHW.shape[3]
        mean_C, var_C = self._statistics(x_NCHW)
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self._momentum)
            self.running_var.lerp_(var_C * (pixels / (pixels - 1)), self._momentum)
            self.num_batches_tracked.add_(1)
        normalised: Tensor = _Normalise.apply(
            x_NCHW, self.weight, self.bias, mean_C, var_C, self._eps, pixels, self._workers
        )
        return normalised

    @torch.no_grad()
    def _statistics(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel over the batches of all workers, in float32."""
        own_2C = torch.zeros(2, x_NCHW.shape[1], device=x_NCHW.device)
        if len(x_NCHW):
            nothing_C = torch.zeros_like(own_2C[0])
            own_2C = torch.stack(torch.batch_norm_update_stats(x_NCHW, nothing_C, nothing_C, 0.0))
        mean_WC, var_WC = self._workers.gather(own_2C).unbind(1)
        images = self._batch.images
        share_W1 = torch.tensor(
            [[size / images] for size in self._workers.sizes(images)], device=x_NCHW.device
        )
        mean_C = (share_W1 * mean_WC).sum(0)
        return mean_C, (share_W1 * (var_WC + (mean_WC - mean_C).square())).sum(0)


class _Normalise(torch.autograd.Function):
    """Normalise by the mean and variance of the whole batch, which depend on every image."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        eps: float,
        pixels: int,
        workers: Workers,
    ) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_C, mean_C, var_C)
        ctx.eps, ctx.pixels, ctx.workers = eps, pixels, workers
        normalised: Tensor = torch.native_batch_norm(
            x_NCHW, weight_C, bias_C, mean_C, var_C, False, 0.0, eps
        )[0]
        return normalised

    @staticmethod
    def backward(ctx: Any, dy_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NCHW, weight_C, mean_C, var_C = ctx.saved_tensors
        own_2C = torch.zeros(2, x_NCHW.shape[1], device=x_NCHW.device)
        dx_NCHW = torch.zeros_like(x_NCHW)
        if len(x_NCHW):
            # The gradients as if mean and variance were constants; then their part is taken off.
            dx_NCHW, *sums = torch.ops.aten.native_batch_norm_backward(
                dy_NCHW, x_NCHW, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True] * 3
            )
            own_2C = torch.stack(sums)
        # Mean over all pixels of dy times the normalised x, and of dy.
        along_C, level_C = ctx.workers.sum(own_2C.clone()).div_(ctx.pixels)
        if len(x_NCHW):
            scale_C = weight_C * (var_C + ctx.eps).rsqrt()
            taken_off = torch.native_batch_norm(
                x_NCHW, scale_C * along_C, scale_C * level_C, mean_C, var_C, False, 0.0, ctx.eps
            )[0]
            dx_NCHW.sub_(taken_off)
        # The sums over workers of the weights' gradients are taken with all other gradients.
        return dx_NCHW, own_2C[0], own_2C[1], None, None, None, None, None


class GlobalDropout(nn.Module):
    """Dropout as one worker alone would draw it for the whole batch; each takes its rows."""

    def __init__(self, layer: nn.Dropout, batch: Batch, workers: Workers) -> None:
        super().__init__()
        self._probability, self._batch, self._workers = layer.p, batch, workers

    def forward(self, x_NC: Tensor) -> Tensor:
        if not self.training or not self._probability:
            return x_NC
        images = self._batch.images
        ones_NC = torch.ones((images, *x_NC.shape[1:]), dtype=x_NC.dtype, device=x_NC.device)
        return x_NC * F.dropout(ones_NC, self._probability)[self._workers.share(images)]
