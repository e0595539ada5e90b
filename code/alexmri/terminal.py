"""What a run says to the person who watches it: plain lines, and progress bars on a terminal."""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
# Where nobody sees a bar, how often a line says how far the work is.
SECONDS_BETWEEN_LINES = 10.0
# How many names one sentence lists.
MAX_NAMED = 5


class Terminal(Protocol):
    """Where a run reports to."""

    def say(self, line: str) -> None:
        """Print one line."""

    def warn(self, line: str) -> None:
        """Print one line that must not be overlooked."""

    def track(self, items: Iterable[T], total: int, description: str) -> Iterable[T]:
        """Pass `items` through, showing how many of `total` are done."""

    def working(self, description: str) -> AbstractContextManager[None]:
        """Show what is done inside the block, where there is nothing to count."""


class PlainTerminal:
    """One line per record on standard output, flushed at once: for logs and for platforms."""

    def say(self, line: str) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            # In one piece, so that lines of several threads do not mix.
            text = f"{line}\n".encode(encoding, "replace").decode(encoding)
            print(text, end="", flush=True)
        except (OSError, ValueError):
            return  # nobody listens any more, and a run does not end for that

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                self.say(f"{description}: {done} of {total}")

    @contextmanager
    def working(self, description: str) -> Iterator[None]:
        self.say(description)
        yield


class SilentTerminal(PlainTerminal):
    """Nothing at all: for workers whose first one speaks for them."""

    def say(self, line: str) -> None:
        pass


class RichTerminal(PlainTerminal):
    """Plain lines with a progress bar below them, for a person at a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)

    def say(self, line: str) -> None:
        self._print(line, style=None)

    def warn(self, line: str) -> None:
        self._print(f"warning: {line}", style="bold yellow")

    def _print(self, line: str, style: str | None) -> None:
        try:
            self._console.print(line, style=style, markup=False, soft_wrap=True)
        except (OSError, ValueError):
            return  # as in PlainTerminal.say

    def track(self, items: Iterable[T], total: int, description: str) -> Iterator[T]:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        ) as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task)

    @contextmanager
    def working(self, description: str) -> Iterator[None]:
        from rich.text import Text

        with self._console.status(Text(description)):
            yield


def number_of(count: int, thing: str) -> str:
    """Return `1 scan` or `2 scans`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def first_few(items: Sequence[str], between: str = ", ") -> str:
    """Return the first items in one line, and how many more there are."""
    more = [f"and {len(items) - MAX_NAMED} more"] if len(items) > MAX_NAMED else []
    return between.join([*items[:MAX_NAMED], *more])


def choose_terminal() -> Terminal:
    """Return a terminal with progress bars where a person watches, plain lines otherwise."""
    return RichTerminal() if sys.stdout and sys.stdout.isatty() else PlainTerminal()


def print_table(table: "Table") -> None:
    """Print a table whole: cells are folded at a terminal's width, and plain columns elsewhere."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console(highlight=False)
    if not console.is_terminal:
        table.box, table.pad_edge, table.title_justify = None, False, "left"
        console.width = 10_000
        console.width = console.measure(table).maximum
    console.print(table)


class _Output(io.TextIOWrapper):
    """Standard output or error that outlives its reader.

    A terminal that was closed, a pipe without a reader and a full disk take no more lines; then
    what is printed is dropped.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Send what still waits in buffers, and all that comes, nowhere."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            super().flush()
        except (OSError, ValueError):
            return


def prepare_output() -> None:
    """Let standard output and error take any text, and go on where nobody listens any more.

    Called first by every program. A letter that the terminal's encoding lacks becomes "?".
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start; the next file opened would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:
            stream.flush()
            kept = (stream.encoding, "replace", None, stream.line_buffering, stream.write_through)
            setattr(sys, name, _Output(stream.detach(), *kept))
