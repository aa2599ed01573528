"""What users' threads hand over to the session; a job by itself is the order to submit it.

Plain values. Orders are carried out in the order in which they were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from dispy.protocol.messages import Allocate, Code, NodeRequest, OpenCluster, SendFile

from .filework import Pieces, Written
from .job import DispyJob

if TYPE_CHECKING:
    from .ledger import Ledger


class Open(NamedTuple):
    """Begin with a cluster."""

    opening: OpenCluster
    ledger: Ledger
    recover_file: str | None = None  # None: one with a name of its own


class Define(NamedTuple):
    """Make code known that later jobs need."""

    cluster: int
    layers: list[Code]


class Cancel(NamedTuple):
    """End a job."""

    cluster: int
    seq: int


class Follow(NamedTuple):
    """Have a job tell what it prints."""

    cluster: int
    seq: int


class Hear(NamedTuple):
    """A record of a job has been dealt with."""

    cluster: int
    seq: int
    attempt: int
    number: int
    error: str = ""


class Use(NamedTuple):
    """So much of a node that was offered is to be used."""

    message: Allocate
    address: str


class Ask(NamedTuple):
    """Ask the broker for something."""

    message: NodeRequest | SendFile


class AskWhy(NamedTuple):
    """Ask why a job hasn't ended."""

    cluster: int
    request: int
    seq: int


class Close(NamedTuple):
    """End a cluster and all of its jobs."""

    cluster: int


class Forget(NamedTuple):
    """Of the session to itself: no job of this cluster can be in the queue any more."""

    cluster: int


Order: TypeAlias = (
    DispyJob
    | Open
    | Define
    | Cancel
    | Follow
    | Hear
    | Use
    | Ask
    | AskWhy
    | Close
    | Forget
    | Pieces
    | Written
)
