"""A broker starts, and goes on from what the one before it has kept.

Clients and nodes are away at first. Jobs that were at a node stay there until it is back and says
what it holds, or is given up; the others wait, most of them on disk.
"""

from __future__ import annotations

from . import choices
from .attaching import remember
from .batches import WINDOW, recall
from .clients import returning
from .closing import finish_closing
from .durable import Kept, KeptBatch, KeptCluster, NodeMeta
from .effects import Dial
from .exclusive import update
from .intake import load
from .jobs import recall as recall_part
from .matching import addresses
from .nodes import recall as recall_nodes
from .state import Cluster, Node, State
from .unheard import hold


def restore(state: State, kept: Kept, now: float) -> None:
    """Bring back what was kept."""
    epoch_s = now + state.wall_offset_s
    state.record_ids = max(kept.last_record, int(epoch_s * 1e6))
    state.node_ids = max(state.node_ids, kept.last_node)
    state.recovering_until = now + state.settings.adopt_s
    state.taken.update(kept.taken)
    recall_nodes(state, kept.nodes, now)
    nodes = {node.id: node for node in state.nodes.values()}
    for each in sorted(kept.clusters, key=_number):
        state.cluster_ids = max(state.cluster_ids, each.id)
        cluster = _recall_cluster(state, each, now)
        for batch in each.batches:
            _recall_batch(state, cluster, batch, nodes, now)
        _count(cluster, each)
        if cluster.closing:
            finish_closing(state, cluster)
    update(state)
    _dial_all(state)


def _number(kept: KeptCluster) -> int:
    return kept.id


def _dial_all(state: State) -> None:
    wanted = set(state.settings.nodes)
    for cluster in state.clusters.values():
        wanted |= cluster.addresses
    state.effects += [Dial(address) for address in sorted(wanted)]


def _recall_cluster(state: State, kept: KeptCluster, now: float) -> Cluster:
    meta, opened = kept.meta, kept.opened
    opened.cluster = meta.number
    client = returning(state, meta, now)
    wanted = set() if meta.closing else addresses(opened.nodes)
    cluster = Cluster(
        kept.id, client, opened, opened.computation, list(opened.nodes), wanted, set(wanted)
    )
    cluster.meta, cluster.asks, cluster.closing = meta, opened.asks, meta.closing
    cluster.begun_at = now
    client.clusters[meta.number] = state.clusters[kept.id] = cluster
    remember(state, cluster)
    choices.recall(state, cluster)
    seen = cluster.seen
    for results in kept.results:
        message = results.message
        message.record = results.id
        hold(state, cluster, message)
        for result in message.results:
            seen.add(result.seq)
    for record, seqs in kept.stored.items():
        cluster.stored[record] = len(seqs)
        for seq in seqs:
            seen.add(seq)
    for seq, attempt in kept.abandoned:
        seen.add(seq)
        cluster.abandoned[seq] = attempt
    return cluster


def _recall_batch(
    state: State, cluster: Cluster, kept: KeptBatch, nodes: dict[int, Node], now: float
) -> None:
    """Bring a batch back: at once if more must be known of its jobs, else when it is needed."""
    batch = recall(state, cluster, kept)
    if batch.plain:
        cluster.seen.add_range(batch.first, batch.last)
    if batch.plain and not batch.marks:
        cluster.backlog.append(batch)
        state.backlogged[cluster] = None
        return
    for number in {mark.node for mark in batch.marks.values() if mark.node}:
        if number not in nodes:
            nodes[number] = _unknown_node(state, number, now)
        recall_part(cluster, nodes[number])
    load(state, batch)


def _unknown_node(state: State, number: int, now: float) -> Node:
    """Make a node of which nothing but its number is known: it will be given up."""
    peer = f"node {number}"
    recall_nodes(state, {number: NodeMeta(peer, peer, "")}, now)
    return state.nodes[peer]


def _count(cluster: Cluster, kept: KeptCluster) -> None:
    """Say how many jobs have been submitted; rather too many, so that the client can go on."""
    highest = max((batch.last for batch in kept.batches), default=0)
    for results in kept.results:
        highest = max(highest, max((each.seq for each in results.message.results), default=0))
    for seqs in kept.stored.values():
        highest = max(highest, *seqs)
    highest = max(highest, max(cluster.abandoned, default=0))
    counted = cluster.meta.ended + sum(batch.count for batch in kept.batches)
    cluster.submitted = max(highest, counted)
    cluster.credit = cluster.submitted + WINDOW
