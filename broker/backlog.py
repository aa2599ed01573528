"""Jobs that wait on disk: they are counted, and they end when somebody wants that.

`intake` puts them there, and gets them into memory when their turn is near.
"""

from __future__ import annotations

from functools import lru_cache

from dispy.protocol import payload
from dispy.protocol.messages import CANCELLED, JobOptions, JobResult, JobSpec

from .batches import has_ended, left_in, strike, strike_all
from .state import Batch, Cluster, State


def cancel(state: State, cluster: Cluster, seq: int, reason: str) -> None:
    """End a job that waits on disk, if it does."""
    batch = cluster.backlog.find(seq)
    if batch is not None and not has_ended(batch, seq - batch.first):
        _end(state, batch, seq - batch.first, CANCELLED, reason)


def end_all(state: State, cluster: Cluster, status: int, reason: str) -> None:
    """End all jobs that wait on disk, which may be a million."""
    body, ended = _body(reason), []
    for batch in list(cluster.backlog):
        cluster.backlog.remove(batch)
        first = batch.first
        ended += [JobResult(first + index, 0, status, 0.0, 0.0, body) for index in left_in(batch)]
        strike_all(state, batch)
    if ended:
        state.results.setdefault((cluster, 0), []).extend(ended)
        cluster.meta.ended += len(ended)


def _end(state: State, batch: Batch, index: int, status: int, reason: str) -> None:
    backlog = batch.cluster.backlog
    backlog.strike(batch)
    strike(state, batch, index)
    if not batch.left:
        backlog.remove(batch)
    report(state, batch, index, status, reason)


def report(state: State, batch: Batch, index: int, status: int, reason: str) -> None:
    """Tell the client how a job of a plain batch has ended that never was in memory."""
    cluster = batch.cluster
    result = JobResult(batch.first + index, 0, status, 0.0, 0.0, _body(reason))
    state.results.setdefault((cluster, 0), []).append(result)
    cluster.meta.ended += 1


@lru_cache(maxsize=16)
def _body(reason: str) -> bytes:
    """Return what a job leaves that ends for a reason; there are few, for many jobs each."""
    return payload.pack_result(b"", b"", b"", reason)


def follow_unloaded(cluster: Cluster, seq: int) -> None:
    """Have the output of a job that waits on disk told once it runs."""
    batch = cluster.backlog.find(seq)
    if batch is not None:
        batch.followed.add(seq - batch.first)


def follow(spec: JobSpec) -> None:
    """Have the output of a job told, of this attempt, if it is still to be sent, and of later."""
    if spec.options is None:
        spec.options = JobOptions()
    spec.options.follow = True


def waiting(cluster: Cluster) -> int:
    """Return how many jobs wait, in memory or on disk."""
    return cluster.line.waiting + cluster.pinned + cluster.backlog.waiting


def unended(cluster: Cluster) -> list[int]:
    """Return all jobs that have not ended."""
    seqs = list(cluster.jobs)
    for batch in cluster.backlog:
        seqs += [batch.first + index for index in left_in(batch)]
    return seqs


def before(cluster: Cluster, seq: int) -> int | None:
    """Return how many jobs go before one that waits on disk; None if it doesn't."""
    own = cluster.backlog.find(seq)
    if own is None or has_ended(own, seq - own.first):
        return None
    ahead = cluster.line.waiting
    for batch in cluster.backlog:
        if batch is own:
            return ahead + sum(index < seq - own.first for index in left_in(batch))
        ahead += batch.left
    raise AssertionError("a batch is where it is found")
