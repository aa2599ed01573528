"""Clusters that want all nodes for themselves, and who waits for whom because of that.

Such a cluster waits until all that were opened before it are closed, and whatever is opened
after it waits until it is closed. Jobs are taken meanwhile, but no node is. One that was taken
over holds nobody up once its jobs have ended: who took it over submits none, and closes it when
those of the same program have ended, too. Only this file says which clusters wait. As long as no
cluster is exclusive, nothing of this costs anything.
"""

from __future__ import annotations

from dispy.protocol.messages import NodeTrouble

from .setups import allocate
from .state import Cluster, State

BROKER = "broker"  # what stands for an address when the reason is the broker itself


def enter(state: State, cluster: Cluster) -> None:
    """A cluster is opened, or opened again."""
    if cluster.opened.exclusive:
        state.exclusives[cluster] = None
    if state.exclusives:
        if not cluster.allocations:  # else it has never been without nodes
            cluster.waits = True
        _review(state)
        say_why(state, cluster)


def leave(state: State, cluster: Cluster) -> None:
    """A cluster needs no nodes any more."""
    if state.exclusives:
        state.exclusives.pop(cluster, None)
        cluster.waits = False
        _review(state)


def update(state: State) -> None:
    """Find out who waits after a start; clusters have been opened in the order of their ids."""
    in_use = [each for each in state.clusters.values() if not _has_left(each)]
    state.exclusives = {each: None for each in in_use if each.opened.exclusive}
    if state.exclusives:
        for cluster in in_use:
            cluster.waits = not _is_done(cluster)
        _review(state)


def look(state: State) -> None:
    """Let others go on when a cluster that was taken over has come to its end."""
    clusters = state.clusters.values()
    if any(each.waits for each in clusters) and any(map(_is_done, clusters)):
        _review(state)


def _review(state: State) -> None:
    """Let go who needn't wait any more, in the order in which they were opened.

    Whoever has nodes keeps them: an exclusive cluster waits for all others that have some.
    """
    in_use = [each for each in state.clusters.values() if not is_over(each)]
    going = sum(not each.waits for each in in_use)
    for cluster in in_use:
        alone = cluster.opened.exclusive
        if cluster.waits and not (going and alone) and not _has_holder(state):
            going += 1
            _let_go(state, cluster)
        if alone:
            return  # all that come after it wait for it


def _has_holder(state: State) -> bool:
    """Whether an exclusive cluster has all nodes."""
    return any(not each.waits and not is_over(each) for each in state.exclusives)


def _let_go(state: State, cluster: Cluster) -> None:
    cluster.waits = False
    for node in list(state.nodes.values()):
        allocate(state, cluster, node)


def is_over(cluster: Cluster) -> bool:
    """Whether nobody needs to wait for it, unless it is opened again."""
    return _has_left(cluster) or _is_done(cluster)


def _has_left(cluster: Cluster) -> bool:
    return cluster.closing and not cluster.allocations


def _is_done(cluster: Cluster) -> bool:
    """Whether it was taken over, has had its turn, and has no job any more."""
    if not cluster.meta.before or cluster.waits:
        return False
    return not cluster.jobs and not cluster.backlog.waiting


def why(state: State, cluster: Cluster) -> str:
    """Say what a cluster waits for; nothing if it doesn't wait."""
    if not cluster.waits:
        return ""
    others = [each for each in state.clusters.values() if _goes_before(each, cluster)]
    alone = next((each for each in others if each.opened.exclusive), None)
    if alone is None:
        whom = "another cluster has" if len(others) == 1 else f"{len(others)} other clusters have"
        return f"the cluster is exclusive, and waits until {whom} been closed"
    name = alone.opened.label or alone.computation.name
    by = f" of {alone.meta.user}" if alone.meta.user else ""
    return f"the cluster waits until the exclusive cluster {name!r}{by} has been closed"


def _goes_before(other: Cluster, cluster: Cluster) -> bool:
    if other is cluster or is_over(other):
        return False
    return not other.waits or other.id < cluster.id


def say_why(state: State, cluster: Cluster) -> None:
    """Tell the client of a cluster that waits what it waits for."""
    if cluster.waits:
        state.tell(cluster, NodeTrouble(cluster.number, BROKER, why(state, cluster)))
