"""Weights & Biases goes away in the middle of a run, and nothing but its own copy suffers."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from .conftest import PATIENCE, Tree


class WandbServer(ThreadingHTTPServer):
    """As much of Weights & Biases as its client needs to begin a run online."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def vanish(self) -> None:
        """Break every connection and take no more."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already

    def handle_error(self, *_: object) -> None:
        """The client may break a connection too."""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = json.dumps({"data": self.answer(body)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def answer(self, body: bytes) -> dict[str, Any]:
        if b"upsertBucket" in body:
            project = {"id": "p", "name": "alexmri", "entity": {"id": "e", "name": "me"}}
            run = {"id": "r", "name": "run", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**run, "project": project}, "inserted": True}}
        if b"createRunFiles" in body:
            names = json.loads(body)["variables"]["files"]
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in names]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.vanish()


def test_losing_wandb_costs_one_warning(tree: Tree, wandb_server: WandbServer) -> None:
    tree.extra = {"WANDB_BASE_URL": wandb_server.url, "WANDB_API_KEY": "x" * 40}
    process = tree.start("train", "--epochs", "4")
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("epoch=1;"):
            wandb_server.vanish()
            break
    printed += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    warnings = [line for line in printed.splitlines() if "W&B" in line]
    assert len(warnings) == 1, printed
    assert "W&B did not receive everything within" in warnings[0]
    results = tree.root / "output" / "data"
    assert f"wandb sync {results / 'wandb' / 'run-'}" in warnings[0]
    rows = (results / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3, 4]
    assert (results / "report.html").is_file()
    assert (tree.root / "model" / "model.json").is_file()
    assert not (tree.root / "output" / "failure").exists()
