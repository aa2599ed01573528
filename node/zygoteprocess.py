"""The node's end of the zygote: how it is started, and how it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from . import channel
from .channel import Channel
from .leftovers import MARK


class ZygoteProcess:
    """The zygote, and the connection to it."""

    def __init__(self, folder: Path) -> None:
        """Start it. Raises `OSError`, with nothing left open."""
        ours, theirs = channel.pair()
        command = [sys.executable, "-m", "dispy.node.zygote", str(folder)]
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=_environment(folder),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the node, which ends the others
            )
            undo.pop_all()
        self.channel = Channel(ours, blocking=False)

    def end(self, timeout: float) -> None:
        """Let it end all processes, and then itself; kill it when it takes longer."""
        self.channel.send(("close", 0))  # else it would take us for killed
        self.channel.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def bury(self) -> None:
        """Leave nothing of one that has closed its end of the connection."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Return the zygote's: without secrets, which are none of the jobs' business.

    All processes below inherit the mark by which `leftovers` finds them.
    """
    kept = {name: text for name, text in os.environ.items() if not name.endswith("_SECRET")}
    # Each job process would look up anew the C functions that only a new process calls.
    return {**kept, MARK: str(folder), "LD_BIND_NOW": "1"}
