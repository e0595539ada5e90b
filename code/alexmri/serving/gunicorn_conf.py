"""How gunicorn runs the server: read by its master process, which must never import torch.

A forked worker inherits the threads of torch and the state of CUDA broken, so the model is loaded
in the worker (no preload).
"""

import os
import resource
import shutil
import tempfile
from typing import Any

from alexmri.contract.resources import cpu_cores
from alexmri.serving.options import Options, gpus, memory_folder, process_count
from alexmri.serving.states import Board

_options = Options.of(os.environ)
_cards = gpus(os.environ)
# Of the master process; each worker may bind itself to fewer.
_cores = sorted(os.sched_getaffinity(0))

bind = f"0.0.0.0:{_options.port}"
workers = process_count(_options, os.environ)
worker_class = "alexmri.serving.worker.Worker"
# A request holds a thread while it waits for its batch: as many as may be inside (72), and
# more to refuse the others without a wait.
threads = 256
backlog = 2048
# Connections of a process, as far as the system lets it have files. A thread that waits for a
# client has a second one, and the rest are the model's, torch's and the server's own.
MOST_CONNECTIONS, OTHER_FILES = 2048, 512
# Seconds. Platforms keep connections open for a minute and kill 30 s after they asked to stop.
keepalive = 75
timeout = 60
graceful_timeout = 25
# The heartbeat is a file written every second; on a disk that write can stall the worker.
worker_tmp_dir = memory_folder()
# The control socket wants a home folder to write in, and nobody uses it.
control_socket_disable = True


def _connections() -> int:
    """Return how many connections a process may hold, after it has asked for files enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, files - OTHER_FILES)


worker_connections = _connections()
BOARD = Board(workers)
# Where prometheus_client keeps the figures of several processes; read when a worker imports it.
METRICS = "PROMETHEUS_MULTIPROC_DIR"


def on_starting(server: Any) -> None:
    """Let the processes share their metrics in memory; without such a folder each tells its own."""
    os.environ.pop(METRICS, None)
    if workers > 1 and worker_tmp_dir:
        os.environ[METRICS] = tempfile.mkdtemp(dir=worker_tmp_dir, prefix="alexmri-")


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker the first place that is free: that of the one it replaces."""
    taken = {other.place for other in server.WORKERS.values()}
    worker.place = next(place for place in range(workers) if place not in taken)


def post_fork(server: Any, worker: Any) -> None:
    """Share the cores, or give each process its GPU, before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(_threads())
    # Threads that hand requests to one another are quicker on one core: 820 answers per second
    # became 920 on two. Only where all cores are ours: else other containers may choose the same.
    if len(_cores) == workers:
        os.sched_setaffinity(0, {_cores[worker.place]})
    if _cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = _cards[worker.place % len(_cards)]


def post_worker_init(worker: Any) -> None:
    """Start loading the model; the port is open by now."""
    # A signal to stop may have come while the worker imported.
    if worker.alive:
        worker.wsgi.model.load_in_background(BOARD, worker.place, _threads(), _cores)


def worker_exit(server: Any, worker: Any) -> None:
    """Log the last requests, and end."""
    if worker.wsgi is not None:
        worker.wsgi.model.telemetry.flush()
    if worker.booted and not worker.alive:
        # A thread may be in the middle of PyTorch, loading the model say, and Python aborts when it
        # takes such a thread down at its own end.
        os._exit(0)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what the worker had told of itself, in the master process, however it ended."""
    BOARD.tell_connections(worker.place, BOARD.NO_MORE)
    BOARD.tell_work(worker.place, 0.0)
    if METRICS in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    """Remove what the processes shared."""
    if METRICS in os.environ:
        shutil.rmtree(os.environ[METRICS], ignore_errors=True)


def _threads() -> int:
    return max(1, cpu_cores() // workers)
