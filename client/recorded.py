"""What a recover file holds, record by record, and how it is read.

A file begins with `MAGIC`, then come records: length, CRC-32, and one value in msgpack. It is
only appended to; a record that is cut off or damaged ends what can be read. Pure.
"""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from dispy.protocol.errors import DispyError
from dispy.protocol.messages import Buffer

MAGIC = b"dispy recover file 1\n"

_HEAD = struct.Struct("<II")  # length, CRC-32

Id: TypeAlias = int | str | tuple[bytes]  # as it is kept; in a tuple: pickled


class RecoverError(DispyError, OSError):
    """A recover file that is of no use, and why."""


class Record(msgspec.Struct, array_like=True, gc=False):
    """Base of what is in a file."""


class ProgramRecord(Record, tag=1):
    """Whose file it is; the first record."""

    broker: str  # instance id
    door: str  # where nodes dial in, "host:port"
    pid: int
    host: str
    token: str = ""  # hex; proves that one is this broker


class ClusterRecord(Record, tag=2):
    """A cluster has been opened."""

    cluster: int  # the client's number
    computation: int  # the broker's
    program: bool  # it isn't a function


class NodeRecord(Record, tag=3):
    """A node is ready for a cluster."""

    cluster: int
    node: int  # its id
    address: str  # "host:port"
    relay: str = ""  # where to find the relay that it is behind; empty: none, or that one dials


class JobEntry(Record):
    """One job as it was submitted; neither ``payload`` nor ``parts``: they were too large."""

    seq: int
    id: Id
    submit_time: float
    payload: bytes
    parts: list[bytes] = []


class JobsRecord(Record, tag=4):
    """Jobs have been submitted. All up to ``up_to`` that have not ended are in the file now."""

    cluster: int
    up_to: int
    jobs: list[JobEntry]


class BegunRecord(Record, tag=5):
    """Jobs are running at a node."""

    cluster: int
    node: int
    jobs: list[int]


class EndedRecord(Record, tag=6):
    """Jobs have ended, and whoever waited for them knows it."""

    cluster: int
    jobs: list[int]


class NamesRecord(Record, tag=7):
    """Jobs have got other ids."""

    cluster: int
    jobs: list[tuple[int, Id]]


class ClosedRecord(Record, tag=8):
    """A cluster is over."""

    cluster: int


class ResultRecord(Record, tag=9):
    """A recovery has got the result of a job, which its node has forgotten since."""

    computation: int
    host: str
    seq: int
    attempt: int
    status: int
    start: float
    end: float
    payload: bytes
    parts: list[bytes] = []


class SiblingRecord(Record, tag=10):
    """The same program has another recover file."""

    path: str


class SentRecord(Record, tag=11):
    """Nodes may have these jobs from now on."""

    cluster: int
    jobs: list[int]


class BrokerRecord(Record, tag=12):
    """The program's broker is not its own: that is where its clusters are."""

    address: str  # "host:port"
    owner: str  # the instance of the client, which the broker knows it by


AnyRecord: TypeAlias = (
    ProgramRecord
    | BrokerRecord
    | ClusterRecord
    | NodeRecord
    | JobsRecord
    | BegunRecord
    | EndedRecord
    | NamesRecord
    | ClosedRecord
    | ResultRecord
    | SiblingRecord
    | SentRecord
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AnyRecord).decode


@dataclass
class RecordedCluster:
    """What a file says about a cluster."""

    number: int
    computation: int = 0  # the broker's number, the last one if it had several
    program: bool = False
    closed: bool = False
    nodes: dict[int, NodeRecord] = field(default_factory=dict)
    jobs: dict[int, JobEntry] = field(default_factory=dict)  # that have not ended
    sent: set[int] = field(default_factory=set)
    begun: dict[int, int] = field(default_factory=dict)  # seq to node
    ended: set[int] = field(default_factory=set)
    up_to: int = 0  # jobs up to this one have ended, unless they are here

    def has_ended(self, seq: int) -> bool:
        """Whether the end of this job was known to the program."""
        return seq not in self.jobs and (seq <= self.up_to or seq in self.ended)


@dataclass
class Recorded:
    """What a file says."""

    program: ProgramRecord
    clusters: dict[int, RecordedCluster] = field(default_factory=dict)
    computations: dict[int, RecordedCluster] = field(default_factory=dict)
    results: list[ResultRecord] = field(default_factory=list)
    siblings: list[str] = field(default_factory=list)
    shared: BrokerRecord | None = None  # the broker, unless it was the program's own
    good_bytes: int = 0  # what comes after that is cut off or damaged

    def cluster(self, number: int) -> RecordedCluster:
        """Return what is known of a cluster."""
        return self.clusters.setdefault(number, RecordedCluster(number))


def read(data: Buffer, name: str) -> Recorded:
    """Read a file, up to where it is cut off. Raises `RecoverError` if nothing can be read."""
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise RecoverError(f"{name} is not a recover file of this version of dispy")
    recorded: Recorded | None = None
    offset = len(MAGIC)
    while (found := _next(data, offset)) is not None:
        record, offset = found
        if recorded is None:
            if not isinstance(record, ProgramRecord):
                raise RecoverError(f"{name} is damaged: it doesn't say whose it is")
            recorded = Recorded(record)
        _HANDLERS[type(record)](recorded, record)
        recorded.good_bytes = offset
    if recorded is None:
        raise RecoverError(f"{name} is cut off: there is nothing in it")
    return recorded


def _next(data: Buffer, offset: int) -> tuple[AnyRecord, int] | None:
    """Return the record at an offset, and the offset behind it; None: there is no whole one."""
    if offset + _HEAD.size > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, offset)
    begin, end = offset + _HEAD.size, offset + _HEAD.size + length
    if end > len(data):
        return None
    body = memoryview(data)[begin:end]
    if zlib.crc32(body) != checksum:
        return None
    try:
        return _decode(body), end
    except msgspec.MsgspecError:  # of a later version
        return None


def _on_cluster(recorded: Recorded, record: ClusterRecord) -> None:
    cluster = recorded.cluster(record.cluster)
    cluster.program, cluster.computation = record.program, record.computation
    recorded.computations[record.computation] = cluster


def _on_node(recorded: Recorded, record: NodeRecord) -> None:
    recorded.cluster(record.cluster).nodes[record.node] = record


def _on_jobs(recorded: Recorded, record: JobsRecord) -> None:
    cluster = recorded.cluster(record.cluster)
    cluster.up_to = max(cluster.up_to, record.up_to)
    for job in record.jobs:
        cluster.jobs[job.seq] = job


def _on_sent(recorded: Recorded, record: SentRecord) -> None:
    recorded.cluster(record.cluster).sent.update(record.jobs)


def _on_begun(recorded: Recorded, record: BegunRecord) -> None:
    recorded.cluster(record.cluster).begun.update(dict.fromkeys(record.jobs, record.node))


def _on_ended(recorded: Recorded, record: EndedRecord) -> None:
    cluster = recorded.cluster(record.cluster)
    cluster.ended.update(record.jobs)
    for seq in record.jobs:
        cluster.jobs.pop(seq, None)


def _on_names(recorded: Recorded, record: NamesRecord) -> None:
    jobs = recorded.cluster(record.cluster).jobs
    for seq, job_id in record.jobs:
        if seq in jobs:
            jobs[seq].id = job_id


def _on_closed(recorded: Recorded, record: ClosedRecord) -> None:
    recorded.cluster(record.cluster).closed = True


def _on_result(recorded: Recorded, record: ResultRecord) -> None:
    recorded.results.append(record)


def _on_sibling(recorded: Recorded, record: SiblingRecord) -> None:
    recorded.siblings.append(record.path)


def _on_broker(recorded: Recorded, record: BrokerRecord) -> None:
    recorded.shared = record


def _on_program(recorded: Recorded, record: ProgramRecord) -> None:
    """It was the first record."""


_HANDLERS: dict[type[Any], Callable[..., None]] = {
    ProgramRecord: _on_program,
    BrokerRecord: _on_broker,
    ClusterRecord: _on_cluster,
    NodeRecord: _on_node,
    JobsRecord: _on_jobs,
    BegunRecord: _on_begun,
    EndedRecord: _on_ended,
    NamesRecord: _on_names,
    ClosedRecord: _on_closed,
    ResultRecord: _on_result,
    SiblingRecord: _on_sibling,
    SentRecord: _on_sent,
}


def id_of(entry: JobEntry) -> object:
    """Return the id that a job had; its number if that can't be unpickled here."""
    if not isinstance(entry.id, tuple):
        return entry.id
    try:
        return pickle.loads(entry.id[0])
    except Exception:  # its class is only in the program that was killed
        return entry.seq


def framed(record: Record) -> tuple[bytes, bytes]:
    """Encode a record, with its head."""
    body = _encode(record)
    return _HEAD.pack(len(body), zlib.crc32(body)), body
