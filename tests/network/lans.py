"""Processes on hosts of a made-up network, and what is expected of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.end_to_end.forwarders import Forwarder
from tests.end_to_end.processes import BrokerProcess, Marked, NodeProcess
from tests.end_to_end.records import noted
from tests.end_to_end.relays import RelayProcess
from tests.end_to_end.waiting import until

from .namespaces import Host

PROGRAM = str(Path(__file__).with_name("program.py"))
FULL = bool(os.environ.get("DISPY_TEST_NETWORK"))  # also what takes minutes
SECRET = "dispy1_" + "net" * 14 + "A"  # with all its bits, so no time goes into its keys
END_S = 90.0


class Running:
    """Starts processes on hosts; they end with it, and have to end well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"  # what jobs of `many` note
        self._daemons: list[NodeProcess | BrokerProcess | RelayProcess] = []
        self._others: list[Marked] = []

    def node(self, host: Host, *options: str, cpus: int = 2, port: int = 9701) -> NodeProcess:
        """Start a node with the default port."""
        options = ("--name", host.name, *options)
        node = NodeProcess(self.folder, *options, cpus=cpus, port=port, through=host.through)
        self._daemons.append(node)
        return node

    def broker(self, host: Host, *options: str) -> BrokerProcess:
        """Start a shared broker with the default ports."""
        broker = BrokerProcess(self.folder, *options, port=9700, through=host.through)
        self._daemons.append(broker)
        return broker

    def relay(self, host: Host, *options: str) -> RelayProcess:
        """Start a relay with the default ports."""
        options = ("--name", f"relay-{host.name}", *options)
        relay = RelayProcess(self.folder, *options, port=9700, through=host.through)
        self._daemons.append(relay)
        return relay

    def forwarder(self, host: Host, listen: str, target: str) -> str:
        """Forward connections, as ssh -L and -R do; return where it listens."""
        forwarder = Forwarder(self.folder, target, listen, through=host.through)
        self._others.append(forwarder)
        return forwarder.address

    def features(self, host: Host, **cluster: Any) -> Marked:
        """Start a program that tries all that jobs can do."""
        return self._program(host, "features", cluster)

    def many(self, host: Host, count: int, seconds: float, **cluster: Any) -> Marked:
        """Start a program with many jobs, which note that they run."""
        return self._program(host, "many", cluster, str(self.record), str(count), str(seconds))

    def killed(self, host: Host, recover_file: Path, **cluster: Any) -> None:
        """Run a program that is killed while its jobs run."""
        program = self._program(host, "dying", cluster, str(recover_file))
        assert program.wait(END_S) == -signal.SIGKILL, program.log()

    def recovering(self, host: Host, recover_file: Path) -> Marked:
        """Start a program that gets the results of such a one."""
        return self._run(host, "recovering", str(recover_file))

    def _program(self, host: Host, what: str, cluster: Any, *more: str) -> Marked:
        return self._run(host, what, json.dumps(cluster), *more)

    def _run(self, host: Host, *arguments: str) -> Marked:
        command = [*host.through, sys.executable, PROGRAM, *arguments]
        program = Marked(command, self.folder)
        self._others.append(program)
        return program

    def until_begun(self, count: int) -> None:
        """Wait until so many of the many jobs have begun."""
        until(lambda: sum(noted(self.record).values()) >= count, f"{count} jobs", END_S)

    def begun(self) -> int:
        """Return how many of the many jobs have begun so far."""
        return sum(noted(self.record).values())

    def stop(self) -> None:
        """End all as a user does."""
        for daemon in self._daemons:
            if daemon.process.poll() is None:
                daemon.stop()
            assert "Traceback" not in daemon.log(), daemon.log()

    def clear_away(self) -> None:
        """End all by force; what they have said is shown if a test fails."""
        for daemon in self._daemons:
            print(f"-- {daemon.process.args!r}\n{daemon.log()}")
        for process in (*self._others, *self._daemons):
            process.clear_away()


def ended_well(program: Marked, seconds: float = END_S) -> None:
    """Wait for the end of a program in which all was as it should be."""
    code = program.wait(seconds)
    assert (code, program.output()) == (0, "ok\n"), program.log()[-3000:]


def ran_once(record: Path, count: int) -> None:
    """Each of the many jobs has begun once."""
    assert noted(record) == Counter(range(count))
