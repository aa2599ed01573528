"""Which nodes a cluster uses: the entries of ``nodes=``, checked and resolved.

Everything is checked in the caller, so that a mistake raises where it was made.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dispy.protocol.messages import NodeSpec

from .errors import NotSupportedError, SecretNeededError
from .local import cpu_count
from .nodes import DispyNode, DispyNodeAvailInfo

if TYPE_CHECKING:
    from .cluster import JobCluster

LOOPBACK = "127.0.0.1"
PORT_MAX = 65535
ENTRY_NAMES = ("host", "port", "cpus", "depends", "setup_args")  # of a tuple, in this order


class NodeAllocate:
    """Which node or nodes to use, and how many of their CPUs.

    ``host`` is a host name, an IP address, or a pattern of addresses with ``*``. ``port`` is
    the node's port, by default `config.NodePort`. ``cpus`` is how many of its CPUs to use at
    most: 0 for all, -n for all but n.
    Raises `TypeError` or `ValueError` for anything else, naming the parameter.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        cpus: int = 0,
        depends: Sequence[str] = (),
        setup_args: tuple[object, ...] = (),
    ) -> None:
        _check(host, "host", str, "a host name, an IP address or a pattern such as '10.0.*'")
        if port is not None:
            _check(port, "port", int, f"a port number up to {PORT_MAX}")
        _check(cpus, "cpus", int, "a number of CPUs")
        if not host:
            raise ValueError("host: a node's entry names no host")
        if port is not None and not 0 < port <= PORT_MAX:
            raise ValueError(f"port: {port} is not a port number up to {PORT_MAX}")
        if depends or setup_args:
            raise NotSupportedError(
                "depends and setup_args of a node aren't supported yet; pass the data as "
                "arguments of the jobs"
            )
        self.host = host
        self.port = port
        self.cpus = cpus
        self.depends = depends
        self.setup_args = setup_args

    @property
    def ip_rex(self) -> str:
        """The regular expression that addresses of these nodes match."""
        return fnmatch.translate(self.host)

    def allocate(
        self,
        cluster: JobCluster,
        ip_addr: str,
        name: str,
        cpus: int,
        avail_info: DispyNodeAvailInfo | None = None,
        platform: str = "",
    ) -> int:
        """Return how many of a node's ``cpus`` to use, 0 for none."""
        if not (re.match(self.ip_rex, ip_addr) or self.host == name):
            return 0
        if self.cpus > 0:
            return min(cpus, self.cpus)
        return max(0, cpus + self.cpus)


class LocalNode:
    """A private node on this machine, started for this program and ended with it.

    ``cpus`` is how many jobs it runs at a time, by default as many as the machine has CPUs.
    """

    def __init__(self, cpus: int = 0) -> None:
        _check(cpus, "cpus", int, "a number of CPUs")
        if not 0 <= cpus <= cpu_count():
            raise ValueError(f"cpus: {cpus}, but this machine has {cpu_count()} of them")
        self.cpus = cpus


# What an entry of ``nodes=`` may be.
Entry: TypeAlias = "str | Sequence[Any] | Mapping[str, Any] | NodeAllocate | LocalNode | DispyNode"


def read_nodes(nodes: object) -> list[NodeAllocate | LocalNode]:
    """Turn the parameter ``nodes`` of a cluster into objects, explicit ones before patterns.

    None means any node. Raises `TypeError` or `ValueError` for what is no node.
    """
    if nodes is None:
        return [NodeAllocate("*")]
    if isinstance(nodes, str | NodeAllocate | LocalNode | DispyNode | Mapping):
        nodes = [nodes]
    if not isinstance(nodes, Iterable):
        raise TypeError(f"nodes must be a host name or a list, not {type(nodes).__name__}")
    entries = [_read_entry(entry) for entry in nodes]
    if not entries:
        raise ValueError("nodes is empty: leave it out to use any node")
    return sorted(entries, key=is_pattern)


def is_pattern(entry: NodeAllocate | LocalNode) -> bool:
    """Whether an entry stands for whatever nodes match it."""
    return isinstance(entry, NodeAllocate) and any(sign in entry.host for sign in "*?")


def matches_here(entry: NodeAllocate) -> bool:
    """Whether a pattern takes nodes of this machine."""
    return fnmatch.fnmatchcase(LOOPBACK, entry.host)


def resolve(entry: NodeAllocate, port: int) -> NodeSpec:
    """Look a named node up; ``port`` is used unless it has one of its own.

    Raises `OSError` if the name is unknown, `SecretNeededError` if it's another machine.
    """
    try:
        found = socket.getaddrinfo(entry.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"nodes: the host {entry.host!r} can't be found: {error}") from None
    addresses = sorted({str(info[4][0]) for info in found}, key=lambda a: (":" in a, a))
    if not ipaddress.ip_address(addresses[0].partition("%")[0]).is_loopback:
        raise beyond_loopback("nodes", entry.host)
    return NodeSpec(addresses[0], entry.port or port, entry.cpus)


def beyond_loopback(parameter: str, host: str) -> SecretNeededError:
    """Make the error for an address that isn't on this machine."""
    return SecretNeededError(
        f"{parameter}: {host!r} is not on this machine's loopback; other machines need a "
        "secret, which comes with a later release. Use 127.0.0.1 (an ssh tunnel to it works)"
    )


def _read_entry(entry: object) -> NodeAllocate | LocalNode:
    if isinstance(entry, LocalNode):
        return entry
    if isinstance(entry, NodeAllocate):
        if type(entry).allocate is not NodeAllocate.allocate:
            raise NotSupportedError(
                f"nodes: {type(entry).__name__} has an allocate method of its own, which isn't "
                "supported yet; use the cpus and host of NodeAllocate"
            )
        return entry
    if isinstance(entry, DispyNode):
        return NodeAllocate(entry.ip_addr)
    if isinstance(entry, str):
        return _read_text(entry)
    return _read_fields(entry)


def _read_fields(entry: object) -> NodeAllocate:
    if isinstance(entry, Mapping):
        fields = dict(entry)
    elif isinstance(entry, tuple | list) and len(entry) <= len(ENTRY_NAMES):
        fields = dict(zip(ENTRY_NAMES, entry, strict=False))
    else:
        raise TypeError(f"nodes: {entry!r} is no node: use 'host', 'host:port' or NodeAllocate")
    unknown = fields.keys() - set(ENTRY_NAMES)
    if unknown or "host" not in fields:
        raise ValueError(f"nodes: {entry!r} must have a host, and of {ENTRY_NAMES} nothing else")
    read = _read_text(fields.pop("host"))
    fields["port"] = fields.get("port") or read.port
    try:
        return NodeAllocate(read.host, **fields)
    except (TypeError, ValueError) as error:
        raise type(error)(f"nodes: {entry!r}: {error}") from None


def _read_text(text: object) -> NodeAllocate:
    """Read "host", "host:port", "[address]:port" or a bare IPv6 address."""
    _check(text, "nodes", str, "a host name or an IP address")
    host, colon, port = str(text).strip().rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.startswith("[")):
        return NodeAllocate(str(text).strip().strip("[]"))
    if not (port.isascii() and port.isdigit()):
        raise ValueError(f"nodes: {port!r} in {text!r} is not a port number")
    return NodeAllocate(host.strip("[]"), int(port))


def _check(value: object, name: str, kind: type, expected: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {expected}, not {value!r}")
