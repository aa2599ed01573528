"""Which nodes a cluster asks for: the entries of ``nodes=``, compared with what nodes say."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import ip_address

from dispy.protocol.listening import ADDRESSES_MAX
from dispy.protocol.lookup import SEPARATOR
from dispy.protocol.messages import NodeSpec

from .state import Node, Share

PORT_MAX = 65535
NAME_CHARS_MAX = 255
WILD = "*?"  # what makes a pattern of an address


def addresses(specs: Iterable[NodeSpec]) -> set[str]:
    """Return the addresses to dial: those of entries that name a port, and no pattern.

    Clients look names of hosts up themselves: here that would hold all others up.
    """
    return {_address(spec.pattern, spec.port) for spec in specs if _is_numeric(spec)}


def _is_numeric(spec: NodeSpec) -> bool:
    hosts = spec.pattern.split(SEPARATOR)
    try:
        for host in hosts:
            ip_address(host)
    except ValueError:
        return False
    return len(hosts) <= ADDRESSES_MAX and 0 < spec.port <= PORT_MAX


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_open(specs: Iterable[NodeSpec]) -> bool:
    """Whether some entry is a pattern, which nodes may match that nobody has named."""
    return any(map(_is_wild, specs))


def _is_wild(spec: NodeSpec) -> bool:
    return any(sign in spec.pattern for sign in WILD)


def entry_for(specs: Iterable[NodeSpec], node: Node) -> NodeSpec | None:
    """Return the first entry that a node matches."""
    return next((spec for spec in specs if matches(spec, node)), None)


def matches(spec: NodeSpec, node: Node) -> bool:
    """Whether an entry means this node: by its name, or by one of its addresses."""
    if not spec.port and _fits(node.identity.name, spec.pattern):
        return True
    return bool(_address_for(spec, node))


def named_address(specs: Iterable[NodeSpec], node: Node) -> str:
    """Return the address by which some entry, no pattern, names a node; empty: there is none."""
    found = (_address_for(spec, node) for spec in specs if not _is_wild(spec))
    return next(filter(None, found), "")


def _address_for(spec: NodeSpec, node: Node) -> str:
    """Return the first address of a node that an entry means; empty: none."""
    for address in node.addresses:
        host, _, port = address.rpartition(":")
        has_port = not spec.port or port == str(spec.port)
        hosts = spec.pattern.split(SEPARATOR)
        if has_port and any(_fits(host.strip("[]"), each) for each in hosts):
            return address
    return ""


def _fits(name: str, pattern: str) -> bool:
    """Compare with a wildcard; a long one would take for ever, and names are not so long."""
    return max(len(name), len(pattern)) <= NAME_CHARS_MAX and fnmatchcase(name, pattern)


def cpus_of(node: Node, asked: int) -> int:
    """Say how many CPUs are meant: 0 is all of them, a negative number all but so many."""
    if asked > 0:
        return max(0, min(asked, node.identity.cpus))
    return max(0, node.identity.cpus + asked)


def share_of(spec: NodeSpec, node: Node) -> Share:
    """Return what an entry asks for."""
    return Share(cpus_of(node, spec.cpus), spec.files, spec.setup_args)
