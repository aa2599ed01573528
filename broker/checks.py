"""What must hold between any two events, asserted."""

from __future__ import annotations

from collections import Counter

from .batches import has_ended
from .placement import held as held_now
from .state import IDLE, Allocation, Batch, Cluster, Node, Stage, State


def check(state: State) -> None:
    """Assert all invariants."""
    for node in state.nodes.values():
        _check_node(state, node)
    _check_sharing(state)
    for cluster in state.clusters.values():
        _check_cluster(state, cluster)
        _check_batches(state, cluster)
    for batch in state.batches.values():
        assert batch.cluster.batches[batch.id] is batch
        assert batch.cluster.id in state.clusters or (batch in state.dirty and not batch.left)
    _check_blobs(state)
    _check_clients(state)
    assert state.unheard_bytes == sum(each.unheard_bytes for each in state.clusters.values())
    assert {place for place, past in state.pasts.items() if past.set_aside} == set(state.aside)
    assert {*state.barred_anew, *state.away, *state.pulsed} <= set(state.nodes.values())


def _check_clients(state: State) -> None:
    for peer, client in state.clients.items():
        assert client.peer == peer
        assert not client.absent or (client.away_since is not None and client.clusters)
        for number, cluster in client.clusters.items():
            assert cluster.client is client and cluster.number == number
            assert state.clusters[cluster.id] is cluster
        if client.away_since is None:
            assert client.lost_at == float("inf")
        else:
            assert state.clients_due <= client.lost_at
    for peer, number in state.unopened:
        assert peer not in state.clients or number not in state.clients[peer].clusters
    for cluster in state.clusters.values():
        meta = cluster.meta
        assert cluster.client.clusters[cluster.number] is cluster
        assert (meta.owner, meta.number) == (cluster.client.peer, cluster.number)
        assert cluster.closing or not meta.expired
        assert not cluster.waits or state.exclusives
        assert not cluster.unsaid or cluster.client.absent
    in_use = [each for each in state.clusters.values() if each.allocations or not each.closing]
    assert set(state.exclusives) == {each for each in in_use if each.opened.exclusive}
    own = [each for each in in_use if not each.meta.before]  # whoever takes one over may end it
    free = [each for each in own if each in state.exclusives and not each.waits]
    assert len(free) < 2 and (not free or all(each.waits for each in own if each not in free))


def _check_sharing(state: State) -> None:
    sharing = state.sharing
    sharing.check()
    waiting = {each.cluster for each in (*sharing.ready, *sharing.blocked)}
    assert all(each is not None and each.in_turns for each in waiting)
    assert {each for each in state.clusters.values() if each.in_turns} <= waiting
    assert len(waiting) == sharing.ready.count + sharing.blocked.count
    assert not any(each.account.blocked for each in waiting - {x.cluster for x in sharing.blocked})


def _check_node(state: State, node: Node) -> None:
    assert node.load == sum(len(each.jobs) for each in node.allocations.values())
    assert node.online == (node.lost_at == float("inf"))
    assert node.online == (node not in state.away)
    assert node.underway >= 0
    assert len(node.distance.underway) <= node.identity.cpus
    for job in node.distance.underway:
        assert job.allocation is not None and job.allocation.node is node
    assert state.pasts[node.identity.place or node.identity.instance] is node.past
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
    account = cluster.account
    assert held_now(cluster) == len(held)
    assert account.started == sum(job.started is not None for job in held)
    surplus = {each for each in allocations if len(each.jobs) > each.cpus}
    assert surplus <= set(cluster.surplus) <= {each for each in allocations if each.jobs}
    assert not cluster.surplus or cluster in state.hoarders or cluster.in_turns
    assert not cluster.closing or not cluster.jobs


def _check_batches(state: State, cluster: Cluster) -> None:
    """Each job of a durable broker is in one batch, and bits and sums agree with the jobs."""
    held: Counter[Batch | None] = Counter(job.batch for job in cluster.jobs.values())
    assert (None not in held) if state.settings.durable else not cluster.batches
    if not state.settings.durable:
        return
    assert set(held) <= set(cluster.batches.values())
    backlog = cluster.backlog
    assert set(cluster.unheard).isdisjoint(cluster.stored)
    assert set(backlog) == {each for each in cluster.batches.values() if each in backlog}
    assert backlog.waiting == sum(batch.left for batch in backlog)
    assert cluster.loaded_bytes == sum(each.mean_bytes * held[each] for each in set(held) if each)
    fixed = [each for each in set(held) if each and not each.plain]
    assert cluster.fixed_jobs == sum(held[each] for each in fixed)
    assert cluster.fixed_bytes == sum(each.mean_bytes * held[each] for each in fixed)
    for number, batch in cluster.batches.items():
        assert state.batches[number] is batch
        assert batch.left == batch.count - sum(each.bit_count() for each in batch.ended)
        assert batch.left or batch in state.dirty
        assert batch.first in cluster.seen or not batch.loaded
        assert batch.left == held[batch] if batch.loaded else not held[batch]
        assert batch.loaded or batch.loading or batch in backlog or not batch.left
        assert not any(has_ended(batch, index) for index in batch.marks)
    for seq, job in cluster.jobs.items():
        assert job.batch is not None and not has_ended(job.batch, job.index)
        assert not job.batch.plain or job.batch.first + job.index == seq
        assert job.spec.attempt == 0 or job.index in job.batch.marks or job.allocation in state.runs


def _check_allocation(state: State, cluster: Cluster, allocation: Allocation) -> None:
    assert allocation.node.allocations[cluster.id] is allocation
    assert state.nodes[allocation.node.peer] is allocation.node
    may_open = not allocation.suspended and not allocation.node.barred
    assert allocation.is_open == (allocation.stage is Stage.READY and may_open)
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
    underway = sum(node.underway for node in state.nodes.values())
    if state.warehouse is None:
        underway += sum(asked)
    else:
        state.warehouse.check(state.clusters.values())
    assert state.underway == underway
    assert len(state.fetchers) == len(set(state.fetchers))
