"""What goes wrong at nodes, and when that is enough for a shared broker to set one aside.

It is remembered by place, so that a node that crashes and is started anew keeps its past. Only
this file and `drain` change a `Past`.
"""

from __future__ import annotations

from dispy.protocol.messages import Identity

from .durable import NodeMeta
from .effects import DropNode, KeepNode
from .state import Allocation, Node, Past, Stage, State

PASTS_MAX = 10_000  # places that are remembered
MISHAPS_MAX = 100  # of one place
UNFIT_MAX = 100  # clusters that one place could not set up
MISHAPS_S = 3600.0  # what is longer ago doesn't count
MISHAPS_ENOUGH = 5
UNFIT_ENOUGH = 3  # in a row, and each of these another node could
ASIDE_S = 3600.0  # then it is tried once more
FIT_MAX = 2  # with two nodes that have set a cluster up, there is another one for each


def place_of(identity: Identity) -> str:
    """Return what a node is remembered by."""
    return identity.place or identity.instance


def recognise(state: State, node: Node) -> None:
    """Give a node that registers the past of its place."""
    place = place_of(node.identity)
    past = state.pasts.pop(place, None) or Past()
    state.pasts[place] = past  # the last to go when there are too many
    past.name, past.address = node.identity.name, node.address or node.identity.address
    node.past = past
    if len(state.pasts) > PASTS_MAX:
        _forget_oldest(state)
    keep(state, node)


def _forget_oldest(state: State) -> None:
    here = {place_of(node.identity) for node in state.nodes.values()}
    place = next((each for each in state.pasts if each not in here), None)
    if place is not None:
        past = state.pasts.pop(place)
        state.aside.pop(place, None)
        drop(state, past)


def keep(state: State, node: Node) -> None:
    """Have the journal remember a node."""
    if not state.settings.durable:
        return
    past = node.past
    if past.kept_id not in (0, node.id):
        state.effects.append(DropNode(past.kept_id))  # the one before at this place
    past.kept_id = node.id
    state.effects.append(KeepNode(node.id, _describe(state, past, node.peer, node.identity)))


def _describe(state: State, past: Past, peer: str, identity: Identity) -> NodeMeta:
    """Return what is kept of a node."""
    return NodeMeta(
        peer,
        past.name,
        past.address,
        past.drained,
        past.set_aside,
        place_of(identity),
        identity.cpus,
        [(at + state.wall_offset_s, cluster) for at, cluster in past.mishaps],
        list(past.unfit.items()),
        past.returned,
    )


def recall_past(state: State, node: Node, meta: NodeMeta, now: float) -> None:
    """Take what the journal says of a node."""
    past = Past(meta.drained, meta.set_aside, name=meta.name, address=meta.address)
    past.mishaps = [(min(at - state.wall_offset_s, now), each) for at, each in meta.mishaps]
    past.unfit, past.returned = dict(meta.unfit), meta.returned
    past.kept_id = node.id
    node.past = state.pasts[place_of(node.identity)] = past
    if past.set_aside:
        past.until = now + ASIDE_S
        state.aside[place_of(node.identity)] = past


def drop(state: State, past: Past) -> None:
    """Have the journal forget a node."""
    if past.kept_id:
        state.effects.append(DropNode(past.kept_id))
        past.kept_id = 0


def part(state: State, node: Node) -> None:
    """A node is gone: remember what matters should it be started anew."""
    past = node.past
    state.barred_anew.pop(node, None)
    if past.drained or past.set_aside or past.mishaps or past.unfit:
        keep(state, node)
    else:
        drop(state, past)
        state.pasts.pop(place_of(node.identity), None)


# -- what goes wrong ------------------------------------------------------------------------


def note_loss(state: State, node: Node) -> None:
    """A node is lost; with jobs, and without having been stopped, that counts against it."""
    if node.load and not node.stopping:
        _note(state, node, 0)


def note_breakdown(state: State, allocation: Allocation) -> None:
    """What a node had set up has broken down: once for each cluster, it may be its fault."""
    node, cluster = allocation.node, allocation.cluster
    if all(each != cluster.id for _, each in node.past.mishaps):
        _note(state, node, cluster.id)


def _note(state: State, node: Node, cluster: int) -> None:
    node.past.mishaps.append((state.now, cluster))
    del node.past.mishaps[:-MISHAPS_MAX]
    _weigh(state, node)


def note_unfit(state: State, allocation: Allocation) -> None:
    """A node could not set a cluster up."""
    node, cluster = allocation.node, allocation.cluster
    unfit = node.past.unfit
    unfit[cluster.id] = any(each != node.id for each in cluster.fit)
    if len(unfit) > UNFIT_MAX:
        del unfit[next(iter(unfit))]
    _weigh(state, node)


def note_fit(state: State, allocation: Allocation) -> None:
    """A node has set a cluster up; so those that could not are to blame themselves."""
    node, cluster = allocation.node, allocation.cluster
    if node.past.unfit:
        node.past.unfit.clear()
        keep(state, node)
    if node.id in cluster.fit or len(cluster.fit) >= FIT_MAX:
        return
    cluster.fit.append(node.id)
    if not cluster.failed:
        return
    for other in cluster.allocations.values():
        if other.stage is Stage.FAILED and cluster.id in other.node.past.unfit:
            other.node.past.unfit[cluster.id] = True
            _weigh(state, other.node)


# -- when it is enough ----------------------------------------------------------------------


def _weigh(state: State, node: Node) -> None:
    """Set a node aside that fails too often; `drain` tells all whom it concerns, and keeps it."""
    past = node.past
    if past.set_aside:
        return
    reason = verdict(past, state.now)
    if not reason or not state.settings.shared:
        keep(state, node)
        return
    past.set_aside = reason
    past.until = float("inf") if past.returned else state.now + ASIDE_S
    state.aside[place_of(node.identity)] = past
    state.barred_anew[node] = None
    for allocation in node.allocations.values():
        allocation.reopen()


def verdict(past: Past, now: float) -> str:
    """Say why a node should be set aside; empty: it shouldn't."""
    unfit = sum(past.unfit.values())
    if unfit >= UNFIT_ENOUGH:
        return f"it could not set up {unfit} clusters in a row that other nodes could"
    recent = [cluster for at, cluster in past.mishaps if now - at < MISHAPS_S]
    if len(recent) >= MISHAPS_ENOUGH:
        lost = sum(cluster == 0 for cluster in recent)
        return (
            f"within an hour it was lost with jobs {lost} times, "
            f"and {len(recent) - lost} clusters broke down there"
        )
    return ""


def half_forgive(past: Past, now: float) -> None:
    """Use a node again after a time, for once: it takes less to set it aside now."""
    past.returned = True
    past.mishaps = [(now, cluster) for _, cluster in past.mishaps[-(MISHAPS_ENOUGH // 2) :]]
    past.unfit = dict(list(past.unfit.items())[-(UNFIT_ENOUGH // 2) :])


def forgive(past: Past) -> None:
    """Begin anew with a node."""
    past.returned = False
    past.mishaps = []
    past.unfit = {}
