"""What `make demo` does: start a node on this machine, run all examples on it, stop it.

Ends with an error when an example does, so it serves as a first test of an installation.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from own_node import running_node

HERE = Path(__file__).parent
NOT_EXAMPLES = {
    "demo.py",
    "node_option.py",
    "own_broker.py",
    "own_node.py",
    "scratch_folder.py",
}
CPUS = 2
EXAMPLE_S = 120.0


def examples() -> list[str]:
    """Return the names of the examples, the canonical one first."""
    names = {path.name for path in HERE.glob("*.py")} - NOT_EXAMPLES
    return sorted(names, key=lambda name: (name != "sample.py", name))


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
        failed = [example for example in examples() if not run(example, node)]
    print("\nThe node has ended.", f"FAILED: {failed}" if failed else "All went well.")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
