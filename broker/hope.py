"""Whether a cluster whose nodes can't set its computation up may still get one that can.

Without such hope, what waits ends: nobody would know why it goes on waiting.
"""

from __future__ import annotations

from dispy.protocol.messages import TERMINATED

from .backlog import end_all
from .jobs import end
from .matching import is_open
from .state import Cluster, State

GATHER_S = 1.0  # in which nodes are found, or come through relays, after the first has come


def end_hopeless(state: State, cluster: Cluster) -> None:
    """End what waits when every node that could have run it has failed to set it up.

    As long as a node that the cluster names may just be slow to answer, there is hope; for a
    moment after its beginning also for nodes that may still be found.
    """
    if not cluster.failed or cluster.failed + cluster.idle < len(cluster.allocations):
        return
    if cluster.untried:
        return
    if state.now < cluster.begun_at + GATHER_S and _may_find_more(cluster):
        state.hopeful[cluster] = None
        return
    reason = "; ".join(f"{where}: {why}" for where, why in cluster.troubles.items())
    why = f"no node could set the computation up: {reason}"
    for job in list(cluster.line):
        end(state, cluster, job, TERMINATED, why)
    end_all(state, cluster, TERMINATED, why)


def _may_find_more(cluster: Cluster) -> bool:
    """Whether nodes may be there that the cluster would use, and that haven't come."""
    if is_open(cluster.specs):
        return True
    there: set[str] = set()
    for allocation in cluster.allocations.values():
        there.update((allocation.node.address, *allocation.node.addresses))
    return not cluster.addresses <= there


def look_again(state: State) -> None:
    """Look again at clusters for which others might have been found."""
    for cluster in [each for each in state.hopeful if state.now >= each.begun_at + GATHER_S]:
        del state.hopeful[cluster]
        if cluster.id in state.clusters and not cluster.closing:
            end_hopeless(state, cluster)


def deadline(state: State) -> float:
    """When the next cluster is to be looked at again."""
    return min([each.begun_at + GATHER_S for each in state.hopeful], default=float("inf"))
