"""Batches: what a broker with a journal keeps of the jobs that it has taken.

A batch is kept as it came; how far its jobs have got is a small value beside it, written anew at
each flush in which something of that has changed, so before anybody hears of it. Only this file
changes a batch. Without a journal there are none, and none of this is called for a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from dispy.protocol.messages import Accepted, Credit, JobSpec, Submit

from .durable import CANCELLED_MARK, JobMark, KeptBatch, Progress
from .effects import DropBatch, KeepBatch, KeepProgress
from .state import Allocation, Batch, Cluster, Job, State

READY_MIN = 64  # jobs in memory, however large; beside twice as many as there are CPUs
CROWD = 8  # clusters with waiting jobs; when there are more, each has less in memory
WINDOW = 20_000  # jobs that a client may send before they have been accepted


def new_record(state: State) -> int:
    """Return a number for a batch, or for results; it is higher than all before."""
    state.record_ids += 1
    return state.record_ids


def keep(state: State, cluster: Cluster, specs: list[JobSpec]) -> Batch:
    """Make a batch of new jobs."""
    priority = priority_of(specs)
    plain = priority is not None
    seqs = [spec.seq for spec in specs]
    count = len(specs)
    batch = Batch(
        new_record(state),
        cluster,
        min(seqs),
        max(seqs),
        count,
        plain,
        priority or 0,
        bytearray((count + 7) // 8),
        count,
    )
    batch.mean_bytes = size_of(specs) // count
    _register(state, batch)
    submit = Submit(cluster.number, specs)
    state.effects.append(KeepBatch(batch.id, cluster.id, submit, plain, batch.priority))
    return batch


def recall(state: State, cluster: Cluster, kept: KeptBatch) -> Batch:
    """Make a batch of what was kept of it; its jobs are still on disk."""
    ended = bytearray((kept.count + 7) // 8)
    ended[: len(kept.progress.ended)] = kept.progress.ended
    batch = Batch(
        kept.id,
        cluster,
        kept.first,
        kept.last,
        kept.count,
        kept.plain,
        kept.priority,
        ended,
        kept.count - sum(each.bit_count() for each in ended),
    )
    batch.marks = {mark.index: mark for mark in kept.progress.jobs}
    batch.loaded = False
    _register(state, batch)
    return batch


def _register(state: State, batch: Batch) -> None:
    state.batches[batch.id] = batch.cluster.batches[batch.id] = batch


def priority_of(specs: list[JobSpec]) -> int | None:
    """Return the priority of jobs that can wait on disk together; None when they can't.

    They need be in order, without gaps, for any node, without files, and of one priority: then
    little has to be known of them until their turn comes.
    """
    options = specs[0].options
    priority = options.priority if options is not None else 0
    for seq, spec in enumerate(specs, specs[0].seq):
        if spec.seq != seq:
            return None
        options = spec.options
        if options is None:
            if priority:
                return None
        elif options.node or options.files or options.priority != priority:
            return None
    return priority


def size_of(specs: Iterable[JobSpec]) -> int:
    """Return how many bytes of payload jobs have."""
    size = 0
    for spec in specs:
        size += len(spec.payload)
        if spec.parts:
            size += sum([part.size for part in spec.parts])
    return size


def ranges(seqs: list[int]) -> Iterator[tuple[int, int]]:
    """Return numbers as ranges: first and last."""
    if not seqs:
        return
    first = seqs[0]
    for one, other in pairwise(seqs):
        if other != one + 1:
            yield first, one
            first = other
    yield first, seqs[-1]


# -- how far they have got ------------------------------------------------------------------


def note(state: State, job: Job) -> None:
    """Note where a job is that has been at a node, and what became of it there."""
    batch = job.batch
    if batch is not None:
        allocation = job.allocation
        _mark(batch, job, 0 if allocation is None else allocation.node.id)
        state.dirty[batch] = None


def _mark(batch: Batch, job: Job, node: int) -> None:
    marks = CANCELLED_MARK if job.cancelled else 0
    batch.marks[job.index] = JobMark(
        job.index, job.spec.attempt, node, job.failures, job.losses, marks
    )


def note_placed(state: State, allocation: Allocation, specs: list[JobSpec]) -> None:
    """Note that jobs are about to be sent to a node."""
    cluster, node = allocation.cluster, allocation.node.id
    jobs = cluster.jobs
    for spec in specs:
        job = jobs[spec.seq]
        batch = job.batch
        if batch is not None:
            _mark(batch, job, node)
            state.dirty[batch] = None
    if cluster.backlog.waiting:
        state.backlogged[cluster] = None


def note_ended(state: State, job: Job) -> None:
    """Note that a job in memory has ended."""
    batch = job.batch
    if batch is not None:
        cluster = batch.cluster
        cluster.loaded_bytes -= batch.mean_bytes
        if not batch.plain:
            cluster.fixed_jobs -= 1
            cluster.fixed_bytes -= batch.mean_bytes
            state.uncredited[cluster] = None
        batch.marks.pop(job.index, None)
        strike(state, batch, job.index)
        if cluster.backlog.waiting:
            state.backlogged[cluster] = None


def strike(state: State, batch: Batch, index: int) -> None:
    """Note that a job of a batch has ended, wherever it waits."""
    batch.ended[index >> 3] |= 1 << (index & 7)
    batch.left -= 1
    state.dirty[batch] = None


def strike_all(state: State, batch: Batch) -> None:
    """Note that all jobs of a batch that waits on disk have ended."""
    batch.ended[:] = ((1 << batch.count) - 1).to_bytes(len(batch.ended), "little")
    batch.left = 0
    state.dirty[batch] = None


def has_ended(batch: Batch, index: int) -> bool:
    """Whether a job of a batch has ended."""
    return bool(batch.ended[index >> 3] >> (index & 7) & 1)


def left_in(batch: Batch) -> list[int]:
    """Return the places of the jobs that have not ended."""
    if batch.left == batch.count:
        return list(range(batch.count))
    return [index for index in range(batch.count) if not has_ended(batch, index)]


def say_progress(state: State) -> None:
    """Have kept what has changed since the last flush, and tell clients what was accepted."""
    closed: dict[Cluster, None] = {}
    for batch in state.dirty:
        if batch.left:
            progress = Progress(bytes(batch.ended), list(batch.marks.values()))
            state.effects.append(KeepProgress(batch.id, progress))
        else:
            del state.batches[batch.id], batch.cluster.batches[batch.id]
            closed[batch.cluster] = None
            state.effects.append(DropBatch(batch.id))
    state.dirty = {}
    for cluster in closed:  # how many jobs there ever were can't be known from batches any more
        if cluster.id in state.clusters:
            state.keep(cluster)
    for cluster, accepted in state.accepted.items():
        state.tell(cluster, Accepted(cluster.number, accepted))
    state.accepted = {}


def accept(state: State, cluster: Cluster, seqs: list[int]) -> None:
    """Tell the client at the next flush that it needn't submit these again."""
    accepted = state.accepted.setdefault(cluster, [])
    for first, last in ranges(seqs):
        if accepted and accepted[-1][1] + 1 == first:
            accepted[-1] = accepted[-1][0], last
        else:
            accepted.append((first, last))


# -- how many of them may be in memory --------------------------------------------------------


class Room(NamedTuple):
    """What may be in memory of a cluster's jobs: so many, or so many bytes of payload.

    Beside that, however large they are, ``ready`` jobs, so that no CPU waits for the disk.
    """

    jobs: int
    size: int
    ready: int


def room_for(state: State, cluster: Cluster) -> Room:
    """Return what may be in memory of a cluster: of all together it is bounded as well."""
    settings, sharing = state.settings, state.sharing
    part = min(1.0, CROWD / max(1, sharing.ready.count + sharing.blocked.count))
    ready = min(READY_MIN, settings.loaded_jobs) + int(2 * cluster.capacity * part)
    return Room(int(settings.loaded_jobs * part), int(settings.loaded_bytes * part), ready)


# -- how many more may come -----------------------------------------------------------------


def grant(state: State, cluster: Cluster) -> None:
    """Let the client send as fast as jobs get onto the disk, whatever becomes of them then.

    Only jobs that can't wait on disk are bounded: they fill the memory.
    """
    if state.trouble or cluster.closing:
        return
    if _is_crowded(state, cluster):
        return  # asked again when one of these jobs is placed, or ends
    limit = cluster.submitted + WINDOW
    if limit - cluster.credit >= WINDOW // 4:
        cluster.credit = limit
        state.tell(cluster, Credit(cluster.number, limit))


def _is_crowded(state: State, cluster: Cluster) -> bool:
    """Whether there is enough to do, and much of it can't wait on disk."""
    room = room_for(state, cluster)
    if cluster.line.waiting + cluster.pinned <= room.ready:
        return False
    return cluster.fixed_jobs > room.jobs or cluster.fixed_bytes > room.size
