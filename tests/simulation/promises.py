"""What must be true of a world in the end: the promises that users are given."""

from __future__ import annotations

from dispy.broker.jobs import LOSSES_MAX
from dispy.broker.matching import entry_for
from dispy.broker.state import Cluster, Stage
from dispy.node.endings import STEP_S
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    FileSpec,
    JobOptions,
    JobResult,
)
from dispy.protocol.payload import unpack_result

from .extras import NOWHERE
from .files import CONTENTS
from .jobs import HANG_S, Course, End, answer
from .processes import Record
from .world import Wish, World, argument

PLAIN = JobOptions()
LATE_S = 0.5  # until a node looks again at what has run for too long


def check_ends(world: World) -> None:
    """Each job has ended once, as it may end; none was run twice that must not be."""
    for number, wish in world.wishes.items():
        record = wish.record
        ends = ends_of(wish)
        missing = owed(world, wish) - ends.keys()
        assert not missing, f"jobs {sorted(missing)} of {number} have not ended"
        assert ends.keys() <= wish.courses.keys()
        for seq in wish.courses:
            check_attempts(world, wish, seq)
            if seq in ends and not (wish.is_taken and is_reopened(world, wish)):
                check_end(world, wish, seq, ends[seq])
        check_told(world, wish, record)
        for request, answers in record.answers.items():
            assert len(answers) == 1, f"{record.asked[request]} was answered {answers}"


def owed(world: World, wish: Wish) -> set[int]:
    """Return the jobs whose ends somebody must have been told."""
    if not wish.is_taken:
        return set(wish.courses)
    if wish.is_closing:  # nobody wanted to know any more
        return set()
    unknown = any(wish.opening.cluster in heir.unknown for heir in wish.heirs)
    assert world.disk is not None
    if is_reopened(world, wish):
        return set()  # whom it was taken from had not been told so before it was over
    if wish.is_orphan or (unknown and wish.name in world.disk.expired):
        return set()
    return wish.accepted


def ends_of(wish: Wish) -> dict[int, list[JobResult]]:
    """Return what was told of jobs: to the client, then to those who have taken its cluster."""
    if not wish.is_taken:
        return wish.record.ends
    ends = {}
    for seq, told in wish.record.ends.items():
        ends[seq] = [end for end in told if not is_lost_with_cluster(end)]
    for heir in wish.heirs:
        for seq, end in heir.ends.get(wish.opening.cluster, {}).items():
            before = ends.setdefault(seq, [])
            if not before or not is_same(before[-1], end):
                before.append(end)
    return {seq: told for seq, told in ends.items() if told}


def is_reopened(world: World, wish: Wish) -> bool:
    """Whether the cluster was forgotten by the broker, and opened anew by its client."""
    if world.disk is None or wish.name not in world.disk.reopened:
        return False
    assert world.broker_lives > 1, "a cluster that was taken over is opened by its first client"
    return True


def is_lost_with_cluster(end: JobResult) -> bool:
    """Whether a job has ended for its client only, since another one has it now."""
    if end.attempt or not end.payload:
        return not end.attempt  # the broker has always something to say
    return "taken over by" in unpack_result(end.payload).exception


def is_same(one: JobResult, other: JobResult) -> bool:
    """Whether both tell the same end of a job."""
    return (one.status, one.attempt) == (other.status, other.attempt)


def check_end(world: World, wish: Wish, seq: int, ends: list[JobResult]) -> None:
    """Check what the client was told of one job."""
    statuses = [end.status for end in ends]
    where = f"job {wish.opening.cluster}/{seq}: {statuses}, {wish.courses[seq]}"
    assert len(ends) == 1 or statuses == [ABANDONED, FINISHED], where
    for end in ends:
        assert end.status in allowed(world, wish, seq), f"{where}, {end.payload!r}"
        if end.status == FINISHED:
            ended = world.diary.ended[wish.name, seq]
            assert end.attempt in [attempt for _, attempt in ended], where
            check_value(wish, seq, end)
        elif end.status == TERMINATED:
            check_failure(world, wish, seq, end)


def check_attempts(world: World, wish: Wish, seq: int) -> None:
    """Check how often, where and for how long a job has run."""
    options = wish.courses[seq].options or PLAIN
    begun = world.diary.begun.get((wish.name, seq), [])
    where = f"job {wish.opening.cluster}/{seq} was begun by {begun}"
    if not wish.opening.reentrant:
        assert len(begun) <= 1 + options.retries, where
    if options.node:
        assert len({life for life, _ in begun}) <= 1, where
    if options.timeout:
        grace_s = wish.opening.computation.cancel_grace
        limit_s = options.timeout + grace_s + STEP_S + LATE_S + world.longest_pause_s
        lasted = world.diary.lasted.get((wish.name, seq), [])
        assert max(lasted, default=0.0) <= limit_s, f"{where}, and ran for {lasted}"


def check_failure(world: World, wish: Wish, seq: int, end: JobResult) -> None:
    """A job fails only when no attempt is left, and its text says why."""
    course = wish.courses[seq]
    options = course.options or PLAIN
    if wish.is_closing or seq in wish.cancelled or may_fail_to_set_up(world, wish):
        return
    if world.disk is not None and wish.name in world.disk.expired:
        return
    text = unpack_result(end.payload).exception
    assert end.attempt >= 1 + options.retries, f"job {seq} was given up early: {text}"
    if options.retries:
        assert "attempts" in text, text
    hangs = course.run_s >= HANG_S and end.attempt > course.fails and not wish.ended_some
    if hangs and not (world.killed_processes or world.failing_forks):
        has_files = bool(options.files)  # they may have vanished
        assert "ran longer than its limit" in text or has_files, text


def check_told(world: World, wish: Wish, record: Record) -> None:
    """What jobs said came in order, and of attempts that returned all of it.

    A broker that is killed takes with it what it was about to pass on, and who is away for too
    long isn't told.
    """
    expired = world.disk is not None and wish.name in world.disk.expired
    for key, numbers in record.told.items():
        assert numbers == sorted(set(numbers)), f"job and attempt {key} said {numbers}"
    for seq, ends in record.ends.items():
        whole = world.broker_lives == 1 and not wish.is_taken and not expired
        if whole and len(ends) == 1 and ends[0].status == FINISHED:
            attempt = ends[0].attempt
            said = world.diary.said.get((wish.name, seq, attempt), 0)
            told = record.told.get((seq, attempt), [])
            assert told == list(range(1, said + 1)), f"job {seq} said {said}, told was {told}"


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
    options = course.options or PLAIN
    statuses = {TERMINATED if never_returns(wish, course) else FINISHED}
    if course.fails > options.retries:
        statuses.add(TERMINATED)
    if seq in wish.cancelled or wish.is_closing:
        statuses |= {CANCELLED, TERMINATED}
    if world.lost_nodes and (not wish.opening.reentrant or options.node):
        statuses.add(ABANDONED)
    if options.node and (wish.opening.asks or wish.closed_some or options.node == NOWHERE):
        statuses.add(CANCELLED)
    if len(world.diary.begun.get((wish.name, seq), [])) >= LOSSES_MAX:
        statuses.add(ABANDONED)
    if options.files and has_vanished(world, wish, options.files):
        statuses.add(TERMINATED)
    if world.disk is not None and wish.name in world.disk.expired:
        statuses |= {CANCELLED, TERMINATED}
        if wish.name in world.disk.closed:
            statuses.add(ABANDONED)  # what the client thought to be there
    trouble = world.killed_processes or world.failing_forks or wish.ended_some
    if trouble or may_fail_to_set_up(world, wish):
        statuses.add(TERMINATED)
    return statuses


def never_returns(wish: Wish, course: Course) -> bool:
    """Whether a job can't end well, however often it is tried."""
    limited = course.options is not None and course.options.timeout < course.run_s >= HANG_S
    return course.end is not End.RETURN or limited


def may_fail_to_set_up(world: World, wish: Wish) -> bool:
    """Whether some nodes can't set the computation up."""
    machines = world.machines.values()
    fails = any(wish.name in each.setup_fails | each.setup_hangs for each in machines)
    if wish.is_taken and wish.opening.computation.files:
        return True  # they may have gone with the client
    return fails or has_vanished(world, wish, wish.opening.computation.files)


def has_vanished(world: World, wish: Wish, files: list[FileSpec]) -> bool:
    """Whether the client can't read some of these any more."""
    number = wish.opening.cluster
    gone = {digest for each in world.clients for _, digest in each.unreadable}
    if world.disk is not None:  # which has one copy for all
        return wish.is_taken or any(file.digest in gone for file in files)
    return any((number, file.digest) in wish.client.unreadable for file in files)


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
    machines = [each for each in world.machines.values() if each.comes]
    return {each.node.identity.instance for each in machines if each.node is not None}


def check_used(world: World) -> None:
    """Every node works for every cluster, and all that was asked has been answered."""
    for number, wish in world.wishes.items():
        record = wish.record
        if wish.is_closing or wish.is_taken:
            continue
        cluster = cluster_of(world, wish)
        assert not cluster.unheard and not cluster.stored, "results are kept that were heard"
        assert record.asked.keys() == record.answers.keys(), "a request was not answered"
        ready = set()
        for peer, node in world.broker.scheduler.nodes.items():
            if entry_for(wish.opening.nodes, node) is None:
                continue
            allocation = cluster.allocations.get(node.id)
            assert allocation is not None, f"{peer} isn't used for {number}"
            if allocation.stage is not Stage.FAILED:
                where = f"{peer} is {allocation.stage} for {number}"
                assert allocation.stage is Stage.READY and allocation.is_open, where
                ready.add(node.id)
            else:
                assert may_fail_to_set_up(world, wish), f"{peer} can't be used: {allocation.error}"
        assert record.nodes.keys() == ready, "the client thinks that other nodes are used"
        since = world.now - 2 * wish.opening.computation.pulse_interval - LATE_S
        assert all(record.alive.get(each, 0.0) > since for each in ready), "a node is not heard of"
    check_blobs(world)
    if world.disk is not None and not world.broker.is_in_turn:
        world.disk.check_agrees(world.broker.scheduler.state)
        check_accepted(world)


def check_accepted(world: World) -> None:
    """Programs know which jobs are on the broker's disk; else they would send them again."""
    if world.lost_nodes:
        return  # and some of what they were told
    for number, wish in world.wishes.items():
        cluster = wish.client.core.clusters.get(number)
        if cluster is not None:
            run = {seq for seq, told in wish.record.ends.items() if told[-1].attempt}
            missing = [seq for seq in run if seq not in cluster.accepted]
            assert not missing, f"jobs {missing} of {number} were accepted in silence"


def cluster_of(world: World, wish: Wish) -> Cluster:
    """Return what the broker knows of a cluster."""
    client = world.broker.scheduler.clients.get(wish.client.identity.instance)
    assert client is not None, "a client is not registered"
    cluster = client.clusters.get(wish.opening.cluster)
    assert cluster is not None, "a cluster is not open"
    return cluster


def check_blobs(world: World) -> None:
    """No node got a content twice; without trouble, no piece was even asked for twice.

    What a job needs that is cancelled or moved meanwhile is thrown away, and may be asked for
    again; what a computation needs stays as long as it is there.
    """
    wishes = world.wishes.values()
    if any(
        wish.cancelled or wish.closed_some or wish.is_closing or wish.is_taken for wish in wishes
    ):
        return
    if world.has_slowed:
        return
    for node in world.live_nodes():
        completed = node.jobs.store.completed
        assert all(count == 1 or not CONTENTS[digest] for digest, count in completed.items())
    if world.lost_nodes or world.has_tampered or any(each.unreadable for each in world.clients):
        return
    for wish in wishes:
        own = {file.digest for file in wish.opening.computation.files}
        for (node_id, digest, _), count in wish.record.served.items():
            assert count == 1 or digest not in own, f"node {node_id} got a piece of a file twice"


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
                assert worker.course.run_s >= HANG_S, "a job that may return doesn't end"
                where = f"{node.identity.instance} still runs {worker.running}"
                assert (worker.computation, worker.running.seq) in returning, where


def check_clean(world: World) -> None:
    """After the last cluster was closed nothing is left of any of them."""
    scheduler = world.broker.scheduler
    for client in world.live_clients():
        assert not client.core.clusters, f"{client.identity.instance} still has clusters"
    assert not scheduler.clusters, "the broker still has clusters"
    assert all(not node.allocations for node in scheduler.nodes.values())
    for node in world.told_nodes():
        assert not node.agent.computations, f"{node.identity.instance} has not cleaned up"
        assert not node.jobs.workers, f"{node.identity.instance} has job processes left"
        assert not node.jobs.kept, f"{node.identity.instance} has files left"
        assert node.jobs.store.is_settled, f"{node.identity.instance} has parts of files"
    assert scheduler.state.underway == 0, "pieces of files are still counted"
    if world.disk is not None:
        world.disk.check_clean()
    for process in world.processes():
        assert not process.broken_protocol, process.broken_protocol
        assert world.has_tampered or not process.exchange.malformed
