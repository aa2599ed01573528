"""How jobs and clusters end in the client's core: functions over its state. Pure.

A job ends once, with one exception: an abandoned one may still finish.
"""

from __future__ import annotations

from collections.abc import Iterable

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    ClusterClosed,
    ClusterLost,
    JobResult,
    Results,
)
from dispy.protocol.payload import pack_result

from .effects import Answered, Closed, Ended, Silent, Warned
from .line import Line
from .state import Cluster, State

ENDED_MAX = 1_000  # jobs that have ended and are still in line, unless as many others are
STATUSES = {CANCELLED, TERMINATED, ABANDONED, FINISHED}


def on_results(state: State, number: int, cluster: Cluster, message: Results) -> None:
    """Jobs have ended at a node, or at the broker."""
    if not {result.status for result in message.results} <= STATUSES:
        raise ProtocolError("a result says that a job ended as no job can end")
    ended, told = [], []
    for result in message.results:
        seq, status = result.seq, result.status
        job = cluster.unfinished.pop(seq, None)
        if job is not None:
            cluster.away.discard(seq)
            cluster.cancelled.pop(seq, None)
            if seq in cluster.reports:
                del cluster.reports[seq]
                told.append(seq)
            if status == ABANDONED:
                cluster.abandoned[seq] = job
        elif status == FINISHED and seq in cluster.abandoned:
            job = cluster.abandoned.pop(seq)
        else:
            continue  # a duplicate
        ended.append((job, result))
    if ended:
        state.effects.append(Ended(number, message.node, ended))
    if told:
        state.effects.append(Silent(number, told))
    if message.record:  # also of duplicates: the broker hasn't heard that we have them
        cluster.results_heard.append(message.record)
        state.sendable[number] = None


def on_closed(state: State, number: int, cluster: Cluster, message: ClusterClosed) -> None:
    """The broker has forgotten the cluster, as it was asked to."""
    forget(state, number, cluster)
    state.unclosed.pop(number, None)


def on_lost(state: State, number: int, cluster: Cluster, message: ClusterLost) -> None:
    """The cluster isn't ours any more; what is left of it ends."""
    state.effects.append(Warned(f"cluster {cluster.name!r} is lost: {message.reason}"))
    end_here(state, number, cluster, list(cluster.unfinished), ABANDONED, message.reason)
    on_closed(state, number, cluster, ClusterClosed(number))


def end_here(
    state: State,
    number: int,
    cluster: Cluster,
    seqs: Iterable[int],
    status: int = CANCELLED,
    reason: str = "",
) -> None:
    """End jobs that no node has, or none that we will ever hear of."""
    body = pack_result(b"", b"", b"", reason) if reason else b""
    jobs, told = [], []
    for seq in seqs:
        cluster.away.discard(seq)
        cluster.cancelled.pop(seq, None)
        if cluster.reports.pop(seq, None) is not None:
            told.append(seq)
        job = cluster.unfinished.pop(seq)
        jobs.append((job, JobResult(seq, 0, status, 0.0, 0.0, body)))
    left = len(cluster.unfinished) - len(cluster.away)
    if len(cluster.waiting) > 2 * left + ENDED_MAX:  # mostly of jobs that have ended
        cluster.waiting = Line(
            job for seq, job in cluster.unfinished.items() if seq not in cluster.away
        )
    last = state.effects[-1] if state.effects else None
    if type(last) is Ended and (last.cluster, last.node) == (number, 0):
        last.jobs.extend(jobs)  # those that are cancelled one by one are told of together
    elif jobs:
        state.effects.append(Ended(number, 0, jobs))
    if told:
        state.effects.append(Silent(number, told))


def answer_all(state: State, number: int, cluster: Cluster, reason: str) -> None:
    """Leave no request without an answer."""
    for request in cluster.asked:
        state.effects.append(Answered(number, request, -1, reason))
    cluster.asked.clear()
    for question in cluster.questions:
        state.effects.append(Answered(number, question.request, -1, reason))
    cluster.questions.clear()


def forget(state: State, number: int, cluster: Cluster) -> None:
    """End a cluster, also if the broker hasn't; it hears of that in the next session."""
    answer_all(state, number, cluster, "the cluster was closed")
    end_here(state, number, cluster, list(cluster.unfinished))
    del state.clusters[number]
    state.unclosed[number] = None
    state.effects.append(Closed(number))
