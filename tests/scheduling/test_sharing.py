"""Users and clusters get their shares of CPU time, whatever the lengths of their jobs."""

from __future__ import annotations

import random
import struct

import pytest

from dispy.broker.settings import FIFO
from dispy.broker.standing import standing
from dispy.protocol.messages import JobSpec, Submit

from .crowd import Crowd, Tenant
from .stage import Stage


def jain(figures: list[float]) -> float:
    """Return Jain's index of fairness: 1 if all are equal, 1/n if one has all."""
    return sum(figures) ** 2 / (len(figures) * sum(each * each for each in figures))


def gained(world: Crowd, seconds: float) -> dict[str, float]:
    """Return the CPU time that each cluster gets in so many seconds."""
    world.run(world.now)
    before = {peer: tenant.used_s for peer, tenant in world.tenants.items()}
    world.run(world.now + seconds)
    return {peer: each.used_s - before[peer] for peer, each in world.tenants.items()}


def crowd(cpus: int, per_node: int = 8, **fields: object) -> Crowd:
    world = Crowd(**fields)  # type: ignore[arg-type]
    for number in range(max(1, cpus // per_node)):
        world.node(f"n{number}", min(cpus, per_node))
    return world


@pytest.mark.parametrize("max_tasks", [1, 0])
@pytest.mark.parametrize(
    ("clusters", "cpus"), [(2, 1), (10, 1), (2, 8), (10, 8), (50, 8), (50, 64)]
)
def test_equal_clusters_get_equal_cpu_time(clusters: int, cpus: int, max_tasks: int) -> None:
    world = crowd(cpus)
    for _ in range(clusters):
        world.open("ann", [0.2] * 3000, max_tasks=max_tasks)
    world.run(2.0)
    seconds = max(10.0, 40 * 0.2 * clusters / cpus)
    used = list(gained(world, seconds).values())
    assert jain(used) >= 0.95
    assert sum(used) >= 0.95 * cpus * seconds


@pytest.mark.parametrize(
    ("lengths", "cpus", "max_tasks"),
    [
        ((0.001, 10.0), 1, 0),
        ((0.02, 4.0), 8, 0),
        ((0.02, 4.0), 8, 1),
        ((0.01, 0.05, 1.0, 5.0), 4, 0),
        ((0.2, 2.0) * 5, 64, 1),
    ],
)
def test_short_and_long_jobs_get_equal_cpu_time(
    lengths: tuple[float, ...], cpus: int, max_tasks: int
) -> None:
    world = crowd(cpus)
    before_s, seconds = (0.1, 20.1) if lengths[0] < 0.01 else (6.0, 40.0)
    for length_s in lengths:
        count = int(2 * (before_s + seconds) * cpus / length_s)
        world.open("ann", [length_s] * count, max_tasks=max_tasks)
    world.run(before_s)
    used = list(gained(world, seconds).values())
    assert jain(used) >= 0.95, used
    assert sum(used) >= 0.9 * cpus * seconds


def test_users_get_equal_shares_however_many_clusters_they_have() -> None:
    world = crowd(16)
    one = world.open("ann@here", [0.5] * 5000)
    for _ in range(9):
        world.open("bob@there", [0.5] * 5000)
    world.run(2.0)
    used = gained(world, 30.0)
    assert used[one.peer] == pytest.approx(0.5 * 16 * 30.0, rel=0.05)
    others = [each for peer, each in used.items() if peer != one.peer]
    assert jain(others) >= 0.95


@pytest.mark.parametrize("level", ["users", "clusters"])
def test_shares_are_as_the_weights(level: str) -> None:
    by_user = level == "users"
    world = crowd(8, weights={"u1": 1.0, "u2@host": 2.0, "u4": 4.0} if by_user else {})
    for weight in (1, 2, 4):
        if by_user:
            world.open(f"u{weight}@host", [0.3] * 3000)
        else:
            world.open("ann", [0.3] * 3000, weight=float(weight))
    world.run(3.0)
    one, two, four = gained(world, 70.0).values()
    assert two / one == pytest.approx(2.0, rel=0.1)
    assert four / one == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(("length_s", "max_tasks"), [(0.5, 1), (0.5, 0), (0.02, 0)])
def test_a_newcomer_waits_for_two_jobs_at_most(length_s: float, max_tasks: int) -> None:
    world = crowd(8)
    world.open("ann", [length_s] * int(400 / length_s), max_tasks=max_tasks)
    world.run(10.0)
    new = world.open("bob", [length_s] * 100, max_tasks=max_tasks)
    world.run(10.0 + 2 * length_s + 0.1)
    assert len(new.began) >= 4


def test_nobody_is_paid_back_and_nobody_pays_for_the_time_before() -> None:
    world = crowd(8)
    old = world.open("ann", [0.5] * 4000)
    idle = world.open("bob", [0.5])
    world.run(30.0)
    new = world.open("eve", [0.5] * 4000)
    idle.lengths += [0.5] * 4000
    world.tell(idle.peer, Submit(1, jobs_of(idle, 2, 250)))
    world.run(32.0)
    used = gained(world, 20.0)
    assert jain([used[each.peer] for each in (old, new)]) >= 0.95
    assert used[idle.peer] <= 1.1 * used[new.peer]


def jobs_of(tenant: Tenant, first: int, last: int) -> list[JobSpec]:
    tenant.sent = last
    lengths = enumerate(tenant.lengths[first - 1 : last], first)
    return [JobSpec(seq, 0, struct.pack("d", length_s)) for seq, length_s in lengths]


def test_jobs_that_run_for_long_count_while_they_run() -> None:
    world = crowd(8)
    bob = world.open("bob", [0.1] * 5000)
    world.run(5.0)
    ann = world.open("ann", [1000.0] * 100)
    world.run(50.0)
    assert len(ann.began) <= 6, "their length isn't known, yet they use CPUs"
    assert bob.used_s >= 0.2 * 8 * 50.0


def test_all_cpus_are_used_by_whoever_has_jobs() -> None:
    world = crowd(16)
    lazy = world.open("ann", [1.0] * 2)
    busy = world.open("bob", [1.0] * 5000)
    world.run(10.5)
    assert world.busy() == 16 and lazy.ended == 2
    assert busy.used_s >= 16 * 10.5 - 2 - 16 * 0.1


def test_clusters_that_may_use_few_nodes_are_not_starved_nor_paid_back() -> None:
    world = crowd(32)  # four nodes
    everywhere = world.open("ann", [0.2] * 20_000)
    here = [world.open("bob", [0.2] * 3000, nodes=("n0",)) for _ in range(2)]
    world.run(30.0)
    here.append(world.open("eve", [0.2] * 3000, nodes=("n0",)))
    world.run(35.0)
    used = gained(world, 20.0)
    assert min(used[each.peer] for each in here) > 0.1 * 8 * 20.0
    assert used[everywhere.peer] >= 0.95 * 24 * 20.0


def test_chance_does_not_change_shares() -> None:
    world, chance = crowd(16), random.Random(1)
    for mean_s in (0.05, 0.3, 1.5, 0.3):
        lengths = [chance.expovariate(1 / mean_s) for _ in range(int(1200 / mean_s))]
        world.open(f"user of {mean_s}", lengths)
    world.open("user of 1.5", [1.5] * 900)
    world.run(5.0)
    used = gained(world, 40.0)
    shares = [0.0] * 3
    for number, each in zip((0, 1, 2, 1, 2), used.values(), strict=True):
        shares[number] += each
    assert jain(shares) >= 0.95, shares


def test_first_come_first_served_if_that_is_the_policy() -> None:
    world = crowd(8, policy=FIFO)
    first = world.open("ann", [0.5] * 100)
    second = world.open("bob", [0.5] * 100)
    third = world.open("ann", [0.5] * 100)
    world.run(40.0)
    assert first.ended == second.ended == third.ended == 100
    assert sorted(first.began)[-8] <= sorted(second.began)[8]
    assert sorted(second.began)[-8] <= sorted(third.began)[8]


def test_the_numbers_behind_a_decision_can_be_shown() -> None:
    world = crowd(8)
    one = world.open("ann", [0.5] * 1000)
    two, more = (world.open("bob", [0.5] * 1000, weight=each) for each in (1.0, 3.0))
    world.run(20.0)
    state = world.scheduler.state
    clusters = {each.client.peer: each for each in state.clusters.values()}
    stand = {each.peer: standing(state, clusters[each.peer]) for each in (one, two, more)}
    assert stand[one.peer].share == pytest.approx(1 / 2)
    assert stand[two.peer].share == pytest.approx(1 / 8)
    assert stand[more.peer].share == pytest.approx(3 / 8)
    assert sum(each.cpus for each in stand.values()) == pytest.approx(8)
    assert stand[one.peer].cpus == pytest.approx(4, abs=1)
    assert sorted(each.place for each in stand.values()) == [1, 2, 3]
    assert all(each.waiting == 3 for each in stand.values())
    for tenant in (one, two, more):
        assert stand[tenant.peer].used_s == pytest.approx(tenant.used_s, rel=0.1)


def test_a_cluster_hears_of_places_that_became_free_while_it_had_no_jobs() -> None:
    stage = Stage()
    for name in ("a", "b", "c"):
        stage.node(name)
    stage.submit(1, 2, 3, 4)  # one waits: it is known that all are full
    placed = {seqs[0]: name for name, seqs in stage.runs().items()}
    stage.done(placed[1], 1)
    assert stage.runs() == {placed[1]: [4]}
    stage.done(placed[2], 2)
    stage.submit(5)
    assert stage.runs() == {placed[2]: [5]}
