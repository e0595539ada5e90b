"""Start the server: say at once what is wrong, then let gunicorn take this process over."""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from alexmri.contract.archive import require_model
from alexmri.errors import UserError
from alexmri.serving.config import Config

CONFIG = "python:alexmri.serving.gunicorn_config"
# gunicorn would take options from here over ours, without a word.
GUNICORN_OPTIONS = "GUNICORN_CMD_ARGS"


def check(folder: Path, host: str, port: int, how: str) -> None:
    """Refuse what would end the server later.

    Raises:
        UserError: a wrong variable of the environment, no model, or a port that is taken.
    """
    Config.of(os.environ)
    require_model(folder)
    require_port(host, port, how)


def become_gunicorn(host: str, port: int, folder: Path) -> NoReturn:
    """Replace this process by gunicorn, so that the signal to stop reaches it."""
    if os.environ.pop(GUNICORN_OPTIONS, None):
        print(f"warning: {GUNICORN_OPTIONS} is ignored", file=sys.stderr, flush=True)
    # Large bodies and images leave a hole in the pool of every thread that had one: 36 seconds of
    # hostile traffic took 950 MB, against 775 MB with two pools for all threads.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    application = f"alexmri.serving.app:serve({str(folder)!r})"
    command = [sys.executable, "-m", "gunicorn", "--config", CONFIG, "--bind", f"{host}:{port}"]
    os.execv(sys.executable, [*command, application])  # noqa: S606


def require_port(host: str, port: int, how: str) -> None:
    """Refuse a port that another program has, or that this user may not take.

    Raises:
        UserError: the port cannot be had; `how` says how to choose another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is taken by another program" if taken else f"cannot be used: {error.strerror}"
            raise UserError(f"port {port} {reason}; choose another one with {how}") from None
