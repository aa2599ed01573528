"""What the client's core wants done: plain values, carried out by the session in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from dispy.protocol.messages import BlobRange, Body, JobRecord, JobResult, NodeInfo, Vitals

from .job import DispyJob


class Send(msgspec.Struct, frozen=True):
    """Effect: send a message to the broker."""

    message: Body


class Sending(NamedTuple):
    """Effect: these jobs are in the next message."""

    cluster: int
    jobs: list[DispyJob]


class Known(NamedTuple):
    """Effect: the broker knows the cluster, by a number of its own."""

    cluster: int
    computation: int


class Ended(NamedTuple):
    """Effect: these jobs have ended at a node (0: at none)."""

    cluster: int
    node: int
    jobs: list[tuple[DispyJob, JobResult]]


class Begun(NamedTuple):
    """Effect: these jobs are running since, in seconds since the epoch."""

    cluster: int
    node: int
    jobs: list[tuple[DispyJob, float]]


class Requeued(NamedTuple):
    """Effect: these jobs, which were at a node, wait again."""

    cluster: int
    jobs: list[DispyJob]


class Told(NamedTuple):
    """Effect: these jobs say something while they run; each record is new."""

    cluster: int
    node: int  # 0: not known
    records: list[tuple[DispyJob, JobRecord]]


class Silent(NamedTuple):
    """Effect: nothing will follow what these jobs have said in this attempt."""

    cluster: int
    jobs: list[int]


class NodeUp(NamedTuple):
    """Effect: a node is ready for the cluster's jobs."""

    cluster: int
    node: NodeInfo
    cpus: int  # of the node's, that the cluster may use; 0: all
    named: str = ""  # the address by which the cluster names it


class NodeDown(NamedTuple):
    """Effect: a node gets no more jobs of the cluster."""

    cluster: int
    node: int
    reason: str


class NodeAlive(NamedTuple):
    """Effect: a node tells what it has to spare."""

    cluster: int
    node: int
    vitals: Vitals


class Offered(NamedTuple):
    """Effect: ask the user how much of a node to use; `Core.allocate` is the answer."""

    cluster: int
    node: NodeInfo
    vitals: Vitals | None


class Wanted(NamedTuple):
    """Effect: read these pieces of blobs; `Core.send_pieces` is the answer."""

    cluster: int
    node: int
    ranges: list[BlobRange]


class Answered(NamedTuple):
    """Effect: a request has been answered."""

    cluster: int
    request: int
    code: int
    text: str


class Warned(NamedTuple):
    """Effect: tell the user."""

    text: str


class Closed(NamedTuple):
    """Effect: the cluster is over, and nothing more will be said about it."""

    cluster: int


Effect: TypeAlias = (
    Send
    | Sending
    | Known
    | Ended
    | Begun
    | Requeued
    | Told
    | Silent
    | NodeUp
    | NodeDown
    | NodeAlive
    | Offered
    | Wanted
    | Answered
    | Warned
    | Closed
)
