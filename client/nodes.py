"""Nodes as a user sees them, in `cluster_status` calls and in `JobCluster.status`."""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class DispyNodeAvailInfo(NamedTuple):
    """What a node had to spare when it last told."""

    cpu: float  # available CPU in percent; 100: idle
    memory: int  # available bytes
    disk: int  # free bytes where jobs run
    swap: float  # available swap space in percent


class DispyNode:
    """A node and what it has done for one cluster.

    Attributes, to be read only: ``ip_addr``, ``name``, ``cpus``, ``avail_cpus`` (CPUs that the
    cluster may use), ``busy`` (jobs known to be running there now), ``jobs_done``,
    ``cpu_time`` (seconds that its jobs took, by the clock), ``tx``, ``rx`` (bytes of arguments
    and of results), ``update_time`` (seconds since the epoch), ``avail_info``
    (`DispyNodeAvailInfo` or None) and ``status`` (one of the constants below).
    """

    Initialized: ClassVar[int] = 4  # ready for jobs
    Closed: ClassVar[int] = 16  # gets no more jobs of this cluster
    AvailInfo: ClassVar[int] = 17

    __slots__ = (
        "avail_cpus",
        "avail_info",
        "busy",
        "cpu_time",
        "cpus",
        "ip_addr",
        "jobs_done",
        "name",
        "rx",
        "status",
        "tx",
        "update_time",
    )

    def __init__(self, ip_addr: str, name: str, cpus: int) -> None:
        self.ip_addr = ip_addr
        self.name = name
        self.cpus = cpus
        self.avail_cpus = cpus
        self.busy = 0
        self.jobs_done = 0
        self.cpu_time = 0.0
        self.tx = 0
        self.rx = 0
        self.update_time = 0.0
        self.avail_info: DispyNodeAvailInfo | None = None
        self.status = DispyNode.Initialized

    def __repr__(self) -> str:
        return f"<DispyNode {self.ip_addr} ({self.name}), {self.cpus} CPUs>"
