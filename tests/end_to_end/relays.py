"""Relays that the tests start."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from .processes import NOTHING_MORE, STOP_S, Marked, free_port
from .waiting import until

_DOORS = re.compile(r"nodes dial (\S+), brokers (\S+), ")


class RelayProcess(Marked):
    """A ``dispy-relay``; ready when its constructor returns."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        through: Sequence[str] = (),  # a command that runs the relay's command
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> None:
        self.options = options
        self.port = port or free_port(1)
        self.environment = environment
        command = [*through, sys.executable, "-m", "dispy.relay.cli", "-p", str(self.port)]
        super().__init__([*command, *options], folder, environment=environment)
        self.for_nodes = self.address = ""  # where nodes dial in, and where brokers do
        until(self._find_doors, "the relay's addresses")

    def _find_doors(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the relay ended: {self.log()}")
        found = _DOORS.search(self.log())
        if found:
            self.for_nodes, self.address = found[1], found[2]
        return bool(found)

    def again(self) -> RelayProcess:
        """Start another relay at the same ports."""
        folder, port, environment = self.folder.parent, self.port, self.environment
        return RelayProcess(folder, *self.options, port=port, environment=environment)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Stop it as a user does: it must end well and soon, and leave nothing."""
        self.process.send_signal(signum)
        assert self.wait(STOP_S) == 0, self.log()[-2000:]
        self.assert_nothing_left()

    def memory(self) -> int:
        """Return how many bytes of memory it has now."""
        return int(psutil.Process(self.pid).memory_info().rss)
