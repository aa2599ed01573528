"""Many jobs that wait: what they cost in memory and time, measured in a program of its own."""

from __future__ import annotations

import json

from .conftest import RunProgram, StartNode

# Limits are for a busy machine; what is measured on a quiet one is a fraction of them.
FIRST_START_S = 0.5
CANCEL_S = 2.0
SLACK = 2.5
BYTES_PER_JOB = 1024  # beside its arguments
SMALL, SMALL_BYTES = 100_000, 300
LARGE, LARGE_BYTES = 200, 1 << 20

PROGRAM = f"""
import gc, json, os, sys, time
import psutil
import dispy

def work(data, seconds):
    time.sleep(seconds)

def resident():
    return psutil.Process().memory_info().rss

if __name__ == "__main__":
    cluster = dispy.JobCluster(work, nodes=[sys.argv[1]])
    cluster.submit(b"", 0)()
    before = resident()
    begin = time.time()
    jobs = [cluster.submit(os.urandom({SMALL_BYTES}), 30) for _ in range({SMALL})]
    submitted = time.time() - begin
    while jobs[0].start_time is None:
        time.sleep(0.005)
    first = jobs[0].start_time - begin
    small = resident() - before
    large = [cluster.submit(os.urandom({LARGE_BYTES}), 30) for _ in range({LARGE})]
    time.sleep(1)
    both = resident() - before
    begin = time.time()
    for job in jobs + large:
        cluster.cancel(job)
    for job in jobs + large:
        job.finish.wait(30)
    cancelled = time.time() - begin
    ended = sorted({{job.status for job in jobs + large}})
    cluster.close()
    print(json.dumps([submitted, first, small, both, cancelled, ended]))
"""


def test_a_hundred_thousand_waiting_jobs_cost_little(
    start_node: StartNode, start_program: RunProgram
) -> None:
    node = start_node()
    program = start_program(PROGRAM, node.address)
    assert program.wait(90) == 0, program.log()
    submitted, first, small, both, cancelled, ended = json.loads(program.output())
    print(program.output())
    assert SMALL / submitted > 10_000 / SLACK
    assert first < FIRST_START_S * SLACK
    assert small < SMALL * (SMALL_BYTES + BYTES_PER_JOB)
    assert both - small < LARGE * LARGE_BYTES * 1.3 + (32 << 20)
    assert cancelled < CANCEL_S * SLACK
    assert set(ended) <= {8, 9}  # Cancelled, and Terminated for those that ran
