"""Which node gets the next job: the least loaded that may take one.

Each cluster keeps a heap of the allocations that are not full, by the load of their nodes.
An entry counts only while it is the one that its allocation is listed with; loads that have
grown meanwhile are put right when an entry comes up. O(log n) in nodes, O(1) in jobs.
"""

from __future__ import annotations

import heapq

from .state import Allocation, Cluster, Job, Node

ENTRIES_MAX = 8  # in a heap for each allocation; more are not worth their memory

TIE = 1e-9  # times the node's number: no two loads are equal, and comparing them is cheap


def load_of(node: Node) -> float:
    """Jobs per CPU; between equally loaded nodes the older one counts as less loaded."""
    return node.load / node.identity.cpus + node.id * TIE


def offer(allocation: Allocation) -> None:
    """List an allocation (again) because it may be able to take a job."""
    if not allocation.is_open or not allocation.node.online:
        return
    if allocation.pinned is not None and allocation.pinned.waiting:
        allocation.cluster.open_pinned[allocation] = None
    key = load_of(allocation.node)
    if allocation.listed is None or key < allocation.listed:
        allocation.listed = key
        heap = allocation.cluster.heap
        heapq.heappush(heap, (key, allocation.node.id, allocation))
        if len(heap) > ENTRIES_MAX * (len(allocation.cluster.allocations) + 1):
            _compact(heap)


def _compact(heap: list[tuple[float, int, Allocation]]) -> None:
    """Leave out older entries; those of high load would never come up by themselves."""
    current = {entry[2]: entry for entry in heap if entry[0] == entry[2].listed}
    heap[:] = current.values()
    heapq.heapify(heap)


def is_usable(allocation: Allocation) -> bool:
    """Whether jobs may be sent there at all."""
    return allocation.is_open and allocation.node.online and allocation.node.counted


def may_take(allocation: Allocation, ahead: int, busy_clusters: int) -> bool:
    """Whether one more job fits: its own CPUs, what it may hold ahead, and others' share."""
    held, cpus = len(allocation.jobs), allocation.cpus
    if held >= cpus + ahead * cpus:
        return False
    if busy_clusters < 2 or allocation.node.load < allocation.node.identity.cpus:
        return True
    share = -(-cpus // busy_clusters)
    return held < share + ahead * share


def least_loaded(cluster: Cluster, ahead: int, busy_clusters: int) -> Allocation | None:
    """Return the best allocation for the cluster's next job; None when all are full."""
    heap = cluster.heap
    while heap:
        key, _, allocation = heap[0]
        if key != allocation.listed:
            heapq.heappop(heap)  # an older entry of it
            continue
        node = allocation.node
        if not is_usable(allocation) or not may_take(allocation, ahead, busy_clusters):
            heapq.heappop(heap)
            allocation.listed = None  # offered again when a job of it ends
            continue
        now = load_of(node)
        if now == key:
            return allocation
        allocation.listed = now
        heapq.heapreplace(heap, (now, node.id, allocation))
    return None


def put(job: Job, allocation: Allocation) -> None:
    """Note that a node has the job."""
    job.allocation = allocation
    allocation.jobs[job.spec.seq] = job
    allocation.node.load += 1
    if len(allocation.jobs) > allocation.cpus:
        allocation.cluster.surplus[allocation] = None


def take_off(job: Job) -> None:
    """Note that the job's node has it no longer, and offer the place to others."""
    allocation = job.allocation
    assert allocation is not None
    job.allocation = None
    del allocation.jobs[job.spec.seq]
    node = allocation.node
    node.load -= 1
    if len(allocation.jobs) <= allocation.cpus:
        allocation.cluster.surplus.pop(allocation, None)
    for other in node.allocations.values():
        offer(other)
