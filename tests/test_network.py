"""The variables by which the workers of several hosts find the network."""

import socket

import pytest

from alexmri.contract.inputs import Hosts
from alexmri.contract.launcher import Plan
from alexmri.contract.network import (
    address_of,
    free_port,
    hosts_connected_to,
    interface_of,
    network_variables,
)

NAMES = ("127.0.0.1", "127.0.0.2")


def hosts(instance_type: str = "local", interface: str = "lo") -> Hosts:
    return Hosts(NAMES[1], NAMES, interface, {"current_instance_type": instance_type})


@pytest.mark.parametrize(
    "instance_type", ["ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.p5en.48xlarge"]
)
def test_efa_where_the_instance_has_it(instance_type: str) -> None:
    set_ = network_variables(hosts(instance_type))
    assert set_ == {
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_DEBUG": "WARN",
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "NCCL_PROTO": "simple",
        "RDMAV_FORK_SAFE": "1",
    }


@pytest.mark.parametrize("instance_type", ["ml.p3.16xlarge", "ml.g5.48xlarge", "local"])
def test_no_efa_elsewhere(instance_type: str) -> None:
    set_ = network_variables(hosts(instance_type))
    assert set_["NCCL_IB_DISABLE"] == "1"
    assert not any(name.startswith("FI_") for name in set_)


def test_the_interface_is_the_platforms_or_the_one_that_is_there() -> None:
    other = next((name for _, name in socket.if_nameindex() if name != "lo"), "lo")
    assert network_variables(hosts(interface=other))["NCCL_SOCKET_IFNAME"] == other
    missing = network_variables(hosts(interface="ethwe"))
    assert missing["NCCL_SOCKET_IFNAME"] == missing["GLOO_SOCKET_IFNAME"] == "lo"
    assert interface_of("192.0.2.1") is None


def test_what_the_environment_says_stands() -> None:
    plan = Plan("module", (), 1, hosts("ml.p4d.24xlarge"))
    assert plan.variables({"NCCL_PROTO": "mine"})["NCCL_PROTO"] == "mine"
    assert Plan("module", (), 1).variables({}) == {}


def test_hosts_are_told_by_their_connections() -> None:
    with socket.create_server(("", port := free_port())):
        assert hosts_connected_to(port) == set()
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0)):
            assert hosts_connected_to(port) == {"127.0.0.3"}
        with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.4", 0)):
            assert "127.0.0.4" in hosts_connected_to(port)


def test_a_name_that_does_not_resolve_has_no_address() -> None:
    assert address_of("nobody.invalid") is None
    assert address_of("127.0.0.9") == "127.0.0.9"
