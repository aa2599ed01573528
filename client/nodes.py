"""Nodes as a user sees them, in `cluster_status` calls and in `JobCluster.status`."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import ClassVar, NamedTuple


class DispyNodeAvailInfo(NamedTuple):
    """What a node had to spare when it last told."""

    cpu: float  # available CPU in percent; 100: idle
    memory: int  # available bytes
    disk: int  # free bytes where jobs run
    swap: float  # available swap space in percent


class DispyNode:
    """A node and what it has done for one cluster.

    Attributes, to be read only: ``ip_addr``, ``name``, ``cpus``, ``avail_cpus`` (CPUs that the
    cluster may use), ``busy`` (jobs known to be running there now), ``jobs_done``,
    ``cpu_time`` (seconds that its jobs took, by the clock), ``tx``, ``rx`` (bytes sent to it and
    received from it: arguments, results and files), ``update_time`` (seconds since the epoch),
    ``avail_info`` (`DispyNodeAvailInfo` or None) and ``status`` (one of the constants below).
    """

    Initialized: ClassVar[int] = 4  # ready for jobs
    Closed: ClassVar[int] = 16  # gets no more jobs of this cluster
    AvailInfo: ClassVar[int] = 17

    __slots__ = (
        "_address",
        "_addresses",
        "_id",
        "avail_cpus",
        "avail_info",
        "busy",
        "cpu_time",
        "cpus",
        "ip_addr",
        "jobs_done",
        "name",
        "rx",
        "status",
        "tx",
        "update_time",
    )

    def __init__(self, ip_addr: str, name: str, cpus: int, address: str = "") -> None:
        self._address = address  # of its door, "host:port"
        self._addresses = frozenset((address,))  # all by which it may be meant
        self._id = 0  # at the broker
        self.ip_addr = ip_addr
        self.name = name
        self.cpus = cpus
        self.avail_cpus = cpus
        self.busy = 0
        self.jobs_done = 0
        self.cpu_time = 0.0
        self.tx = 0
        self.rx = 0
        self.update_time = 0.0
        self.avail_info: DispyNodeAvailInfo | None = None
        self.status = DispyNode.Initialized

    def __repr__(self) -> str:
        return f"<DispyNode {self.ip_addr} ({self.name}), {self.cpus} CPUs>"


def find(known: Iterable[DispyNode], wanted: object) -> DispyNode | None:
    """Find the node that a user means: an object, an address, "address:port" or a host name.

    Of several, one that is ready is preferred. Raises `TypeError` for what is none of these.
    """
    if isinstance(wanted, DispyNode):
        matching = [node for node in known if node is wanted]
        matching += [
            node
            for node in known
            if node.name == wanted.name and node._addresses & wanted._addresses
        ]
    elif isinstance(wanted, str):
        matching = _find_by_name(list(known), wanted)
    else:
        raise TypeError(f"node must be a DispyNode, an address or a host name, not {wanted!r}")
    matching.sort(key=lambda node: node.status == DispyNode.Closed)
    return matching[0] if matching else None


def _find_by_name(known: list[DispyNode], wanted: str) -> list[DispyNode]:
    matching = [
        node for node in known if wanted in (node.ip_addr, node.name) or wanted in node._addresses
    ]
    if matching:
        return matching
    host, colon, port = wanted.rpartition(":")
    if not (colon and port.isdigit() and ":" not in host):
        host, port = wanted, ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = {str(info[4][0]) for info in found}
    return [node for node in known if any(_is_at(each, addresses, port) for each in _doors(node))]


def _doors(node: DispyNode) -> list[tuple[str, str]]:
    """Return hosts and ports of a node."""
    doors = [(node.ip_addr, node._address.rpartition(":")[2])]
    parts = [address.rpartition(":") for address in node._addresses]
    return doors + [(host.strip("[]"), port) for host, _, port in parts]


def _is_at(door: tuple[str, str], hosts: set[str], port: str) -> bool:
    return door[0] in hosts and port in ("", door[1])
