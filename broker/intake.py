"""Jobs come in, and those that are many wait on disk until their turn is near.

Without a journal they all are in memory, and their clients send no more than is soon needed.
"""

from __future__ import annotations

from dispy.protocol.messages import ABANDONED, JobSpec

from .backlog import follow, report
from .batches import accept, has_ended, keep, left_in, room_for, size_of, strike
from .blobs import need_for_jobs
from .effects import Load
from .hope import end_hopeless
from .jobs import pin, resume, take_turns
from .seen import check_numbers
from .state import Batch, Cluster, Job, State

UNREADABLE = "the job can't be read from the broker's journal any more"


def take_in(state: State, cluster: Cluster, specs: list[JobSpec]) -> None:
    """Take jobs that a client has submitted; those that are known were sent again."""
    pinned: list[Job] = []
    check_numbers([spec.seq for spec in specs])  # before any of them is taken
    if state.settings.durable:
        _take_and_keep(state, cluster, specs, pinned)
    else:
        jobs, line, seen = cluster.jobs, cluster.line, cluster.seen
        known = len(jobs)
        for spec in specs:
            if not seen.add(spec.seq):
                continue
            spec.attempt = 0
            job = jobs[spec.seq] = Job(spec)
            if spec.options is None or not spec.options.node:
                line.append(job)
            else:
                pinned.append(job)
        cluster.submitted += len(jobs) - known
    _go_on(state, cluster, pinned)


def _go_on(state: State, cluster: Cluster, pinned: list[Job]) -> None:
    """Have jobs that have come into memory placed."""
    for job in pinned:
        pin(state, cluster, job)
    take_turns(state, cluster)
    end_hopeless(state, cluster)


def _take_and_keep(state: State, cluster: Cluster, specs: list[JobSpec], pinned: list[Job]) -> None:
    add = cluster.seen.add
    new = [spec for spec in specs if add(spec.seq)]
    accept(state, cluster, [spec.seq for spec in specs])
    if not new:
        return
    cluster.submitted += len(new)
    state.uncredited[cluster] = None
    batch = keep(state, cluster, new)
    if batch.plain and _is_full(state, batch):
        batch.loaded = False
        cluster.backlog.append(batch)
        state.backlogged[cluster] = None
    else:
        _enter(batch, new, pinned)


def _is_full(state: State, batch: Batch) -> bool:
    """Whether a new batch can wait on disk, since there is enough to do before it."""
    cluster = batch.cluster
    if cluster.backlog.has(batch.priority):
        return True
    room = room_for(state, cluster)
    jobs = cluster.line.waiting + cluster.pinned
    if jobs < room.jobs and cluster.loaded_bytes < room.size:
        return False
    return not _runs_low(state, cluster, batch.priority)


def _enter(batch: Batch, specs: list[JobSpec], pinned: list[Job]) -> list[Job]:
    """Have a batch's jobs in memory; return those that have been at a node."""
    cluster = batch.cluster
    jobs, line, marks = cluster.jobs, cluster.line, batch.marks
    some_ended = batch.left < batch.count
    marked: list[Job] = []
    for index, spec in enumerate(specs):
        if some_ended and has_ended(batch, index):
            continue
        spec.attempt = 0
        job = jobs[spec.seq] = Job(spec)
        job.batch, job.index = batch, index
        if marks and index in marks:
            marked.append(job)
        elif spec.options is None or not spec.options.node:
            line.append(job)
        else:
            pinned.append(job)
    for index in batch.followed:
        follow(specs[index])
    batch.loaded = True
    cluster.loaded_bytes += batch.left * batch.mean_bytes
    if not batch.plain:
        cluster.fixed_jobs += batch.left
        cluster.fixed_bytes += batch.left * batch.mean_bytes
    return marked


# -- their turn is near ---------------------------------------------------------------------


def load_ahead(state: State) -> None:
    """Have batches read that will soon be needed."""
    clusters, state.backlogged = state.backlogged, {}
    for cluster in clusters:
        backlog = cluster.backlog
        if not backlog.waiting or cluster.closing:
            continue
        first = next(iter(backlog))
        if not _runs_low(state, cluster, first.priority):
            continue
        if not any(batch.loading for batch in backlog):  # else seen again when they are there
            _load_some(state, cluster, first.priority)


def _runs_low(state: State, cluster: Cluster, priority: int) -> bool:
    """Whether few jobs are left in memory that go before further ones of this priority."""
    ready = cluster.line.count_from(priority)
    room = room_for(state, cluster)
    if ready < room.ready:
        return True
    return ready < room.jobs // 4 and cluster.loaded_bytes < room.size // 4


def _load_some(state: State, cluster: Cluster, priority: int) -> None:
    """Have batches of a priority read, up to half of what may be in memory.

    When it isn't known how large a batch is, it is the last one for now.
    """
    room = room_for(state, cluster)
    jobs = cluster.line.count_from(priority)
    size = cluster.loaded_bytes
    for batch in cluster.backlog:
        if batch.priority != priority:
            return
        load(state, batch)
        jobs += batch.left
        size += batch.left * batch.mean_bytes
        is_enough = jobs >= room.jobs // 2 or size >= room.size // 2
        if is_enough or not batch.mean_bytes:
            return


def load(state: State, batch: Batch) -> None:
    """Have a batch read."""
    batch.loading = True
    state.effects.append(Load(batch.id))


def loaded(state: State, batch_id: int, specs: list[JobSpec] | None) -> None:
    """A batch has been read; None: it is not there."""
    batch = state.batches.get(batch_id)
    if batch is None or batch.loaded:
        return  # all its jobs have ended meanwhile
    cluster = batch.cluster
    batch.loading = False
    state.backlogged[cluster] = None
    if batch in cluster.backlog:
        cluster.backlog.remove(batch)
    if specs is None or len(specs) != batch.count:
        _lose(state, batch)
        return
    batch.mean_bytes = size_of(specs) // batch.count
    pinned: list[Job] = []
    if not batch.plain:
        for spec in specs:
            cluster.seen.add(spec.seq)  # those of plain ones are known
    need_for_jobs(state, cluster, specs)
    for job in reversed(_enter(batch, specs, pinned)):
        resume(state, cluster, job)
    _go_on(state, cluster, pinned)


def _lose(state: State, batch: Batch) -> None:
    """End the jobs of a batch that can't be read; of others than plain ones nothing is known."""
    batch.marks.clear()
    for index in left_in(batch):
        strike(state, batch, index)
        if batch.plain:
            report(state, batch, index, ABANDONED, UNREADABLE)
