"""What a cluster can do about its nodes: find more, use less of them, send them files.

Each call asks the broker and waits for its answer, also in callbacks. It returns a number as
the documentation says: 0 or a count, and -1 with the reason in the log. What is wrong by
itself, such as a node that is no name at all, raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dispy.broker.embedded import Broker, PrivateDoor, Search
from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    DISCOVER,
    RESETUP,
    SET_CPUS,
    NodeRequest,
    NodeSpec,
    SendFile,
)
from dispy.protocol.protection import Protection

from . import config, local, parameters
from .allocate import (
    LOOPBACK,
    Entry,
    LocalNode,
    NodeAllocate,
    asks,
    is_any,
    is_pattern,
    matches_here,
    read_nodes,
    resolve,
)
from .blobs import BlobSource
from .job import DispyJob
from .ledger import Ledger
from .log import logger
from .nodes import DispyNode, find
from .offers import Offers, Pack
from .orders import Ask
from .requests import Reply
from .session import Session


class NodeControl:
    """The part of `JobCluster` that is about nodes."""

    _blobs: BlobSource
    _broker: Broker
    _multicast: bool
    _ping_s: float
    _ledger: Ledger
    _name: str
    _node_port: int
    _number: int
    _offers: Offers
    _pack_entry: Pack
    _protection: Protection
    _session: Session

    def discover_nodes(self, nodes: Entry | Sequence[Entry]) -> int:
        """Get in touch with these nodes; the cluster uses those that its ``nodes`` match.

        ``nodes`` is what `JobCluster` takes by this name. Returns 0, or -1 if that's
        impossible.
        """
        try:
            specs = self._specs(self._with_ports(read_nodes(nodes)), start=False)
        except OSError as error:
            return self._failed("discover_nodes", str(error))
        return self._request("discover_nodes", DISCOVER, nodes=specs)

    def _with_ports(
        self, entries: Sequence[NodeAllocate | LocalNode]
    ) -> list[NodeAllocate | LocalNode]:
        """Have patterns say at which port nodes are to be looked for."""
        return [
            NodeAllocate(entry.host, entry.port or self._node_port, entry.cpus)
            if isinstance(entry, NodeAllocate) and is_pattern(entry)
            else entry
            for entry in entries
        ]

    def _seek(self, entries: Sequence[NodeAllocate | LocalNode]) -> None:
        """Look in the network for nodes that match patterns."""
        patterns = [each for each in entries if isinstance(each, NodeAllocate) and is_pattern(each)]
        ports = sorted({each.port or self._node_port for each in patterns})
        self._broker.seek(Search(tuple(ports), self._ping_s, self._multicast))

    def allocate_node(self, node: Entry | Sequence[Entry]) -> int:
        """Use a node, beside those that the cluster uses already, or use it again.

        ``node`` is an entry as in the ``nodes`` of `JobCluster`, or a list of them; a node that
        was closed or deallocated is used again. Returns 0, or -1 if that's impossible.
        """
        codes = [self._allocate(entry) for entry in (node if isinstance(node, list) else [node])]
        return min(codes, default=0)

    def deallocate_node(self, node: DispyNode | str) -> int:
        """Send no more jobs to a node, but keep what is set up there for `allocate_node`.

        Jobs that run there go on. Returns 0, or -1 if that's impossible.
        """
        return self._request_at("deallocate_node", DEALLOCATE, node)

    def close_node(self, node: DispyNode | str, terminate_pending: bool = False) -> int:
        """Send no more jobs to a node, and clean it up when those that run there have ended.

        With ``terminate_pending`` they are killed. Jobs that haven't begun wait for other nodes.
        Returns 0 at once, or -1 if that's impossible; the end shows in ``cluster_status``.
        """
        return self._request_at("close_node", CLOSE, node, terminate=bool(terminate_pending))

    def resetup_node(self, node: DispyNode | str, terminate_pending: bool = False) -> int:
        """Close a node, except for its files, and set it up again.

        `NodeAllocate.allocate` is called again for it. With ``terminate_pending`` the jobs that
        run there are killed; those that haven't begun wait for it, or for other nodes. Returns 0
        at once, or -1 if that's impossible.
        """
        return self._request_at("resetup_node", RESETUP, node, terminate=bool(terminate_pending))

    def set_node_cpus(self, node: DispyNode | str, cpus: int) -> int:
        """Use so many CPUs of a node from now on; -n: all but n.

        Returns how many are used, or -1 if that's impossible.
        """
        parameters.check_int("cpus", cpus)
        known = self._known(node)
        code = self._request_at("set_node_cpus", SET_CPUS, node, cpus=cpus)
        if known is not None and code >= 0:
            known.avail_cpus = code
        return code

    def node_jobs(self, node: DispyNode | str, from_node: bool = False) -> list[DispyJob]:
        """Return the jobs that are known to be running at a node.

        Nodes tell of each job that runs for more than a moment, so ``from_node``, by which the
        node was once asked, makes no difference.
        """
        known = self._known(node)
        if known is None:
            self._failed("node_jobs", self._unknown(node))
            return []
        return self._ledger.jobs_at(known)

    def send_file(
        self,
        path: str | os.PathLike[str],
        node: DispyNode | str,
        relay: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Put a file into the folder of the cluster's jobs at a node, by its base name.

        Waits until it's there. ``timeout`` is how many seconds may pass without any progress,
        by default `config.MsgTimeout`; ``relay`` makes no difference. Returns 0, or -1 if that's
        impossible. Raises `OSError` or `ValueError` for a file that can't be read.
        """
        seconds = config.MsgTimeout if timeout is None else timeout
        parameters.check_seconds("timeout", seconds, 0.0, parameters.YEAR_S)
        known = self._known(node)
        if known is None:
            return self._failed("send_file", self._unknown(node))
        file = self._blobs.add_file(os.fspath(path), Path(path).name)
        reply = self._ledger.requests.ask(
            lambda number: self._put(SendFile(self._number, number, known._id, file)),
            seconds,
            lambda: known.tx,
        )
        return self._code("send_file", reply)

    # -- parts ---------------------------------------------------------------------------

    def _allocate(self, node: Any) -> int:
        known = self._known(node) if isinstance(node, str | DispyNode) else None
        if known is not None:
            return self._request("allocate_node", ALLOCATE, node=known._id)
        entries = read_nodes([node])
        try:
            specs = self._specs(entries, start=isinstance(node, LocalNode))
        except OSError as error:
            return self._failed("allocate_node", str(error))
        self._offers.add(entries)
        return self._request("allocate_node", ALLOCATE, nodes=specs, asks=asks(entries))

    def _specs(
        self, entries: Sequence[NodeAllocate | LocalNode], start: bool = True
    ) -> list[NodeSpec]:
        return find_nodes(
            entries,
            self._node_port,
            lambda: self._broker.private,
            self._pack_entry,
            self._protection,
            start=start,
        )

    def _known(self, node: object) -> DispyNode | None:
        """Find a node of the cluster. Raises `TypeError` for what can be none."""
        return find(self._ledger.nodes(), node)

    def _unknown(self, node: object) -> str:
        known = ", ".join(f"{n.name} ({n._address or n.ip_addr})" for n in self._ledger.nodes())
        return f"cluster {self._name!r} has no node {node!r}, but {known or 'none so far'}"

    def _request_at(self, method: str, action: str, node: DispyNode | str, **fields: Any) -> int:
        known = self._known(node)
        if known is None:
            return self._failed(method, self._unknown(node))
        return self._request(method, action, node=known._id, **fields)

    def _request(self, method: str, action: str, **fields: Any) -> int:
        reply = self._ledger.requests.ask(
            lambda number: self._put(NodeRequest(self._number, number, action, **fields)),
            config.MsgTimeout,
        )
        return self._code(method, reply)

    def _put(self, message: NodeRequest | SendFile) -> None:
        self._session.hand_over(Ask(message))

    def _code(self, method: str, reply: Reply) -> int:
        return reply.code if reply.code >= 0 else self._failed(method, reply.text)

    def _failed(self, method: str, reason: str) -> int:
        logger.warning("%s of cluster %r: %s", method, self._name, reason)
        return -1


def no_node(entry: NodeAllocate) -> bool:
    """Find none."""
    return False


def find_nodes(
    entries: Sequence[NodeAllocate | LocalNode],
    port: int,
    door: Callable[[], PrivateDoor],
    pack: Pack,
    protection: Protection,
    has_any: Callable[[NodeAllocate], bool] = no_node,
    start: bool = True,
) -> list[NodeSpec]:
    """Find out where nodes are, and what to tell the broker about them.

    ``port`` is that of nodes that say nothing else. With ``start``, what is missing on this
    machine is started in this process; it dials the ``door`` of its broker. With a secret, that is
    only done when no nodes are named and ``has_any`` finds none in the network. Raises `OSError`
    for hosts that can't be found or used.
    """
    # Errors come before any start.
    found = [(entry, _place(entry, port, protection)) for entry in entries]
    named = any(isinstance(entry, NodeAllocate) and not is_pattern(entry) for entry in entries)
    specs = []
    for entry, spec in found:
        wanted = [] if spec is None else [spec]
        if spec is None and start and not (named and isinstance(entry, NodeAllocate)):
            wanted += _private(entry, door, protection, has_any)
        if isinstance(entry, NodeAllocate):
            if is_pattern(entry):  # also nodes that are found otherwise
                wanted.append(NodeSpec(entry.host, entry.port or 0, entry.cpus))
            files, setup_args = pack(entry)
            wanted = [replace(each, files=files, setup_args=setup_args) for each in wanted]
        specs += wanted
    return specs


def _private(
    entry: NodeAllocate | LocalNode,
    door: Callable[[], PrivateDoor],
    protection: Protection,
    has_any: Callable[[NodeAllocate], bool],
) -> list[NodeSpec]:
    """Start the private node, if an entry means this machine and no other node is found."""
    if isinstance(entry, NodeAllocate):
        if not matches_here(entry):
            return []
        if protection.keys is not None and not (is_any(entry) and not has_any(entry)):
            return []
    return [NodeSpec(local.start(door()), 0, entry.cpus)]


def _place(entry: NodeAllocate | LocalNode, port: int, protection: Protection) -> NodeSpec | None:
    """Where an entry's node is; None: it is a private one, or one that has to be found."""
    if isinstance(entry, LocalNode):
        return None
    if not is_pattern(entry):
        return resolve(entry, port, protection)
    if not matches_here(entry):
        protection.allow("nodes", entry.host, False)
        return None
    if protection.keys is not None:
        return None  # it is found as all others are
    port = entry.port or port
    return NodeSpec(LOOPBACK, port, entry.cpus) if local.listens(LOOPBACK, port) else None
