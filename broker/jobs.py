"""The life of a job in the broker: it waits, is tried again, or ends without a node's word.

Only this file, `placement` and `turns` say where a job is.
"""

from __future__ import annotations

from dispy.protocol import payload
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    TERMINATED,
    Heard,
    JobResult,
    JobsRunning,
    Run,
)

from .batches import note, note_ended, note_placed
from .durable import CANCELLED_MARK
from .effects import KeepAbandoned
from .line import Line
from .matching import entry_for, share_of
from .placement import look, offer, put, take_off
from .records import LAST
from .state import Allocation, Cluster, Job, Node, Share, Stage, State

LOSSES_MAX = 10  # a re-entrant job that so many nodes were lost with isn't tried again
ABANDONED_MAX = 100_000  # jobs of a cluster that may still finish when their nodes come back


def take_turns(state: State, cluster: Cluster) -> None:
    """Have the cluster's waiting jobs placed at the next flush."""
    account = cluster.account
    if not cluster.in_turns:
        cluster.in_turns = True
        if state.now >= state.sharing.look_at:
            look(state)
        state.sharing.join(account, cluster)
    elif account.blocked and (account.narrow or cluster.heap):
        state.sharing.unblock(account)


def pin(state: State, cluster: Cluster, job: Job) -> None:
    """Have a new job wait for the only node that may run it; end it if there is none such."""
    assert job.spec.options is not None
    node = job.spec.options.node
    allocation = cluster.allocations.get(node) or _recalled(state, cluster, node)
    refusal = _refusal(state, node, allocation)
    if refusal is not None:
        job.ended = True
        _report(state, cluster, job, 0, *refusal)
        return
    assert allocation is not None
    if allocation.pinned is None:
        allocation.pinned = Line()
    allocation.pinned.append(job)
    cluster.pinned += 1
    state.uncredited[cluster] = None
    offer(allocation)


def _recalled(state: State, cluster: Cluster, number: int) -> Allocation | None:
    """Return the part of a node that may have had one before the broker was started."""
    if state.now >= state.recovering_until:
        return None
    node = next((each for each in state.nodes.values() if each.id == number), None)
    if node is None or node.counted or entry_for(cluster.specs, node) is None:
        return None
    return recall(cluster, node)


def recall(cluster: Cluster, node: Node) -> Allocation:
    """Have a node that is away keep its part in a cluster, until it is back or lost."""
    allocation = cluster.allocations.get(node.id)
    if allocation is None:
        entry = entry_for(cluster.specs, node)
        share = Share(node.identity.cpus) if entry is None else share_of(entry, node)
        share = cluster.shares.get(node.peer, share)
        allocation = Allocation(cluster, node, share)
        allocation.suspended = node.peer in cluster.suspended
        node.allocations[cluster.id] = cluster.allocations[node.id] = allocation
        allocation.pinned = Line()
        allocation.enter(Stage.READY if share.cpus else Stage.CLOSING)
    return allocation


def resume(state: State, cluster: Cluster, job: Job) -> None:
    """Go on with a job that had been at a node when the broker ended."""
    assert job.batch is not None
    mark, options = job.batch.marks[job.index], job.spec.options
    job.spec.attempt = mark.attempt
    job.failures, job.losses = mark.failures, mark.losses
    job.cancelled = bool(mark.marks & CANCELLED_MARK)
    allocation = cluster.allocations.get(mark.node)
    if allocation is not None:
        put(job, allocation)
        # What it has said, and waits to be heard, went with the broker.
        job.heard = [Heard(job.spec.seq, mark.attempt, LAST, "the broker was restarted")]
    elif options is not None and options.node:
        pin(state, cluster, job)
    else:
        cluster.line.put_back(job)


def adopt(state: State, allocation: Allocation, job: Job) -> None:
    """Have a job that waits for another attempt go on at the node where it still runs."""
    cluster = allocation.cluster
    leave_line(cluster, job)  # this entry of the line; the job goes on as another
    cluster.jobs[job.spec.seq] = adopted = Job(job.spec)
    adopted.batch, adopted.index = job.batch, job.index
    adopted.losses = job.losses
    adopted.heard = job.heard
    adopted.failures = max(0, job.failures - 1)  # that attempt hasn't failed after all
    adopted.started = job.started
    put(adopted, allocation)
    note(state, adopted)
    if job.started is not None:  # the client has been told that it waits
        running = [(job.spec.seq, job.started[0])]
        state.tell(cluster, JobsRunning(cluster.number, allocation.node.id, running))


def _refusal(state: State, node: int, allocation: Allocation | None) -> tuple[int, str] | None:
    """Say how a job must end that only this node may run; None: it may wait."""
    if allocation is None:
        if any(each.id == node for each in state.nodes.values()):
            return CANCELLED, f"the cluster does not use node {node}, the only one that may run it"
        if 0 < node <= state.node_ids:
            return ABANDONED, f"node {node}, the only one that may run it, was lost"
        return CANCELLED, f"there is no node {node}, the only one that may run it"
    name = allocation.node.title
    if allocation.stage is Stage.FAILED:
        return TERMINATED, f"node {name} could not set the computation up: {allocation.error}"
    if allocation.stage is Stage.UNUSED:
        return CANCELLED, f"the cluster does not use node {name}, the only one that may run it"
    closing = allocation.stage in (Stage.CLOSING, Stage.RELEASING) and not allocation.anew
    if closing or allocation.stage is Stage.CLOSED:
        return CANCELLED, f"node {name}, the only one that may run it, was closed"
    return None


def end_pinned(state: State, allocation: Allocation, status: int, reason: str) -> None:
    """End what waits for this node only."""
    for job in list(allocation.pinned or ()):
        end(state, allocation.cluster, job, status, reason)


def put_back(state: State, job: Job) -> None:
    """Have a job that was given to a node wait again, before all others of its priority."""
    allocation = job.allocation
    assert allocation is not None
    cluster = allocation.cluster
    if job.cancelled:
        end(state, cluster, job, CANCELLED, "cancelled before it began")
        return
    take_off(state, job)
    options = job.spec.options
    if options is None or not options.node:
        cluster.line.put_back(job)
    else:
        refusal = _refusal(state, options.node, allocation)
        if refusal is not None:
            job.ended = True
            _report(state, cluster, job, allocation.node.id, *refusal)
            return
        cluster.line_of(job.spec).put_back(job)
        cluster.pinned += 1
        offer(allocation)
    note(state, job)
    take_turns(state, cluster)


def try_again(state: State, job: Job) -> None:
    """Have a job that was begun wait for another attempt, and tell its client."""
    assert job.allocation is not None
    cluster = job.allocation.cluster
    put_back(state, job)
    if not job.ended:
        state.requeued.setdefault(cluster, []).append(job.spec.seq)


def lose(state: State, job: Job, reason: str) -> None:
    """The job's node is lost: run it again where that is allowed."""
    allocation = job.allocation
    assert allocation is not None
    cluster, options = allocation.cluster, job.spec.options
    job.losses += 1
    may_repeat = cluster.opened.reentrant and job.losses < LOSSES_MAX
    pinned = False
    if options is not None:
        pinned = bool(options.node)
        job.failures += bool(options.retries)
        may_repeat = may_repeat or 0 < job.failures <= options.retries
    if job.cancelled:
        end(state, cluster, job, CANCELLED, f"cancelled; {reason}")
    elif not may_repeat or pinned:
        _note_abandoned(state, cluster, job)
        end(state, cluster, job, ABANDONED, reason)
    elif job.started is not None or job.heard or job.failures:
        try_again(state, job)
    else:
        put_back(state, job)  # as far as the client knows it hasn't begun


def _note_abandoned(state: State, cluster: Cluster, job: Job) -> None:
    changes = [(job.spec.seq, job.spec.attempt)]
    if len(cluster.abandoned) >= ABANDONED_MAX:
        oldest = next(iter(cluster.abandoned))
        del cluster.abandoned[oldest]
        changes.append((oldest, 0))
    cluster.abandoned[job.spec.seq] = job.spec.attempt
    if state.settings.durable:
        state.effects.append(KeepAbandoned(cluster.id, changes))


def end(state: State, cluster: Cluster, job: Job, status: int, reason: str) -> None:
    """End a job that no node will report."""
    node_id = 0
    if job.allocation is not None:
        node_id = job.allocation.node.id
        _withhold(state, job)
        take_off(state, job)
        job.ended = True
    else:
        leave_line(cluster, job)
    _report(state, cluster, job, node_id, status, reason)


def leave_line(cluster: Cluster, job: Job) -> None:
    """Take a job that has ended out of the line that it waits in."""
    line = cluster.line_of(job.spec)
    line.strike(job)
    if line is not cluster.line:
        cluster.pinned -= 1


def _report(
    state: State, cluster: Cluster, job: Job, node_id: int, status: int, reason: str
) -> None:
    """Tell the client how a job has ended that is nowhere any more."""
    if job.spec.attempt == 0:  # its place in the line is free for another one
        cluster.placed += 1
        state.uncredited[cluster] = None
    del cluster.jobs[job.spec.seq]
    cluster.meta.ended += 1
    note_ended(state, job)
    body = payload.pack_result(b"", b"", b"", reason)
    result = JobResult(job.spec.seq, job.spec.attempt, status, 0.0, 0.0, body)
    state.results.setdefault((cluster, node_id), []).append(result)


def _withhold(state: State, job: Job) -> None:
    """Don't send what has ended in the moment of its placement."""
    assert job.allocation is not None
    run = state.runs.get(job.allocation)
    if run is not None and job.spec in run:
        run.remove(job.spec)


def hand_over(state: State, allocation: Allocation) -> None:
    """Send what was placed since the last flush at once."""
    run = state.runs.pop(allocation, None)
    if run:
        if state.settings.durable:
            note_placed(state, allocation, run)
        state.order(allocation, Run(allocation.cluster.id, run))
