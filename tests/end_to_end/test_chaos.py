"""Everything is killed at random, and in the end every job has ended once, rightly.

Brokers, nodes, clients, job processes and connections, while three clients have 2,000 jobs done;
DISPY_TEST_CHAOS says how many. The moments come from a seed, which is printed; DISPY_TEST_SEED
has it again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dispy import DispyJob
from dispy.broker.journal import Journal

from .chaos import Chaos
from .waiting import until

JOBS = int(os.environ.get("DISPY_TEST_CHAOS", "600"))
SEED = int(os.environ.get("DISPY_TEST_SEED", str(time.time_ns() % 1_000_000)))
STRIKES = JOBS // 60  # at most: on a busy machine the jobs take longer, and each strike as well
PAUSE_S = (0.1, 1.0)  # between two strikes
JOBS_PER_S = 20  # less than that is too slow even for a busy machine
STATE = {"ballast", "files", "journal.lock", "journal.sqlite"}
WHOLE = re.compile("[0-9a-f]{64}")  # the name of a file that is complete
CHECK = (sys.executable, "-m", "dispy.cli", "journal", "check")


@pytest.mark.timeout(120 + JOBS / JOBS_PER_S)
def test_whatever_is_killed_every_job_ends_once(tmp_path: Path) -> None:
    print(f"DISPY_TEST_SEED={SEED}")
    chaos = Chaos(tmp_path, SEED, JOBS)
    begin = time.monotonic()
    try:
        rage(chaos, 60 + JOBS / JOBS_PER_S)
        counts = chaos.check()
        assert counts[DispyJob.Terminated] <= chaos.done["job"]
        chaos.stop()
        print(f"{counts}, {chaos.progress()}, {time.monotonic() - begin:.1f} s")
    except BaseException:
        print(chaos.progress(), chaos.state())
        raise
    finally:
        chaos.clear_away()
    assert_empty(chaos.broker.state)


def rage(chaos: Chaos, patience_s: float) -> None:
    """Strike again and again, and wait until all jobs have ended."""
    left = STRIKES
    give_up_at = time.monotonic() + patience_s
    while not chaos.is_over:
        assert time.monotonic() < give_up_at, f"after {patience_s} s: {chaos.progress()}"
        wait_for_the_moment(chaos)
        if left and not chaos.is_over:
            left -= 1
            chaos.strike()
            chaos.resume()


def wait_for_the_moment(chaos: Chaos) -> None:
    strike_at = time.monotonic() + chaos.dice.uniform(*PAUSE_S)
    until(lambda: chaos.is_over or time.monotonic() > strike_at, "the next strike")


def assert_empty(state: Path) -> None:
    """A broker's folder holds nothing of clusters that are closed."""
    done = subprocess.run([*CHECK, str(state)], capture_output=True, text=True, check=True)
    for line in ("\n0 clusters, ", "\n0 jobs in 0 batches, ", "\n0 results ", "\nno damage\n"):
        assert line in done.stdout, done.stdout
    journal = Journal(state)
    try:
        assert journal.strays() == []
    finally:
        journal.close()
    assert {path.name for path in state.iterdir()} <= STATE
    kept = [path.name for path in (state / "files").iterdir()]  # for the next one who needs it
    assert len(kept) <= 1 and all(WHOLE.fullmatch(name) for name in kept), kept
