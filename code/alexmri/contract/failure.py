"""Tell a platform, in the one short text it shows, why a job failed."""

import sys
import traceback
from pathlib import Path

from alexmri.errors import UserError
from alexmri.files import write_atomically

# SageMaker shows so many characters of the file and drops the rest.
LONGEST = 1024
USER_ERROR_CODE = 2
INTERNAL_ERROR_CODE = 1


def failure_text(error: BaseException) -> str:
    """Return one line with the cause first: at most 1024 characters of valid UTF-8."""
    text = str(error)
    if not isinstance(error, UserError):
        text = f"internal error: {type(error).__name__}: {text} (the log has the traceback)"
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def log_failure(error: BaseException) -> str:
    """Print the cause, and the traceback of an unexpected error, to standard error; return it."""
    text = failure_text(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return text


def report_failure(error: BaseException, path: Path) -> int:
    """Log the cause and write it to `path`, without a traceback; return the exit code.

    A platform that cannot take the file still gets the log and the exit code.
    """
    text = log_failure(error)
    try:
        write_atomically(path, text)
    except OSError as refused:
        print(f"warning: {path} cannot be written: {refused.strerror}", file=sys.stderr, flush=True)
    return USER_ERROR_CODE if isinstance(error, UserError) else INTERNAL_ERROR_CODE
