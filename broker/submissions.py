"""Clients submit, cancel and follow jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dispy.protocol.messages import (
    CANCELLED,
    CancelJobs,
    Follow,
    FollowJobs,
    JobSpec,
    Kill,
    Rejected,
    Submit,
)

from .backlog import cancel, follow, follow_unloaded
from .batches import note
from .effects import KeepAbandoned
from .intake import take_in
from .jobs import end, hand_over
from .state import Allocation, Cluster, Stage, State


def _on_submit(state: State, peer: str, message: Submit, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None or cluster.closing:
        return
    jobs = message.jobs
    if state.trouble:
        jobs = _reject_new(state, cluster, message)
    if jobs:
        take_in(state, cluster, jobs)


def _reject_new(state: State, cluster: Cluster, message: Submit) -> list[JobSpec]:
    """Refuse jobs at present; return those that were taken earlier."""
    known = [spec for spec in message.jobs if spec.seq in cluster.seen]
    new = [spec.seq for spec in message.jobs if spec.seq not in cluster.seen]
    if new:
        cluster.credit = cluster.submitted
        rejected = Rejected(cluster.number, new, state.trouble, cluster.submitted)
        state.tell(cluster, rejected)
    return known


def _on_cancel(state: State, peer: str, message: CancelJobs, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is not None:
        cancel_jobs(state, cluster, message.jobs, "cancelled before it began")


def cancel_jobs(state: State, cluster: Cluster, seqs: Iterable[int], reason: str) -> None:
    """End jobs; those that have begun end by their node, the others for ``reason``."""
    kills: dict[Allocation, list[tuple[int, int]]] = {}
    for seq in seqs:
        job = cluster.jobs.get(seq)
        if job is None:
            _cancel_absent(state, cluster, seq, reason, kills)
        elif job.cancelled:
            continue
        elif job.allocation is None:
            job.cancelled = True
            end(state, cluster, job, CANCELLED, reason)
        else:
            job.cancelled = True
            note(state, job)
            kills.setdefault(job.allocation, []).append((seq, job.spec.attempt))
    for allocation, jobs in kills.items():
        hand_over(state, allocation)  # the node must know a job before it can end it
        state.order(allocation, Kill(cluster.id, jobs))


def _cancel_absent(
    state: State,
    cluster: Cluster,
    seq: int,
    reason: str,
    kills: dict[Allocation, list[tuple[int, int]]],
) -> None:
    """End a job that waits on disk, or one that was given up and may still run somewhere."""
    attempt = cluster.abandoned.pop(seq, None)
    if attempt is None:
        cancel(state, cluster, seq, reason)
        return
    if state.settings.durable:
        state.effects.append(KeepAbandoned(cluster.id, [(seq, 0)]))
    for allocation in cluster.allocations.values():  # one of them may have it
        if allocation.stage is not Stage.RELEASING:
            kills.setdefault(allocation, []).append((seq, attempt))


def _on_follow(state: State, peer: str, message: FollowJobs, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        return
    placed: dict[Allocation, list[tuple[int, int]]] = {}
    for seq in message.jobs:
        job = cluster.jobs.get(seq)
        if job is None:
            follow_unloaded(cluster, seq)
            continue
        follow(job.spec)
        if job.allocation is not None:
            placed.setdefault(job.allocation, []).append((seq, job.spec.attempt))
    for allocation, jobs in placed.items():
        hand_over(state, allocation)
        state.order(allocation, Follow(cluster.id, jobs))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Submit: _on_submit,
    CancelJobs: _on_cancel,
    FollowJobs: _on_follow,
}
