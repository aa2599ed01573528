"""What must be true of a world in the end: the promises that users are given."""

from __future__ import annotations

from dispy.broker.jobs import LOSSES_MAX
from dispy.protocol.messages import ABANDONED, CANCELLED, FINISHED, TERMINATED, JobResult
from dispy.protocol.payload import unpack_result

from .jobs import End, answer
from .world import Wish, World, argument


def check_ends(world: World) -> None:
    """Each job has ended once, as it may end; none was run twice that must not be."""
    for number, wish in world.wishes.items():
        record = world.client.records[number]
        assert record.ends.keys() == wish.courses.keys(), "not all jobs have ended"
        for seq, ends in record.ends.items():
            check_end(world, wish, seq, ends)
            begun = world.diary.begun.get((str(number), seq), [])
            if not wish.opening.reentrant:
                assert len(begun) <= 1, f"job {number}/{seq} was begun by {begun}"


def check_end(world: World, wish: Wish, seq: int, ends: list[JobResult]) -> None:
    """Check what the client was told of one job."""
    statuses = [end.status for end in ends]
    where = f"job {wish.opening.cluster}/{seq}: {statuses}, {wish.courses[seq]}"
    assert len(ends) == 1 or statuses == [ABANDONED, FINISHED], where
    for end in ends:
        assert end.status in allowed(world, wish, seq), f"{where}, {end.payload!r}"
        if end.status == FINISHED:
            ended = world.diary.ended[wish.opening.computation.name, seq]
            assert end.attempt in [attempt for _, attempt in ended], where
            check_value(wish, seq, end)


def check_value(wish: Wish, seq: int, end: JobResult) -> None:
    """Check what a job has returned."""
    if end.parts:
        assert end.parts[0].size == sum(map(len, end.parts[0].chunks))
    else:
        value = unpack_result(end.payload).value
        assert bytes(value) == answer(argument(wish.opening.cluster, seq)), f"job {seq}"


def allowed(world: World, wish: Wish, seq: int) -> set[int]:
    """Say how a job may end after all that has happened."""
    course = wish.courses[seq]
    statuses = {FINISHED if course.end is End.RETURN else TERMINATED}
    if seq in wish.cancelled or wish.is_closing:
        statuses |= {CANCELLED, TERMINATED}
    if world.lost_nodes and not wish.opening.reentrant:
        statuses.add(ABANDONED)
    if len(world.diary.begun.get((wish.opening.computation.name, seq), [])) >= LOSSES_MAX:
        statuses.add(ABANDONED)
    fails = any(
        wish.opening.computation.name in each.setup_fails for each in world.machines.values()
    )
    if world.killed_processes or world.failing_forks or fails:
        statuses.add(TERMINATED)
    return statuses


def check_registered(world: World) -> None:
    """Every live node is registered, and no dead one; all CPUs are free."""
    nodes = world.broker.scheduler.nodes
    live = {node.identity.instance for node in world.live_nodes()}
    wanted = live if world.broker.scheduler.clusters else dialling(world)
    assert wanted <= nodes.keys() <= live, f"registered: {set(nodes)}, live: {live}"
    for peer, node in nodes.items():
        assert node.online and node.counted, f"{peer} is registered, but not reached"
        assert node.load == 0, f"{peer} is not free"


def dialling(world: World) -> set[str]:
    """Return the nodes that come by themselves; the broker lets the others go with a cluster."""
    machines = [each for each in world.machines.values() if each.dials]
    return {each.node.identity.instance for each in machines if each.node is not None}


def check_free(world: World) -> None:
    """No job process has anything to do, unless it runs a job that may still return."""
    returning = {
        (cluster.id, seq)
        for cluster in world.broker.scheduler.clusters.values()
        for seq in cluster.abandoned
    }
    for node in world.told_nodes():
        for worker in node.jobs.workers.values():
            if worker.running is not None:
                where = f"{node.identity.instance} still runs {worker.running}"
                assert (worker.computation, worker.running.seq) in returning, where


def check_clean(world: World) -> None:
    """After the last cluster was closed nothing is left of any of them."""
    scheduler = world.broker.scheduler
    assert not world.client.core.clusters
    assert not scheduler.clusters, "the broker still has clusters"
    assert all(not node.allocations for node in scheduler.nodes.values())
    for node in world.told_nodes():
        assert not node.agent.computations, f"{node.identity.instance} has not cleaned up"
        assert not node.jobs.workers, f"{node.identity.instance} has job processes left"
    for process in world.processes():
        assert not process.broken_protocol, process.broken_protocol
        assert world.has_tampered or not process.exchange.malformed
