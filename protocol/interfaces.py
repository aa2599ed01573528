"""Which addresses this machine has, and what can be sent from them.

The only module that asks the system for its interfaces. `read` decides and can be tested with
any answer of the system; `addresses` asks it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of containers, virtual machines and tunnels: what lies behind them is seldom another machine
# that would reach us there.
VIRTUAL = (
    "br-",
    "cali",
    "cilium",
    "cni",
    "docker",
    "flannel",
    "ipsec",
    "lxc",
    "lxd",
    "podman",
    "ppp",
    "tailscale",
    "tap",
    "tun",
    "utun",
    "vboxnet",
    "vethernet",
    "veth",
    "virbr",
    "vmnet",
    "vnet",
    "wg",
    "zt",
)


@dataclass(frozen=True)
class InterfaceAddress:
    """One address of one interface that is up."""

    name: str  # of the interface
    address: str  # without a zone
    prefix: int = 0  # length in bits of the part that names the network
    broadcast: str = ""  # where broadcasts to that network go; empty: it has none, or IPv6
    index: int = 0  # the system's number of the interface; 0: unknown
    is_loopback: bool = False
    is_virtual: bool = False  # of containers, virtual machines or tunnels
    is_point_to_point: bool = False
    can_multicast: bool = False

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.address

    @property
    def is_link_local(self) -> bool:
        """Whether it means something else on every interface: worthless to other machines."""
        return ipaddress.ip_address(self.address).is_link_local


def addresses() -> list[InterfaceAddress]:
    """Return the addresses of all interfaces that are up, those that others will use first.

    At the end are those that are of no use elsewhere (loopback, which is last, and
    link-local), before them those of containers, virtual machines and tunnels. Whether any of
    them can be reached from other machines isn't known here.
    """
    import psutil  # it costs some milliseconds, which only networks pay

    return read(psutil.net_if_addrs(), psutil.net_if_stats(), _indexes())


def read(
    found: Mapping[str, Sequence[Any]], states: Mapping[str, Any], indexes: Mapping[str, int]
) -> list[InterfaceAddress]:
    """Turn what psutil says of interfaces into addresses, in the order of `addresses`."""
    read = [
        one
        for name, entries in found.items()
        for entry in entries
        if name not in states or states[name].isup
        if (one := _read(name, entry, states.get(name), indexes.get(name, 0))) is not None
    ]
    return sorted(read, key=_rank)  # stable: the system's order within a rank


def _read(name: str, entry: Any, state: Any, index: int) -> InterfaceAddress | None:
    if entry.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = entry.address.partition("%")[0]
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None  # the system knows better than we, but nobody could dial it
    flags = (getattr(state, "flags", "") or "").split(",")
    known = flags != [""]  # Windows tells none
    points = entry.ptp is not None or "pointopoint" in flags or "pointtopoint" in flags
    prefix = _prefix(entry.netmask, ip.max_prefixlen)
    is_loopback = ip.is_loopback or "loopback" in flags
    return InterfaceAddress(
        name=name,
        address=address,
        prefix=prefix,
        broadcast="" if points or is_loopback else _broadcast(ip, prefix, entry.broadcast),
        index=index,
        is_loopback=is_loopback,
        is_virtual=name.lower().startswith(VIRTUAL),
        is_point_to_point=points,
        can_multicast=not is_loopback and ("multicast" in flags or not known),
    )


def _prefix(netmask: str | None, bits: int) -> int:
    if not netmask:
        return bits
    try:
        mask = int(ipaddress.ip_address(netmask.partition("%")[0]))
    except ValueError:
        return bits
    return mask.bit_count()


def _broadcast(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: int, said: str | None
) -> str:
    """Where broadcasts go; interfaces that were set up by hand often don't say it."""
    if ip.version == 6 or prefix >= 31:
        return ""
    if said and said != "0.0.0.0":
        return said
    return str(ipaddress.ip_network((int(ip), prefix), strict=False).broadcast_address)


def _rank(one: InterfaceAddress) -> tuple[bool, bool, bool, bool]:
    return (one.is_loopback, one.is_link_local, one.is_virtual, one.is_ipv6)


def _indexes() -> dict[str, int]:
    try:
        return {name: index for index, name in socket.if_nameindex()}
    except (OSError, AttributeError):
        return {}
