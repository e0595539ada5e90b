"""The variables by which the workers of several hosts find the network."""

import socket

import pytest

from alexmri.contract.hosts import Hosts
from alexmri.contract.network import interface_of, network_variables

NAMES = ("algo-1", "algo-2")


def hosts(instance_type: str = "local", interface: str = "lo") -> Hosts:
    return Hosts("algo-2", NAMES, interface, {"current_instance_type": instance_type})


@pytest.mark.parametrize(
    "instance_type", ["ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.p5en.48xlarge"]
)
def test_efa_where_the_instance_has_it(instance_type: str) -> None:
    set_ = network_variables(hosts(instance_type), "127.0.0.1", {"NCCL_PROTO": "mine"})
    assert set_ == {
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_DEBUG": "WARN",
        "FI_PROVIDER": "efa",
        "FI_EFA_USE_DEVICE_RDMA": "1",
        "NCCL_PROTO": "mine",
        "RDMAV_FORK_SAFE": "1",
    }


@pytest.mark.parametrize("instance_type", ["ml.p3.16xlarge", "ml.g5.48xlarge", "local"])
def test_no_efa_elsewhere(instance_type: str) -> None:
    set_ = network_variables(hosts(instance_type), "127.0.0.1", {"NCCL_DEBUG": "INFO"})
    assert set_["NCCL_IB_DISABLE"] == "1"
    assert set_["NCCL_DEBUG"] == "INFO"
    assert not any(name.startswith("FI_") for name in set_)


def test_the_interface_is_the_platforms_or_the_one_that_is_there() -> None:
    other = next((name for _, name in socket.if_nameindex() if name != "lo"), "lo")
    assert network_variables(hosts(interface=other), "127.0.0.1", {})["NCCL_SOCKET_IFNAME"] == other
    missing = network_variables(hosts(interface="ethwe"), "127.0.0.1", {})
    assert missing["NCCL_SOCKET_IFNAME"] == missing["GLOO_SOCKET_IFNAME"] == "lo"
    assert interface_of("192.0.2.1") is None
