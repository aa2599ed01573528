"""How a node comes to run jobs of a cluster: it is offered, prepared, ready, and left again.

Only this file and `closing` change the stage of an allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dispy.protocol.messages import (
    CANCELLED,
    TERMINATED,
    Allocate,
    Code,
    Define,
    Kill,
    NodeGone,
    NodeOffer,
    NodeReady,
    NodeTrouble,
    NodeVitals,
    Prepare,
    Prepared,
    Release,
    Withdraw,
)

from . import choices
from .blobs import forget_blobs
from .hope import end_hopeless
from .jobs import end_pinned, hand_over, put_back, take_turns
from .matching import addresses, cpus_of, entry_for, named_address, share_of
from .mishaps import note_breakdown, note_fit, note_unfit
from .placement import offer
from .puts import fail_puts, put_again
from .state import Allocation, Cluster, Node, Share, Stage, State

BREAKDOWNS_MAX = 5  # a node where a computation breaks down so often isn't asked again
ONLY_A_RELAY = "a relay is there: to use the nodes behind it, add a pattern for them, such as '*'"
TROUBLES_MAX = 1000  # addresses of one cluster of which the last trouble is remembered


def allocate(state: State, cluster: Cluster, node: Node) -> None:
    """Have a node set up for a cluster that asks for it, or offer it to its client."""
    if cluster.closing or not node.counted or cluster.id in node.allocations:
        return
    cluster.untried.difference_update((node.address, *node.addresses))
    if cluster.waits:
        return  # it is asked for again when others have been closed
    entry = entry_for(cluster.specs, node)
    decided = cluster.shares.get(node.peer)
    if decided is None and entry is None:
        return
    if node.barred:
        trouble(state, cluster, node.address or node.identity.name, node.barred)
        return
    if decided is None and entry is not None and not cluster.asks:
        decided = share_of(entry, node)
        if not decided.cpus:
            end_hopeless(state, cluster)
            return
    allocation = join(cluster, node, decided or Share(0))
    begin(state, allocation, decided)


def join(cluster: Cluster, node: Node, share: Share) -> Allocation:
    """Give a node a part in a cluster."""
    cluster.untried.difference_update((node.address, *node.addresses))
    allocation = Allocation(cluster, node, share)
    allocation.suspended = node.peer in cluster.suspended
    node.allocations[cluster.id] = cluster.allocations[node.id] = allocation
    return allocation


def begin(state: State, allocation: Allocation, share: Share | None) -> None:
    """Set a node up with a share; without one, ask the client for it."""
    allocation.breakdowns = 0
    allocation.error = ""
    if share is None:
        allocation.resize(0)
        allocation.enter(Stage.OFFERED)
        make_offer(state, allocation)
    elif share.cpus <= 0:
        allocation.resize(0)
        _give_up_use(state, allocation)
    else:
        allocation.share = share
        allocation.resize(share.cpus)
        prepare(state, allocation)


def start_over(state: State, allocation: Allocation, share: Share | None = None) -> None:
    """Set a node up (again) that has nothing of the cluster now."""
    cluster, node = allocation.cluster, allocation.node
    cluster.shares.pop(node.peer, None)
    allocation.suspend(False)
    if cluster.asks:
        begin(state, allocation, None)
        return
    if share is None and allocation.share.cpus:
        share = allocation.share
    if share is None:
        entry = entry_for(cluster.specs, node)
        share = share_of(entry, node) if entry is not None else Share(node.identity.cpus)
    begin(state, allocation, share)


def make_offer(state: State, allocation: Allocation) -> None:
    """Ask the client how much of a node to use."""
    cluster, node = allocation.cluster, allocation.node
    state.tell(cluster, NodeOffer(cluster.number, node.info, node.vitals))


def _give_up_use(state: State, allocation: Allocation) -> None:
    name = allocation.node.title
    allocation.enter(Stage.UNUSED)
    end_pinned(state, allocation, CANCELLED, f"the cluster does not use node {name}")
    fail_puts(state, allocation, f"the cluster does not use node {name}")
    say_gone(state, allocation, "the cluster does not use it any more")
    end_hopeless(state, allocation.cluster)


def _on_allocate(state: State, peer: str, message: Allocate, now: float) -> None:
    """The client has decided how much of a node to use."""
    cluster = state.cluster(peer, message.cluster)
    allocation = None if cluster is None else cluster.allocations.get(message.node)
    if cluster is None or allocation is None or allocation.stage is not Stage.OFFERED:
        return  # the node is gone, or the answer is to an offer that was made twice
    cpus = cpus_of(allocation.node, message.cpus) if message.cpus else 0
    share = Share(cpus, message.files, message.setup_args)
    cluster.shares[allocation.node.peer] = share
    begin(state, allocation, share)
    choices.note(state, cluster)


def prepare(state: State, allocation: Allocation) -> None:
    """Have the node set the computation up."""
    allocation.enter(Stage.PREPARING)
    allocation.since = state.now
    cluster, share = allocation.cluster, allocation.share
    allocation.kept = False
    state.order(
        allocation,
        Prepare(
            cluster.id,
            cluster.computation,
            share.cpus,
            share.files,
            share.setup_args,
            state.sharing.weight_at_nodes(cluster),
        ),
    )


def _on_prepared(state: State, peer: str, message: Prepared, now: float) -> None:
    allocation = state.allocation(peer, message.computation)
    if allocation is None or not _expects(allocation, message.error):
        return
    if not message.error:
        if allocation.stage is Stage.PREPARING:
            ready(state, allocation)
        return
    allocation.error = message.error
    node = allocation.node
    trouble(state, allocation.cluster, node.address or node.identity.name, message.error)
    _take_all_back(state, allocation)
    if allocation.stage is Stage.CLOSING:
        release_if_free(state, allocation)
    elif allocation.stage is Stage.READY and allocation.breakdowns < BREAKDOWNS_MAX:
        allocation.breakdowns += 1
        note_breakdown(state, allocation)
        prepare(state, allocation)
    else:
        if not message.declined:
            note_unfit(state, allocation)
        _fail(state, allocation)


def _expects(allocation: Allocation, error: str) -> bool:
    """Whether what a node says of its set-up matters (still)."""
    if allocation.stage is Stage.CLOSING:
        return bool(error)
    return allocation.stage in (Stage.PREPARING, Stage.READY)


def _fail(state: State, allocation: Allocation) -> None:
    allocation.enter(Stage.FAILED)
    forget_blobs(state, allocation)
    reason = f"node {allocation.node.title} could not set the computation up: {allocation.error}"
    end_pinned(state, allocation, TERMINATED, reason)
    fail_puts(state, allocation, reason)
    say_gone(state, allocation, allocation.error)
    end_hopeless(state, allocation.cluster)


def _take_all_back(state: State, allocation: Allocation) -> None:
    """What the node had set up is gone: it has told how all ended that had begun there."""
    state.runs.pop(allocation, None)
    allocation.withdrawing = False
    for job in reversed(list(allocation.jobs.values())):
        put_back(state, job)


def ready(state: State, allocation: Allocation) -> None:
    """The node may get jobs now."""
    cluster, node = allocation.cluster, allocation.node
    allocation.enter(Stage.READY)
    allocation.announced = True
    if not node.barred:
        cluster.troubles.pop(node.address or node.identity.name, None)
    note_fit(state, allocation)
    open_up(state, allocation)
    say_ready(state, allocation)
    if node.vitals is not None:
        state.tell(cluster, NodeVitals(cluster.number, node.id, node.vitals))
    put_again(state, allocation)


def say_ready(state: State, allocation: Allocation) -> None:
    """Tell the client of a node that is ready."""
    cluster, node = allocation.cluster, allocation.node
    named = named_address(cluster.specs, node)
    state.tell(cluster, NodeReady(cluster.number, node.info, allocation.cpus, named))


def open_up(state: State, allocation: Allocation) -> None:
    """Offer an allocation to jobs that wait, and to those that others hold ahead."""
    offer(allocation)
    take_turns(state, allocation.cluster)
    state.idle_nodes[allocation.node] = None
    state.uncredited[allocation.cluster] = None


def trouble(state: State, cluster: Cluster, address: str, reason: str) -> None:
    """Tell the client why a node can't be used, unless it knows."""
    troubles = cluster.troubles
    if troubles.get(address) == reason:
        return
    if address not in troubles and len(troubles) >= TROUBLES_MAX:
        del troubles[next(iter(troubles))]
    troubles[address] = reason
    state.tell(cluster, NodeTrouble(cluster.number, address, reason))


def miss(state: State, cluster: Cluster, address: str, reason: str) -> None:
    """An address that a cluster asks for leads to no node at present."""
    trouble(state, cluster, address, reason)
    cluster.untried.discard(address)
    end_hopeless(state, cluster)


def found_relay(state: State, address: str) -> None:
    """An address leads to a relay, and that is of use only with an entry for nodes behind it."""
    for cluster in list(state.clusters.values()):
        if address not in cluster.addresses:
            continue
        if all(addresses([spec]) == {address} for spec in cluster.specs):
            miss(state, cluster, address, ONLY_A_RELAY)
        else:
            cluster.untried.discard(address)


def say_gone(state: State, allocation: Allocation, reason: str) -> None:
    """Tell the client that a node gets no more jobs, if it thinks that it does."""
    cluster = allocation.cluster
    if allocation.announced:
        allocation.announced = False
        state.tell(cluster, NodeGone(cluster.number, allocation.node.id, reason))


def _on_define(state: State, peer: str, message: Define, now: float) -> None:
    """Later layers of code: for the nodes that have the earlier ones, and those to come."""
    cluster = state.cluster(peer, message.cluster)
    if cluster is not None and not cluster.closing:
        define(state, cluster, message.layers)


def define(state: State, cluster: Cluster, new: list[Code]) -> None:
    """Add layers of code to a computation."""
    layers = cluster.computation.layers + new
    # They grow with what the program defines, not with its jobs. It is a new list, since the
    # old one may be in messages that are still on their way.
    cluster.computation = msgspec.structs.replace(cluster.computation, layers=layers)
    state.keep(cluster, whole=True)
    for allocation in cluster.allocations.values():
        if allocation.stage in (Stage.PREPARING, Stage.READY):
            state.order(allocation, Define(cluster.id, new))


def define_again(state: State, allocation: Allocation) -> None:
    """Send what the node may have missed of the layers; it knows the first one."""
    layers = allocation.cluster.computation.layers[1:]
    if layers:
        state.order(allocation, Define(allocation.cluster.id, layers))


def vacate(state: State, allocation: Allocation, kill: bool) -> None:
    """Have a node give back what it hasn't begun, and end the rest if ``kill`` says so."""
    hand_over(state, allocation)  # the node must know a job before it can give it back
    if not allocation.jobs:
        return
    if not allocation.withdrawing:
        allocation.withdrawing = True
        state.order(allocation, Withdraw(allocation.cluster.id, len(allocation.jobs)))
    if kill:
        jobs = [(seq, job.spec.attempt) for seq, job in allocation.jobs.items()]
        state.order(allocation, Kill(allocation.cluster.id, jobs))


def release_if_free(state: State, allocation: Allocation) -> None:
    """Release a node that is to be closed once it has no jobs left."""
    if allocation.stage is Stage.CLOSING and not allocation.jobs:
        allocation.enter(Stage.RELEASING)
        forget_blobs(state, allocation)
        allocation.kept = allocation.anew
        state.order(allocation, Release(allocation.cluster.id, allocation.anew))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Allocate: _on_allocate,
    Prepared: _on_prepared,
    Define: _on_define,
}
