"""Keep the newest checkpoints of a run in S3 too, so that another machine can go on with it."""

import io
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from alexmri.s3 import Prefix, S3Error
from alexmri.s3_lease import Lease, LeaseLostError
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import DAMAGED, read_document


class CheckpointSync:
    """Where a run's checkpoints are kept besides their folder: nowhere."""

    def clear(self) -> None:
        """Remove the checkpoints of the run that is replaced."""

    def restore(self) -> None:
        """Put the newest whole checkpoint into the folder, unless one as new is there."""

    def saved(self, document: Path) -> None:
        """Take note of a new checkpoint, named by its JSON file; returns at once."""

    def close(self, within: float) -> None:
        """Finish in at most `within` seconds."""


class S3CheckpointSync(CheckpointSync):
    """Keeps the checkpoints of a folder below a prefix in S3, as their only writer.

    A thread uploads the newest checkpoint, tensors first, and then removes older ones, so that S3
    holds a whole checkpoint at every moment. Where checkpoints come faster than they can be sent,
    those between are left out. Once the run has begun, nothing that goes wrong in S3 stops it.
    """

    def __init__(self, url: str, folder: Path, terminal: Terminal) -> None:
        """Claim the prefix `url`.

        Raises:
            UserError: S3 cannot be used so, or another training writes there.
        """
        self._folder = folder
        self._terminal = terminal
        self._s3 = Prefix(url)
        self._lease = Lease(self._s3, terminal)
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._missed: Path | None = None
        self._newest: str | None = None
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="S3 upload", daemon=True)
        self._thread.start()

    def clear(self) -> None:
        self._remove(self._checkpoint_files())

    def restore(self) -> None:
        files = self._checkpoint_files()
        there = {name for name in files if name.endswith(".json")}
        here = {path.name for path in self._folder.glob("step-*.json")}
        for name in sorted(there | here, reverse=True):
            document = self._folder / name
            if name in here and _is_whole(document):
                return
            if name in there and self._fetch(document, files):
                self._terminal.say(f"checkpoint {document.stem} is restored from {self._s3.url}")
                return
        if not here:
            self._terminal.say(f"there is no checkpoint in {self._s3.url} yet")

    def saved(self, document: Path) -> None:
        with self._changed:
            self._waiting = document
            self._changed.notify()

    def close(self, within: float) -> None:
        with self._changed:
            self._closing = True
            self._waiting = self._waiting or self._missed
            self._changed.notify()
        self._thread.join(max(0.0, within))
        last = self._waiting or self._missed
        if self._thread.is_alive() or last:
            newest = f"the newest sent is {self._newest}" if self._newest else "none was sent"
            self._terminal.warn(f"the last checkpoint is not in {self._s3.url}; {newest}")
        elif self._newest:
            self._terminal.say(f"checkpoint {self._newest} is in {self._s3.url}")

    def _work(self) -> None:
        while document := self._next():
            try:
                self._push(document)
            except LeaseLostError as error:
                self._terminal.warn(f"{error}; this training goes on, and uploads nothing any more")
                self._missed = document
                return
            except FileNotFoundError:  # a newer checkpoint has replaced it already
                self._missed = document
            except Exception as error:  # whatever it is, the training goes on
                self._missed = document
                if not self._failing:
                    self._terminal.warn(
                        f"checkpoint {document.stem} is not in S3: {error}; training goes on, and"
                        " uploading is tried again with the next checkpoint"
                    )
                self._failing = True
            else:
                self._missed = None
                if self._failing:
                    self._terminal.say(f"uploading works again: {document.stem} is in S3")
                self._failing = False
        self._lease.release()

    def _next(self) -> Path | None:
        """Wait for a checkpoint to send; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            document, self._waiting = self._waiting, None
            return document

    def _push(self, document: Path) -> None:
        keep = len(list(self._folder.glob("step-*.json")))
        with ExitStack() as opened:
            # An open file can be read to its end though a newer checkpoint replaces it meanwhile.
            tensors = {
                path.name: opened.enter_context(path.open("rb"))
                for path in sorted(self._folder.glob(f"{document.stem}.*"))
                if path != document
            }
            content = io.BytesIO(document.read_bytes())
            self._lease.renew()
            for name, file in tensors.items():
                self._s3.upload(file, name)
        self._lease.renew()
        self._s3.upload(content, document.name)
        self._newest = document.stem
        with suppress(S3Error):  # what cannot be removed now is removed next time
            self._remove_old(document, keep)

    def _remove_old(self, document: Path, keep: int) -> None:
        files = self._checkpoint_files()
        # Later ones than the newest are of a state the run has gone back from.
        stems = sorted({_stem(name) for name in files if _stem(name) <= document.stem})
        self._remove(name for name in files if _stem(name) not in stems[-keep:])

    def _fetch(self, document: Path, files: Iterable[str]) -> bool:
        """Download one checkpoint; return whether it is whole."""
        names = [name for name in files if _stem(name) == document.stem]
        for name in sorted(names, key=_is_document):
            self._s3.download(name, self._folder / name)
        try:
            read_document(document)
        except DAMAGED as error:
            self._terminal.warn(
                f"checkpoint {document.stem} in {self._s3.url} is damaged ({error}); trying the one"
                " before"
            )
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            return False
        return True

    def _checkpoint_files(self) -> list[str]:
        return sorted(name for name in self._s3.names() if name.startswith("step-"))

    def _remove(self, names: Iterable[str]) -> None:
        """Remove objects, the JSON files first: without them the others are no checkpoint."""
        self._s3.delete(sorted(names, key=_is_document, reverse=True))


def open_checkpoint_sync(url: str | None, folder: Path, terminal: Terminal) -> CheckpointSync:
    """Return the mirror of `folder` at `url`, or one that does nothing without a `url`."""
    return S3CheckpointSync(url, folder, terminal) if url else CheckpointSync()


def _is_document(name: str) -> bool:
    return name.endswith(".json")


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _is_whole(document: Path) -> bool:
    try:
        read_document(document)
    except DAMAGED:
        return False
    return True
