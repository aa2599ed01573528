"""Runs all measurements, one after the other, and prints the table.

What is compared is measured in turns, several times: each figure shown is the median, and each
ratio the median of those of the single rounds. A measurement that fails is shown as failed, and
the others go on. Missed targets are shown, and are no error: figures of a busy machine would make
it a game of chance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import table
from .measure import MEASUREMENTS
from .rounds import Figures, Rounds

ROOT = Path(__file__).parents[1]
WORTH_SAYING = 0.005  # the part of the CPUs' time that others have taken
TIMEOUT_S = 120.0  # of one measurement; most take 5 s or less
COMPARED = {  # kinds of measurements that are compared with each other, and in how many rounds
    ("fork", "rate"): 5,
    ("zmq", "payload"): 5,
    ("turns",): 5,
    ("efficiency",): 3,
    ("cpu",): 3,
    ("scheduler",): 3,
}
ROWS_OF = {
    "zmq": ("zmq.turns", "1MiB.zmq", "32MiB.zmq"),
    "fork": ("fork.rate", "fork.served"),
    "start": ("start.import", "start.help", "start.first"),
    "rate": ("rate.",),
    "turns": ("p50.", "p99."),
    "payload": ("1MiB.", "32MiB."),
    "efficiency": ("10ms.", "1ms."),
    "cpu": ("cpu.", "here."),
    "queue": ("queue.bytes", "queue.first", "queue.last"),
    "shared": ("shared.", "shared.fresh.", "shared.p50."),
    "restart": ("restart.accepted", "restart.bytes", "restart.ready"),
    "fair": ("fair.jain", "fair.newcomer"),
    "relay": ("relay.rate", "relay.rate.direct", "relay.p50", "relay.p50.direct"),
    "class": ("class.int", "class.instance", "class.depends"),
    "curve": (
        "curve.rate.plain",
        "curve.rate.encrypted",
        "curve.p50.plain",
        "curve.p50.encrypted",
        "curve.32MiB.plain",
        "curve.32MiB.encrypted",
    ),
    "file": ("file.rate", "file.whole", "file.client", "file.node", "file.again"),
    "stream": (
        "stream.results",
        "stream.results.client",
        "stream.results.node",
        "stream.files",
        "stream.files.client",
        "stream.files.node",
    ),
    "scheduler": (
        "scheduler.1000",
        "scheduler.10000",
        "scheduler.cost",
        "scheduler.crowd",
        "scheduler.crowd.cost",
    ),
    "peer": ("rate.", "p50."),
}


def keys_of(measurement: str) -> list[str]:
    """Return the keys of the figures that a measurement gives."""
    kind, _, system = measurement.partition("-")
    return [f"{key}{system}" for key in ROWS_OF[kind]]


def run(measurement: str, quick: bool) -> Figures:
    """Make one measurement in a process of its own; `RuntimeError` says why it failed."""
    command = [sys.executable, "-m", "bench.measure", measurement]
    process = subprocess.Popen(
        command + ["--quick"] * quick,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"failed: nothing after {TIMEOUT_S:.0f} s") from None
    finally:  # also when this program is stopped: nothing of it may stay
        _end_group(process)
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise RuntimeError(f"failed: {last[0]}")
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the measurement and the node or the far end that it may have left behind."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    """Other systems import the jobs' functions by name, and find their programs by PATH."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure dispy.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help=f"only measurements whose name begins so: {', '.join(MEASUREMENTS)}",
    )
    return parser.parse_args()


def chosen(only: list[str] | None) -> list[str]:
    """Return the measurements to make."""
    return [name for name in MEASUREMENTS if not only or name.startswith(tuple(only))]


def in_turns(names: list[str], quick: bool) -> Iterator[str]:
    """Yield the measurements in the order in which they are to be made; quickly: once each."""
    left = dict.fromkeys(names)
    for kinds, rounds in COMPARED.items():
        group = [name for name in names if name.partition("-")[0] in kinds]
        yield from group * (1 if quick else rounds)
        for name in group:
            del left[name]
    yield from left


def show_progress(text: str) -> None:
    """Say what goes on: in one line of a terminal, else in a line each."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def taken_s() -> float:
    """Return the CPU time that the host of this virtual machine has given to others, in s.

    See proc(5): the eighth figure of ``cpu``. 0 where that isn't told.
    """
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def measure(names: list[str], quick: bool) -> tuple[Rounds, dict[str, str]]:
    """Return all figures, and by key why others aren't there."""
    measured, missing = Rounds(), dict[str, str]()
    for name in in_turns(names, quick):
        show_progress(f"{name} ...")
        try:
            made = run(name, quick)
        except RuntimeError as error:
            missing |= dict.fromkeys(keys_of(name), str(error))
        else:
            measured.add(made)
            missing |= dict.fromkeys(set(keys_of(name)) - made.keys(), "not installed")
    for key in missing:
        measured.drop(key)
    show_progress("")
    return measured, missing


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began, taken_began_s = time.perf_counter(), taken_s()
    measured, missing = measure(chosen(options.only), options.quick)
    seconds = time.perf_counter() - began
    taken = (taken_s() - taken_began_s) / (seconds * (os.cpu_count() or 1))
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs,")
    print(
        f"2 workers, loopback, {'quick run, ' if options.quick else ''}{seconds / 60:.1f} minutes"
    )
    if taken >= WORTH_SAYING:
        print(f"(others on the host have taken {taken:.0%} of the CPUs' time)")
    print("\n".join(table.lines(measured, missing)))
    bad = table.missed(measured)
    print(f"\n{len(bad)} rows with a missed target" + "".join(f"\n  {row}" for row in bad))


if __name__ == "__main__":
    main()
