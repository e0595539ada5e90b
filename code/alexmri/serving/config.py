"""What the environment asks of the server: our own names, and the dialects of other toolkits.

The first name that is set counts. Where each comes from is told in docs/serving.md.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.gpu_facts import kernel_driver
from alexmri.contract.resources import cpu_cores, usable_memory_bytes
from alexmri.errors import UserError

MEGABYTE = 2**20
# What SageMaker lets through to a real-time endpoint, and to a batch transform without a limit.
REAL_TIME_MB, TRANSFORM_MB = 25, 100
# Torch and one copy of the model on a CPU, with room for images being decoded.
BYTES_PER_WORKER = 2**30
# More processes share the same requests in smaller batches, and batches are what is fast.
MAX_WORKERS = 4
# Seconds kept back of the platform's limit, so that a refusal still arrives.
MARGIN_S = 5.0

WORKERS = (
    "ALEXMRI_WORKERS",
    "SAGEMAKER_MODEL_SERVER_WORKERS",
    "MODEL_SERVER_WORKERS",
    "SAGEMAKER_TS_MAX_WORKERS",
    "SAGEMAKER_TS_MIN_WORKERS",
    "SAGEMAKER_GUNICORN_WORKERS",
)
TIMEOUT = (
    "ALEXMRI_TIMEOUT_SECONDS",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    "SAGEMAKER_MODEL_SERVER_TIMEOUT",
    "SAGEMAKER_TS_RESPONSE_TIMEOUT",
    "MODEL_SERVER_TIMEOUT",
    "SAGEMAKER_GUNICORN_TIMEOUT_SECONDS",
)
MAX_BATCH_SIZE = ("ALEXMRI_MAX_BATCH_SIZE", "SAGEMAKER_TS_BATCH_SIZE")
BATCH_DELAY = ("ALEXMRI_MAX_BATCH_DELAY_MS", "SAGEMAKER_TS_MAX_BATCH_DELAY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How to serve; every field has a default that needs no environment."""

    port: int = 8080
    workers: int | None = None
    """Processes that each hold the model; None: as `worker_count` decides."""
    timeout_s: float = 60 - MARGIN_S
    """Time in which an answer must be there, from the first byte of the request."""
    max_payload_bytes: int = REAL_TIME_MB * MEGABYTE
    max_batch_size: int | None = None
    """Images in one forward pass; None: 64."""
    batch_delay_s: float = 0.0
    """How long a batch that is not full waits for more."""
    default_accept: str = "application/json"
    """Type of the answer where the client names none."""
    batch_transform: bool = False
    """Tell a bad record in its place with status 200, so that it does not fail a whole job."""
    log_level: int = 20
    """Python's number: 20 logs every request, 30 only those that failed."""
    log_json: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Config":
        """Read the environment.

        Raises:
            UserError: a variable is set to something that is not a number in its range.
        """

        def number(names: Sequence[str], default: float, minimum: float, maximum: float) -> float:
            return _number(environment, names, default, minimum, maximum)

        timeout_s = number(TIMEOUT, 60, 1, 3600)
        megabytes = number(["SAGEMAKER_MAX_PAYLOAD_IN_MB"], REAL_TIME_MB, 0, TRANSFORM_MB)
        if 0 < megabytes < 1:
            raise UserError(
                f"SAGEMAKER_MAX_PAYLOAD_IN_MB is {megabytes:g}; it must be 0, which is the most, or"
                f" a number from 1 to {TRANSFORM_MB}"
            )
        return cls(
            port=int(number(["SAGEMAKER_BIND_TO_PORT"], 8080, 1, 65535)),
            workers=int(number(WORKERS, 0, 0, 64)) or None,
            timeout_s=timeout_s - min(MARGIN_S, timeout_s / 4),
            max_payload_bytes=int(megabytes or TRANSFORM_MB) * MEGABYTE,
            max_batch_size=int(number(MAX_BATCH_SIZE, 0, 0, 1024)) or None,
            batch_delay_s=number(BATCH_DELAY, 0, 0, 10_000) / 1000,
            default_accept=environment.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT")
            or "application/json",
            batch_transform=environment.get("SAGEMAKER_BATCH", "").lower() in ("true", "1"),
            log_level=int(number(["SAGEMAKER_CONTAINER_LOG_LEVEL"], 20, 0, 100)),
            log_json=_log_json(environment.get("ALEXMRI_LOG_FORMAT") or "plain"),
        )


def worker_count(config: Config, environment: Mapping[str, str]) -> int:
    """Return how many processes shall hold the model.

    One per GPU: two on one GPU only wait for each other. On a CPU one per core, up to four and
    what the memory holds: a forward pass over two cores stands still whenever one of them is
    taken, by an HTTP thread for example, and two processes never wait for each other.
    """
    if config.workers:
        return config.workers
    if cards := gpus(environment):
        return len(cards)
    held = usable_memory_bytes() // BYTES_PER_WORKER
    return max(1, min(cpu_cores(), MAX_WORKERS, held))


def cores_of(place: int, processes: int) -> set[int]:
    """Return the cores for the threads of one of several processes: an equal share, else all.

    All, where the container may use fewer at a time than it sees: others use the same cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // processes
    if len(cores) != cpu_cores() or not share:
        return set(cores)
    first = place % processes * share
    return set(cores[first : first + share])


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs this container was given, as CUDA_VISIBLE_DEVICES names them.

    Asks no library: the process that reads this must stay free of CUDA for its children.
    """
    if kernel_driver() is None:
        return []
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def memory_folder() -> str | None:
    """Return a folder that is memory and can be written, or None: nothing is put on a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def _number(
    environment: Mapping[str, str],
    names: Sequence[str],
    default: float,
    minimum: float,
    maximum: float,
) -> float:
    for name in names:
        text = environment.get(name, "").strip()
        # SDKs pass on what was not given as the word None.
        if text.lower() in ("", "none"):
            continue
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value <= maximum:
            raise UserError(
                f"{name} is {text!r}; it must be a number from {minimum:g} to {maximum:g}"
            )
        return value
    return default


def _log_json(name: str) -> bool:
    if name not in ("plain", "json"):
        raise UserError(f"ALEXMRI_LOG_FORMAT is '{name}'; it must be plain or json")
    return name == "json"
