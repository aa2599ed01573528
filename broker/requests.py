"""What users ask about nodes and jobs; each request is answered at once.

What takes longer goes on by itself: that a node is ready, or gone, the client is told as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    DISCOVER,
    RESETUP,
    SET_CPUS,
    Answer,
    Explain,
    NodeRequest,
    NodeSpec,
    SetCpus,
)

from . import choices
from .closing import close
from .effects import Dial, Seek
from .exclusive import why
from .explain import explain
from .matching import addresses, cpus_of, entry_for, is_open, share_of
from .setups import join, open_up, start_over, trouble, vacate
from .state import IDLE, PENDING, Cluster, Node, Share, Stage, State

ACTION_CHARS = 100  # of one that isn't known
SPECS_MAX = 10_000  # entries and addresses that one cluster may ask for

Reply = tuple[int, str]  # code and text of an `Answer`
DONE: Reply = (0, "")


def _on_node_request(state: State, peer: str, message: NodeRequest, now: float) -> None:
    act = ACTIONS.get(message.action)
    if act is None:
        raise ProtocolError(f"nodes can't be asked for {message.action[:ACTION_CHARS]!r}")
    cluster = state.cluster(peer, message.cluster)
    if cluster is None or cluster.closing:
        code, text = -1, "the cluster is closed"
    else:
        code, text = act(state, cluster, message)
        choices.note(state, cluster)
    state.send(peer, Answer(message.cluster, message.request, code, text))


def _on_explain(state: State, peer: str, message: Explain, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None or cluster.closing:
        code, text = -1, "The cluster is closed."
    else:
        code, text = 0, explain(state, cluster, message.job, now)
    state.send(peer, Answer(message.cluster, message.request, code, text))


# -- using nodes ----------------------------------------------------------------------------


def _allocate(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    cluster.asks = cluster.asks or message.asks
    if message.node:
        return _allocate_again(state, cluster, message)
    if not message.nodes:
        return -1, "no nodes are named"
    new = [spec for spec in message.nodes if spec not in cluster.specs]
    if len(cluster.specs) + len(new) > SPECS_MAX:
        return -1, f"a cluster may ask for {SPECS_MAX} nodes at most"
    cluster.specs[:0] = new  # what was asked for last counts
    _dial(state, cluster, new)
    if new:
        state.keep(cluster, whole=True)
    if cluster.waits:
        return 0, why(state, cluster)
    count = 0
    for node in [node for node in state.nodes.values() if node.counted]:
        entry = entry_for(message.nodes, node)
        if entry is not None and not _is_barred(state, cluster, node):
            _use(state, cluster, node, entry)
            count += 1
    return 0, f"{count} of the nodes known by now match"


def _allocate_again(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    """Use a node that the client knows; one that was closed may work for others by now."""
    if cluster.waits:
        return -1, why(state, cluster)
    node = next((each for each in state.nodes.values() if each.id == message.node), None)
    if node is None and message.node in cluster.closed:
        peer = cluster.closed[message.node]
        cluster.shares.pop(peer, None)
        node = state.nodes.get(peer)  # back under another number
        if node is None:
            return 0, "it is used once it is back"
    if node is None or not node.counted:
        return -1, f"there is no node {message.node}"
    if cluster.id not in node.allocations and node.barred:
        return -1, f"node {node.title} gets no jobs at present: {node.barred}"
    _use(state, cluster, node, entry_for(message.nodes, node))
    return DONE


def _is_barred(state: State, cluster: Cluster, node: Node) -> bool:
    """Whether a node that the cluster hasn't got can't be had now; its client is told why."""
    if cluster.id in node.allocations or not node.barred:
        return False
    trouble(state, cluster, node.address or node.identity.name, node.barred)
    return True


def _use(state: State, cluster: Cluster, node: Node, entry: NodeSpec | None) -> None:
    """Use a node as an entry says, or as before."""
    allocation = node.allocations.get(cluster.id)
    share = None if entry is None else share_of(entry, node)
    if allocation is None:
        start_over(state, join(cluster, node, Share(0)), share)
    elif allocation.stage in (Stage.CLOSING, Stage.RELEASING):
        allocation.anew = True
        cluster.shares.pop(node.peer, None)
    elif allocation.stage in IDLE or allocation.stage is Stage.FAILED:
        start_over(state, allocation, share)
    elif allocation.suspended:
        allocation.suspend(False)
        open_up(state, allocation)


def _discover(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    if len(cluster.addresses) + len(message.nodes) > SPECS_MAX:
        return -1, f"a cluster may ask for {SPECS_MAX} nodes at most"
    _dial(state, cluster, message.nodes)
    if is_open(message.nodes):
        ports = {spec.port for spec in message.nodes if spec.port}
        state.effects.append(Seek(tuple(sorted(ports))))
    return DONE


def _dial(state: State, cluster: Cluster, specs: list[NodeSpec]) -> None:
    for address in sorted(addresses(specs) - cluster.addresses):
        cluster.addresses.add(address)
        cluster.untried.add(address)
        state.effects.append(Dial(address))


# -- using them no more, or otherwise ---------------------------------------------------------


def _deallocate(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    allocation = cluster.allocations.get(message.node)
    if allocation is None:
        return _not_used(message)
    if allocation.stage in PENDING and not allocation.suspended:
        allocation.suspend(True)
        vacate(state, allocation, False)
    return DONE


def _close(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    return _leave(state, cluster, message, False)


def _resetup(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    if state.settings.shared:
        return -1, "nodes that are shared with others are not set up again on request"
    return _leave(state, cluster, message, True)


def _leave(state: State, cluster: Cluster, message: NodeRequest, anew: bool) -> Reply:
    allocation = cluster.allocations.get(message.node)
    if allocation is None:
        return _not_used(message)
    if allocation.stage is not Stage.CLOSED or anew:
        close(state, allocation, message.terminate, anew)
    return DONE


def _set_cpus(state: State, cluster: Cluster, message: NodeRequest) -> Reply:
    allocation = cluster.allocations.get(message.node)
    if allocation is None or allocation.stage not in (Stage.PREPARING, Stage.READY):
        return _not_used(message)
    settings = state.settings
    if settings.shared and not (settings.cooperative or cluster.opened.exclusive):
        return -1, (
            "the nodes are shared with others: their CPUs can only be set by an exclusive "
            "cluster, or if the broker was started with --cooperative"
        )
    cpus = cpus_of(allocation.node, message.cpus) if message.cpus else 0  # it isn't "all" here
    if cpus == 0:
        has = allocation.node.identity.cpus
        return -1, f"of {has} CPUs none would be left; deallocate_node sends no jobs to a node"
    allocation.resize(cpus)
    cluster.shares[allocation.node.peer] = allocation.share
    state.order(allocation, SetCpus(cluster.id, cpus))
    if allocation.stage is Stage.READY:
        open_up(state, allocation)
    return cpus, ""


def _not_used(message: NodeRequest) -> Reply:
    return -1, f"the cluster does not use node {message.node}"


ACTIONS: dict[str, Callable[[State, Cluster, NodeRequest], Reply]] = {
    ALLOCATE: _allocate,
    DISCOVER: _discover,
    DEALLOCATE: _deallocate,
    CLOSE: _close,
    RESETUP: _resetup,
    SET_CPUS: _set_cpus,
}

HANDLERS: dict[type[Any], Callable[..., None]] = {
    NodeRequest: _on_node_request,
    Explain: _on_explain,
}
