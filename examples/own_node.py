"""A node on this machine for as long as an example needs one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

HOST = "127.0.0.1"
START_S = 20.0  # a node is ready in a fraction of a second; slow machines get more
STOP_S = 10.0


@contextmanager
def running_node(cpus: int) -> Iterator[str]:
    """Run a node; the context is its address."""
    port = free_port()
    # A node's own door is the port after the base port.
    options = ["-c", str(cpus), "-i", HOST, "-p", str(port - 1)]
    print("$ dispy-node", *options, "&", flush=True)
    node = subprocess.Popen([sys.executable, "-m", "dispy.node.cli", *options])
    try:
        wait_for_door(node, port)
        yield f"{HOST}:{port}"
    finally:
        _stop(node)


def free_port() -> int:
    """Return a TCP port that nothing listens on, at the moment."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_door(node: subprocess.Popen[bytes], port: int) -> None:
    """Return as soon as the node listens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if node.poll() is not None:
            raise SystemExit(f"it ended with exit code {node.returncode}")
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"nothing listens on {HOST}:{port} after {START_S:.0f} s")


def _stop(node: subprocess.Popen[bytes]) -> None:
    """End the node as Ctrl-C or a service manager would; insist if it doesn't end."""
    node.terminate()
    try:
        node.wait(STOP_S)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
        raise SystemExit(f"dispy-node didn't end within {STOP_S:.0f} s of SIGTERM") from None
