"""What a process says of itself, and at what price."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STARTS = """
import sys
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in {events} else None)
from dispy.protocol.identity import describe
import dispy.node.daemon, dispy.broker.daemon
print(describe("node", "1").platform)
print(started, "asyncio" in sys.modules)
"""
EVENTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process tells the platform")
def test_nothing_is_started_or_imported_to_find_out_who_one_is() -> None:
    code = STARTS.format(events=EVENTS)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [platform.platform(), "[] False"]
