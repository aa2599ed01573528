"""Brokers, nodes and relays as processes of their own, at ports of ours on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

PATIENCE_S = 30.0
LOOK_S = 0.02
PORTS = 4  # that a daemon may use, from the one it is given on


class Daemon:
    """One of them; it takes connections when its constructor returns."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{port}"
        self.log_path = folder / "log"
        quiet = {"DISPY_SECRET_FILE": "", "TMPDIR": str(folder)}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env={**os.environ, **quiet, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.until_it_answers()

    @property
    def vitals(self) -> psutil.Process:
        """What the system knows of it."""
        return psutil.Process(self.process.pid)

    def log(self) -> str:
        """Return what it has said."""
        return self.log_path.read_text(errors="replace")

    def until_it_answers(self) -> None:
        """Wait until it takes connections."""
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            with suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                return
            time.sleep(LOOK_S)
        raise AssertionError(f"nobody listens at {self.address}: {self.log()}")

    def stop(self) -> None:
        """Stop it as a user does: it must end well, and soon."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(10.0) == 0, self.log()[-3000:]
        finally:
            self.process.kill()
            self.process.wait()


class Figures(NamedTuple):
    """What a daemon takes of the system."""

    memory: int  # bytes
    descriptors: int

    def most(self, other: Figures) -> Figures:
        """Return the larger of each."""
        return Figures(*map(max, self, other))


def figures(daemon: Daemon) -> Figures:
    """Return what it takes now."""
    return Figures(daemon.vitals.memory_info().rss, daemon.vitals.num_fds())


class Watch:
    """What some daemons took at the beginning, and at most since then."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = daemons
        self.before = [figures(each) for each in daemons]
        self.peaks = list(self.before)

    def look(self) -> None:
        """See what they take now."""
        self.peaks = [
            peak.most(figures(each)) for peak, each in zip(self.peaks, self._daemons, strict=True)
        ]

    def has_seen_connections(self) -> bool:
        """Whether some were open at each daemon when it was looked at."""
        pairs = zip(self.before, self.peaks, strict=True)
        return all(peak.descriptors > before.descriptors for before, peak in pairs)


def node(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """Start a node; its address is its own door."""
    port = free_port()
    command = ["dispy.node.cli", "-i", "127.0.0.1", "-c", "2", "-p", str(port), *options]
    return Daemon(command, port + 1, folder, environment)


def broker(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """Start a broker; its address is that for nodes, and ``clients(broker)`` that for clients."""
    port = free_port()
    state = str(folder / "state")
    command = ["dispy.broker.cli", "-i", "127.0.0.1", "-p", str(port), "--state-dir", state]
    return Daemon([*command, *options], port, folder, environment)


def clients_door(broker: Daemon) -> str:
    """Return the address at which a broker takes clients."""
    host, _, port = broker.address.rpartition(":")
    return f"{host}:{int(port) + 2}"


def brokers_door(relay: Daemon) -> str:
    """Return the address at which a relay takes brokers, and relays nearer to them."""
    host, _, port = relay.address.rpartition(":")
    return f"{host}:{int(port) + 1}"


def free_port() -> int:
    """Return a port with enough free ones behind it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with suppress(OSError, OverflowError):
            for offset in range(PORTS):
                with socket.socket() as other:
                    other.bind(("127.0.0.1", port + offset))
            return port


def relay(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Daemon:
    """Start a relay; its address is that for nodes."""
    port = free_port()
    command = ["dispy.relay.cli", "-i", "127.0.0.1", "-p", str(port), *options]
    return Daemon(command, port, folder, environment)
