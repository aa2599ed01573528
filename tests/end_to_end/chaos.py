"""Everything that can be killed is killed, at moments chosen by dice, while jobs are done.

Each `Lineage` is a client that goes on after its death: another process recovers what the dead
one had submitted, and the next does what is left. `Chaos` kills; `dice` decide whom and when.
"""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from dispy import DispyJob
from dispy.operator import Operator
from dispy.protocol.errors import DispyError
from dispy.protocol.messages import RESUME

from .fault_proxy import FaultProxy
from .processes import BrokerProcess, NodeProcess, Program
from .records import noted
from .secured import KEYS
from .waiting import PATIENCE_S, until

SOURCE = Path(__file__).with_name("chaos_client.py").read_text()
KNOWN = 0  # the end of the job was known to a process that was killed before it could say so
NEVER_THERE = "the broker hadn't got it"  # such jobs are done by the next process
SET_ASIDE = "set aside"
FILE_BYTES = 5 << 20
END_S = 60.0  # how long all may take to calm down when nobody is killed any more


@dataclass(frozen=True)
class End:
    """What a process was told of a job."""

    by: str
    number: int
    status: int
    result: int | None
    reason: str


class Lineage:
    """A client with jobs of its own, that dies and goes on."""

    def __init__(
        self,
        folder: Path,
        name: str,
        broker: str,
        numbers: Sequence[int],
        *,
        reentrant: bool,
        max_tasks: int | None,
        file: Path | None = None,  # that its jobs read
    ) -> None:
        self.name = name
        self.numbers = numbers
        self.reentrant = reentrant
        self.kills = 0
        self.is_done = False
        self.programs: list[Program] = []
        self._folder = folder
        self._broker = broker
        self._max_tasks = max_tasks
        self._file = file
        self._log = folder / f"{name}.log"
        self.record = folder / f"{name}.record"
        self._mode = ""
        self._plan = Path()
        self._run(numbers)

    def _run(self, numbers: Sequence[int]) -> None:
        by = f"{self.name}.{len(self.programs)}"
        self._plan = self._folder / f"{by}.json"
        plan = {
            "by": by,
            "name": self.name,
            "numbers": [*numbers],
            "log": str(self._log),
            "record": str(self.record),
            "recover_file": str(self._folder / f"{by}.recover"),
            "reentrant": self.reentrant,
            "max_tasks": self._max_tasks,
            "files": [str(self._file)] if self._file is not None else [],
            "right": zlib.crc32(self._file.read_bytes()) if self._file is not None else 0,
        }
        self._plan.write_text(json.dumps(plan))
        self._start("run")

    def _start(self, mode: str) -> None:
        self._mode = mode
        arguments = (mode, str(self._plan), self._broker)
        self.programs.append(Program(self._folder, SOURCE, *arguments))

    def kill(self) -> bool:
        """Kill it, unless it has ended or is being recovered; have its jobs recovered."""
        if self._mode != "run" or self.programs[-1].process.poll() is not None:
            return False
        self.programs[-1].kill()
        self.kills += 1
        self._start("recover")
        return True

    def look(self) -> None:
        """Go on when a process has ended."""
        code = self.programs[-1].process.poll()
        if self.is_done or code is None:
            return
        assert code == 0, f"{self.name}, {self._mode}: {self.programs[-1].log()[-3000:]}"
        told = {end.number for end in self.ends()}
        left = [number for number in self.numbers if number not in told]
        if self._mode == "recover" and left:
            self._run(left)
        else:
            self.is_done = True

    def ends(self) -> list[End]:
        """Return what has been told so far, but of jobs that are still to be done."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        ends = [End(**json.loads(line)) for line in lines]
        return [end for end in ends if not end.reason.startswith(NEVER_THERE)]

    def check(self, may_be_lost: bool, may_be_killed: bool) -> Counter[int]:
        """Each job has ended once and well, and has run as often as it may."""
        told: dict[int, list[End]] = defaultdict(list)
        for end in self.ends():
            told[end.number].append(end)
        assert told.keys() == set(self.numbers), f"{self.name}: some have no end"
        runs = noted(self.record)
        counts: Counter[int] = Counter()
        for number, ends in told.items():
            counts[self._check_job(number, ends, runs[number])] += 1
        allowed = {DispyJob.Finished, KNOWN} if self.kills else {DispyJob.Finished}
        allowed |= {DispyJob.Terminated} if may_be_killed else set()
        allowed |= {DispyJob.Abandoned} if may_be_lost and not self.reentrant else set()
        assert set(counts) <= allowed, f"{self.name}: {counts}"
        return counts

    def _check_job(self, number: int, ends: list[End], runs: int) -> int:
        """Check the ends of a job; return how it has ended."""
        where = f"job {number}, run {runs} times: {ends}"
        statuses = [end.status for end in ends if end.status != KNOWN]
        if statuses == [DispyJob.Abandoned, DispyJob.Finished]:  # its node was not dead after all
            statuses = [DispyJob.Finished]
        assert len(set(statuses)) <= 1, where
        processes = {end.by for end in ends if end.status != KNOWN}
        assert len(statuses) <= max(1, len(processes)), where  # once to each process
        # Only who has been killed before the broker heard of it is told again.
        assert len(processes) <= 1 or self.kills, where
        if DispyJob.Finished in statuses:
            assert runs >= 1 and ends[-1].result in (number * number, None), where
            assert any(end.result == number * number for end in ends), where
        if DispyJob.Terminated in statuses:
            assert any("SIGKILL" in end.reason for end in ends), where
        if not self.reentrant:
            assert runs <= 1, where
        return statuses[-1] if statuses else KNOWN

    def assert_nothing_left(self) -> None:
        """Neither processes nor recover files."""
        for program in self.programs:
            program.assert_nothing_left()
        assert not list(self._folder.glob(f"{self.name}.*.recover"))


class Chaos:
    """A broker, nodes and lineages, and proxies between them."""

    def __init__(
        self, folder: Path, seed: int, jobs: int, nodes: int = 3, clients: int = 3
    ) -> None:
        self.dice = random.Random(seed)
        self.folder = folder
        self.done: Counter[str] = Counter()  # what was killed, how often
        self.broker = BrokerProcess(folder, "--pulse-interval", "1")
        self.dead: list[BrokerProcess | NodeProcess] = []
        self.nodes: list[NodeProcess] = []
        self.lineages: list[Lineage] = []
        self.doors = [FaultProxy(self.broker.for_nodes), FaultProxy(self.broker.address)]
        for number in range(nodes):
            more = ("--broker", self.doors[0].address, "--name", f"node-{number}")
            self.nodes.append(NodeProcess(folder, *more, cpus=2))
        file = folder / "data"
        file.write_bytes(self.dice.randbytes(FILE_BYTES))
        for number in range(clients):
            lineage = Lineage(
                folder,
                f"client-{number}",
                self.doors[1].address,
                range(number, jobs, clients),
                reentrant=number == 0,
                max_tasks=1 if number == 1 else None,
                file=file if number == 2 else None,
            )
            self.lineages.append(lineage)

    def strike(self) -> None:
        """Kill something, or two things at once, and have it go on."""
        count = self.dice.choice([1, 1, 2])
        strikes = self.dice.sample([*self.STRIKES], count)
        if {"broker", "politely"} <= set(strikes):
            strikes.remove("politely")
        repairs = [repair for each in strikes if (repair := self.STRIKES[each](self)) is not None]
        self.dice.shuffle(repairs)
        for repair in repairs:
            repair()

    def _strike_broker(self) -> Callable[[], None]:
        self.broker.kill()
        self.done["broker"] += 1
        return self._restart_broker

    def _stop_broker(self) -> Callable[[], None]:
        self.broker.process.terminate()
        assert self.broker.wait(PATIENCE_S) == 0, self.broker.log()
        self.done["broker, politely"] += 1
        return self._restart_broker

    def _restart_broker(self) -> None:
        self.dead.append(self.broker)
        self.broker = self.broker.again()

    def _strike_node(self) -> Callable[[], None]:
        at = self.dice.randrange(len(self.nodes))
        self.nodes[at].kill()
        self.done["node"] += 1

        def again() -> None:
            dead = self.nodes[at]
            self.dead.append(dead)
            until(lambda: not dead.relatives(), "the end of its job processes")
            self.nodes[at] = dead.again()

        return again

    def _strike_client(self) -> None:
        self.done["client"] += self.dice.choice(self.lineages).kill()

    def _strike_job(self) -> None:
        with suppress(psutil.Error, IndexError):
            self.dice.choice(self.dice.choice(self.nodes).job_processes()).kill()
            self.done["job"] += 1

    def _strike_connections(self) -> None:
        self.dice.choice(self.doors).reset()
        self.done["connections"] += 1

    STRIKES: ClassVar[dict[str, Callable[[Chaos], Callable[[], None] | None]]] = {
        "broker": _strike_broker,
        "politely": _stop_broker,
        "node": _strike_node,
        "client": _strike_client,
        "job": _strike_job,
        "connections": _strike_connections,
    }

    @property
    def is_over(self) -> bool:
        """Whether all clients have done their jobs."""
        for lineage in self.lineages:
            lineage.look()
        return all(lineage.is_done for lineage in self.lineages)

    def resume(self) -> None:
        """Do what an operator does about nodes that were lost too often."""
        with Operator(self.broker.address, keys=KEYS) as operator:
            for node in operator.status().nodes:
                if node.state == SET_ASIDE:
                    operator.ask(RESUME, node.name)
                    self.done["resumed"] += 1

    def progress(self) -> str:
        """Say how far it is."""
        told = {each.name: len({end.number for end in each.ends()}) for each in self.lineages}
        return f"{told}, {dict(self.done)}"

    def state(self) -> str:
        """Say what all are doing, after a failure."""
        programs = [each.programs[-1] for each in self.lineages]
        logs = [
            f"{each.folder}\n{each.log()[-1500:]}" for each in (*programs, *self.nodes, self.broker)
        ]
        try:
            status = repr(self.broker.status())
        except DispyError as error:
            status = str(error)
        return "\n\n".join([status, *logs])

    def check(self) -> Counter[int]:
        """Check the lineages; return how jobs have ended."""
        counts: Counter[int] = Counter()
        for lineage in self.lineages:
            counts += lineage.check(bool(self.done["node"]), bool(self.done["job"]))
        return counts

    def stop(self) -> None:
        """End all as users do; nothing may be left."""
        for lineage in self.lineages:
            lineage.assert_nothing_left()
        until(lambda: not self.broker.status().clusters, "a broker without clusters", END_S)
        for node in self.nodes:
            node.stop()
        self.broker.stop()
        for dead in self.dead:
            dead.assert_nothing_left()

    def clear_away(self) -> None:
        """End what is left of it by force."""
        for door in self.doors:
            door.close()
        programs: list[Any] = [program for each in self.lineages for program in each.programs]
        for process in (*self.nodes, self.broker, *self.dead, *programs):
            process.clear_away()
