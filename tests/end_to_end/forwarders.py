"""Forwarders of connections in processes of their own, which take no time from the test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import Marked
from .waiting import until

PROGRAM = str(Path(__file__).with_name("fault_proxy.py"))


class Forwarder(Marked):
    """Forwards connections, each piece ``delay_s`` later; ready when its constructor returns."""

    def __init__(
        self,
        folder: Path,
        target: str,
        listen: str = "127.0.0.1:0",
        delay_s: float = 0.0,
        through: Sequence[str] = (),  # a command that runs the forwarder's command
    ) -> None:
        command = [*through, sys.executable, PROGRAM, listen, target, str(delay_s)]
        super().__init__(command, folder, stdin=subprocess.PIPE)
        until(lambda: self.output().endswith("\n"), "where a forwarder listens")
        self.address = self.output().strip()

    def clear_away(self) -> None:
        """End it by force."""
        super().clear_away()
        assert self.process.stdin is not None
        self.process.stdin.close()
