"""Which nodes a cluster uses: the entries of ``nodes=``, checked and resolved.

Everything is checked in the caller, so that a mistake raises where it was made.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dispy.protocol.listening import is_loopback, numerics
from dispy.protocol.lookup import SEPARATOR
from dispy.protocol.messages import NodeSpec
from dispy.protocol.protection import NOTHING, Protection

from .local import cpu_count
from .nodes import DispyNode, DispyNodeAvailInfo

if TYPE_CHECKING:
    from .cluster import JobCluster

LOOPBACK = "127.0.0.1"
ANY = "*"  # the host of an entry that means all nodes
PORT_MAX = 65535
ENTRY_NAMES = ("host", "port", "cpus", "depends", "setup_args")  # of a tuple, in this order


class NodeAllocate:
    """Which node or nodes to use, how many of their CPUs, and what they need for it.

    - ``host``: a host name, an IP address, or a pattern of addresses with ``*``.
    - ``port``: the node's port, by default `config.NodePort`.
    - ``cpus``: how many of its CPUs to use at most: 0 for all, -n for all but n.
    - ``depends``: files (or folders, or modules) that are sent there before the cluster's
      ``setup`` is called.
    - ``setup_args``: a tuple, the arguments of ``setup`` and ``cleanup`` there.

    A subclass may have an `allocate` method of its own, which may set ``depends`` and
    ``setup_args``.

    Raises `TypeError` or `ValueError` for anything else, `OSError` for a file that isn't there,
    naming the parameter.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        cpus: int = 0,
        depends: Sequence[object] = (),
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
        self.host = host
        self.port = port
        self.cpus = cpus
        self.depends = _read_depends(depends)
        self.setup_args = read_setup_args(setup_args)
        self._addresses: list[str] = []  # not looked up so far

    @property
    def ip_addr(self) -> str:
        """The address of the node; for a pattern, or a host that isn't known, the host itself."""
        return self._ip_addrs[0]

    @property
    def _ip_addrs(self) -> list[str]:
        """Its addresses, of which any may be the one by which it is reached."""
        if not self._addresses:
            found = [] if is_pattern(self) else look_up_all(self.host)
            self._addresses = found or [self.host]
        return self._addresses

    @property
    def ip_rex(self) -> str:
        """The regular expression that addresses of these nodes match."""
        return "|".join(map(fnmatch.translate, self._ip_addrs))

    def allocate(
        self,
        cluster: JobCluster,
        ip_addr: str,
        name: str,
        cpus: int,
        avail_info: DispyNodeAvailInfo | None = None,
        platform: str = "",
    ) -> int:
        """Return how many of a node's ``cpus`` to use, 0 for none.

        It is called for each node that is found, of each entry in turn until one of them
        returns more than 0, in the thread of the callbacks. ``ip_addr``, ``name`` and
        ``platform`` (as by `platform.platform`) are those of the node.
        """
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
        return [NodeAllocate(ANY)]
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


def is_any(entry: NodeAllocate | LocalNode) -> bool:
    """Whether all nodes are meant, or a private one if there is none."""
    return isinstance(entry, NodeAllocate) and entry.host == ANY


def matches_here(entry: NodeAllocate) -> bool:
    """Whether a pattern takes nodes of this machine."""
    return fnmatch.fnmatchcase(LOOPBACK, entry.host)


def asks(entries: Iterable[NodeAllocate | LocalNode]) -> bool:
    """Whether some entry decides for itself how much of a node is used."""
    return any(
        isinstance(entry, NodeAllocate) and type(entry).allocate is not NodeAllocate.allocate
        for entry in entries
    )


def resolve(entry: NodeAllocate, port: int, protection: Protection = NOTHING) -> NodeSpec:
    """Look a named node up; ``port`` is used unless it has one of its own.

    All addresses of a name are tried, and the one that works is kept.
    Raises `OSError` if the name is unknown, `SecretNeededError` if it's another machine and
    nothing protects us from it.
    """
    addresses = numerics("nodes", entry.host)
    for address in addresses:
        protection.allow("nodes", entry.host, is_loopback("nodes", address))
    return NodeSpec(SEPARATOR.join(addresses), entry.port or port, entry.cpus)


def look_up_all(host: str) -> list[str]:
    """Return all addresses of a host; none if the name isn't known."""
    try:
        return numerics("", host)
    except OSError:
        return []


def read_setup_args(value: object) -> tuple[object, ...]:
    """Check the arguments of setup."""
    if isinstance(value, list | tuple):
        return tuple(value)
    raise TypeError(f"setup_args must be a tuple, not {value!r}")


def _read_entry(entry: object) -> NodeAllocate | LocalNode:
    if isinstance(entry, LocalNode):
        return entry
    if isinstance(entry, NodeAllocate):
        return entry
    if isinstance(entry, DispyNode):
        return _read_text(entry._address) if entry._address else NodeAllocate(entry.ip_addr)
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


def _read_depends(depends: object) -> list[object]:
    if isinstance(depends, str | bytes) or not isinstance(depends, Iterable):
        raise TypeError(f"depends must be a list of files, not {depends!r}")
    found = list(depends)
    for path in found:
        if isinstance(path, str | os.PathLike) and not os.path.exists(path):
            raise FileNotFoundError(f"depends: there is no file {os.fspath(path)!r}")
    return found


def _check(value: object, name: str, kind: type, expected: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} must be {expected}, not {value!r}")
