"""Floods that meet a daemon while it is busy with something else."""

from __future__ import annotations

import subprocess
import sys

# Connections come and go, and nobody takes in what ZeroMQ tells of them.
FLOODED = """
import socket, time
from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus

bus = Bus(Keys(b"of this test"))
host, _, port = bus.listen("127.0.0.1:0").rpartition(":")
for _ in range(15):
    callers = [socket.socket() for _ in range(200)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex((host, int(port)))
    time.sleep(0.05)  # as a busy daemon does
    for caller in callers:
        caller.close()
bus.close()
"""


def test_a_daemon_that_was_busy_during_a_flood_of_connections_ends_when_it_is_told_to() -> None:
    ended = subprocess.run([sys.executable, "-c", FLOODED], timeout=30, check=False)
    assert ended.returncode == 0
