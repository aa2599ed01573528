"""What a session records of its clusters, so that `recover_jobs` can do without the program.

One write for all that has happened since the last, about half a microsecond per job. There is
no file before there is a node that outlives the program. The clusters of a program share one
file, unless they name others; it is removed when the last of them has been closed.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dispy.protocol.messages import JobSpec, NodeInfo

from .job import DispyJob
from .log import logger
from .recorded import (
    BegunRecord,
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
    SiblingRecord,
)
from .recoverfile import RecoverFile, check_path, create

__all__ = ["Recordings", "check_path"]

ARGUMENTS_BYTES_MAX = 1 << 20  # of a job; larger ones aren't kept
JOBS_BYTES_MAX = 64 << 20  # of one record
FIRST_LOOK_S = 0.1  # after jobs were sent: programs set a job's id just after `submit`
LOOK_S = 1.0  # then so often


@dataclass(eq=False)
class Cluster:
    """What of a cluster would have to be recovered if the program ended now."""

    number: int
    name: str
    program: bool
    path: Path | None
    file: RecoverFile | None = None  # made when there is a node that outlives this program
    computation: int = 0
    last_seq: int = 0
    nodes: dict[int, NodeInfo] = field(default_factory=dict)
    jobs: dict[int, DispyJob] = field(default_factory=dict)  # sent, not ended
    ids: dict[int, object] = field(default_factory=dict)  # of these, as they were recorded
    begun: dict[int, int] = field(default_factory=dict)  # of these, where they run


class Recordings:
    """The recover files of a session's clusters. All methods are for the session's thread.

    ``door`` is where nodes dial in, "host:port". No method raises: what can't be written is
    told once, and the jobs go on.
    """

    def __init__(self, door: str = "") -> None:
        self._door = door
        self._broker = ""
        self._clusters: dict[int, Cluster] = {}
        self._files: dict[Path | None, RecoverFile] = {}  # by what users call them
        self._refused: set[Path | None] = set()
        self._folder = Path()  # of files that nobody has named
        self._are_new = False  # jobs have been sent whose ids may still change
        self._next_look = float("inf")

    def open(
        self, number: int, name: str, is_program: bool, path: str | os.PathLike[str] | None
    ) -> None:
        """Begin with a cluster; no file is made so far."""
        where = None if path is None else Path(path).absolute()
        self._clusters[number] = Cluster(number, name, is_program, where)
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

    def node(self, number: int, info: NodeInfo) -> None:
        """A node is ready for the cluster. A private one, without address, ends with us."""
        cluster = self._clusters.get(number)
        if cluster is None or not info.address:
            return
        cluster.nodes[info.id] = info
        if cluster.file is not None:
            cluster.file.append(_node_record(cluster, info))
            return
        cluster.file = self._file(cluster.path)
        if cluster.file is not None:
            self._are_new = True
            for record in _records(cluster):
                cluster.file.append(record)

    def sent(self, number: int, jobs: Sequence[DispyJob]) -> None:
        """These jobs go to the broker now."""
        cluster = self._clusters.get(number)
        if cluster is None or not jobs:
            return
        for job in jobs:
            cluster.jobs[job._seq] = job
        cluster.last_seq = max(cluster.last_seq, job._seq)
        if cluster.file is not None:
            self._are_new = True
            for record in _jobs_records(cluster, jobs):
                cluster.file.append(record)

    def running(self, number: int, node: int, seqs: Sequence[int]) -> None:
        """These jobs are running at a node."""
        cluster = self._clusters.get(number)
        if cluster is None or node not in cluster.nodes:
            return
        known = [seq for seq in seqs if seq in cluster.jobs]
        cluster.begun.update(dict.fromkeys(known, node))
        if cluster.file is not None:
            cluster.file.append(BegunRecord(number, node, known))

    def ended(self, number: int, seqs: Sequence[int]) -> None:
        """The ends of these jobs are known."""
        cluster = self._clusters.get(number)
        if cluster is None:
            return
        ended = [seq for seq in seqs if cluster.jobs.pop(seq, None) is not None]
        for seq in ended:
            cluster.ids.pop(seq, None)
            cluster.begun.pop(seq, None)
        if cluster.file is not None and ended:
            cluster.file.append(EndedRecord(number, ended))

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
        if self._are_new:
            self._are_new = False
            self._next_look = min(self._next_look, now + FIRST_LOOK_S)
        if now >= self._next_look:
            self._look_at_ids(now)
        for file in self._files.values():
            if file.is_long:
                file.rewrite(self._all_records(file))
            file.write()

    def deadline(self) -> float:
        """When `flush` next has something to do by itself, in seconds of its clock."""
        return self._next_look

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
        for other in self._files.values():
            other.append(SiblingRecord(str(file.path)))
            file.append(SiblingRecord(str(other.path)))
        self._files[path] = file
        return file

    def _program(self) -> ProgramRecord:
        return ProgramRecord(self._broker, self._door, os.getpid(), socket.gethostname())

    def _all_records(self, file: RecoverFile) -> Iterable[Record]:
        yield self._program()
        for other in self._files.values():
            if other is not file:
                yield SiblingRecord(str(other.path))
        for cluster in self._clusters.values():
            if cluster.file is file:
                yield from _records(cluster)

    def _look_at_ids(self, now: float) -> None:
        """Record ids that were set after the jobs had been sent."""
        self._next_look = float("inf")
        for cluster in self._clusters.values():
            if cluster.file is None or not cluster.jobs:
                continue
            self._next_look = now + LOOK_S
            ids = cluster.ids
            changed = [job for seq, job in cluster.jobs.items() if ids.get(seq) is not job.id]
            if changed:
                names = [(job._seq, _id(cluster, job)) for job in changed]
                cluster.file.append(NamesRecord(cluster.number, names))


def _records(cluster: Cluster) -> Iterable[Record]:
    """Yield what a file must say of a cluster as it is now.

    Which jobs have ended comes last: without the others it would be wrong.
    """
    yield _cluster_record(cluster)
    for info in cluster.nodes.values():
        yield _node_record(cluster, info)
    yield from _jobs_records(cluster, cluster.jobs.values())
    for seq, node in cluster.begun.items():
        yield BegunRecord(cluster.number, node, [seq])
    yield _cluster_record(cluster, cluster.last_seq)


def _cluster_record(cluster: Cluster, ended_to: int = 0) -> ClusterRecord:
    number, computation = cluster.number, cluster.computation
    return ClusterRecord(number, computation, cluster.name, cluster.program, ended_to)


def _node_record(cluster: Cluster, info: NodeInfo) -> NodeRecord:
    return NodeRecord(cluster.number, info.id, info.address, info.name)


def _jobs_records(cluster: Cluster, jobs: Iterable[DispyJob]) -> Iterable[JobsRecord]:
    """Yield one record, or several if the arguments are large."""
    entries: list[JobEntry] = []
    size = 0
    for job in jobs:
        spec = job._spec
        payload, parts = (b"", []) if spec is None else _arguments(spec)
        entries.append(JobEntry(job._seq, _id(cluster, job), job.submit_time, payload, parts))
        size += len(payload)
        if parts:
            size += sum(len(part) for part in parts)
        if size > JOBS_BYTES_MAX:
            yield JobsRecord(cluster.number, entries)
            entries, size = [], 0
    if entries:
        yield JobsRecord(cluster.number, entries)


def _arguments(spec: JobSpec) -> tuple[bytes, list[bytes]]:
    """Return a job's arguments, unless they are too large."""
    if not spec.parts:
        return spec.payload, []
    if len(spec.payload) + sum(part.size for part in spec.parts) > ARGUMENTS_BYTES_MAX:
        return b"", []
    return spec.payload, [part.tobytes() for part in spec.parts]


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
