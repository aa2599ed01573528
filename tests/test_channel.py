"""Messages with descriptors between processes of a node."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from dispy.node import channel
from dispy.node.channel import DESCRIPTORS, Channel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")

NOBODY = 65534
LIMIT = 64


def test_descriptors_that_can_not_travel_do_not_take_their_message_with_them() -> None:
    # In a process of its own, which has no more descriptors than it needs.
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def send_until_it_is_too_many() -> int:
    """Return 0 when all messages have come, the last of them without descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    if os.getuid() == 0:  # who has no such limit
        os.setuid(NOBODY)
    ours, theirs = (Channel(end, blocking=False) for end in channel.pair())
    before = len(os.listdir("/proc/self/fd"))
    count = LIMIT // DESCRIPTORS + 2
    for number in range(count):
        ours.send((number,), [os.dup(0) for _ in range(DESCRIPTORS)])
    if len(os.listdir("/proc/self/fd")) != before:
        return 1
    came: list[list[int]] = []
    while (received := theirs.receive()) is not None:
        came.append(received[1])
        for fd in received[1]:
            os.close(fd)
    return 0 if len(came) == count and came[0] and not came[-1] else 2


if __name__ == "__main__":
    sys.exit(send_until_it_is_too_many())
