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
        share=_share(state, cluster),
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


def _share(state: State, cluster: Cluster) -> float:
    """Return its part by weight, among users with jobs and among its user's clusters with jobs."""
    sharing, name = state.sharing, cluster.client.user
    weights: dict[str, float] = {name: sharing.weight_of(name)}
    mates = 0.0
    for each in state.clusters.values():
        if each is not cluster and not (each.jobs or each.backlog.waiting):
            continue
        other = each.client.user
        if other == name:
            mates += sharing.weight_of_cluster(each)
        elif other not in weights:
            weights[other] = sharing.weight_of(other)
    return weights[name] / sum(weights.values()) * sharing.weight_of_cluster(cluster) / mates


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
    waiting = [
        each for each in state.clusters.values() if each.in_turns and each.line.waiting
    ]
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
