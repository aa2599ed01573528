"""What a session records of its clusters, so that `recover_jobs` can do without the program.

One write for all that has happened since the last, half a microsecond per job and no memory.
There is no file before there is something that outlives the program: a node, or a broker that
others use as well. Then what waits is written, so much at a time that nothing is held up. The
clusters of a program share one file, unless they name others; it is removed when the last of
them has been closed.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dispy.protocol.messages import JobSpec, NodeInfo

from .job import DispyJob, payload_bytes
from .log import logger
from .recorded import (
    BegunRecord,
    BrokerRecord,
    ClosedRecord,
    ClusterRecord,
    EndedRecord,
    Id,
    JobEntry,
    JobsRecord,
    NamesRecord,
    NodeRecord,
    ProgramRecord,
    Record,
    SentRecord,
    SiblingRecord,
)
from .recoverfile import RecoverFile, create

ARGUMENTS_BYTES_MAX = 1 << 20  # of a job; larger ones aren't kept
FILE_BYTES_MAX = 1 << 30  # in a larger file no arguments are kept
RECORD_JOBS = 10_000  # in one record, and in one step
RECORD_BYTES = 4 << 20  # of arguments in one record, unless a single job has more
FIRST_LOOK_S = 0.1  # after jobs were recorded: programs set a job's id just after `submit`
LOOK_S = 1.0  # then so often
LOOK_JOBS = 10_000  # looked at in one step
NO_PARTS: list[bytes] = []  # shared by all jobs whose arguments are small


@dataclass(eq=False)
class Cluster:
    """What of a cluster would have to be recovered if the program ended now."""

    number: int
    program: bool
    path: Path | None
    jobs: dict[int, DispyJob]  # those that have not ended, in order; the core's
    sent: Collection[int]  # of these, those that nodes may have; the core's
    file: RecoverFile | None = None  # made when there is a node that outlives this program
    computation: int = 0
    nodes: dict[int, NodeInfo] = field(default_factory=dict)
    kept: int = 0  # jobs up to this one are in the file
    ids: dict[int, object] = field(default_factory=dict)  # as recorded, unless just numbers
    begun: dict[int, int] = field(default_factory=dict)  # where jobs run
    seen: int = 0  # ids up to that of this job have been looked at since they were recorded
    round: int = 0  # ... and again, in this round

    def last(self) -> int:
        """Return the last job that has not ended."""
        return next(reversed(self.jobs), 0)

    def new_jobs(self) -> Iterator[DispyJob]:
        """Yield the jobs that aren't in the file; their numbers have no gaps but for the ended."""
        found = map(self.jobs.get, range(self.kept + 1, self.last() + 1))
        return (job for job in found if job is not None)

    def jobs_to_look_at(self) -> Iterator[DispyJob]:
        """Yield some jobs whose ids may have changed: new ones first, then all in turns."""
        if self.seen < self.kept:
            seqs = range(self.seen + 1, min(self.kept, self.seen + LOOK_JOBS) + 1)
            self.seen = seqs[-1]
        else:
            begin = self.round if self.round < self.kept else next(iter(self.jobs)) - 1
            seqs = range(begin + 1, min(self.kept, begin + LOOK_JOBS) + 1)
            self.round = begin + len(seqs)
        return (job for job in map(self.jobs.get, seqs) if job is not None)


class Recordings:
    """The recover files of a session's clusters. All methods are for the session's thread.

    ``door`` is where nodes dial in, ``shared_at`` where a broker is that outlives this program,
    each "host:port" or empty; ``token`` proves who this program's own broker is. No method
    raises: what can't be written is told once, and the jobs go on.
    """

    def __init__(self, door: str = "", shared_at: str = "", token: bytes = b"") -> None:
        self.owner = ""  # the instance of this client
        self._door = door
        self._shared_at = shared_at
        self._token = token
        self._broker = ""
        self._clusters: dict[int, Cluster] = {}
        self._files: dict[Path | None, RecoverFile] = {}  # by what users call them
        self._refused: set[Path | None] = set()
        self._folder = Path()  # of files that nobody has named
        self._growing: dict[int, None] = {}  # clusters that may have jobs to record
        self._next_look = float("inf")

    def open(
        self,
        number: int,
        is_program: bool,
        path: str | os.PathLike[str] | None,
        jobs: dict[int, DispyJob],
        sent: Collection[int],
    ) -> None:
        """Begin with a cluster; no file is made so far.

        ``jobs`` are those that have not ended, in the order of their numbers, ``sent`` those of
        them that the broker has. Both are the core's, and are only looked at.
        """
        where = None if path is None else Path(path).absolute()
        self._clusters[number] = Cluster(number, is_program, where, jobs, sent)
        with suppress(OSError):
            self._folder = Path.cwd()

    def opened(self, number: int, computation: int, broker: str) -> None:
        """The broker knows the cluster, by this number."""
        cluster = self._clusters.get(number)
        if cluster is not None:
            self._broker = broker
            cluster.computation = computation
            if cluster.file is not None:
                cluster.file.append(_cluster_record(cluster))
            elif self._shared_at:
                self._begin(cluster)

    def node(self, number: int, info: NodeInfo) -> None:
        """A node is ready for the cluster. A private one, without address, ends with us."""
        cluster = self._clusters.get(number)
        if cluster is None or not info.address:
            return
        cluster.nodes[info.id] = info
        if cluster.file is not None:
            cluster.file.append(_node_record(cluster, info))
        else:
            self._begin(cluster)

    def _begin(self, cluster: Cluster) -> None:
        """Write down what there is of a cluster, and from now on what happens to it."""
        cluster.file = self._file(cluster.path)
        if cluster.file is not None:
            self._growing[cluster.number] = None
            for record in _records(cluster):
                cluster.file.append(record)

    def grown(self, numbers: Iterable[int]) -> None:
        """These clusters may have new jobs."""
        self._growing.update(dict.fromkeys(numbers))

    def sent(self, number: int, seqs: Sequence[int]) -> None:
        """These jobs go to the broker now."""
        cluster = self._clusters.get(number)
        if cluster is not None and cluster.file is not None:
            cluster.file.append(SentRecord(number, list(seqs)))

    def running(self, number: int, node: int, seqs: Sequence[int]) -> None:
        """These jobs are running at a node."""
        cluster = self._clusters.get(number)
        if cluster is not None and cluster.file is not None and node in cluster.nodes:
            cluster.begun.update(dict.fromkeys(seqs, node))
            cluster.file.append(BegunRecord(number, node, list(seqs)))

    def ended(self, number: int, seqs: Sequence[int]) -> None:
        """The ends of these jobs are known."""
        cluster = self._clusters.get(number)
        if cluster is None or cluster.file is None:
            return
        for seq in seqs:
            cluster.ids.pop(seq, None)
            cluster.begun.pop(seq, None)
        cluster.file.append(EndedRecord(number, list(seqs)))
        cluster.file.outdated += len(seqs)

    def closed(self, number: int) -> None:
        """The cluster is over; with the last one of a file, so is the file."""
        cluster = self._clusters.pop(number, None)
        if cluster is None or cluster.file is None:
            return
        file = cluster.file
        if any(other.file is file for other in self._clusters.values()):
            file.append(ClosedRecord(number))
            return
        self._files = {path: other for path, other in self._files.items() if other is not file}
        file.remove()

    def flush(self, now: float) -> None:
        """Write what has happened since the last time."""
        for number in list(self._growing):
            self._record_jobs(number, now)
        if now >= self._next_look:
            self._look_at_ids(now)
        for file in self._files.values():
            if file.buffered:
                file.write()
                if file.is_long and self._is_mostly_old(file):
                    file.rewrite(self._all_records(file))

    def _record_jobs(self, number: int, now: float) -> None:
        """Record some of the jobs that a cluster has got; without a file, not so far."""
        cluster = self._clusters.get(number)
        if cluster is not None and cluster.file is not None:
            last = cluster.last()
            if last > cluster.kept:
                cluster.file.append(_next_jobs(cluster, cluster.new_jobs(), last))
                self._next_look = min(self._next_look, now + FIRST_LOOK_S)
                if last > cluster.kept:
                    return
        del self._growing[number]

    def deadline(self) -> float:
        """When `flush` next has something to do by itself, in seconds of its clock."""
        return float("-inf") if self._growing else self._next_look

    def forget(self) -> None:
        """In a forked child: the files are the parent's."""
        self._clusters.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, path: Path | None) -> RecoverFile | None:
        """Return the file that users call so, made if it isn't there; None: that's impossible."""
        if path in self._files or path in self._refused:
            return self._files.get(path)
        try:
            file = create(path, self._folder, self._program())
        except OSError as error:
            self._refused.add(path)
            logger.warning(
                "no recover file can be made in %s (%s): if this program is killed, its jobs "
                "can't be recovered",
                self._folder if path is None else path.parent,
                error.strerror or error,
            )
            return None
        if self._shared_at:
            file.append(self._place())
        for other in self._files.values():
            other.append(SiblingRecord(str(file.path)))
            file.append(SiblingRecord(str(other.path)))
        self._files[path] = file
        return file

    def _program(self) -> ProgramRecord:
        return ProgramRecord(
            self._broker, self._door, os.getpid(), socket.gethostname(), self._token.hex()
        )

    def _place(self) -> BrokerRecord:
        return BrokerRecord(self._shared_at, self.owner)

    def _all_records(self, file: RecoverFile) -> Iterable[Record]:
        yield self._program()
        if self._shared_at:
            yield self._place()
        for other in self._files.values():
            if other is not file:
                yield SiblingRecord(str(other.path))
        for cluster in self._clusters.values():
            if cluster.file is file:
                yield from _records(cluster)

    def _is_mostly_old(self, file: RecoverFile) -> bool:
        """Whether much more of a file is outdated than isn't."""
        jobs = [cluster.jobs for cluster in self._clusters.values() if cluster.file is file]
        return sum(map(len, jobs)) <= file.outdated // 9

    def _look_at_ids(self, now: float) -> None:
        """Record ids that were set after the jobs had been recorded."""
        self._next_look = float("inf")
        for cluster in self._clusters.values():
            if cluster.file is None or not cluster.jobs:
                continue
            ids = cluster.ids
            jobs = cluster.jobs_to_look_at()
            changed = [job for job in jobs if ids.get(job._seq, job._seq) is not job.id]
            if changed:
                names = [(job._seq, _id(cluster, job)) for job in changed]
                cluster.file.append(NamesRecord(cluster.number, names))
                cluster.file.outdated += len(names)
            pause = LOOK_S if cluster.seen == cluster.kept else FIRST_LOOK_S
            self._next_look = min(self._next_look, now + pause)


def _records(cluster: Cluster) -> Iterator[Record]:
    """Yield what a file must say of a cluster as it is now, but for jobs that weren't in it."""
    yield _cluster_record(cluster)
    for info in cluster.nodes.values():
        yield _node_record(cluster, info)
    jobs, last = iter(cluster.jobs.values()), cluster.kept
    cluster.kept = 0
    while cluster.kept < last:
        yield _next_jobs(cluster, jobs, last)
    yield SentRecord(cluster.number, list(cluster.sent))
    for seq, node in cluster.begun.items():
        yield BegunRecord(cluster.number, node, [seq])


def _cluster_record(cluster: Cluster) -> ClusterRecord:
    return ClusterRecord(cluster.number, cluster.computation, cluster.program)


def _node_record(cluster: Cluster, info: NodeInfo) -> NodeRecord:
    # What a relay calls it is the relay's choice; what it says itself it will say again.
    address = info.addresses[-1] if info.relay and info.addresses else info.address
    return NodeRecord(cluster.number, info.id, address, info.relay)


def _next_jobs(cluster: Cluster, jobs: Iterator[DispyJob], last: int) -> JobsRecord:
    """Return a record of some more of these jobs, at most up to the last, and note that."""
    assert cluster.file is not None
    limit = ARGUMENTS_BYTES_MAX if cluster.file.size < FILE_BYTES_MAX else -1
    entries: list[JobEntry] = []
    space, kept = RECORD_BYTES, last
    for job in jobs:
        seq, job_id = job._seq, job.id
        if seq > last:
            break
        payload, parts = _arguments(job._spec, limit)
        kept_id = seq if job_id is seq else _id(cluster, job)
        entries.append(JobEntry(seq, kept_id, job.submit_time, payload, parts))
        space -= len(payload) + (sum(map(len, parts)) if parts else 0)
        if space < 0 or len(entries) == RECORD_JOBS:
            kept = seq
            break
    cluster.kept = kept
    return JobsRecord(cluster.number, kept, entries)


def _arguments(spec: JobSpec | None, limit: int) -> tuple[bytes, list[bytes]]:
    """Return a job's arguments, unless they are too large."""
    assert spec is not None, "the job has not ended"
    if payload_bytes(spec) > limit:
        return b"", NO_PARTS
    return spec.payload, [part.tobytes() for part in spec.parts] if spec.parts else NO_PARTS


def _id(cluster: Cluster, job: DispyJob) -> Id:
    """Return a job's id as it is kept, and remember which it was."""
    job_id = cluster.ids[job._seq] = job.id
    kind = type(job_id)
    if kind is int and -(1 << 63) <= job_id < 1 << 63:
        return int(job_id)
    if kind is str and job_id.isascii():
        return str(job_id)
    try:
        return (pickle.dumps(job_id),)
    except Exception:  # whatever the user's own code raises
        return ascii(job_id)
