"""Users and clusters get their shares of CPU time, whatever the lengths of their jobs."""

from __future__ import annotations

import random

import pytest

from dispy.broker.settings import FIFO
from dispy.broker.standing import standing

from .crowd import Crowd, Tenant

MANY = 10**6


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
@pytest.mark.parametrize(("clusters", "cpus"), [(2, 1), (10, 1), (2, 8), (10, 8), (50, 8), (50, 64)])
def test_equal_clusters_get_equal_cpu_time(clusters: int, cpus: int, max_tasks: int) -> None:
    world = crowd(cpus)
    for _ in range(clusters):
        world.open("ann", [0.2] * 3000, max_tasks=max_tasks)
    world.run(2.0)
    seconds = max(10.0, 40 * 0.2 * clusters / cpus)
    used = list(gained(world, seconds).values())
    assert jain(used) >= 0.95
    assert sum(used) >= 0.95 * cpus * seconds


@pytest.mark.parametrize("max_tasks", [1, 0])
@pytest.mark.parametrize(
    ("lengths", "cpus"),
    [((0.001, 10.0), 1), ((0.001, 10.0), 8), ((0.002, 0.05, 1.0, 8.0), 4), ((0.02, 2.0) * 5, 64)],
)
def test_short_and_long_jobs_get_equal_cpu_time(
    lengths: tuple[float, ...], cpus: int, max_tasks: int
) -> None:
    world = crowd(cpus)
    for length_s in lengths:
        count = min(int(3 * 200 * cpus / length_s), 150_000)
        world.open("ann", [length_s] * count, max_tasks=max_tasks)
    world.run(20.0)
    seconds = 60.0
    used = list(gained(world, seconds).values())
    assert jain(used) >= 0.95, used
    assert sum(used) >= 0.85 * cpus * seconds
