"""How the broker is, for people: its nodes, its clusters, and what waits and runs there.

Nothing here changes anything. A report is cut into parts that fit into messages.
"""

from __future__ import annotations

from dispy.protocol.messages import BrokerReport, ClusterReport, NodeReport

from .backlog import waiting
from .naming import label_of
from .standing import shares
from .state import Allocation, Cluster, Node, Past, State
from .unheard import count

PART = 500  # nodes, and clusters, in one message
CLUSTERS_MAX = 50  # of one node that are listed
REASON_CHARS = 1000
NAME_CHARS = 200  # of what peers say of themselves


def overview(state: State) -> list[BrokerReport]:
    """Describe all; each part has some of the nodes and of the clusters."""
    about = state.about
    nodes = [_node(node) for node in sorted(state.nodes.values(), key=lambda node: node.id)]
    nodes += _absent(state)
    clusters = [_cluster(state, cluster, share) for cluster, share in shares(state).items()]
    clients = sum(bool(client.clusters) for client in state.clients.values())
    return [
        BrokerReport(
            about.name,
            about.software,
            state.settings.policy,
            about.since,
            about.journal,
            about.journal_bytes,
            state.trouble,
            clients,
            state.rate.per_second(state.now),
            nodes[first : first + PART],
            clusters[first : first + PART],
        )
        for first in range(0, max(len(nodes), len(clusters), 1), PART)
    ]


def _node(node: Node) -> NodeReport:
    who = node.identity
    condition, reason = _condition(node)
    running = sum(running_at(allocation) for allocation in node.allocations.values())
    return NodeReport(
        node.id,
        who.name[:NAME_CHARS],
        node.door[:NAME_CHARS],
        who.cpus,
        condition,
        reason[:REASON_CHARS],
        running,
        node.load,
        node.done,
        list(node.allocations)[:CLUSTERS_MAX],
        node.since,
        who.platform[:NAME_CHARS],
        who.software[:NAME_CHARS],
        node.vitals,
        node.via[:NAME_CHARS],
    )


def _condition(node: Node) -> tuple[str, str]:
    """Return a node's state and the reason for it."""
    past = node.past
    if node.stopping:
        return "stopping", "it is being stopped"
    if not node.online:
        return "away", node.barred or "it can't be reached at present"
    if past.drained:
        return "drained", past.drained
    if past.set_aside:
        return "set aside", past.set_aside
    if node.out_of_service:
        return "out of service", node.out_of_service
    return "up", ""


def running_at(allocation: Allocation) -> int:
    """Say how many of a cluster's jobs may have begun at a node."""
    return min(len(allocation.jobs), allocation.cpus)


def _absent(state: State) -> list[NodeReport]:
    """Describe places that are drained or set aside, and where no node is at present."""
    here = {id(node.past) for node in state.nodes.values()}
    return [
        NodeReport(0, past.name, past.address, 0, "away", reason, 0, 0, 0, [], 0.0, "", "")
        for past in state.pasts.values()
        if id(past) not in here and (reason := why_barred(past))
    ]


def why_barred(past: Past) -> str:
    """Say why a place gets no jobs where no node is at present; empty: it may."""
    if past.drained:
        return f"not registered; drained: {past.drained}"
    return f"not registered; set aside: {past.set_aside}" if past.set_aside else ""


def _cluster(state: State, cluster: Cluster, share: float) -> ClusterReport:
    meta = cluster.meta
    return ClusterReport(
        cluster.id,
        label_of(cluster),
        meta.user[:NAME_CHARS],
        _cluster_condition(cluster),
        cluster.opened.exclusive,
        cluster.opened.weight,
        waiting(cluster),
        sum(running_at(each) for each in cluster.allocations.values()),
        meta.ended,
        count(cluster),
        cluster.capacity,
        meta.used_s,
        share,
        cluster.rate.per_second(state.now),
        meta.opened_at,
    )


def _cluster_condition(cluster: Cluster) -> str:
    if cluster.meta.expired:
        return "expired"
    if cluster.closing:
        return "closing"
    if cluster.client.away_since is not None:
        return "away"
    return "waiting" if cluster.waits else "open"
