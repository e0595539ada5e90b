"""Keep the newest checkpoints of a run in S3 too, so that another machine can go on with it."""

import io
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alexmri.errors import UserError
from alexmri.files import parse_json_object, to_json
from alexmri.s3 import ConflictError, Found, Prefix, S3Error
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import (
    DamagedCheckpointError,
    checkpoints_in,
    is_whole,
    kept,
    read_checkpoint,
)
from alexmri.training.run_folder import in_order

# The object that says which training writes below a prefix.
WRITER = "writer.json"
CLAIMS = 5


class LostPrefixError(S3Error):
    """Another training writes below the prefix now."""


class CheckpointSync:
    """Where a run's checkpoints are kept besides their folder: nowhere."""

    def clear(self) -> None:
        """Remove the checkpoints of the run that is replaced."""

    def begin(self, check: Callable[[Mapping[str, Any]], object]) -> None:
        """Put the newest whole checkpoint into the folder and become the only writer.

        `check` gets what that checkpoint's run was about, and raises where this run cannot go on
        from it: then nothing is taken over.
        """

    def saved(self, json_file: Path) -> None:
        """Take note of a new checkpoint, named by its JSON file; returns at once."""

    def close(self, within: float) -> None:
        """Finish in at most `within` seconds."""


class S3CheckpointSync(CheckpointSync):
    """Keeps the checkpoints of a folder below a prefix in S3, as their only writer.

    A thread uploads the newest checkpoint, tensors first, and then removes older ones, so that S3
    holds a whole checkpoint at every moment. Where checkpoints come faster than they can be sent,
    those between are left out. Once the run has begun, nothing that goes wrong in S3 stops it.

    The object writer.json names the training that writes. A killed one leaves it behind, so the
    next training takes it over at once. Each looks at it before it writes: a training that is
    alive and has lost it goes on, and uploads nothing any more.
    """

    def __init__(self, url: str, folder: Path, terminal: Terminal, *, keep: int) -> None:
        """Look below the prefix `url`; nothing is written yet. The newest `keep` stay there.

        Raises:
            UserError: S3 cannot be used so.
        """
        self._folder = folder
        self._keep = keep
        self._terminal = terminal
        self._s3 = Prefix(url)
        self._s3.names()
        self._writer = _Writer(self._s3, terminal)
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._missed: Path | None = None
        self._newest: str | None = None
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="S3 upload", daemon=True)
        self._thread.start()

    def clear(self) -> None:
        self._writer.claim()
        self._remove(self._checkpoint_files())

    def begin(self, check: Callable[[Mapping[str, Any]], object]) -> None:
        self.restore()
        whole = [each for each in reversed(checkpoints_in(self._folder)) if is_whole(each)]
        if whole:
            check(read_checkpoint(whole[0])["resume_check"])
        self._writer.claim()
        # A training that was alive may have saved another one until it was taken over.
        self.restore()
        if not checkpoints_in(self._folder):
            self._terminal.say(f"there is no checkpoint in {self._s3.url} yet")

    def restore(self) -> None:
        """Put the newest whole checkpoint into the folder, unless one as new is there."""
        files = self._checkpoint_files()
        there = {name for name in files if name.endswith(".json")}
        here = {path.name for path in checkpoints_in(self._folder)}
        for name in reversed(in_order(there | here)):
            json_file = self._folder / name
            if name in here and is_whole(json_file):
                return
            if name in there and self._fetch(json_file, files):
                self._terminal.say(f"checkpoint {json_file.stem} is restored from {self._s3.url}")
                return

    def saved(self, json_file: Path) -> None:
        with self._changed:
            self._waiting = json_file
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
        while json_file := self._next():
            try:
                self._push(json_file)
            except LostPrefixError as error:
                self._terminal.warn(f"{error}; this training goes on without uploading")
                self._missed = json_file
                return
            except FileNotFoundError:  # a newer checkpoint has replaced it already
                self._missed = json_file
            except Exception as error:  # whatever it is, the training goes on
                self._missed = json_file
                if not self._failing:
                    self._terminal.warn(
                        f"checkpoint {json_file.stem} is not in S3: {error}; training goes on, and"
                        " uploading is tried again with the next checkpoint"
                    )
                self._failing = True
            else:
                self._missed = None
                if self._failing:
                    self._terminal.say(f"uploading works again: {json_file.stem} is in S3")
                self._failing = False
        self._writer.release()

    def _next(self) -> Path | None:
        """Wait for a checkpoint to send; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            json_file, self._waiting = self._waiting, None
            return json_file

    def _push(self, json_file: Path) -> None:
        tensor_file = json_file.with_suffix(".safetensors")
        with ExitStack() as opened:
            # An open file can be read to its end though a newer checkpoint replaces it meanwhile.
            tensors = opened.enter_context(tensor_file.open("rb"))
            content = io.BytesIO(json_file.read_bytes())
            self._writer.check()
            self._s3.upload(tensors, tensor_file.name)
        self._writer.check()
        self._s3.upload(content, json_file.name)
        self._newest = json_file.stem
        with suppress(S3Error):  # what cannot be removed now is removed next time
            self._writer.check()
            files = self._checkpoint_files()
            self._remove(set(files) - kept(files, json_file.name, self._keep))

    def _fetch(self, json_file: Path, files: Iterable[str]) -> bool:
        """Download one checkpoint; return whether it is whole."""
        names = [name for name in files if Path(name).stem == json_file.stem]
        for name in sorted(names, key=_is_json):
            self._s3.download(name, self._folder)
        try:
            read_checkpoint(json_file)
        except DamagedCheckpointError as error:
            self._terminal.warn(
                f"checkpoint {json_file.stem} in {self._s3.url} is damaged ({error}); trying the"
                " one before"
            )
            for name in names:
                (self._folder / name).unlink(missing_ok=True)
            return False
        return True

    def _checkpoint_files(self) -> list[str]:
        return in_order(self._s3.names())

    def _remove(self, names: Iterable[str]) -> None:
        """Remove objects, the JSON files first: without them the others are no checkpoint."""
        self._s3.delete(sorted(names, key=_is_json, reverse=True))


class _Writer:
    """The object that says which training writes below a prefix: made once, then only read."""

    def __init__(self, s3: Prefix, terminal: Terminal) -> None:
        self._s3 = s3
        self._terminal = terminal
        self._token = secrets.token_hex(8)
        self._etag: str | None = None
        self._lock = threading.Lock()

    def claim(self) -> None:
        """Become the writer, in place of whoever was it; does nothing a second time.

        Raises:
            S3Error: S3 refuses, or trainings that start at the same moment get in the way.
        """
        with self._lock:
            if self._etag:
                return
            for _ in range(CLAIMS):
                before = self._s3.read(WRITER)
                if before and self._is_ours(before):  # a write whose answer was lost
                    self._etag = before.etag
                    return
                with suppress(ConflictError):  # somebody was faster
                    self._etag = self._s3.write(
                        WRITER, self._content(), replacing=before.etag if before else None
                    )
                    if before:
                        self._terminal.say(
                            f"{self._s3.url} is taken over from the training {_who(before)}; if"
                            " that still runs, it no longer uploads"
                        )
                    return
            raise S3Error(
                f"{self._s3.url}: other trainings write there at this moment; choose another"
                " checkpoint_s3, or stop them"
            )

    def check(self) -> None:
        """Make sure that this training is the writer still.

        Raises:
            LostPrefixError: another one is, or the object was removed.
        """
        self.claim()
        now = self._s3.read(WRITER)
        if now is None or now.etag != self._etag:
            by = f"the training {_who(now)}" if now else f"somebody who removed {WRITER}"
            raise LostPrefixError(f"{self._s3.url} was taken over by {by}")

    def release(self) -> None:
        """Remove the object, unless it is another's by now."""
        if self._etag:
            with suppress(S3Error):
                self._s3.delete_version(WRITER, self._etag)

    def _is_ours(self, found: Found) -> bool:
        return _content_of(found).get("token") == self._token

    def _content(self) -> bytes:
        return to_json(
            {
                "schema": "alexmri.writer/1",
                "host": socket.gethostname(),
                "process": os.getpid(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "token": self._token,
            }
        ).encode()


def open_checkpoint_sync(settings: Settings, folder: Path, terminal: Terminal) -> CheckpointSync:
    """Return what keeps the checkpoints of `folder` in S3 too, where `settings` name a place."""
    url = settings.checkpoint_s3
    if url is None:
        return CheckpointSync()
    return S3CheckpointSync(url, folder, terminal, keep=settings.keep_checkpoints)


def _content_of(found: Found) -> dict[str, object]:
    try:
        return parse_json_object(found.data, WRITER)
    except UserError:
        return {}


def _who(found: Found) -> str:
    content = _content_of(found)
    host, started = (str(content.get(key, "unknown"))[:100] for key in ("host", "started"))
    return f"on {host} since {started}"


def _is_json(name: str) -> bool:
    return name.endswith(".json")
