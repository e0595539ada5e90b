"""The network between the hosts of a job: addresses, ports, and the variables that name it."""

import fcntl
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from alexmri.contract.inputs import Hosts

# Instances with Elastic Fabric Adapters.
EFA_TYPES = re.compile(r"ml\.(p4d|p4de|p5[a-z]*|trn\d[a-z]*)\.")
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
ESTABLISHED = "01"  # <net/tcp_states.h>
PROC_NET = Path("/proc/net")


def network_variables(hosts: Hosts) -> dict[str, str]:
    """Return the variables by which gloo, NCCL and EFA find the network between the hosts."""
    interface = hosts.interface
    if interface not in (name for _, name in socket.if_nameindex()):
        # A platform may name one that is not here.
        own = address_of(hosts.current) if hosts.rank == 0 else _own_address_towards(hosts.first)
        interface = interface_of(own or "") or interface
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
    return variables


def address_of(host: str) -> str | None:
    """Return the IPv4 address of a host, or None where its name does not resolve."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


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


def hosts_connected_to(port: int, proc_net: Path = PROC_NET) -> set[str]:
    """Return the IPv4 addresses from which there are connections to `port` of this machine."""
    return {address for own, address, _ in _connections(proc_net) if own == port}


def is_connected_to(address: str | None, port: int, proc_net: Path = PROC_NET) -> bool:
    """Whether this machine has a connection to `port` of the machine with this IPv4 address."""
    return any((other, there) == (address, port) for _, other, there in _connections(proc_net))


def _connections(proc_net: Path) -> Iterator[tuple[int, str, int]]:
    """Yield own port, other IPv4 address and other port of every TCP connection."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc_net / name).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == ESTABLISHED:
                address, _, port = remote.partition(":")
                # The last four bytes, in the byte order of this machine; tcp6 maps IPv4 so too.
                shown = socket.inet_ntoa(struct.pack("=I", int(address[-8:], 16)))
                yield int(local.rpartition(":")[2], 16), shown, int(port, 16)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_address_towards(host: str) -> str | None:
    """Return the address of this machine on the way to `host`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
