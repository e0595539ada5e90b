"""Turn a signal into a request to stop that the training loop reads between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def on(self, *signals: signal.Signals) -> Iterator["StopRequest"]:
        """Listen for `signals` inside the block; a second one ends the process at once."""

        def remember(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = signal.Signals(number)
            print(f"{self.signal.name}: stopping after saving; once more ends at once", flush=True)

        before = {number: signal.signal(number, remember) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
