"""Let one writer at a time keep files below a prefix in S3, though machines die without a word."""

import json
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from alexmri.errors import UserError
from alexmri.files import to_json
from alexmri.s3 import ConflictError, Found, Prefix, S3Error
from alexmri.terminal import Terminal

# The object that says who writes below a prefix, how often it is renewed, and after how long
# without that its writer counts as dead.
LEASE = "writer.json"
RENEW_SECONDS = 30.0
LEASE_SECONDS = 120.0
POLL_SECONDS = 5.0


class LeaseLostError(S3Error):
    """Somebody else writes below the prefix now."""


class Lease:
    """The right to write below a prefix; a thread renews it until it is released.

    It is an object made and renewed by conditional writes, so S3 itself decides who has it.
    """

    def __init__(self, s3: Prefix, terminal: Terminal) -> None:
        """Take the lease, also from a writer that shows no life for LEASE_SECONDS.

        Raises:
            UserError: somebody else has it and is alive.
        """
        self._s3 = s3
        self._token = secrets.token_hex(8)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewals = 0
        self._lost = ""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._etag = self._claim(terminal)
        threading.Thread(target=self._keep, name="S3 lease", daemon=True).start()

    def renew(self) -> None:
        """Show life, and make sure that nobody else writes.

        Raises:
            LeaseLostError: somebody else has the lease, or it was removed.
        """
        with self._lock:
            if self._lost:
                raise LeaseLostError(self._lost)
            try:
                self._etag = self._s3.write(LEASE, self._document(), replacing=self._etag)
            except ConflictError:
                found = self._s3.read(LEASE)
                if found is None or _writer(found)["token"] != self._token:
                    by = f"a training {_who(found)}" if found else f"somebody who removed {LEASE}"
                    self._lost = f"{self._s3.url} was taken over by {by}"
                    raise LeaseLostError(self._lost) from None
                # A write of ours arrived whose answer was lost.
                self._etag = found.etag

    def release(self) -> None:
        """Let others write; where that cannot be said, the lease runs out by itself."""
        self._over.set()
        with self._lock:
            try:
                self._s3.delete_version(LEASE, self._etag)
            except S3Error:
                return

    def _claim(self, terminal: Terminal) -> str:
        seen: Found | None = None
        silent_since = 0.0
        while True:
            try:
                return self._s3.write(LEASE, self._document())
            except ConflictError:
                found = self._s3.read(LEASE)
            if found is None:
                continue
            if _writer(found)["token"] == self._token:
                return found.etag
            if seen is None:
                seen = found
                silent_since = time.monotonic() - found.age
                if found.age < LEASE_SECONDS:
                    terminal.say(
                        f"{self._s3.url} is written by a training {_who(found)}: waiting up to"
                        f" {LEASE_SECONDS - found.age:.0f} s to see whether that is still alive"
                    )
            elif found.etag != seen.etag:
                raise UserError(
                    f"{self._s3.url} is written by another training, {_who(found)}, and two would"
                    " spoil each other's checkpoints; stop that one, choose another checkpoint_s3,"
                    f" or take it over by removing {self._s3.url}/{LEASE}"
                )
            if time.monotonic() - silent_since >= LEASE_SECONDS:
                try:
                    etag = self._s3.write(LEASE, self._document(), replacing=found.etag)
                except ConflictError:  # it showed life, or somebody else was quicker
                    continue
                terminal.say(f"{self._s3.url} is taken over from the training {_who(found)}")
                return etag
            time.sleep(POLL_SECONDS)

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                self.renew()
            except LeaseLostError:
                return
            except S3Error:
                continue  # whoever uploads will meet it too, and tell

    def _document(self) -> bytes:
        self._renewals += 1  # so that every renewal is another version
        return to_json(
            {
                "schema": "alexmri.writer/1",
                "host": socket.gethostname(),
                "process": os.getpid(),
                "started": self._started,
                "token": self._token,
                "renewals": self._renewals,
            }
        ).encode()


def _writer(found: Found) -> dict[str, Any]:
    unknown = {"host": "an unknown host", "started": "an unknown time", "token": ""}
    try:
        content = json.loads(found.data)
    except ValueError:
        return unknown
    return unknown | content if isinstance(content, dict) else unknown


def _who(found: Found) -> str:
    writer = _writer(found)
    return f"on {writer['host']} since {writer['started']}"
