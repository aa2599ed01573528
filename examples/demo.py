"""What `make demo` does: start a node on this machine, run the examples on it, stop it.

Ends with an error when an example does, so it serves as a first test of an installation.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
HOST = "127.0.0.1"
CPUS = 2
START_S = 20.0  # a node is ready in a fraction of a second; slow machines get more
STOP_S = 10.0
EXAMPLE_S = 120.0


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
            raise SystemExit(f"dispy-node ended with exit code {node.returncode}")
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"dispy-node doesn't listen on {HOST}:{port} after {START_S:.0f} s")


@contextmanager
def running_node(cpus: int) -> Iterator[str]:
    """Run a node; the context is its address."""
    port = free_port()
    program = Path(sys.executable).with_name("dispy-node")
    # A node's own door is the port after the base port.
    command = [str(program), "-c", str(cpus), "-i", HOST, "-p", str(port - 1)]
    print("$", program.name, *command[1:], "&", flush=True)
    node = subprocess.Popen(command)
    try:
        wait_for_door(node, port)
        yield f"{HOST}:{port}"
    finally:
        stop(node)


def stop(node: subprocess.Popen[bytes]) -> None:
    """End the node as Ctrl-C or a service manager would; insist if it doesn't end."""
    node.terminate()
    try:
        node.wait(STOP_S)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
        raise SystemExit(f"dispy-node didn't end within {STOP_S:.0f} s of SIGTERM") from None


def run(example: str, node: str) -> bool:
    """Run one example on the node; return whether it succeeded."""
    command = [sys.executable, str(HERE / example), "--node", node]
    print(f"\n$ python examples/{example} --node {node}", flush=True)
    began = time.perf_counter()
    try:
        code = subprocess.run(command, timeout=EXAMPLE_S).returncode
    except subprocess.TimeoutExpired:
        print(f"(given up after {EXAMPLE_S:.0f} s)", flush=True)
        return False
    print(f"({time.perf_counter() - began:.2f} s, exit code {code})", flush=True)
    return code == 0


def main() -> int:
    with running_node(CPUS) as node:
        well = [run(example, node) for example in ("sample.py", "checksums.py")]
    print("\nThe node has ended.", "All went well." if all(well) else "NOT ALL WENT WELL.")
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
