"""What must hold between any two events, asserted."""

from __future__ import annotations

from .state import IDLE, Allocation, Cluster, Node, Stage, State


def check(state: State) -> None:
    """Assert all invariants."""
    for node in state.nodes.values():
        _check_node(state, node)
    assert state.busy == sum(bool(cluster.jobs) for cluster in state.clusters.values())
    assert len(state.turns) == len(set(state.turns))
    assert {each for each in state.clusters.values() if each.in_turns} <= set(state.turns)
    for cluster in state.clusters.values():
        _check_cluster(state, cluster)
    _check_blobs(state)


def _check_node(state: State, node: Node) -> None:
    assert node.load == sum(len(each.jobs) for each in node.allocations.values())
    assert node.online == (node.lost_at == float("inf"))
    assert node.underway >= 0
    assert bool(node.held) == (node in state.fetchers)
    for allocation, _, _ in node.held:
        assert node.allocations[allocation.cluster.id] is allocation


def _check_cluster(state: State, cluster: Cluster) -> None:
    allocations = list(cluster.allocations.values())
    queued = list(cluster.line)
    pinned = [job for each in allocations for job in each.pinned or ()]
    held = [job for each in allocations for job in each.jobs.values()]
    assert cluster.line.waiting == len(queued)
    assert cluster.pinned == len(pinned)
    assert len(queued) + len(pinned) + len(held) == len(cluster.jobs)
    for job in queued + pinned:
        assert job.allocation is None and cluster.jobs[job.spec.seq] is job
    assert all(cluster.line_of(job.spec) is cluster.line for job in queued)
    for each in allocations:
        assert all(cluster.line_of(job.spec) is each.pinned for job in each.pinned or ())
    assert not (queued or pinned) or cluster.in_turns
    assert not cluster.jobs.keys() & cluster.abandoned.keys()
    for allocation in allocations:
        _check_allocation(state, cluster, allocation)
    assert cluster.capacity == sum(each.cpus for each in allocations if each.is_open)
    assert cluster.failed == sum(each.stage is Stage.FAILED for each in allocations)
    assert cluster.idle == sum(each.stage in IDLE for each in allocations)
    surplus = {each for each in allocations if len(each.jobs) > each.cpus}
    assert set(cluster.surplus) == surplus
    assert not cluster.closing or not cluster.jobs


def _check_allocation(state: State, cluster: Cluster, allocation: Allocation) -> None:
    assert allocation.node.allocations[cluster.id] is allocation
    assert state.nodes[allocation.node.peer] is allocation.node
    assert allocation.is_open == (allocation.stage is Stage.READY and not allocation.suspended)
    assert allocation.cpus == allocation.share.cpus
    for seq, job in allocation.jobs.items():
        assert job.allocation is allocation and cluster.jobs[seq] is job
        assert job.spec.attempt > 0
        options = job.spec.options
        assert options is None or options.node in (0, allocation.node.id)
    if allocation.jobs:
        assert allocation.stage in (Stage.READY, Stage.CLOSING)
    if allocation.pinned is not None and allocation.pinned.waiting:
        assert allocation.stage not in (*IDLE, Stage.FAILED)
        assert allocation.anew or allocation.stage not in (Stage.CLOSING, Stage.RELEASING)
    if allocation.puts:
        assert allocation.stage not in (*IDLE, Stage.FAILED)


def _check_blobs(state: State) -> None:
    asked = [
        len(allocation.asked)
        for node in state.nodes.values()
        for allocation in node.allocations.values()
    ]
    assert state.underway == sum(asked) + sum(node.underway for node in state.nodes.values())
    assert len(state.fetchers) == len(set(state.fetchers))
