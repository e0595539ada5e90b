"""How gunicorn runs the server: read by its master process, which must never import torch.

A forked worker inherits the threads of torch and the state of CUDA broken, so the model is loaded
in the worker (no preload).
"""

import os

bind = f"0.0.0.0:{os.environ.get('SAGEMAKER_BIND_TO_PORT', '8080')}"
# One process holds the model once and gives each forward pass all cores or the whole GPU; its
# threads decode pictures and wait for their turn.
workers = 1
worker_class = "gthread"
threads = 32
# Seconds. Platforms keep connections open for a minute and kill 30 s after they asked to stop.
keepalive = 75
timeout = 60
graceful_timeout = 25
# The heartbeat is a file written every second; on a disk that write can stall the worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# The control socket wants a home folder to write in, and nobody uses it.
control_socket_disable = True
