"""What the scheduler wants done; its shell does it.

Whatever is to be kept on disk is there before any message of the same flush is sent.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from dispy.protocol.fetching import DropBlob as DropBlob
from dispy.protocol.fetching import KeepPiece as KeepPiece
from dispy.protocol.messages import BlobRange, Body, OpenCluster, Results, Submit

from .durable import ClusterMeta, NodeMeta, Progress


class Send(msgspec.Struct, frozen=True):
    """Send a message to a registered peer."""

    peer: str
    message: Body


class Dial(NamedTuple):
    """Connect to an address, and keep it connected."""

    address: str


class Seek(NamedTuple):
    """Look in the network for nodes, also for those that listen at these ports."""

    ports: tuple[int, ...]


class Undial(NamedTuple):
    """No cluster asks for this address any more."""

    address: str


class Forget(NamedTuple):
    """Drop the session with a peer that is given up."""

    peer: str


class Goodbye(NamedTuple):
    """End the session with a peer, and tell it."""

    peer: str
    reason: str


# -- what is kept on disk; the ids of batches and of results are the broker's, and only grow ----


class KeepCluster(NamedTuple):
    """Keep a cluster, or what has changed of it; ``opened`` is None when that has not."""

    id: int
    meta: ClusterMeta
    opened: OpenCluster | None


class DropCluster(NamedTuple):
    """Remove a cluster and all that is kept of it."""

    id: int


class KeepBatch(NamedTuple):
    """Keep jobs as they were submitted, with what `durable.KeptBatch` says of them."""

    id: int
    cluster: int
    submit: Submit
    plain: bool
    priority: int


class KeepProgress(NamedTuple):
    """Keep how far the jobs of a batch have got, instead of what was kept of that before."""

    batch: int
    progress: Progress


class DropBatch(NamedTuple):
    """Remove a batch whose jobs have all ended."""

    id: int


class KeepResults(NamedTuple):
    """Keep results until they have been heard."""

    id: int
    cluster: int
    message: Results


class DropResults(NamedTuple):
    """Remove results that have been heard."""

    ids: list[int]


class KeepAbandoned(NamedTuple):
    """Remember which attempts were given up and may still finish (seq, attempt).

    An attempt of 0: it won't finish any more, or has, or nobody wants to know.
    """

    cluster: int
    jobs: list[tuple[int, int]]


class KeepNode(NamedTuple):
    """Remember a node."""

    id: int
    meta: NodeMeta


class DropNode(NamedTuple):
    """Forget a node."""

    id: int


class KeepTaken(NamedTuple):
    """Remember that a client has lost a cluster, by what it called it."""

    owner: str
    number: int
    cluster: int


class DropTaken(NamedTuple):
    """Forget that: the client has the cluster again, or it was too long ago."""

    owner: str
    number: int


class Load(NamedTuple):
    """Read a batch from the disk; `Scheduler.loaded` gets its jobs."""

    batch: int


class LoadResults(NamedTuple):
    """Read results from the disk; `Scheduler.results_loaded` gets them."""

    record: int
    cluster: int


JournalEffect: TypeAlias = (
    KeepCluster
    | DropCluster
    | KeepBatch
    | KeepProgress
    | DropBatch
    | KeepResults
    | DropResults
    | KeepAbandoned
    | KeepNode
    | DropNode
    | KeepTaken
    | DropTaken
)

# -- files that the broker itself has a copy of ----------------------------------------------


class ReadPiece(NamedTuple):
    """Read a piece of a blob and send it to a node, as `BlobPieces` of this computation."""

    peer: str
    computation: int
    node: int
    piece: BlobRange


BlobErrand: TypeAlias = KeepPiece | ReadPiece | DropBlob
"""What is done by `bloberrands`."""

Effect: TypeAlias = (
    Send | Dial | Seek | Undial | Forget | Goodbye | JournalEffect | Load | LoadResults | BlobErrand
)
