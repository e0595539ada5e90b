"""Tell a platform, in the one short text it shows, why a job failed."""

import sys
import traceback
from pathlib import Path

from alexmri.contract.exit_reasons import remedy
from alexmri.errors import UserError
from alexmri.files import write_atomically

# SageMaker shows so many characters of a training's file, and bytes of a processing job's.
LONGEST = 1024
USER_ERROR_CODE = 2
INTERNAL_ERROR_CODE = 1


def failure_text(error: BaseException) -> str:
    """Return one line with the cause first: at most 1024 bytes of valid UTF-8."""
    if isinstance(error, UserError):
        return one_line(str(error))
    told = f"{type(error).__name__}: {error}"
    cause = remedy(told)
    return one_line(
        f"{cause}: {told}" if cause else f"internal error: {told} (the log has the traceback)"
    )


def one_line(text: str) -> str:
    """Return `text` as a platform takes it: one line, at most 1024 bytes, valid UTF-8."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    whole = line.encode()
    if len(whole) <= LONGEST:
        return line
    return whole[: LONGEST - len("…".encode())].decode("utf-8", "ignore") + "…"


def log_failure(error: BaseException) -> str:
    """Print the cause, and the traceback of an unexpected error, to standard error; return it."""
    text = failure_text(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return text


def report_failure(error: BaseException, path: Path) -> int:
    """Log the cause and write it to `path`, without a traceback; return the exit code."""
    _write(log_failure(error), path)
    return USER_ERROR_CODE if isinstance(error, UserError) else INTERNAL_ERROR_CODE


def write_failure(cause: str, path: Path | None) -> None:
    """Log a cause that is already in words, and write it to `path`, where one is given."""
    text = one_line(cause)
    print(f"error: {text}", file=sys.stderr, flush=True)
    if path:
        _write(text, path)


def _write(text: str, path: Path) -> None:
    """A platform that cannot take the file still gets the log and the exit code."""
    try:
        write_atomically(path, text)
    except UserError as refused:
        print(f"warning: {refused}", file=sys.stderr, flush=True)
