"""Add up the gradients of all workers while the backward pass still computes."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

# Gradients leave when so many are ready. Of the 4096-wide layers each weight matrix is more; the
# convolutions', which are ready last, leave in two parts.
BUCKET_MB = 4


def summing(network: nn.Module, images_NCHW: Tensor) -> DistributedDataParallel:
    """Return `network` so that a backward pass leaves the sums of all workers' gradients.

    `images_NCHW` may be any images that the network takes.
    """
    device = images_NCHW.device
    wrapped = DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # they are equal
        gradient_as_bucket_view=True,
        bucket_cap_mb=BUCKET_MB,
    )
    wrapped.register_comm_hook(None, _sum)
    # After its first pass it deals the gradients to buckets anew, in the order in which they came.
    # Sums of three numbers depend on that, and a resumed run must equal one that was not stopped.
    network.eval()
    wrapped(images_NCHW.new_zeros((1, *images_NCHW.shape[1:]))).sum().backward()
    network.train()
    for weight in network.parameters():
        weight.grad = None
    return wrapped


def _sum(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Add up; DistributedDataParallel by itself would take means of parts that differ in size."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # noqa: S101 - it is asynchronous
    return work.get_future().then(lambda done: done.value()[0])
