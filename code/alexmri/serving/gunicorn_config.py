"""gunicorn's settings: read by its master process, which must never import torch.

A forked worker inherits the threads of torch and the state of CUDA broken, so the model is loaded
in the worker (no preload).
"""

import itertools
import os
import resource
import shutil
import signal
import tempfile
from typing import Any

from alexmri.contract.resources import cpu_cores
from alexmri.serving import shared
from alexmri.serving.config import Config, gpus, memory_folder, worker_count
from alexmri.serving.worker import HELD_SIGNALS

_config = Config.of(os.environ)
_gpus = gpus(os.environ)

bind = f"0.0.0.0:{_config.port}"
workers = worker_count(_config, os.environ)
worker_class = "alexmri.serving.worker.Worker"
# A request holds a thread while it waits for its batch. These are more than may be in flight
# (app.MAX_REQUESTS), so that /ping and refusals always find a thread.
threads = 128
backlog = 2048
worker_connections = 2000
# Seconds. Platforms keep connections open for a minute and kill 30 s after they asked to stop.
keepalive = 75
timeout = 30
graceful_timeout = 25
# The heartbeat is a file written every second; on a disk that write can stall the worker.
worker_tmp_dir = memory_folder()
# The control socket wants a home folder to write in, and nobody uses it.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Make room for what the processes share, and ask the system for enough open files."""
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS),
    )
    folder = tempfile.mkdtemp(dir=memory_folder(), prefix="alexmri-")
    os.environ[shared.FOLDER] = os.environ[shared.METRICS] = folder
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * worker_connections
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def on_reload(server: Any) -> None:
    """Let the processes that follow load another model than those before."""
    shared.begin_generation()


def pre_exec(server: Any) -> None:
    """Start no second server beside this one, as gunicorn does upon SIGUSR2."""
    server.log.warning("SIGUSR2 is ignored; SIGHUP loads the model anew")
    os._exit(0)


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker the first place that is free: that of the one it replaces."""
    taken = {other.place for other in server.WORKERS.values()}
    worker.place = next(place for place in itertools.count() if place not in taken)


def post_fork(server: Any, worker: Any) -> None:
    """Share the cores, or give each process its GPU, before torch is imported."""
    # Twice its share: a lone image is computed in three quarters of the time (two processes on two
    # cores), and threads that wait give way, so that it costs nothing under load.
    os.environ["OMP_NUM_THREADS"] = str(min(cpu_cores(), 2 * max(1, cpu_cores() // workers)))
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # Numpy's own threads wait busily for the next product of matrices: 640 answers a second at 64
    # connections became 780 without them (two cores).
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if _gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = _gpus[worker.place % len(_gpus)]


def post_worker_init(worker: Any) -> None:
    """Start loading the model; the port is open by now."""
    # A signal to stop may have come while the worker imported.
    if worker.alive:
        worker.wsgi.extensions["engine"].load_in_background()


def worker_exit(server: Any, worker: Any) -> None:
    """End the process without Python's own end."""
    if worker.booted and not worker.alive:
        # A thread may be in the middle of PyTorch, loading the model say, and Python aborts when it
        # takes such a thread down at its own end.
        os._exit(0)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what the worker told the others, in the master process, however it ended."""
    shared.forget(worker.pid)


def on_exit(server: Any) -> None:
    """Remove what the processes shared."""
    if shared.FOLDER in os.environ:
        shutil.rmtree(os.environ[shared.FOLDER], ignore_errors=True)
