"""What the processes of one server tell each other: small files in a folder of the server.

Without the folder (a test, one process) each function answers as for a process alone.
"""

import os
from pathlib import Path

# Variables that hold the folder: ours, and the one in which prometheus_client keeps its figures.
FOLDER, METRICS = "ALEXMRI_SERVER_FOLDER", "PROMETHEUS_MULTIPROC_DIR"
GENERATION = "ALEXMRI_SERVER_GENERATION"


def tell_refusing(*, refusing: bool) -> None:
    """Tell the other processes whether this one accepts requests that it will refuse."""
    if folder := _folder():
        path = folder / f"refusing-{os.getpid()}"
        if refusing:
            path.touch()
        else:
            path.unlink(missing_ok=True)


def does_any_refuse() -> bool:
    """Whether a process accepts requests that it will refuse."""
    folder = _folder()
    return folder is not None and any(folder.glob("refusing-*"))


def tell_ready() -> None:
    """Tell the other processes that this one can answer."""
    if folder := _folder():
        (folder / f"ready-{os.getpid()}").touch()
        tell_refusing(refusing=False)


def tell_leaving() -> None:
    """Tell the other processes that this one answers only until another one is ready."""
    if folder := _folder():
        ready = folder / f"ready-{os.getpid()}"
        if ready.exists():
            ready.rename(folder / f"leaving-{os.getpid()}")


def is_another_ready() -> bool:
    """Whether another process can answer, and stays."""
    return _is_another("ready")


def does_another_answer() -> bool:
    """Whether another process can answer, if only until one is ready that stays."""
    return _is_another("ready") or _is_another("leaving")


def forget(pid: int) -> None:
    """Remove what the process `pid`, which has ended, told the others."""
    if folder := _folder():
        from prometheus_client.multiprocess import mark_process_dead

        for kind in ("ready", "leaving", "refusing"):
            (folder / f"{kind}-{pid}").unlink(missing_ok=True)
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def agreed_version(version: str) -> str:
    """Return the version of the model that all processes serve: the one that came first."""
    folder = _folder()
    if folder is None:
        return version
    path = folder / f"version-{os.environ.get(GENERATION, '0')}"
    own = folder / f"version-of-{os.getpid()}"
    own.write_text(version)
    try:
        os.link(own, path)  # whole, or not at all
    except FileExistsError:
        return path.read_text()
    finally:
        own.unlink()
    return version


def begin_generation() -> None:
    """Let the processes that start from now on agree about a version of their own."""
    os.environ[GENERATION] = str(int(os.environ.get(GENERATION, "0")) + 1)


def claim_failure_report() -> bool:
    """Whether this process is the first to fail; it reports the cause, and no other does."""
    folder = _folder()
    try:
        if folder:
            (folder / "failed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _is_another(kind: str) -> bool:
    folder, own = _folder(), f"{kind}-{os.getpid()}"
    return folder is not None and any(path.name != own for path in folder.glob(f"{kind}-*"))


def _folder() -> Path | None:
    name = os.environ.get(FOLDER)
    return Path(name) if name else None
