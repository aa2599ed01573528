"""Which node gets the next job: the least loaded that may take one.

A node has room while it has a free CPU, or holds less work ahead than is needed to keep its CPUs
busy: `AHEAD_S` of each, by all clusters together, and more if it is far away (`distance`). Where
there was room and is none, every cluster must wait; when a place becomes free it is noted in
``state.freed``, and `turns` gives it to the cluster whose turn it is. That is all that happens
while nodes are scarce.

While they aren't, each cluster keeps a heap of the allocations that may have room, by the load of
their nodes. It hears of places that have become free since it looked last when it looks again. An
entry counts only while it is the one that its allocation is listed with; loads that have grown
meanwhile are put right when an entry comes up. O(log n) in nodes, O(1) in jobs.
"""

from __future__ import annotations

import heapq

from .state import AHEAD_S, Allocation, Cluster, Job, Node, State

ENTRIES_MAX = 8  # in a heap for each allocation; more are not worth their memory
FREED_MAX = 4  # entries in the list of freed places for each node; older ones are forgotten

TIE = 1e-9  # times the node's number: no two loads are equal, and comparing them is cheap
ROOM_S = AHEAD_S * (1 - 1e-6)  # sums of many small numbers aren't exact


def load_of(node: Node) -> float:
    """Jobs per CPU; between equally loaded nodes the older one counts as less loaded."""
    return node.load / node.identity.cpus + node.id * TIE


def offer(allocation: Allocation) -> None:
    """List an allocation (again) because it may be able to take a job."""
    node = allocation.node
    if not allocation.is_open or not node.online:
        return
    if allocation.pinned is not None and allocation.pinned.waiting:
        allocation.cluster.open_pinned[allocation] = None
    key = load_of(node)
    if allocation.listed is None or key < allocation.listed:
        allocation.listed = key
        heap = allocation.cluster.heap
        heapq.heappush(heap, (key, node.id, allocation))
        if len(heap) > ENTRIES_MAX * (len(allocation.cluster.allocations) + 1):
            _compact(heap)


def _compact(heap: list[tuple[float, int, Allocation]]) -> None:
    """Leave out older entries; those of high load would never come up by themselves."""
    current = {entry[2]: entry for entry in heap if entry[0] == entry[2].listed}
    heap[:] = current.values()
    heapq.heapify(heap)


# -- room -----------------------------------------------------------------------------------


def is_usable(allocation: Allocation) -> bool:
    """Whether jobs may be sent there at all."""
    return allocation.is_open and allocation.node.online and allocation.node.counted


def has_room(node: Node) -> bool:
    """Whether a node can take one more job, of whatever cluster."""
    cpus = node.identity.cpus
    return node.load < cpus or node.work_s < ROOM_S * cpus


def may_have_more(allocation: Allocation) -> bool:
    """Whether one more job fits in the cluster's own part of a node."""
    cpus = allocation.cpus
    return len(allocation.jobs) < cpus or allocation.work_s < ROOM_S * cpus


def may_take(allocation: Allocation) -> bool:
    """Whether one more job fits: at the node, and in the cluster's own part of it."""
    return may_have_more(allocation) and has_room(allocation.node)


def least_loaded(cluster: Cluster) -> Allocation | None:
    """Return the best allocation for the cluster's next job; None when all are full."""
    heap = cluster.heap
    while heap:
        key, _, allocation = heap[0]
        if key != allocation.listed:
            heapq.heappop(heap)  # an older entry of it
            continue
        node = allocation.node
        if not is_usable(allocation) or not may_take(allocation):
            heapq.heappop(heap)
            allocation.listed = None  # offered again when a place becomes free
            continue
        now = load_of(node)
        if now == key:
            return allocation
        allocation.listed = now
        heapq.heapreplace(heap, (now, node.id, allocation))
    return None


# -- places that become free ------------------------------------------------------------------


def catch_up(state: State, cluster: Cluster) -> None:
    """List what has become free for a cluster since it looked last."""
    account, freed = cluster.account, state.freed
    new = state.freed_before + len(freed) - account.cursor
    account.cursor += new
    if new > len(freed) or new > len(cluster.allocations):
        for allocation in cluster.allocations.values():
            offer(allocation)
        return
    for node in freed[len(freed) - new :]:
        mine = node.allocations.get(cluster.id)
        if mine is not None:
            offer(mine)


def newly_free(state: State) -> list[tuple[float, int, Node]]:
    """Return a heap of the nodes that have become free since the last call, and are wanted."""
    freed = state.freed
    first = state.placed - state.freed_before
    state.placed = state.freed_before + len(freed)
    count = state.sharing.blocked.count
    if not count:
        nodes = []
    else:
        all_wait = count >= len(state.clusters)
        nodes = [
            (load_of(node), node.id, node)
            for node in set(freed[first:])
            if has_room(node) and node.online and node.counted and (all_wait or _is_wanted(node))
        ]
        heapq.heapify(nodes)
    if len(freed) > FREED_MAX * (len(state.nodes) + 16):
        state.freed_before += len(freed)
        freed.clear()
    return nodes


def _is_wanted(node: Node) -> bool:
    return any(each.cluster.account.blocked for each in node.allocations.values())


def look(state: State) -> None:
    """Have everything counted that goes on by itself as time passes."""
    charge(state)
    for account in list(state.sharing.blocked):
        cluster = account.cluster
        if cluster is not None and not (cluster.line.waiting or cluster.pinned):  # cancelled
            cluster.in_turns = False
            state.sharing.leave(account)
    active = [(each.account, held(each)) for each in state.clusters.values() if each.jobs]
    cpus = sum([node.identity.cpus for node in state.nodes.values()])
    state.sharing.look(active, cpus, state.now)


def charge(state: State) -> None:
    """Charge clusters for what has ended since the last time."""
    for cluster in state.charged:
        cluster.account.ended(held(cluster), state.now)
    state.charged.clear()


def held(cluster: Cluster) -> int:
    """Return how many jobs of a cluster are at nodes."""
    return len(cluster.jobs) - cluster.line.waiting - cluster.pinned


# -- jobs come and go -------------------------------------------------------------------------


def put(job: Job, allocation: Allocation) -> None:
    """Note that a node has the job."""
    job.allocation = allocation
    allocation.jobs[job.spec.seq] = job
    node, cluster = allocation.node, allocation.cluster
    node.load += 1
    unit_s = cluster.unit_at(node)
    node.work_s += unit_s
    allocation.work_s += unit_s
    if job.started is not None:
        cluster.account.begun(job.started[1])
    if len(allocation.jobs) > allocation.cpus or node.load > node.identity.cpus:
        cluster.surplus[allocation] = None


def take_off(state: State, job: Job) -> None:
    """Note that the job's node has it no longer: its place is free."""
    allocation = job.allocation
    assert allocation is not None
    job.allocation = None
    jobs, node = allocation.jobs, allocation.node
    node.distance.gone(job)
    unit_s = allocation.work_s / len(jobs)
    del jobs[job.spec.seq]
    node.load -= 1
    allocation.work_s -= unit_s
    node.work_s = node.work_s - unit_s if node.load else 0.0
    if job.started is not None:
        allocation.cluster.account.begun_no_more(job.started[1])
    surplus = allocation.cluster.surplus
    if surplus and (not jobs or extra(allocation) <= 0):
        surplus.pop(allocation, None)
    state.freed.append(node)


def extra(allocation: Allocation) -> int:
    """Return how many of a cluster's jobs at a node have to wait there, as far as is known."""
    count, node = len(allocation.jobs), allocation.node
    return max(count - allocation.cpus, min(count, node.load - node.identity.cpus))
