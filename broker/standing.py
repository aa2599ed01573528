"""The numbers behind a decision: how a cluster stands beside the others that want CPUs.

Pure functions over the state; an answer costs time in proportion to the clusters and to the nodes
of the one that is asked about. Tags and clocks are what `sharing` says they are.
"""

from __future__ import annotations

from typing import NamedTuple

from .state import Cluster, State


class Standing(NamedTuple):
    """How a cluster stands beside others, now. Times are CPU seconds."""

    share: float  # part of all CPUs that it is entitled to while it has jobs, 0 to 1
    cpus: float  # CPUs that run its jobs, as far as the broker can tell
    used_s: float  # by attempts that have ended, and by those that run
    place: int  # among those that wait for CPUs, 1 is next; 0: it doesn't wait
    waiting: int  # clusters that wait for CPUs
    user: str
    tag: float  # its CPU time over its weight, beside other clusters of its user: low goes first
    clock: float  # ... where a newcomer among them would begin
    user_tag: float  # the same for its user, beside other users
    user_clock: float


def standing(state: State, cluster: Cluster) -> Standing:
    """Say what a cluster is entitled to, what it has, and when it is its turn."""
    account, sharing = cluster.account, state.sharing
    user = account.user
    place, waiting = _place(state, cluster)
    return Standing(
        share=shares(state)[cluster],
        cpus=_cpus(cluster),
        used_s=account.used_s + account.running_s(state.now),
        place=place,
        waiting=waiting,
        user=cluster.client.user,
        tag=account.tag,
        clock=user.clock if user is not None else 0.0,
        user_tag=user.tag if user is not None else 0.0,
        user_clock=sharing.clock,
    )


def shares(state: State) -> dict[Cluster, float]:
    """Return the part of the CPUs that each cluster is entitled to while it has jobs.

    It goes by weight, among users with jobs, and among clusters with jobs of one user. Those that
    wait for an exclusive one, or to be alone, get nothing.
    """
    weight_of, weight_of_cluster = state.sharing.weight_of, state.sharing.weight_of_cluster
    busy: dict[str, float] = {}  # weights of clusters with jobs, by user
    for each in state.clusters.values():
        if _wants(each):
            name = each.client.user
            busy[name] = busy.get(name, 0.0) + weight_of_cluster(each)
    users = sum(weight_of(name) for name in busy)
    parts: dict[Cluster, float] = {}
    for each in state.clusters.values():
        name, weight = each.client.user, weight_of_cluster(each)
        mates = busy.get(name, 0.0) + (0.0 if _wants(each) else weight)
        others = users if name in busy else users + weight_of(name)
        parts[each] = 0.0 if each.waits else weight_of(name) / others * weight / mates
    return parts


def _wants(cluster: Cluster) -> bool:
    """Whether it asks for CPUs: it has jobs, and needn't wait until others are closed."""
    return bool(cluster.jobs or cluster.backlog.waiting) and not cluster.waits


def _cpus(cluster: Cluster) -> float:
    """Return how many CPUs run its jobs; of a full node, a part by the jobs that are there."""
    cpus = 0.0
    for allocation in cluster.allocations.values():
        node, count = allocation.node, len(allocation.jobs)
        if count:
            part = min(1.0, node.identity.cpus / node.load)
            cpus += min(count * part, allocation.cpus)
    return cpus


def _place(state: State, cluster: Cluster) -> tuple[int, int]:
    """Return its place among those that wait, and how many these are."""
    waiting = [each for each in state.clusters.values() if each.in_turns and each.line.waiting]
    if not (cluster.in_turns and (cluster.line.waiting or cluster.pinned)):
        return 0, len(waiting)
    mine = _rank(cluster)
    before = sum(_rank(each) < mine for each in waiting if each is not cluster)
    return 1 + before, len(waiting) + (not cluster.line.waiting)


def _rank(cluster: Cluster) -> tuple[float, str, float, int]:
    account = cluster.account
    user = account.user
    assert user is not None
    return user.tag, user.name, account.tag, cluster.id
