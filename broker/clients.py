"""Clients come and go, open and close clusters, submit, cancel and follow jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import (
    CANCELLED,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Follow,
    FollowJobs,
    JobOptions,
    Kill,
    NodeReady,
    OpenCluster,
    Submit,
)

from .blobs import ask_again
from .closing import close_cluster
from .effects import Dial
from .jobs import end, end_hopeless, hand_over, pin, take_turns
from .matching import addresses
from .setups import allocate, make_offer
from .state import Allocation, Client, Cluster, Job, Stage, State
from .turns import CREDIT

CLIENT_LEASE_S = 60.0


def client_joined(state: State, peer: str, undelivered: list[Body]) -> None:
    """A client has registered: say again what it may have missed."""
    client = state.clients.setdefault(peer, Client(peer))
    client.lost_at = float("inf")
    for message in undelivered:
        state.send(peer, message)
    ask_again(state, client)


def client_away(client: Client, now: float) -> None:
    """A client can't be reached: its lease runs."""
    if client.lost_at == float("inf"):
        client.lost_at = now + CLIENT_LEASE_S


def client_left(state: State, peer: str) -> None:
    """A client is gone, and with it its clusters."""
    client = state.clients.pop(peer, None)
    if client is not None:
        for cluster in list(client.clusters.values()):
            close_cluster(state, cluster)


def _on_open(state: State, peer: str, message: OpenCluster, now: float) -> None:
    client = state.client(peer)
    cluster = client.clusters.get(message.cluster)
    if cluster is None:
        cluster = _open(state, client, message)
        state.tell(cluster, ClusterOpened(message.cluster, cluster.credit, cluster.id))
        for node in list(state.nodes.values()):
            allocate(state, cluster, node)
        return
    state.tell(cluster, ClusterOpened(message.cluster, cluster.credit, cluster.id))
    for allocation in cluster.allocations.values():  # in a new session it knows of none
        if allocation.announced:
            info = allocation.node.info
            state.tell(cluster, NodeReady(cluster.number, info, allocation.cpus))
        elif allocation.stage is Stage.OFFERED:
            make_offer(state, allocation)


def _open(state: State, client: Client, message: OpenCluster) -> Cluster:
    state.cluster_ids += 1
    specs = list(message.nodes)
    wanted = addresses(specs)
    cluster = Cluster(state.cluster_ids, client, message, message.computation, specs, wanted)
    cluster.untried = set(wanted)
    cluster.asks, cluster.credit = message.asks, CREDIT
    client.clusters[message.cluster] = state.clusters[cluster.id] = cluster
    for address in sorted(wanted):
        state.effects.append(Dial(address))
    return cluster


def _on_submit(state: State, peer: str, message: Submit, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None or cluster.closing:
        return
    was_busy = bool(cluster.jobs)
    jobs, line, seen = cluster.jobs, cluster.line, cluster.seen
    pinned: list[Job] = []
    for spec in message.jobs:
        if not seen.add(spec.seq):
            continue  # sent again after a reconnect
        spec.attempt = 0
        job = jobs[spec.seq] = Job(spec)
        if spec.options is None or not spec.options.node:
            line.append(job)
        else:
            pinned.append(job)
    if jobs and not was_busy:
        state.busy += 1
    for job in pinned:
        pin(state, cluster, job)
    take_turns(state, cluster)
    end_hopeless(state, cluster)


def _on_cancel(state: State, peer: str, message: CancelJobs, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        return
    kills: dict[Allocation, list[tuple[int, int]]] = {}
    for seq in message.jobs:
        job = cluster.jobs.get(seq)
        if job is None or job.cancelled:
            continue
        job.cancelled = True
        if job.allocation is None:
            end(state, cluster, job, CANCELLED, "cancelled before it began")
        else:
            kills.setdefault(job.allocation, []).append((seq, job.spec.attempt))
    for allocation, jobs in kills.items():
        hand_over(state, allocation)  # the node must know a job before it can end it
        state.order(allocation, Kill(cluster.id, jobs))


def _on_follow(state: State, peer: str, message: FollowJobs, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        return
    placed: dict[Allocation, list[tuple[int, int]]] = {}
    for seq in message.jobs:
        job = cluster.jobs.get(seq)
        if job is None:
            continue
        if job.spec.options is None:
            job.spec.options = JobOptions()
        job.spec.options.follow = True  # of this attempt, if it is still to be sent, and of later
        if job.allocation is not None:
            placed.setdefault(job.allocation, []).append((seq, job.spec.attempt))
    for allocation, jobs in placed.items():
        hand_over(state, allocation)
        state.order(allocation, Follow(cluster.id, jobs))


def _on_close(state: State, peer: str, message: CloseCluster, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        state.send(peer, ClusterClosed(message.cluster))
    else:
        close_cluster(state, cluster)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    OpenCluster: _on_open,
    Submit: _on_submit,
    CancelJobs: _on_cancel,
    FollowJobs: _on_follow,
    CloseCluster: _on_close,
}
