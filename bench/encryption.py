"""What encryption costs: no-op jobs and large payloads with a secret, beside those without.

``python -m bench.encryption JOBS PAYLOADS`` is the program. It prints rates without and with a
secret: small jobs, round trips, and payloads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import TypeAlias

from .throughput import jobs_per_s, payload_mb_per_s, round_trip
from .work import Runner, no_op

REPEATS = 3  # of both in turn, since a machine's speed changes from second to second
LARGE_BYTES = 32 << 20
LARGE_IN_FLIGHT = 4  # two are worked on, two travel
TURNS = 1_000

Rates: TypeAlias = dict[str, float]


def rates(jobs: int, payloads: int) -> Rates:
    """Measure in a program of its own, for which there is no secret but its own."""
    command = [sys.executable, "-m", "bench.encryption", str(jobs), str(payloads)]
    nowhere = {name: "" for name in ("DISPY_SECRET", "DISPY_SECRET_FILE")}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **nowhere}
    ).stdout
    measured: Rates = json.loads(output.splitlines()[-1])
    return measured


def _measured(secret: str, jobs: int, payloads: int) -> Rates:
    import dispy

    with dispy.JobCluster(
        no_op, host="127.0.0.1", secret=secret, max_tasks_per_child=None
    ) as cluster:
        runner = Runner(cluster.submit)
        return {
            "rate": jobs_per_s(runner, jobs),
            "p50": round_trip(runner, TURNS).p50_ms,
            "32MiB": payload_mb_per_s(runner, LARGE_BYTES, payloads, LARGE_IN_FLIGHT),
        }


def main(jobs: int, payloads: int) -> None:
    """Print the medians as JSON."""
    from dispy.protocol.secret import new

    secret = new()
    found: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for kind in ("", secret):
            for name, value in _measured(kind, jobs, payloads).items():
                found.setdefault(f"{name}.{'encrypted' if kind else 'plain'}", []).append(value)
    print(json.dumps({name: median(values) for name, values in found.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
