"""What a run says to the person who watches it: plain lines, and progress bars on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Terminal(Protocol):
    """Where a run reports to."""

    def say(self, line: str) -> None:
        """Print one line."""

    def warn(self, line: str) -> None:
        """Print one line that must not be overlooked."""

    def track(self, items: Iterable[T], total: int, description: str) -> Iterable[T]:
        """Pass `items` through, showing how many of `total` are done."""


class PlainTerminal:
    """One line per record on standard output, flushed at once: for logs and for platforms."""

    def say(self, line: str) -> None:
        # In one piece, so that lines of several threads do not mix.
        print(f"{line}\n", end="", flush=True)

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def track(self, items: Iterable[T], total: int, description: str) -> Iterable[T]:
        return items


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
        self._console.print(line, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        self._console.print(f"warning: {line}", style="bold yellow", markup=False, soft_wrap=True)

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


def choose_terminal() -> Terminal:
    """Return a terminal with progress bars where a person watches, plain lines otherwise."""
    return RichTerminal() if sys.stdout.isatty() else PlainTerminal()
