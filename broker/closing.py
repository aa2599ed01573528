"""How a node, or a whole cluster, is released: jobs end, files go, and then it is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dispy.protocol.messages import (
    CANCELLED,
    ClusterClosed,
    Release,
    Released,
    Results,
    SetCpus,
)

from . import choices
from .backlog import end_all
from .blobs import forget_blobs, forget_pieces
from .effects import DropCluster, Goodbye, Undial
from .exclusive import leave
from .hope import end_hopeless
from .jobs import end, end_pinned
from .mishaps import part
from .placement import offer
from .puts import fail_puts, put_again
from .setups import (
    define_again,
    prepare,
    ready,
    release_if_free,
    say_gone,
    start_over,
    vacate,
)
from .state import IDLE, Allocation, Client, Cluster, Node, Share, Stage, State
from .unheard import drop_all


def close(state: State, allocation: Allocation, kill: bool, anew: bool) -> None:
    """Use a node no more, at least not before it has been set up ``anew``."""
    allocation.anew = anew
    allocation.terminating = allocation.terminating or kill
    # It holds also for a node that is lost before it has been released, and comes back.
    allocation.cluster.shares.pop(allocation.node.peer, None)
    if not anew:
        allocation.cluster.shares[allocation.node.peer] = Share(0)
        reason = f"node {allocation.node.title} was closed"
        end_pinned(state, allocation, CANCELLED, reason)
        fail_puts(state, allocation, reason)
    if allocation.stage is Stage.RELEASING:
        return
    if allocation.stage in IDLE or allocation.stage is Stage.OFFERED:
        _released(state, allocation)
        return
    allocation.enter(Stage.CLOSING)
    vacate(state, allocation, allocation.terminating)
    release_if_free(state, allocation)


def _on_released(state: State, peer: str, message: Released, now: float) -> None:
    allocation = state.allocation(peer, message.computation)
    if allocation is not None and allocation.stage is Stage.RELEASING:
        _released(state, allocation)


def _released(state: State, allocation: Allocation) -> None:
    """Nothing is left of the cluster at the node."""
    cluster, node = allocation.cluster, allocation.node
    allocation.terminating = False
    if cluster.closing:
        drop(state, allocation)
        finish_closing(state, cluster)
    elif allocation.anew:
        allocation.anew = False
        start_over(state, allocation)
    else:
        cluster.shares[node.peer] = Share(0)
        cluster.closed[node.id] = node.peer
        choices.note(state, cluster)
        allocation.enter(Stage.CLOSED)
        say_gone(state, allocation, "it was closed on request")
        end_hopeless(state, cluster)


def reset(state: State, allocation: Allocation, known: bool) -> None:
    """Go on with an allocation after a new session, when its jobs have been compared."""
    stage, cluster = allocation.stage, allocation.cluster
    if stage in IDLE or stage is Stage.OFFERED:
        if known:  # left over from before
            state.order(allocation, Release(cluster.id))
    elif stage is Stage.RELEASING:
        if known:
            state.order(allocation, Release(cluster.id, allocation.anew))
        else:
            _released(state, allocation)
    elif stage is Stage.CLOSING:
        vacate(state, allocation, allocation.terminating)
        release_if_free(state, allocation)
    elif not known:
        prepare(state, allocation)
    elif stage in (Stage.PREPARING, Stage.READY):
        _say_again(state, allocation)


def _say_again(state: State, allocation: Allocation) -> None:
    """Tell a node what it may have missed, and go on with it."""
    cluster = allocation.cluster
    define_again(state, allocation)
    if allocation.node.peer in cluster.shares:
        state.order(allocation, SetCpus(cluster.id, allocation.cpus))
    if allocation.stage is not Stage.READY:
        return
    if not allocation.announced:
        ready(state, allocation)  # of before the broker was started
    else:
        put_again(state, allocation)
        offer(allocation)


def drop(state: State, allocation: Allocation) -> None:
    """The node has no part in the cluster any more."""
    assert not allocation.jobs and not list(allocation.pinned or ())
    cluster, node = allocation.cluster, allocation.node
    forget_blobs(state, allocation)
    state.runs.pop(allocation, None)
    del cluster.allocations[node.id], node.allocations[cluster.id]
    cluster.surplus.pop(allocation, None)
    cluster.open_pinned.pop(allocation, None)
    allocation.enter(Stage.RELEASING)  # what is left of it in the heap is skipped


def forsake(state: State, allocation: Allocation, reason: str) -> None:
    """The node of an allocation without jobs is lost."""
    cluster = allocation.cluster
    fail_puts(state, allocation, reason)
    drop(state, allocation)
    if not cluster.closing:
        say_gone(state, allocation, reason)
    end_hopeless(state, cluster)
    finish_closing(state, cluster)


def close_cluster(state: State, cluster: Cluster, reason: str = "the cluster was closed") -> None:
    """End the jobs that are left, let the nodes clean up, and then forget it."""
    cluster.meta.expired = False
    _wind_up(state, cluster, reason)


def expire(state: State, cluster: Cluster, reason: str) -> None:
    """Close a cluster whose client is away; with a journal, keep what that hasn't heard."""
    cluster.meta.expired = state.settings.durable
    _wind_up(state, cluster, reason)


def _wind_up(state: State, cluster: Cluster, reason: str) -> None:
    cluster.closing = cluster.meta.closing = True
    state.keep(cluster)
    cluster.unsaid.clear()
    for job in list(cluster.jobs.values()):
        job.cancelled = True
        end(state, cluster, job, CANCELLED, reason)
    end_all(state, cluster, CANCELLED, reason)
    for allocation in list(cluster.allocations.values()):
        state.runs.pop(allocation, None)
        fail_puts(state, allocation, reason)
        if allocation.stage in IDLE or allocation.stage is Stage.OFFERED:
            if allocation.kept:
                state.order(allocation, Release(cluster.id))
            drop(state, allocation)
            continue
        allocation.anew = False
        allocation.enter(Stage.RELEASING)
        forget_blobs(state, allocation)
        state.order(allocation, Release(cluster.id))
        if not allocation.node.online:
            drop(state, allocation)  # it is told when it comes back; see also _on_holding
    finish_closing(state, cluster)


def finish_closing(state: State, cluster: Cluster) -> None:
    """Go on with a cluster that is to be closed, once all its nodes have cleaned up."""
    if not cluster.closing or cluster.allocations:
        return
    state.uncredited.pop(cluster, None)
    state.requeued.pop(cluster, None)
    if not (cluster.meta.expired and _is_owed(state, cluster)):
        _forget(state, cluster)
    addresses, cluster.addresses = cluster.addresses, set()
    _free_nodes(state, addresses)
    leave(state, cluster)


def _is_owed(state: State, cluster: Cluster) -> bool:
    """Whether there are results that the client hasn't heard."""
    if cluster.unheard or cluster.stored:
        return True
    return any(key[0] is cluster for key in state.results)


def _forget(state: State, cluster: Cluster) -> None:
    client = cluster.client
    del state.clusters[cluster.id]
    drop_all(state, cluster)
    client.clusters.pop(cluster.number, None)
    for key in [key for key in state.results if key[0] is cluster]:
        state.tell(cluster, Results(cluster.number, key[1], state.results.pop(key)))
    state.tell(cluster, ClusterClosed(cluster.number))
    if state.settings.durable:
        state.effects.append(DropCluster(cluster.id))
    forget_if_absent(state, client)


def forget_if_absent(state: State, client: Client) -> None:
    """Forget a client that has no session and, by now, no cluster."""
    if client.absent and not client.clusters and state.clients.get(client.peer) is client:
        del state.clients[client.peer]


def _free_nodes(state: State, asked: set[str]) -> None:
    """Let nodes that no cluster asks for any more work for others."""
    others = [other.addresses for other in state.clusters.values()] if asked else []
    addresses = asked.difference(state.settings.nodes, *others)
    for address in sorted(addresses):
        state.effects.append(Undial(address))
    for node in [node for node in state.nodes.values() if node.address in addresses]:
        if not node.allocations and (node.dialled or not state.settings.shared):
            forget_node(state, node)
            state.effects.append(Goodbye(node.peer, "no cluster needs it any more"))


def let_go(state: State, peers: Iterable[str]) -> None:
    """Let nodes that were found, and that no cluster has or names, work for others."""
    for node in [state.nodes[peer] for peer in peers if peer in state.nodes]:
        asked = any(node.address in each.addresses for each in state.clusters.values())
        if not node.allocations and not asked:
            forget_node(state, node)
            state.effects.append(Goodbye(node.peer, "no cluster needs it any more"))


def forget_node(state: State, node: Node) -> None:
    """The node is not registered any more."""
    del state.nodes[node.peer]
    state.away.pop(node, None)
    state.pulsed.pop(node, None)
    state.idle_nodes.pop(node, None)
    forget_pieces(state, node)
    unplace(state, node)
    part(state, node)


def unplace(state: State, node: Node) -> None:
    """The node isn't at its place any more."""
    if state.places.get(node.identity.place) is node:
        del state.places[node.identity.place]


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Released: _on_released,
}
