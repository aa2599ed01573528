"""What nodes say of jobs: begun, given back, ended; and which of these ends are final."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dispy.protocol import payload
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CANCELLED,
    FINISHED,
    TERMINATED,
    Done,
    JobResult,
    JobsRunning,
    Returned,
    Started,
)
from dispy.protocol.wire import chunked

from .batches import note_ended
from .effects import KeepAbandoned
from .jobs import leave_line, put_back, try_again
from .nodes import node_away
from .placement import take_off
from .setups import release_if_free, vacate
from .state import AHEAD_S, Cluster, Job, Stage, State

SMOOTHING = 0.3  # weight of the newest batch in the measured job time
LONG_S = 1e9  # what a job process says of its times may be no number at all


class Spent(NamedTuple):
    """The last failure of a job that may not be tried again."""

    result: JobResult
    attempts: int


def _on_done(state: State, peer: str, message: Done, now: float) -> None:
    cluster = state.clusters.get(message.computation)
    node = state.node(peer)
    if cluster is None:
        state.late_results += len(message.results)
        return
    spent: list[Spent] = []
    accepted = [result for result in message.results if _accept(state, cluster, result, spent)]
    ended = len(accepted)
    if accepted:
        key = (cluster, node.id)
        if key in state.results:
            state.results[key] += accepted
        else:
            state.results[key] = accepted
        node.done += ended
        cluster.rate.add(ended, now)
        state.rate.add(ended, now)
    if message.results:
        _measure(state, cluster, message.results, ended)
    state.idle_nodes[node] = None
    allocation = node.allocations.get(cluster.id)
    if allocation is not None:
        allocation.stubborn = False
        if not allocation.is_open:
            release_if_free(state, allocation)
    for each in spent:
        _say_attempts(*each)


def _accept(state: State, cluster: Cluster, result: JobResult, spent: list[Spent]) -> bool:
    """Take the result of the job's latest attempt, wherever the job is now.

    False if it is of an older attempt, or if the job is tried again.
    """
    job = cluster.jobs.get(result.seq)
    if job is None:
        return _accept_late(state, cluster, result)
    if result.attempt != job.spec.attempt or result.attempt < 1:
        state.late_results += 1
        return False
    if result.status == CANCELLED and not job.cancelled:
        if job.allocation is not None:  # its node was vacated before it began
            put_back(state, job)
        return False
    if result.status == TERMINATED and job.spec.options is not None:
        if _is_tried_again(state, job, job.spec.options.retries):
            return False
        if job.failures:
            spent.append(Spent(result, job.failures))
    if job.allocation is not None:
        job.allocation.node.distance.ended(job, result.end - result.start, state.now)
        take_off(state, job)
        job.ended = True
    else:
        leave_line(cluster, job)  # it waited for another attempt
    if job.batch is not None:
        note_ended(state, job)
    del cluster.jobs[result.seq]
    return True


def _accept_late(state: State, cluster: Cluster, result: JobResult) -> bool:
    """Take the result of a job that was given up: its node has come back."""
    if cluster.abandoned.get(result.seq) != result.attempt or result.status != FINISHED:
        state.late_results += 1
        return False
    del cluster.abandoned[result.seq]
    if state.settings.durable:
        state.effects.append(KeepAbandoned(cluster.id, [(result.seq, 0)]))
    return True


def _is_tried_again(state: State, job: Job, retries: int) -> bool:
    """Note a failure of a job with retries, and try it again while some are left."""
    if not retries or job.cancelled:
        return False
    if job.allocation is None:
        return True  # it waits for that; its failure was noted when its node was lost
    job.failures += 1
    if job.failures > retries:
        return False
    try_again(state, job)
    return True


def _say_attempts(result: JobResult, attempts: int) -> None:
    """Add to the text of a failure that it wasn't the first."""
    if attempts < 2:
        return
    try:
        body = payload.unpack_result(result.payload or _first_part(result))
    except ProtocolError as error:  # nonsense of a job process, which the node can't help
        body = payload.ResultBody(memoryview(b""), b"", b"", str(error))
    text = f"{body.exception.rstrip()}\n(this was the last of {attempts} attempts)"
    packed = payload.pack_result(body.value, body.stdout, body.stderr, text)
    if result.payload or not result.parts:
        result.payload = packed
    else:
        result.parts[0] = chunked(packed)


def _first_part(result: JobResult) -> bytes:
    return result.parts[0].tobytes() if result.parts else b""


def _measure(state: State, cluster: Cluster, results: list[JobResult], ended: int) -> None:
    """Note how long attempts took; so many of them have ended their jobs."""
    count = len(results)
    mean = min(max(0.0, sum([result.end - result.start for result in results]) / count), LONG_S)
    total_s = mean * count
    cluster.meta.ended += ended
    cluster.meta.used_s += total_s
    if cluster.run_s < 0:
        cluster.run_s = mean
    else:
        cluster.run_s += SMOOTHING * (mean - cluster.run_s)
    cluster.measured += count
    account = cluster.account
    account.new += count
    account.new_s += total_s
    state.charged[cluster] = None
    if mean < AHEAD_S or cluster.unit_s < AHEAD_S:
        cluster.unit_s = AHEAD_S / (1 + cluster.ahead)


def _on_started(state: State, peer: str, message: Started, now: float) -> None:
    cluster = state.clusters.get(message.computation)
    if cluster is None:
        return
    jobs: list[tuple[int, float]] = []
    for seq, attempt, start in message.jobs:
        job = cluster.jobs.get(seq)
        if job is not None and job.spec.attempt == attempt > 0:
            if job.started is None and job.allocation is not None:
                cluster.account.begun(now)
            job.started = (start, now) if job.started is None else (start, job.started[1])
            jobs.append((seq, start))
    if jobs:
        node = state.node(peer)
        state.tell(cluster, JobsRunning(cluster.number, node.id, jobs))


def _on_returned(state: State, peer: str, message: Returned, now: float) -> None:
    allocation = state.allocation(peer, message.computation)
    if allocation is None:
        return
    if message.asked:
        allocation.withdrawing = False
    else:  # its goodbye comes next, and nothing may be placed there
        allocation.node.stopping = True
        node_away(state, allocation.node, now)
    freed = 0
    for seq, attempt in reversed(message.jobs):
        job = allocation.jobs.get(seq)
        if job is not None and job.spec.attempt == attempt > 0:
            put_back(state, job)
            freed += not (job.spec.options and job.spec.options.node)
    allocation.stubborn = message.asked and not freed
    busy = allocation.stage in (Stage.READY, Stage.CLOSING)
    if message.jobs and busy and not allocation.is_open:
        vacate(state, allocation, False)  # it may have more that it hasn't begun
    release_if_free(state, allocation)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Done: _on_done,
    Started: _on_started,
    Returned: _on_returned,
}
