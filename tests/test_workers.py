"""How many workers a host has, and what each is told."""

import socket

import pytest

from alexmri.contract.workers import (
    LOOPBACK,
    Meeting,
    count_workers,
    free_port,
    places,
)
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve


@pytest.mark.parametrize(
    ("wanted", "gpus", "count"), [(0, 0, 1), (0, 8, 8), (3, 0, 3), (2, 8, 2), (1, 1, 1)]
)
def test_a_worker_per_gpu_and_one_on_a_cpu_unless_told(wanted: int, gpus: int, count: int) -> None:
    assert count_workers(wanted, gpus) == count


def test_every_worker_needs_its_own_gpu() -> None:
    with pytest.raises(UserError, match="workers_per_host is 3, but this host has 1 usable GPU;"):
        count_workers(3, 1)


@pytest.mark.parametrize("value", [None, "none", "0", 0, ""])
def test_no_number_of_workers_is_the_automatic_one(value: object) -> None:
    assert resolve([Layer("test", {"workers_per_host": value})]).settings.workers_per_host == 0


def test_ranks_count_through_hosts() -> None:
    told = places((1, 2, 3), Meeting("10.0.0.1", 7777, "eth0"), host=1)
    assert [each["RANK"] for each in told] == ["1", "2"]
    assert [each["LOCAL_RANK"] for each in told] == ["0", "1"]
    assert told[0] | told[1] == told[1] | {
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "7777",
        "GLOO_SOCKET_IFNAME": "eth0",
    }


def test_a_free_port_is_free() -> None:
    with socket.create_server((LOOPBACK, free_port())):
        pass
