"""The table: which figures it shows, what each must reach, and how it is printed. Pure.

A target is a ratio between two figures of the same run wherever it can be, because absolute
figures of different machines, or of different hours, don't compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from .rounds import Figures, Rounds

Value: TypeAlias = Callable[[Figures], float]


class Target(NamedTuple):
    """What a value must reach: at least, or at most, the limit."""

    words: str
    value: Value
    limit: float
    at_most: bool = False


class Row(NamedTuple):
    """A line of the table: the figure with this key, and its targets."""

    text: str
    key: str
    unit: str
    targets: tuple[Target, ...] = ()


class Section(NamedTuple):
    """Rows under a heading."""

    title: str
    rows: tuple[Row, ...]


def at_least(limit: float, ours: str, theirs: str, words: str) -> Target:
    """A ratio of two figures that must not be smaller."""
    return Target(f">= {limit:g} x {words}", lambda f: f[ours] / f[theirs], limit)


def at_most(limit: float, ours: str, theirs: str, words: str) -> Target:
    """A ratio of two figures that must not be larger."""
    return Target(f"<= {limit:g} x {words}", lambda f: f[ours] / f[theirs], limit, at_most=True)


def above(limit: float, key: str) -> Target:
    """A figure that must not be smaller."""
    return Target(f">= {limit:,g}", lambda f: f[key], limit)


def below(limit: float, key: str) -> Target:
    """A figure that must not be larger."""
    return Target(f"<= {limit:,g}", lambda f: f[key], limit, at_most=True)


EXECUTOR = "ProcessPoolExecutor"
SECTIONS = (
    Section(
        "No-op jobs, submitted all at once",
        (
            Row("dispy, reused processes", "rate.reused", "jobs/s",
                (at_least(3, "rate.reused", "rate.executor", EXECUTOR),)),
            Row(f"{EXECUTOR}(2), chunksize 1", "rate.executor", "jobs/s"),
            Row("dispy, a fresh process each", "rate.fresh", "jobs/s",
                (at_least(3, "rate.fresh", "rate.pool", "multiprocessing.Pool"),
                 at_least(0.7, "rate.fresh", "fork.served", "fork server alone"))),
            Row("multiprocessing.Pool(2, maxtasksperchild=1)", "rate.pool", "jobs/s"),
            Row("floor: fork server alone, 8 in flight", "fork.served", "jobs/s"),
            Row("floor: fork and exit, one by one", "fork.rate", "forks/s"),
            Row("floor: raw ROUTER/DEALER, there and back", "zmq.turns", "msgs/s"),
        ),
    ),
    Section(
        "Round trip, one job at a time",
        (
            Row("dispy, reused, p50", "p50.reused", "ms",
                (at_most(3, "p50.reused", "p50.executor", EXECUTOR), below(0.8, "p50.reused"))),
            Row("dispy, reused, p99", "p99.reused", "ms"),
            Row("dispy, fresh, p50", "p50.fresh", "ms", (below(1.5, "p50.fresh"),)),
            Row("dispy, fresh, p99", "p99.fresh", "ms"),
            Row(f"{EXECUTOR}, p50", "p50.executor", "ms"),
            Row(f"{EXECUTOR}, p99", "p99.executor", "ms"),
        ),
    ),
    Section(
        "Bytes there and back, both ways added, 4 in flight",
        (
            Row("1 MiB: dispy, reused", "1MiB.reused", "MB/s",
                (at_least(1.5, "1MiB.reused", "1MiB.executor", EXECUTOR),)),
            Row(f"1 MiB: {EXECUTOR}", "1MiB.executor", "MB/s"),
            Row("1 MiB: floor, raw ROUTER/DEALER", "1MiB.zmq", "MB/s"),
            Row("32 MiB: dispy, reused", "32MiB.reused", "MB/s",
                (at_least(0.4, "32MiB.reused", "32MiB.zmq", "raw ROUTER/DEALER"),)),
            Row(f"32 MiB: {EXECUTOR}", "32MiB.executor", "MB/s"),
            Row("32 MiB: floor, raw ROUTER/DEALER", "32MiB.zmq", "MB/s"),
        ),
    ),
    Section(
        "Efficiency: ideal time on 2 workers / measured; jobs sleep",
        (
            Row("200 x 10 ms: dispy, reused", "10ms.reused", "", (above(0.95, "10ms.reused"),)),
            Row("200 x 10 ms: dispy, fresh", "10ms.fresh", "", (above(0.95, "10ms.fresh"),)),
            Row(f"200 x 10 ms: {EXECUTOR}", "10ms.executor", ""),
            Row("2,000 x 1 ms: dispy, reused", "1ms.reused", "", (above(0.85, "1ms.reused"),)),
            Row("2,000 x 1 ms: dispy, fresh", "1ms.fresh", "", (above(0.4, "1ms.fresh"),)),
            Row(f"2,000 x 1 ms: {EXECUTOR}", "1ms.executor", ""),
        ),
    ),
    Section(
        "CPU time per no-op job",
        (
            Row("all processes: dispy, reused", "cpu.reused", "us",
                (at_most(1, "cpu.reused", "cpu.executor", EXECUTOR),)),
            Row(f"all processes: {EXECUTOR}", "cpu.executor", "us"),
            # Microseconds a job are milliseconds per 1,000 jobs.
            Row("client + broker per 1,000 jobs: reused", "here.reused", "ms"),
            Row("client + broker per 1,000 jobs: fresh", "here.fresh", "ms"),
        ),
    ),
    Section(
        "1,000,000 queued no-op jobs",
        (
            Row("client + broker memory per job", "queue.bytes", "bytes",
                (below(1024, "queue.bytes"),)),
            Row("submit rate, first tenth", "queue.first", "jobs/s"),
            Row("submit rate, last tenth", "queue.last", "jobs/s",
                (at_least(0.7, "queue.last", "queue.first", "first tenth (linear)"),)),
        ),
    ),
    Section(
        "A shared broker, no-op jobs, one node with 2 CPUs",
        (
            Row("with its journal, reused processes", "shared.journal", "jobs/s",
                (at_least(0.6, "shared.journal", "shared.none", "without the journal"),
                 above(5_000, "shared.journal"))),
            Row("without a journal, reused processes", "shared.none", "jobs/s"),
            Row("with its journal, a fresh process each", "shared.fresh.journal", "jobs/s"),
            Row("without a journal, a fresh process each", "shared.fresh.none", "jobs/s"),
            Row("round trip p50 with its journal, reused", "shared.p50.journal", "ms"),
            Row("round trip p50 without, reused", "shared.p50.none", "ms"),
        ),
    ),
    Section(
        "1,000,000 jobs queued at a shared broker that is killed",
        (
            Row("jobs that get to its disk", "restart.accepted", "jobs/s",
                (above(10_000, "restart.accepted"),)),
            Row("its memory per job", "restart.bytes", "bytes", (below(150, "restart.bytes"),)),
            Row("ready again after", "restart.ready", "s", (below(20, "restart.ready"),)),
        ),
    ),
    Section(
        "Sharing ten nodes with one CPU each",
        (
            Row("Jain index of the CPU time of five equal clusters", "fair.jain", "",
                (above(0.95, "fair.jain"),)),
            Row("a million jobs queued: ten of a newcomer have begun after", "fair.newcomer",
                "job lengths",
                (below(2, "fair.newcomer"),)),
        ),
    ),
    Section(
        "One node with 2 CPUs behind a relay, no-op jobs, reused processes",
        (
            Row("through the relay", "relay.rate", "jobs/s",
                (at_least(0.5, "relay.rate", "relay.rate.direct", "without"),)),
            Row("without", "relay.rate.direct", "jobs/s"),
            Row("round trip p50 through the relay", "relay.p50", "ms"),
            Row("round trip p50 without", "relay.p50.direct", "ms"),
        ),
    ),
    Section(
        "Objects as arguments, no-op jobs, reused processes",
        (
            Row("an int", "class.int", "jobs/s"),
            Row("an instance of a class of the program", "class.instance", "jobs/s",
                (at_most(2, "class.int", "class.instance", "the time of an int"),)),
            Row("the same, the class in depends", "class.depends", "jobs/s",
                (at_most(2, "class.int", "class.depends", "the time of an int"),)),
        ),
    ),
    Section(
        "With a secret: all connections are encrypted, reused processes",
        (
            Row("no-op jobs, without", "curve.rate.plain", "jobs/s"),
            Row("no-op jobs, encrypted", "curve.rate.encrypted", "jobs/s",
                (at_least(0.7, "curve.rate.encrypted", "curve.rate.plain", "without"),)),
            Row("round trip, without, p50", "curve.p50.plain", "ms"),
            Row("round trip, encrypted, p50", "curve.p50.encrypted", "ms"),
            Row("32 MiB there and back, both ways added, without", "curve.32MiB.plain", "MB/s"),
            Row("32 MiB there and back, both ways added, encrypted", "curve.32MiB.encrypted",
                "MB/s", (above(150, "curve.32MiB.encrypted"),)),
        ),
    ),
    Section(
        "A file of 200 MiB in depends, to two nodes at once",
        (
            Row("each node's copy, until it is ready for jobs", "file.rate", "MB/s",
                (above(300, "file.rate"),)),
            Row("the same, hashing at the client included", "file.whole", "MB/s"),
            Row("growth of the client at its peak", "file.client", "MiB",
                (below(64, "file.client"),)),
            Row("growth of a node at its peak", "file.node", "MiB", (below(64, "file.node"),)),
            Row("sent for a second cluster", "file.again", "MiB", (below(0.1, "file.again"),)),
        ),
    ),
    Section(
        "A job that says much",
        (
            Row("provisional results", "stream.results", "/s"),
            Row("growth of client", "stream.results.client", "MiB",
                (below(64, "stream.results.client"),)),
            Row("growth of node", "stream.results.node", "MiB",
                (below(64, "stream.results.node"),)),
            Row("small files sent to the client", "stream.files", "/s"),
            Row("growth of client", "stream.files.client", "MiB",
                (below(64, "stream.files.client"),)),
            Row("growth of node", "stream.files.node", "MiB",
                (below(64, "stream.files.node"),)),
        ),
    ),
    Section(
        "Scheduler alone, no I/O",
        (
            Row("1,000 nodes", "scheduler.1000", "jobs/s", (above(50_000, "scheduler.1000"),)),
            Row("10,000 nodes", "scheduler.10000", "jobs/s"),
            Row("cost of a job, 10,000 / 1,000 nodes", "scheduler.cost", "",
                (below(1.5, "scheduler.cost"),)),
            Row("100 nodes, 300 clusters", "scheduler.crowd", "jobs/s"),
            Row("cost of a job, 300 clusters / 1", "scheduler.crowd.cost", "",
                (below(1.5, "scheduler.crowd.cost"),)),
        ),
    ),
    Section(
        "Start-up",
        (
            Row("import dispy", "start.import", "ms", (below(50, "start.import"),)),
            Row("dispy-node --help", "start.help", "ms", (below(200, "start.help"),)),
            Row("examples/sample.py to its first result", "start.first", "s",
                (below(0.6, "start.first"),)),
        ),
    ),
    Section(
        "Others, when installed",
        tuple(
            row
            for name in ("Dask", "Ray", "ipyparallel", "Parsl")
            for row in (
                Row(f"{name}, no-op jobs", f"rate.{name}", "jobs/s"),
                Row(f"{name}, round trip p50", f"p50.{name}", "ms"),
            )
        ),
    ),
)  # fmt: skip
TEXT, NUMBER, UNIT, WORDS = 44, 12, 7, 34


def lines(measured: Rounds, missing: dict[str, str]) -> Iterator[str]:
    """Return the table's lines; ``missing`` says by key why a figure isn't there."""
    for section in SECTIONS:
        shown = [row for row in section.rows if row.key in measured or row.key in missing]
        if shown:
            yield f"\n{section.title}"
        for row in shown:
            yield from _row_lines(row, measured, missing)


def _row_lines(row: Row, measured: Rounds, missing: dict[str, str]) -> Iterator[str]:
    head = f"  {row.text:<{TEXT}}"
    if row.key not in measured:
        yield f"{head} {missing[row.key]}"
        return
    head += f"{_number(measured.figure(row.key)):>{NUMBER}} {row.unit:<{UNIT}}"
    targets = row.targets or (None,)
    for target in targets:
        yield f"{head}{_verdict(target, measured)}".rstrip()
        head = " " * (2 + TEXT + NUMBER + 1 + UNIT)


def _verdict(target: Target | None, measured: Rounds) -> str:
    if target is None:
        return ""
    try:
        value = measured.value(target.value)
    except KeyError:
        return f"  {target.words:<{WORDS}} not measured"
    return f"  {target.words:<{WORDS}} {_number(value):>9}  {_word(target, value)}"


def _word(target: Target, value: float) -> str:
    return "ok" if reached(target, value) else "MISSED"


def reached(target: Target, value: float) -> bool:
    """Tell whether a value is on the right side of its limit."""
    return value <= target.limit if target.at_most else value >= target.limit


def missed(measured: Rounds) -> list[str]:
    """Return the rows with a target that was measured and missed."""
    rows = [row for section in SECTIONS for row in section.rows]
    return [row.text for row in rows if any(_misses(t, measured) for t in row.targets)]


def _misses(target: Target, measured: Rounds) -> bool:
    try:
        return not reached(target, measured.value(target.value))
    except KeyError:
        return False


def _number(value: float) -> str:
    """Three or four digits that matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
