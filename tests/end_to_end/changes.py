"""What `cluster_status` and `job_status` were told, written down by themselves in order."""

from __future__ import annotations

from typing import Any, NamedTuple

import dispy
from dispy import DispyJob, DispyNode

from .processes import NodeProcess
from .waiting import until


class Change(NamedTuple):
    """One call; of jobs and nodes what they were at that moment."""

    status: int
    node: str | None  # its name
    job: object  # its id
    result: Any


class Changes:
    """To be given as ``cluster_status``."""

    def __init__(self) -> None:
        self.all: list[Change] = []

    def __call__(self, status: int, node: DispyNode | None, job: DispyJob | None) -> None:
        name = None if node is None else node.name
        job_id, result = (None, None) if job is None else (job.id, job.result)
        self.all.append(Change(status, name, job_id, result))

    def of_job(self, job: DispyJob) -> list[int]:
        """Return what was told of a job."""
        return [change.status for change in self.all if change.job == job.id]

    def of_node(self, name: str) -> list[int]:
        """Return what was told of a node, but what it had to spare."""
        return [
            change.status
            for change in self.all
            if change.node == name and change.status in (DispyNode.Initialized, DispyNode.Closed)
        ]


def ready(cluster: dispy.JobCluster, *names: str) -> list[DispyNode]:
    """Wait until nodes of these names take jobs; return them in this order."""
    until(lambda: set(names) <= _ready(cluster).keys(), f"nodes {names}")
    return [_ready(cluster)[name] for name in names]


def _ready(cluster: dispy.JobCluster) -> dict[str, DispyNode]:
    nodes = cluster.status().nodes
    return {node.name: node for node in nodes if node.status == DispyNode.Initialized}


def entry(node: NodeProcess, kind: type = dispy.NodeAllocate, **more: Any) -> dispy.NodeAllocate:
    """Make the entry for a node."""
    allocate: dispy.NodeAllocate = kind(node.host, node.port, **more)
    return allocate
