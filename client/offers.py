"""How much of each node a cluster uses, when the user's own `NodeAllocate` decides it.

Called in the callback thread, since it runs the user's code; whatever goes wrong there counts
as "don't use this node" and is logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dispy.protocol.messages import Allocate, FileSpec, JobSpec, NodeInfo

from . import local
from .allocate import LOOPBACK, LocalNode, NodeAllocate, read_setup_args
from .log import logger
from .nodes import DispyNodeAvailInfo
from .orders import Use

if TYPE_CHECKING:
    from .cluster import JobCluster

# Files for a node, and pickled arguments of setup: what `NodeAllocate` has, as it travels.
Pack = Callable[[NodeAllocate], "tuple[list[FileSpec], JobSpec | None]"]


class Offers:
    """The entries of a cluster's nodes, asked in order about each node that is found."""

    def __init__(
        self,
        cluster: JobCluster,
        number: int,
        entries: Sequence[NodeAllocate | LocalNode],
        pack: Pack,
        hand_over: Callable[[Use], None],
    ) -> None:
        self._cluster = cluster
        self._number = number
        self._entries = list(entries)
        self._pack = pack
        self._hand_over = hand_over

    def add(self, entries: Sequence[NodeAllocate | LocalNode]) -> None:
        """Ask these as well from now on, before the others."""
        self._entries = [*entries, *self._entries]

    def decide(self, node: NodeInfo, vitals: DispyNodeAvailInfo | None) -> None:
        """Decide about one node; the session tells the broker."""
        for entry in self._candidates(node):
            if cpus := self._ask(entry, node, vitals):
                self._use(entry, node, cpus)
                return
        self._use(None, node, 0)

    def _candidates(self, node: NodeInfo) -> list[NodeAllocate | LocalNode]:
        """Leave out entries that mean another node of the same machine, by its port."""
        exact = [entry for entry in self._entries if _port_of(entry) and _means(entry, node)]
        if not exact:
            return self._entries
        return [entry for entry in self._entries if entry in exact or not _port_of(entry)]

    def _ask(
        self,
        entry: NodeAllocate | LocalNode,
        node: NodeInfo,
        vitals: DispyNodeAvailInfo | None,
    ) -> int:
        if isinstance(entry, LocalNode):
            private = node.name == local.name()
            return min(entry.cpus or node.cpus, node.cpus) if private else 0
        ip_addr = _ip_addr(entry, node)
        try:
            cpus: Any = entry.allocate(
                self._cluster, ip_addr, node.name, node.cpus, vitals, node.platform
            )
        except Exception:
            logger.exception("%s.allocate raised an exception", type(entry).__qualname__)
            return 0
        if not isinstance(cpus, int):
            kind = type(entry).__qualname__
            logger.error("%s.allocate must return a number of CPUs, not %r", kind, cpus)
            return 0
        return max(0, min(cpus, node.cpus))

    def _use(self, entry: NodeAllocate | LocalNode | None, node: NodeInfo, cpus: int) -> None:
        files: list[FileSpec] = []
        setup_args = None
        if isinstance(entry, NodeAllocate):
            try:
                files, setup_args = self._pack(entry)
            except Exception as error:  # it may be anything that pickling raises
                logger.error("node %s isn't used: %s", node.name, error)
                cpus = 0
        message = Allocate(self._number, node.id, cpus, files, setup_args)
        self._hand_over(Use(message, node.address or node.name))


def _port_of(entry: NodeAllocate | LocalNode) -> int | None:
    return None if isinstance(entry, LocalNode) else entry.port


def _means(entry: NodeAllocate | LocalNode, node: NodeInfo) -> bool:
    """Whether an entry names a port of a node."""
    port = str(_port_of(entry))
    return port in [each.rpartition(":")[2] for each in (node.address, *node.addresses)]


def _ip_addr(entry: NodeAllocate, node: NodeInfo) -> str:
    """Return the address of a node, of several the one that an entry means."""
    hosts = [each.rpartition(":")[0].strip("[]") for each in (node.address, *node.addresses)]
    meant = (host for host in hosts if re.match(entry.ip_rex, host))
    return next(meant, hosts[0]) or LOOPBACK


def pack_setup_args(
    entry: NodeAllocate, dump: Callable[[tuple[object, ...]], tuple[bytes, Any]]
) -> JobSpec | None:
    """Pickle the arguments of setup at a node, if it has any."""
    args = read_setup_args(entry.setup_args)
    return JobSpec(0, 0, *dump(args)) if args else None
