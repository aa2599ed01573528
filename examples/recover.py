"""Results of a program that was killed.

This program starts another, which submits jobs, and kills it. The node finishes what it was
given nevertheless. With the file that the other has kept, all its jobs are recovered: their
arguments, results and output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from node_option import command_line
from own_node import running_node

import dispy

JOBS = 6
CPUS = 2
READY = "all jobs are submitted"
PATIENCE_S = 30.0


def square(number: int) -> int:
    """Run as a job; the node has some of them to do when the program is killed."""
    time.sleep(0.5)
    print(f"the square of {number} is {number * number}")
    return number * number


def submit_and_wait(node: str, recover_file: str) -> None:
    """What the program does that is killed."""
    cluster = dispy.JobCluster(square, nodes=[node], recover_file=recover_file)
    jobs = [cluster.submit(number) for number in range(JOBS)]
    jobs[0]()
    print(READY, flush=True)
    cluster.wait()


def kill_a_program(node: str, recover_file: str) -> None:
    """Start such a program, and kill it in the middle of its work."""
    command = [sys.executable, __file__, "--node", node, "--submit", recover_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        if READY not in program.stdout.readline():
            raise SystemExit("the program that was to be killed ended by itself")
        program.kill()
    print("the program was killed, with its jobs", flush=True)


def recover(recover_file: str) -> int:
    """Recover its jobs and show them."""
    jobs = dispy.recover_jobs(recover_file, timeout=PATIENCE_S)
    for job in sorted(jobs, key=lambda job: job.id):
        print(f"job {job.id} with {job.args} returned {job.result}, and printed {job.stdout!r}")
    finished = [job for job in jobs if job.status == dispy.DispyJob.Finished]
    right = [job for job in finished if job.args and job.result == job.args[0] ** 2]
    others = len(jobs) - len(finished)
    print(f"{len(jobs)} jobs recovered, {len(right)} results are right, {others} never ran")
    return 0 if len(right) == len(finished) >= 1 and len(jobs) <= JOBS else 1


def try_on(node: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        recover_file = str(Path(folder, "jobs.recover"))
        kill_a_program(node, recover_file)
        return recover(recover_file)


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--submit", metavar="FILE", help="be the program that is to be killed")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.submit:
        submit_and_wait(options.nodes[0], options.submit)
        return 1  # nobody has killed it
    if options.nodes:
        return try_on(options.nodes[0])
    with running_node(CPUS) as node:
        return try_on(node)


if __name__ == "__main__":
    raise SystemExit(main())
