"""How long a user waits: for the import, for the command line, for a first result."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
IMPORT = "import time; t = time.perf_counter(); import dispy; print(time.perf_counter() - t)"
REPEATS = 5


def import_ms() -> float:
    """Time of ``import dispy`` in a new interpreter."""
    command = [sys.executable, "-c", IMPORT]
    return 1000 * median(float(subprocess.check_output(command)) for _ in range(REPEATS))


def node_help_ms() -> float:
    """Time of ``dispy-node --help``, from its start to its end."""
    return 1000 * median(_node_help_s() for _ in range(REPEATS))


def _node_help_s() -> float:
    began = time.perf_counter()
    program = Path(sys.executable).with_name("dispy-node")
    command = [str(program)] if program.exists() else [sys.executable, "-m", "dispy.node.cli"]
    subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_result_s() -> float:
    """Time from the start of the canonical program to its first result, local node included."""
    return median(_first_result_s() for _ in range(REPEATS))


def _first_result_s() -> float:
    command = [sys.executable, str(ROOT / "examples" / "sample.py"), "--longest", "0"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as sample:
        assert sample.stdout
        first = next((line for line in sample.stdout if "executed job" in line), None)
        seconds = time.perf_counter() - began
        sample.stdout.read()  # the program ends by itself
    if first is None:
        raise RuntimeError("examples/sample.py printed no result")
    return seconds
