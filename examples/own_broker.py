"""A shared broker on this machine, which an example can kill and start again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from own_node import HOST, free_port, wait_for_door

STOP_S = 10.0


class OwnBroker:
    """A ``dispy-broker`` with its journal in a folder; ``address`` is for programs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()  # for nodes; that for programs is the next but one
        self.address = f"{HOST}:{self._port + 2}"
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        options = ["--host", HOST, "-p", str(self._port), "--state-dir", str(self._folder)]
        print("$ dispy-broker --host", HOST, "-p", self._port, "--state-dir STATE &", flush=True)
        process = subprocess.Popen([sys.executable, "-m", "dispy.broker.cli", *options])
        wait_for_door(process, self._port + 2)
        return process

    def kill_and_restart(self) -> None:
        """End it as a power failure would, and start it anew."""
        print(f"$ kill -9 {self._process.pid}", flush=True)
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def stop(self) -> None:
        """End it as a service manager would."""
        self._process.terminate()
        self._process.wait(STOP_S)
