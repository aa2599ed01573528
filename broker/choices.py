"""What users have decided about single nodes of a cluster; a journal keeps it with the cluster.

So a node that was closed stays closed when the broker is started again, and one of which some
CPUs are used has no more jobs than that.
"""

from __future__ import annotations

import msgspec

from .durable import NodeChoice
from .matching import entry_for, share_of
from .state import Cluster, Node, Share, State

CHOICES_MAX = 1000  # nodes of one cluster; what was decided first is forgotten


def note(state: State, cluster: Cluster) -> None:
    """Have kept what has been decided."""
    if not state.settings.durable or cluster.closing:
        return
    choices = _choices(cluster)
    if choices != cluster.meta.choices:
        cluster.meta.choices = choices
        state.keep(cluster)


def _choices(cluster: Cluster) -> list[NodeChoice]:
    numbers = {peer: number for number, peer in cluster.closed.items()}
    for allocation in cluster.allocations.values():
        numbers[allocation.node.peer] = allocation.node.id
    choices = []
    for peer in {**cluster.shares, **dict.fromkeys(sorted(cluster.suspended))}:
        share = cluster.shares.get(peer)
        cpus = -1 if share is None else share.cpus
        choices.append(NodeChoice(peer, numbers.get(peer, 0), cpus, peer in cluster.suspended))
    return choices[-CHOICES_MAX:]


def recall(state: State, cluster: Cluster) -> None:
    """Decide as it was kept."""
    for choice in cluster.meta.choices:
        if choice.suspended:
            cluster.suspended.add(choice.peer)
        if choice.cpus >= 0:
            node = state.nodes.get(choice.peer)
            cluster.shares[choice.peer] = _share(cluster, node, choice.cpus)
        if choice.cpus == 0 and choice.node:
            cluster.closed[choice.node] = choice.peer


def _share(cluster: Cluster, node: Node | None, cpus: int) -> Share:
    entry = None if node is None or not cpus else entry_for(cluster.specs, node)
    if node is None or entry is None:
        return Share(cpus)
    return msgspec.structs.replace(share_of(entry, node), cpus=cpus)
