"""docs/examples/nginx.conf before `serve`: it keeps slow, too many and too large requests away."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .docker_helpers import REPOSITORY, call
from .proxy_clients import BODIES, HEADS, ROUNDS

pytestmark = pytest.mark.docker
FILE = REPOSITORY / "tests" / "docker" / "proxy-compose.yml"
# Seconds in which a platform wants a ping answered.
PROMPT = 2

Clients = Callable[[str], Any]


@pytest.fixture(scope="module")
def clients(docker_job: Path, image: str, base_image: str) -> Iterator[Clients]:
    """Run a scene of proxy_clients.py where nginx listens; return what its clients saw."""
    slices = docker_job / "input" / "data" / "training" / "NonDemented"
    environment = os.environ | {
        "BASE_IMAGE": base_image,
        "COMPOSE_PROJECT_NAME": "alexmri-docker-proxy",
        "IMAGE": image,
        "MODEL": str(docker_job / "model"),
        "SLICE": str(next(slices.iterdir())),
    }

    def compose(*arguments: str, check: bool = True) -> str:
        command = ("docker", "compose", "-f", str(FILE), *arguments)
        return call(*command, check=check, env=environment).stdout

    def run(scene: str) -> Any:
        script = "/clients/proxy_clients.py"
        return json.loads(compose("exec", "-T", "serve", "python3", script, scene))

    try:
        compose("up", "--build", "--detach", "--wait")
        yield run
    finally:
        compose("down", "--timeout", "5", "--volumes", "--rmi", "local", check=False)


def test_good_requests_reach_the_server(clients: Clients) -> None:
    for answer in clients("good"):
        assert answer["status"] == 200, answer
        assert answer["named"], answer


def test_slow_clients_delay_nobody_and_are_cut_off(clients: Clients) -> None:
    seen = clients("slow")
    assert len(seen["answers"]) == 2 * ROUNDS
    for answer in seen["answers"]:
        assert answer["status"] == 200, seen
        assert answer["seconds"] < PROMPT, seen
    assert seen["open"] == HEADS + BODIES
    assert seen["open_after_timeouts"] == 0


def test_one_address_does_not_take_all_connections(clients: Clients) -> None:
    seen = clients("many")
    assert seen["refused"]["status"] == 429
    assert not seen["refused"]["named"]
    assert seen["other"]["status"] == 200
    assert seen["later"]["status"] == 200


def test_nginx_refuses_a_body_over_25_mb(clients: Clients) -> None:
    seen = clients("large")
    # The server answered it: an image is readable with zeros behind it.
    assert seen["taken"]["named"], seen
    assert seen["taken"]["status"] == 200, seen
    assert seen["refused"]["status"] == 413
    assert not seen["refused"]["named"]
