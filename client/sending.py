"""Which jobs go to the broker and when: functions over the client core's state. Pure.

A broker gives credit; one that can't take jobs for a while gives them back, to wait here.
"""

from __future__ import annotations

from dispy.protocol.messages import (
    CANCELLED,
    Accepted,
    Credit,
    RecordsHeard,
    Rejected,
    ResultsHeard,
    Submit,
)

from .effects import Send, Sending, Warned
from .endings import end_here
from .job import DispyJob, payload_bytes
from .state import Cluster, State

BATCH_JOBS = 500  # in one message, so that the broker's other clients get their turn
BATCH_BYTES = 1 << 20  # of payload in one message, unless a single job has more


def send_heard(state: State, number: int, cluster: Cluster) -> None:
    """Say what has been dealt with."""
    if cluster.heard:
        state.effects.append(Send(RecordsHeard(number, cluster.heard)))
        cluster.heard = []
    if cluster.results_heard:
        state.effects.append(Send(ResultsHeard(number, cluster.results_heard)))
        cluster.results_heard = []


def send_jobs(state: State, number: int, cluster: Cluster) -> None:
    """Send what waits, as far as the broker has asked for it."""
    if not cluster.opened or cluster.closing:
        return
    while cluster.waiting and cluster.sent < cluster.credit:
        batch = _next_batch(cluster, min(BATCH_JOBS, cluster.credit - cluster.sent))
        if batch:
            cluster.sent += len(batch)
            state.effects.append(Sending(number, batch))
            specs = [job._spec for job in batch if job._spec is not None]
            state.effects.append(Send(Submit(number, specs)))


def _next_batch(cluster: Cluster, limit: int) -> list[DispyJob]:
    """Take jobs off the queue, until there are enough of them for one message."""
    batch: list[DispyJob] = []
    size = 0
    while cluster.waiting and len(batch) < limit and size < BATCH_BYTES:
        job = cluster.waiting.pop()
        if job._seq in cluster.unfinished:  # else it was cancelled meanwhile
            assert job._spec is not None
            cluster.away.add(job._seq)
            batch.append(job)
            size += payload_bytes(job._spec)
    return batch


def on_credit(state: State, number: int, cluster: Cluster, message: Credit) -> None:
    """More jobs may be sent."""
    cluster.credit = max(cluster.credit, message.limit)
    cluster.rejection = ""
    state.sendable[number] = None


def on_accepted(state: State, number: int, cluster: Cluster, message: Accepted) -> None:
    """Jobs are on the broker's disk."""
    for first, last in message.jobs:
        cluster.accepted.add(first, last)


def on_rejected(state: State, number: int, cluster: Cluster, message: Rejected) -> None:
    """The broker can't take jobs for a while: they wait here."""
    back = [seq for seq in dict.fromkeys(message.jobs) if seq in cluster.away]
    cluster.sent = max(0, cluster.sent - len(back))
    cluster.credit = message.limit
    take_back(state, number, cluster, back)
    if message.reason != cluster.rejection:
        cluster.rejection = message.reason
        text = (
            f"the broker takes no jobs of cluster {cluster.name!r} at present: {message.reason}; "
            "they wait in this program"
        )
        state.effects.append(Warned(text))
    state.sendable[number] = None


def take_back(state: State, number: int, cluster: Cluster, seqs: list[int]) -> None:
    """Have jobs that were sent wait here again, unless nobody needs them any more."""
    ends = []
    for seq in seqs:
        cluster.away.discard(seq)
        if seq in cluster.cancelled or cluster.closing:
            ends.append(seq)
        else:
            cluster.waiting.put_back(cluster.unfinished[seq])
    end_here(state, number, cluster, ends, CANCELLED)
