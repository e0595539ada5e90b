"""Let the hosts of a job end together: the first one trains, the others wait for its word.

A host that left early would end the job on platforms that stop everything with the first exit.
"""

import contextlib
import select
import socket
import time

from alexmri.contract.hosts import Hosts
from alexmri.contract.sm_environment import MASTER_PORT
from alexmri.errors import UserError

DONE = b"done"
# Hosts start minutes apart, and their names resolve late.
PATIENCE_SECONDS = 900.0
RETRY_SECONDS = 1.0
# How long the first host, when done, waits for all to leave.
PARTING_SECONDS = 5.0


class Gathering:
    """The first host's side: whoever connects while it works is told in the end how it went."""

    def __init__(self, hosts: Hosts, port: int = MASTER_PORT) -> None:
        self._expected = len(hosts.names) - 1
        # The kernel takes the connections in; nobody has to accept them before the end.
        self._server = socket.create_server(("", port), backlog=len(hosts.names))

    def dismiss(self, failure: str | None, *, patience: float) -> None:
        """Tell the others `failure`, or that all is well, and wait a moment until they left.

        Those that never came are waited for `patience` seconds.
        """
        deadline = time.monotonic() + patience
        peers: list[socket.socket] = []
        with self._server, contextlib.suppress(TimeoutError):
            while len(peers) < self._expected:
                self._server.settimeout(max(0.01, deadline - time.monotonic()))
                peers.append(self._server.accept()[0])
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(failure.encode() if failure else DONE)
                peer.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + PARTING_SECONDS
        for peer in peers:
            select.select([peer], [], [], max(0.0, deadline - time.monotonic()))
            peer.close()


def wait_for_first(hosts: Hosts, port: int = MASTER_PORT) -> None:
    """Return when the first host is done.

    Raises:
        UserError: the first host failed, left without a word, or is not to be found.
    """
    word = b""
    with _connect(hosts.first, port) as first, contextlib.suppress(ConnectionError, TimeoutError):
        while chunk := first.recv(4096):
            word += chunk
    if word != DONE:
        cause = word.decode("utf-8", "replace") or "it left without a word; its log has the cause"
        raise UserError(f"{hosts.first}, which trains for all hosts, failed: {cause}")


def _connect(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=10)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the first host {host} does not answer on port {port} ({error}); let the"
                    " hosts of the job reach each other (security group)"
                ) from None
            time.sleep(RETRY_SECONDS)
    connection.settimeout(None)
    # A host that vanishes says no goodbye: notice it within a minute.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connection
