"""Nodes come, fall silent, come back and are lost; and what they hold is compared with the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    Body,
    Follow,
    Holding,
    Identity,
    Inventory,
    Kill,
    NodeVitals,
    Pulse,
    RecordsHeard,
    Release,
)

from .blobs import forget_pieces
from .closing import forget_node, forsake, reset, unplace
from .durable import NodeMeta
from .effects import Forget
from .jobs import adopt, end_pinned, lose, put_back, take_turns
from .matching import entry_for, share_of
from .mishaps import note_loss, recall_past, recognise
from .placement import offer
from .records import answer_again
from .setups import allocate, join, ready, vacate
from .state import PENDING, Allocation, Cluster, Node, Share, Stage, State

LEASE_PULSES = 5  # a node that can't be reached for so many pulses is given up
PULSE_S = 5.0
# As clients check it; what others send mustn't have nodes given up at once, or never.
PULSE_MIN_S, PULSE_MAX_S = 0.1, 1000.0
PULSES_PER_S = 2000  # so many clients are told of a node's vitals in a second
PULSES_BURST_S = 1.0  # ... on average over this time


def node_joined(
    state: State,
    peer: str,
    identity: Identity,
    undelivered: list[Body],
    address: str,
    via: str = "",
    reached: str = "",
) -> None:
    """A node has registered; next it tells what it holds."""
    if identity.cpus < 1:
        raise ProtocolError(f"a node has one CPU at least, not {identity.cpus}")
    other = state.places.get(identity.place)
    if other is not None and other.peer != peer:
        lose_node(state, other, "it was started anew")
        state.effects.append(Forget(other.peer))
    node = state.nodes.get(peer)
    if node is None:
        state.node_ids += 1
        node = _register(state, Node(state.node_ids, peer, identity, address or identity.address))
        recognise(state, node)
        node.since = state.now + state.wall_offset_s
    elif not node.since:  # it was recalled
        unplace(state, node)  # what was kept may be of another place
        node.identity, node.address = identity, address or identity.address
        _register(state, node)
        recognise(state, node)
        node.since = state.now + state.wall_offset_s
    node.online, node.lost_at, node.counted = True, float("inf"), False
    state.away.pop(node, None)
    node.dialled, node.via = bool(address) and not via, via
    node.reached = reached
    for known in (address, *node.addresses):
        state.unreached.pop(known, None)
    forget_pieces(state, node)
    for message in undelivered:
        if isinstance(message, (RecordsHeard, Follow)):  # the rest follows from its `Holding`
            state.send(peer, message)


def _register(state: State, node: Node) -> Node:
    state.nodes[node.peer] = node
    if node.identity.place:
        state.places[node.identity.place] = node
    return node


def recall(state: State, kept: Mapping[int, NodeMeta], now: float) -> None:
    """Note the nodes that a broker knew before it was started: away, until they join."""
    for number, meta in kept.items():
        state.node_ids = max(state.node_ids, number)
        place = meta.place if meta.place != meta.peer else ""
        # An instance that has been at two places is the one of before only once.
        peer = meta.peer if meta.peer not in state.nodes else f"node {number}"
        who = Identity("node", peer, meta.name, "", "", "", max(1, meta.cpus), place)
        node = _register(state, Node(number, peer, who, meta.address))
        node.online, node.lost_at = False, now + state.settings.adopt_s
        state.away[node] = None
        recall_past(state, node, meta, now)


def node_away(state: State, node: Node, now: float) -> None:
    """A node can't be reached: its lease runs."""
    if node.online:
        node.online = False
        node.lost_at = now + _lease_s(node)
        state.away[node] = None


def node_back(state: State, node: Node) -> None:
    """A node that was away can be reached again, and nothing was lost."""
    node.online = True
    node.lost_at = float("inf")
    state.away.pop(node, None)
    for allocation in node.allocations.values():
        offer(allocation)
        take_turns(state, allocation.cluster)
    state.idle_nodes[node] = None


def _lease_s(node: Node) -> float:
    pulses = [each.cluster.computation.pulse_interval for each in node.allocations.values()]
    pulse_s = min([each for each in pulses if each > 0], default=PULSE_S)
    return LEASE_PULSES * min(max(pulse_s, PULSE_MIN_S), PULSE_MAX_S)


def lose_node(state: State, node: Node, reason: str) -> None:
    """A node is gone: run its jobs again where that is allowed."""
    note_loss(state, node)
    forget_node(state, node)
    why = f"node {node.identity.name} was lost: {reason}"
    for allocation in list(node.allocations.values()):
        unsent = {spec.seq for spec in state.runs.pop(allocation, ())}
        for seq, job in list(allocation.jobs.items()):
            if seq in unsent or (node.stopping and job.started is None):
                put_back(state, job)  # it has not begun
            else:
                lose(state, job, why)
        end_pinned(state, allocation, ABANDONED, why)
        forsake(state, allocation, reason)


def _on_pulse(state: State, peer: str, message: Pulse, now: float) -> None:
    node = state.node(peer)
    node.vitals = message.vitals
    state.pulsed[node] = None


def say_pulses(state: State) -> None:
    """Tell clients what their nodes have to spare, the longest unsaid first.

    With many of both they are told less often than nodes say it: that is never all of the work.
    """
    now = state.now
    while state.pulsed and now >= state.pulses_at:
        node = next(iter(state.pulsed))
        del state.pulsed[node]
        told = _say_pulse(state, node)
        state.pulses_at = max(state.pulses_at, now - PULSES_BURST_S) + told / PULSES_PER_S


def _say_pulse(state: State, node: Node) -> int:
    """Tell all clients of a node; return how many that were."""
    told = 0
    for allocation in node.allocations.values():
        cluster = allocation.cluster
        if allocation.announced and not cluster.closing and cluster.client.away_since is None:
            assert node.vitals is not None
            state.tell(cluster, NodeVitals(cluster.number, node.id, node.vitals))
            told += 1
    return told


def _on_holding(state: State, peer: str, message: Holding, now: float) -> None:
    """Bring both sides to the same view after a new session."""
    node = state.node(peer)
    node.counted = True
    node.vitals = message.vitals or node.vitals
    _adopt(state, node, message)
    held = {job for job in message.jobs if job[0] in message.computations}
    for allocation in list(node.allocations.values()):
        _compare_jobs(state, allocation, held)
        reset(state, allocation, allocation.cluster.id in message.computations)
        if allocation.stage is Stage.READY and not allocation.announced:
            ready(state, allocation)  # it was set up before the broker was started
        if allocation.stage in PENDING and (allocation.suspended or node.barred):
            vacate(state, allocation, False)  # what it was told of that may be lost
    if state.nodes.get(peer) is not node:
        return  # the last cluster that asked for it has been closed by that
    for computation in message.computations:
        if computation not in node.allocations:
            state.send(peer, Release(computation))
    state.send(peer, Inventory(_wanted(state, node, message)))
    answer_again(state, node, message.jobs)
    for cluster in state.clusters.values():
        allocate(state, cluster, node)


def _wanted(state: State, node: Node, message: Holding) -> list[tuple[int, int, int]]:
    """Return the attempts that the node shall go on with."""
    keep = [
        (allocation.cluster.id, job.spec.seq, job.spec.attempt)
        for allocation in node.allocations.values()
        for job in allocation.jobs.values()
    ]
    return keep + [each for each in message.jobs if _may_return(state, *each)]


def _adopt(state: State, node: Node, message: Holding) -> None:
    """A node that was given up is back: go on where it stands."""
    for computation in message.computations:
        cluster = state.clusters.get(computation)
        if cluster is None or cluster.closing or computation in node.allocations:
            continue
        share = _share_again(cluster, node)
        if share is not None and share.cpus:
            allocation = join(cluster, node, share)
            _adopt_jobs(state, allocation, message)
            ready(state, allocation)


def _share_again(cluster: Cluster, node: Node) -> Share | None:
    """Return what a node had before it was given up; None if its client has to be asked."""
    decided = cluster.shares.get(node.peer)
    entry = entry_for(cluster.specs, node)
    if decided is not None or entry is None or cluster.asks:
        return decided
    return share_of(entry, node)


def _adopt_jobs(state: State, allocation: Allocation, message: Holding) -> None:
    """Jobs that wait to be tried again, but still run there, needn't be."""
    cluster = allocation.cluster
    for computation, seq, attempt in message.jobs:
        job = cluster.jobs.get(seq)
        if computation != cluster.id or job is None or job.allocation is not None:
            continue
        is_pinned = cluster.line_of(job.spec) is not cluster.line  # such jobs are never moved
        if job.spec.attempt == attempt > 0 and not is_pinned:
            adopt(state, allocation, job)


def _compare_jobs(state: State, allocation: Allocation, held: set[tuple[int, int, int]]) -> None:
    cluster = allocation.cluster
    state.runs.pop(allocation, None)
    allocation.withdrawing = False
    for job in list(allocation.jobs.values()):
        if (cluster.id, job.spec.seq, job.spec.attempt) not in held:
            put_back(state, job)  # it never got there
        elif job.cancelled:
            state.order(allocation, Kill(cluster.id, [(job.spec.seq, job.spec.attempt)]))


def _may_return(state: State, computation: int, seq: int, attempt: int) -> bool:
    cluster = state.clusters.get(computation)
    if cluster is None:
        return False
    job = cluster.jobs.get(seq)
    if job is not None:  # a later attempt is due, but this one may end first
        return job.allocation is None and job.spec.attempt == attempt
    return cluster.abandoned.get(seq) == attempt


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Holding: _on_holding,
    Pulse: _on_pulse,
}
