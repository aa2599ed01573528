"""What the client's core knows of its clusters: plain state, and the effects so far.

Only `core` and its subjects change it: `sending`, `rejoining`, `endings`. Of a job it is told
here whether it waits, is at the broker, or has ended; what it looks like is `ledger`'s subject.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dispy.protocol.messages import Heard, NodeInfo, NodeRequest, OpenCluster, SendFile

from .effects import Effect
from .job import DispyJob
from .line import Line
from .ranges import Ranges
from .reports import Report


@dataclass(eq=False)
class Cluster:
    """What the core knows of one cluster; ``unfinished`` is the fact, the rest follows it.

    `recording` looks at ``unfinished`` and ``away``, which are never replaced by others.
    """

    opening: OpenCluster  # with all code that has been defined
    patient_until: float | None  # when to complain that there is no node
    unfinished: dict[int, DispyJob] = field(default_factory=dict)  # in order of submission
    abandoned: dict[int, DispyJob] = field(default_factory=dict)  # may still finish
    waiting: Line = field(default_factory=Line)  # not sent; some have ended here
    away: set[int] = field(default_factory=set)  # sent, in this session or before
    accepted: Ranges = field(default_factory=Ranges)  # sent, and on the broker's disk
    cancelled: dict[int, None] = field(default_factory=dict)  # sent, and to be cancelled
    reports: dict[int, Report] = field(default_factory=dict)  # of jobs that say something
    heard: list[Heard] = field(default_factory=list)  # to be said with the next message
    results_heard: list[int] = field(default_factory=list)  # the same: `Results` by record
    # Requests without an answer; for those about jobs, what is known of the job here.
    asked: dict[int, str | None] = field(default_factory=dict)
    questions: list[NodeRequest | SendFile] = field(default_factory=list)  # not asked so far
    nodes: dict[int, NodeInfo] = field(default_factory=dict)
    met: bool = False  # some node has been ready
    leaving: set[int] = field(default_factory=set)  # nodes that the user has sent away
    troubles: dict[str, str] = field(default_factory=dict)  # address to reason
    opened: bool = False  # in this session: the broker has said what it knows of it
    sent: int = 0  # how many jobs the broker counts
    credit: int = 0  # how many may be sent
    rejection: str = ""  # why the broker takes no jobs at present
    closing: bool = False

    @property
    def name(self) -> str:
        """What people call it: its label, or else the name of the computation."""
        return self.opening.label or self.opening.computation.name


class State:
    """All clusters of this process at one broker."""

    def __init__(self) -> None:
        self.clusters: dict[int, Cluster] = {}
        self.joined = False  # there is a session with the broker
        self.unreachable = ""  # why it can't be reached at present
        self.effects: list[Effect] = []
        self.sendable: dict[int, None] = {}  # clusters that may have something to send
        self.unclosed: dict[int, None] = {}  # over here; the broker may not know it
