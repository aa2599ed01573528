"""What is measured of every pool alike: rate, round trip, payload, efficiency, CPU time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from statistics import median, quantiles
from typing import NamedTuple

from .usage import cpu_seconds_of_all
from .work import WORKERS, Runner, check, run_all, warm_up

REPEATS = 3  # short measurements are repeated; the median counts


def jobs_per_s(runner: Runner, count: int) -> float:
    """Rate of no-op jobs, from the first submit to the last result."""
    warm_up(runner, 0)
    return median(_jobs_per_s(runner, count) for _ in range(REPEATS))


def _jobs_per_s(runner: Runner, count: int) -> float:
    began = time.perf_counter()
    results = run_all(runner, iter(range(count)))
    seconds = time.perf_counter() - began
    check(results == list(range(count)), "no-op jobs")
    return count / seconds


class RoundTrip(NamedTuple):
    """Milliseconds from submit to result, one job at a time."""

    p50_ms: float
    p99_ms: float


def round_trip(runner: Runner, count: int) -> RoundTrip:
    """Time sequential no-op jobs."""
    warm_up(runner, 0)
    times_ms = sorted(1000 * _seconds(runner) for _ in range(count))
    return RoundTrip(median(times_ms), quantiles(times_ms, n=100)[98])


def _seconds(runner: Runner) -> float:
    began = time.perf_counter()
    runner.submit(0)()
    return time.perf_counter() - began


def payload_mb_per_s(runner: Runner, size_bytes: int, count: int, in_flight: int) -> float:
    """Rate at which bytes go there and come back, both ways added; median of `REPEATS`."""
    payload = bytes(range(256)) * (size_bytes // 256)
    warm_up(runner, payload[:1000])
    return median(_mb_per_s(runner, payload, count, in_flight) for _ in range(REPEATS))


def _mb_per_s(runner: Runner, payload: bytes, count: int, in_flight: int) -> float:
    began = time.perf_counter()
    sizes = [len(result) for result in _windowed(runner, payload, count, in_flight)]
    seconds = time.perf_counter() - began
    check(sizes == [len(payload)] * count, "payloads")
    return 2 * len(payload) * count / seconds / 1e6


def _windowed(runner: Runner, payload: bytes, count: int, in_flight: int) -> Iterator[bytes]:
    """Keep so many jobs on their way; forget each result before the next one."""
    waits = deque(runner.submit(payload) for _ in range(min(in_flight, count)))
    for _ in range(count - len(waits)):
        yield waits.popleft()()
        waits.append(runner.submit(payload))
    while waits:
        yield waits.popleft()()


def efficiency(runner: Runner, seconds: float, count: int) -> float:
    """Ideal time for sleeping jobs on `WORKERS` processes over the measured one."""
    warm_up(runner, 0.0)
    return median(_efficiency(runner, seconds, count) for _ in range(REPEATS))


def _efficiency(runner: Runner, seconds: float, count: int) -> float:
    began = time.perf_counter()
    results = run_all(runner, iter([seconds] * count))
    took_s = time.perf_counter() - began
    check(results == [seconds] * count, "sleeping jobs")
    return seconds * count / WORKERS / took_s


class CpuTime(NamedTuple):
    """Microseconds of CPU per no-op job."""

    all_us: float  # of this process and all below it
    here_us: float  # of this process alone: for dispy, client and broker


def cpu_time(runner: Runner, count: int) -> CpuTime:
    """Measure user and system time per no-op job."""
    warm_up(runner, 0)
    all_before, here_before = cpu_seconds_of_all(), time.process_time()
    results = run_all(runner, iter(range(count)))
    here, everything = time.process_time() - here_before, cpu_seconds_of_all() - all_before
    check(results == list(range(count)), "no-op jobs")
    return CpuTime(1e6 * everything / count, 1e6 * here / count)
