"""The canonical program: twenty jobs of one function, and what is known of each afterwards.

Without ``--node`` it uses the node that runs on this machine, or starts a private one.
"""

from __future__ import annotations

import argparse
import random
import socket
import time

from node_option import command_line

import dispy

JOBS = 20


def compute(seconds: float) -> tuple[str, float]:
    """Run as a job, on a node: keep it busy for a while, and say where that was."""
    time.sleep(seconds)
    return socket.gethostname(), seconds


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--longest", type=float, default=0.25, help="limit of a job's seconds")
    return parser.parse_args()


def report(job: dispy.DispyJob) -> bool:
    """Wait for the job, print how it went; return whether it went well."""
    result = job()  # waits; None if the job failed
    if job.status != dispy.DispyJob.Finished:
        print(f"job {job.id} failed:\n{job.exception}", flush=True)
        return False
    host, seconds = result
    began = time.strftime("%H:%M:%S", time.localtime(job.start_time))
    took = (job.end_time or 0.0) - (job.start_time or 0.0)
    line = f"{host} executed job {job.id} at {began} with {seconds:.3f}, took {took:.3f} s"
    print(line, flush=True)  # at once, also into a pipe
    return True


def main() -> int:
    options = arguments()
    with dispy.JobCluster(compute, nodes=options.nodes) as cluster:
        jobs = [cluster.submit(random.uniform(0, options.longest)) for _ in range(JOBS)]
        well = [report(job) for job in jobs]
        cluster.print_status()
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
