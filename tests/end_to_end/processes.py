"""Processes that the tests start: nodes and users' programs, and what they leave behind.

All of them, and whatever they start, inherit a mark in their environment. So also a process
that has left its session and its parents is found, and no test takes another's for its own.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import psutil

from dispy.operator import Operator
from dispy.protocol.messages import BrokerReport

from .at_broker import played
from .secured import KEYS
from .waiting import until

MARK = "DISPY_TEST_MARK"
PORTS = 20_000, 32_000
STOP_S = 5.0  # a node may take so long to end
NOTHING_MORE: Mapping[str, str] = MappingProxyType({})
_dice = random.SystemRandom()  # others are seeded by some tests
_ADDRESS = re.compile(r"CPUs at (\S+), pid")
_DOORS = re.compile(r"nodes dial (\S+), clients (\S+), ")


class Marked:
    """A process with a mark and a folder for its temporary files."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        stdin: int | None = None,
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder / self.mark[:8]
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.out = self.folder / "out"
        self.err = self.folder / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command],
                cwd=self.folder,
                env={**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary), **environment},
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def log(self) -> str:
        """Return what it has written to stderr."""
        return self.err.read_text(errors="replace")

    def output(self) -> str:
        """Return what it has written to stdout."""
        return self.out.read_text(errors="replace")

    def relatives(self) -> list[psutil.Process]:
        """Return all processes with its mark, without itself, dead ones left out."""
        return [process for process in marked(self.mark) if process.pid != self.pid]

    def wait(self, seconds: float) -> int:
        """Return its exit code; fail if it doesn't end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s: {self.log()[-2000:]}") from None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def assert_nothing_left(self, seconds: float = STOP_S) -> None:
        """Of it and its relatives no process and no temporary file remains."""
        until(lambda: not marked(self.mark), f"the end of {marked(self.mark)}", seconds)
        try:
            until(lambda: not any(self.temporary.iterdir()), "an empty temporary folder", seconds)
        except AssertionError as error:
            left = sorted(map(str, self.temporary.rglob("*")))
            raise AssertionError(f"{error}: {left[:20]}; {self.log()[-2000:]}") from None

    def clear_away(self) -> None:
        """End it and its relatives by force, after a test that failed."""
        for process in marked(self.mark):
            with suppress(psutil.NoSuchProcess):  # it ends with one of the others
                process.kill()
        self.process.wait()


class NodeProcess(Marked):
    """A ``dispy-node``; ready when its constructor returns."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        cpus: int = 2,
        port: int = 0,
        through: Sequence[str] = (),  # a command that runs the node's command
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> None:
        self.options = options
        self.cpus = cpus
        command = [*through, sys.executable, "-m", "dispy.node.cli", "-c", str(cpus), *options]
        # It listens at the port after the one that is given, unless it may choose.
        command += ["-p", str(port and port - 1)]
        super().__init__(command, folder, environment=environment)
        self.address = ""
        self.for_proxy = "127.0.0.1:0"  # where what stands before it has to listen
        until(self._find_address, "the node's address")
        self.port = int(self.address.rpartition(":")[2])

    @property
    def host(self) -> str:
        """Where it is dialled, without the port."""
        return self.address.rpartition(":")[0]

    def _find_address(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the node ended: {self.log()}")
        found = _ADDRESS.search(self.log())
        self.address = found[1] if found else ""
        return bool(found)

    def again(self) -> NodeProcess:
        """Start another node at the same address."""
        folder = self.folder.parent
        return NodeProcess(folder, *self.options, cpus=self.cpus, port=self.port)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Stop it as a user does: it must end well and soon, and leave nothing."""
        self.process.send_signal(signum)
        assert self.wait(STOP_S) == 0, self.log()[-2000:]
        self.assert_nothing_left()

    def job_processes(self) -> list[psutil.Process]:
        """Return the processes below its zygote and templates."""
        found: list[psutil.Process] = []
        for zygote in psutil.Process(self.pid).children():
            for template in zygote.children():
                with suppress(psutil.NoSuchProcess):  # it has ended just now, as its jobs
                    found += template.children(recursive=True)
        return found


class BrokerProcess(Marked):
    """A ``dispy-broker``; ready when its constructor returns.

    It has its state in a folder beside its own, which the one that is started in its place uses.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        state: Path | None = None,
        through: Sequence[str] = (),  # a command that runs the broker's command
        crash_at: str = "",  # DISPY_CRASH_AT
    ) -> None:
        self.options = options
        self.port = port or free_port()  # for nodes; clients at the next but one
        self.state = state or folder / f"state-{uuid.uuid4().hex[:8]}"
        command = [*through, *broker_command(self.port, self.state, *options)]
        super().__init__(command, folder, environment={"DISPY_CRASH_AT": crash_at})
        self.for_nodes = self.address = ""  # where nodes and clients dial in
        until(self._find_doors, "the broker's addresses")

    def _find_doors(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the broker ended: {self.log()}")
        found = _DOORS.search(self.log())
        if found:
            self.for_nodes, self.address = found[1], found[2]
        return bool(found)

    def again(self, *options: str, crash_at: str = "") -> BrokerProcess:
        """Start another broker at the same ports, with the same journal."""
        more = [*self.options, *options]
        folder, port, state = self.folder.parent, self.port, self.state
        return BrokerProcess(folder, *more, port=port, state=state, crash_at=crash_at)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Stop it as a user does: it must end well and soon, and leave nothing but its state."""
        self.process.send_signal(signum)
        assert self.wait(STOP_S) == 0, self.log()[-2000:]
        self.assert_nothing_left()

    def status(self) -> BrokerReport:
        """Ask it how it is, as ``dispy status`` does."""
        with Operator(self.address, keys=KEYS) as operator:
            return operator.status()

    def node_state(self, name: str) -> str:
        """Return the state of a node of this name, as operators see it."""
        return next((node.state for node in self.status().nodes if node.name == name), "unknown")


def broker_command(port: int, state: Path, *options: str) -> list[str]:
    """Return what starts a broker."""
    command = [sys.executable, "-m", "dispy.broker.cli", "-p", str(port)]
    return [*command, "--state-dir", str(state), *options]


class Program(Marked):
    """A user's program, as a file of its own."""

    def __init__(self, folder: Path, source: str, *arguments: str) -> None:
        path = folder / "program.py"
        new = folder / f"program-{uuid.uuid4().hex[:8]}.new"
        new.write_text(played(source))
        new.replace(path)  # at once: another one may be reading the same source just now
        super().__init__([sys.executable, str(path), *arguments], folder)


def free_port(other: int = 2, host: str = "127.0.0.1") -> int:
    """Return a port at which nobody listens, nor at the one that comes ``other`` after it.

    None of those that the system gives to who doesn't care: else it may be given away at once.
    """
    while True:
        port = _dice.randrange(*PORTS)
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind((host, port))
            second.bind((host, port + other))
            return port


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes with this mark."""
    return [process for process in psutil.process_iter() if _has(process, mark)]


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.environ().get(MARK) == mark)
    except (psutil.Error, OSError):
        return False
