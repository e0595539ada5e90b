"""The variables by which torch, gloo, NCCL and EFA find the network between the hosts of a job."""

import fcntl
import re
import socket
import struct
from collections.abc import Mapping

from alexmri.contract.hosts import Hosts

# Instances with Elastic Fabric Adapters.
EFA_TYPES = re.compile(r"ml\.(p4d|p4de|p5[a-z]*|trn\d[a-z]*)\.")
SIOCGIFADDR = 0x8915  # <linux/sockios.h>


def network_variables(hosts: Hosts, own: str, existing: Mapping[str, str]) -> dict[str, str]:
    """Return what the workers of a host need, each in the value that `existing` has for it.

    Args:
        own: the address of this host on the network between the hosts.
    """
    interface = hosts.interface
    if interface not in (name for _, name in socket.if_nameindex()):
        interface = interface_of(own) or interface  # a platform may name one that is not here
    variables = {
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_DEBUG": "WARN",
    }
    instance_type = str((hosts.document or {}).get("current_instance_type"))
    if EFA_TYPES.match(instance_type):
        variables |= {
            "FI_PROVIDER": "efa",
            "FI_EFA_USE_DEVICE_RDMA": "1",
            "NCCL_PROTO": "simple",
            "RDMAV_FORK_SAFE": "1",
        }
    else:
        variables["NCCL_IB_DISABLE"] = "1"
    return {name: existing.get(name, value) for name, value in variables.items()}


def interface_of(address: str) -> str | None:
    """Return the network interface that has this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
