"""What a broker keeps on disk, as plain values, and what it finds there when it starts.

A cluster is kept with its computation; its jobs in batches, each just as the client sent it and
never changed, beside a small value that says how far its jobs have got. Results are kept until
their client has heard them. Nothing here is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from dispy.protocol.messages import JobResult, OpenCluster, Results

RESULTS_BYTES = 256 << 20  # of all results that are in memory only because nobody has heard them
RESULT_BYTES = 200  # what a result needs beside its payload
CANCELLED_MARK = 1  # in `JobMark.marks`: the job is to be cancelled


class JobMark(msgspec.Struct, array_like=True, gc=False):
    """How far a job has got that has been at a node and hasn't ended."""

    index: int  # its place in its batch
    attempt: int
    node: int  # id of the node that has it; 0: it waits again
    failures: int = 0
    losses: int = 0
    marks: int = 0


class Progress(msgspec.Struct, array_like=True, gc=False):
    """How far the jobs of a batch have got. Jobs that aren't mentioned wait for a first attempt."""

    ended: bytes = b""  # bits by place in the batch, the lowest first; missing ones are 0
    jobs: list[JobMark] = []


class NodeChoice(msgspec.Struct, array_like=True, gc=False):
    """What the user of a cluster has decided about a node."""

    peer: str  # its instance
    node: int  # its id; 0: not known
    cpus: int  # to be used of it; 0: it was closed; below 0: nothing was said
    suspended: bool = False  # it gets no jobs


class ClusterMeta(msgspec.Struct, array_like=True, gc=False):
    """What is known of a cluster beside its computation. Times are seconds since the epoch."""

    owner: str  # instance of the client that has it
    number: int  # what that client calls it
    user: str
    opened_at: float
    closing: bool = False
    away_since: float = 0.0  # when its client was last heard; 0: it is there
    expired: bool = False  # its client has been away for too long: only results are kept
    ended: int = 0  # jobs that have ended so far, for people
    used_s: float = 0.0  # CPU time so far, for people
    # Clients that it was taken from, and what those called it; the last one last.
    before: list[tuple[str, int]] = []
    choices: list[NodeChoice] = []


class NodeMeta(msgspec.Struct, array_like=True, gc=False):
    """What is remembered of a node."""

    peer: str  # its instance
    name: str
    address: str
    drained: str = ""  # why an operator wants it to get no jobs; empty: it may
    set_aside: str = ""  # why the broker doesn't use it
    place: str = ""  # a node that is started anew at its place stays drained or set aside
    cpus: int = 1
    mishaps: list[tuple[float, int]] = []  # when, in seconds since the epoch; cluster, or 0: lost
    unfit: list[tuple[int, bool]] = []  # clusters that it couldn't set up; whether another could
    returned: bool = False  # it had been set aside before, and is used again


@dataclass
class KeptBatch:
    """A batch of jobs without the jobs themselves, which are loaded when their turn comes."""

    id: int
    cluster: int
    first: int  # the lowest seq of the batch
    last: int  # the highest
    count: int
    progress: Progress
    plain: bool = True  # its jobs have one priority and no node of their own
    priority: int = 0  # when it is plain


@dataclass
class KeptResults:
    """Results that their client has not heard; ``message.record`` is 0."""

    id: int
    cluster: int
    message: Results


@dataclass
class KeptCluster:
    """A cluster, with all layers of code."""

    id: int
    meta: ClusterMeta
    opened: OpenCluster
    batches: list[KeptBatch] = field(default_factory=list)  # in the order in which they came
    results: list[KeptResults] = field(default_factory=list)  # likewise
    abandoned: list[tuple[int, int]] = field(default_factory=list)  # seq, attempt
    # Further results that are only on disk, since they are too many: record -> seqs of the jobs.
    stored: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class Kept:
    """All that a broker finds when it starts."""

    clusters: list[KeptCluster] = field(default_factory=list)
    nodes: dict[int, NodeMeta] = field(default_factory=dict)  # by id
    # Clusters that were taken from their clients: whose and what that called it -> its id.
    taken: dict[tuple[str, int], int] = field(default_factory=dict)  # the oldest first
    last_node: int = 0  # highest id that any node has ever had
    last_record: int = 0  # highest number that any batch or any results have ever had


def bytes_of(results: Iterable[JobResult]) -> int:
    """Return how much memory results take."""
    size = 0
    for result in results:
        size += RESULT_BYTES + len(result.payload)
        if result.parts:
            size += sum([part.size for part in result.parts])
    return size
