"""Mixed load in rounds, and whether broker and nodes stay as they were.

In a round some clients do some of everything, at the same time, and end; in every other round one
is killed, and what it had is ended by its recovery. Between rounds nothing is left to do, so that
is when memory, descriptors and disk are looked at: what isn't given back then is a leak.
20 seconds, or DISPY_TEST_SOAK_MINUTES.

The criterion: once it has run warm (after a third of the rounds), what grows must have stopped
growing: the line through memory against rounds (its median slope, which a few outliers don't
move) must not rise by more than GROWTH_BYTES from the first to the last. Fewer rounds than
ROUNDS_MIN say nothing about slopes: then only the whole growth is limited, more generously.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from dispy.operator import Operator
from dispy.protocol.messages import CANCEL, SERIALS

from .processes import BrokerProcess, NodeProcess, Program
from .secured import KEYS
from .waiting import until

MINUTES = float(os.environ.get("DISPY_TEST_SOAK_MINUTES", "0.1"))
SEED = int(os.environ.get("DISPY_TEST_SEED", "1"))
SOURCE = Path(__file__).with_name("soak_client.py").read_text()
CLIENTS = 3
NODES = 2
ROUND_S = 120.0  # patience
QUIET_S = 20.0
GROWTH_BYTES = 4 << 20
ROUNDS_MIN = 12
WARM_UP_BYTES = 24 << 20  # what a process, or its disk, may grow by in all
DESCRIPTORS = 2  # more than when it had run warm
RECOVER = """
import sys, dispy
from pathlib import Path
for path in Path(sys.argv[1]).glob("_dispy_*"):
    try:
        dispy.recover_jobs(path, terminate_pending=True)
    except dispy.RecoverError as error:
        print(path, error, file=sys.stderr)
"""


@dataclass
class Measured:
    """What was seen of one process, or of the disk, after each round."""

    memory: list[int] = field(default_factory=list)  # bytes
    descriptors: list[int] = field(default_factory=list)

    def add(self, process: psutil.Process) -> None:
        """Look at it now."""
        self.memory.append(process.memory_info().rss)
        self.descriptors.append(process.num_fds())

    def add_size(self, size_bytes: int) -> None:
        """Note the size of something else, that has no descriptors."""
        self.memory.append(size_bytes)
        self.descriptors.append(0)

    def growth(self) -> float:
        """Return the bytes by which memory has grown since it ran warm."""
        later = warm(self.memory)
        return slope(later) * (len(later) - 1)


def warm(values: list[int]) -> list[int]:
    """Return what was measured when it had run warm."""
    return values[len(values) // 3 :]


def slope(values: list[int]) -> float:
    """Return the median slope of all pairs (Theil and Sen)."""
    step = max(1, len(values) // 200)  # enough for a median
    points = list(enumerate(values))[::step]
    pairs = combinations(points, 2)
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs)


def test_the_slope_is_that_of_the_line_whatever_the_outliers() -> None:
    assert slope([0, 2, 4, 100, 8, 10]) == 2
    assert slope([5, 5, 5, 5, 9]) == 0


class Soak:
    """A broker, nodes, and rounds of clients."""

    def __init__(self, folder: Path) -> None:
        self.dice = random.Random(SEED)
        self.folder = folder
        self.broker = BrokerProcess(folder)
        options = ("--broker", self.broker.for_nodes)
        self.nodes = [NodeProcess(folder, *options, "--name", f"n{n}") for n in range(NODES)]
        self.measured: dict[str, Measured] = defaultdict(Measured)
        self.rounds = 0
        self.killed = 0

    def daemons(self) -> Iterator[tuple[str, psutil.Process]]:
        """Yield what must not grow: the broker, nodes and their zygotes."""
        yield "broker", psutil.Process(self.broker.pid)
        for number, node in enumerate(self.nodes):
            process = psutil.Process(node.pid)
            yield f"node {number}", process
            for zygote in process.children():
                yield f"zygote {number}", zygote

    def round(self) -> None:
        """Have some clients come and go."""
        self.rounds += 1
        programs = [self._client() for _ in range(CLIENTS)]
        victim = programs.pop() if self.rounds % 2 else None
        if victim is not None:
            self._kill(victim)
        for program in programs:
            assert program.wait(ROUND_S) == 0, program.log()[-3000:]
            assert program.output() == "done\n"
            program.assert_nothing_left()
        self._quieten()
        for name, process in self.daemons():
            self.measured[name].add(process)
        self.measured["disk"].add_size(size_of(self.broker.state))

    def _client(self) -> Program:
        seed = self.dice.randrange(1 << 30)
        return Program(self.folder, SOURCE, self.broker.address, str(seed))

    def _kill(self, program: Program) -> None:
        """Kill it some time after it has begun with a cluster, and have its jobs ended."""
        until(lambda: list(program.folder.glob("_dispy_*")), "its first cluster")
        until_s = time.monotonic() + self.dice.uniform(0, 1)
        until(
            lambda: time.monotonic() > until_s or program.process.poll() is not None, "the moment"
        )
        self.killed += program.process.poll() is None
        program.kill()
        folder = self.folder / "recoveries"
        folder.mkdir(exist_ok=True)
        recovery = Program(folder, RECOVER, str(program.folder))
        assert recovery.wait(ROUND_S) == 0, recovery.log()

    def _quieten(self) -> None:
        """Wait until nothing is left of the round."""
        with Operator(self.broker.address, keys=KEYS) as operator:
            until(lambda: _is_cleared(operator), "no clusters", QUIET_S)
        running = [node.job_processes for node in self.nodes]
        until(lambda: not any(each() for each in running), "no job processes", QUIET_S)

    def check(self) -> None:
        """Nothing has grown, or not any more."""
        for name, measured in self.measured.items():
            first, last = measured.memory[0], measured.memory[-1]
            assert last - first < WARM_UP_BYTES, f"{name}: {measured}"
            if self.rounds >= ROUNDS_MIN:
                assert measured.growth() < GROWTH_BYTES, f"{name}: {measured}"
            files = warm(measured.descriptors)
            assert max(files) - files[0] <= DESCRIPTORS, f"{name}: {measured.descriptors}"

    def report(self) -> str:
        """Say what it was."""
        lines = [f"{self.rounds} rounds, {self.killed} clients killed"]
        for name, measured in self.measured.items():
            first, last = measured.memory[0] >> 10, measured.memory[-1] >> 10
            growth = measured.growth() / 1024 if self.rounds > 3 else 0.0
            descriptors = f"{measured.descriptors[0]} to {measured.descriptors[-1]}"
            lines.append(
                f"{name}: {first} to {last} KiB, {growth:+.0f} KiB since warm, {descriptors} files"
            )
        return "\n".join(lines)

    def stop(self) -> None:
        """End all as users do."""
        for node in self.nodes:
            node.stop()
        self.broker.stop()

    def clear_away(self) -> None:
        """End what is left by force."""
        for process in (*self.nodes, self.broker):
            process.clear_away()


def _is_cleared(operator: Operator) -> bool:
    """Whether no cluster is left; one that was killed before it had any job isn't recovered."""
    clusters = operator.status().clusters
    for cluster in clusters:
        if cluster.state == "away" and not cluster.waiting + cluster.running + cluster.ended:
            operator.ask(CANCEL, str(cluster.id % SERIALS))
    return not clusters


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.timeout(180 + 60 * MINUTES)
def test_broker_and_nodes_stay_as_they_were(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    end = time.monotonic() + 60 * MINUTES
    try:
        while time.monotonic() < end or soak.rounds < 3:
            soak.round()
        print(soak.report())
        soak.check()
        soak.stop()
    finally:
        soak.clear_away()
