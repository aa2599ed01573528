"""What a job prints, line by line, while it runs.

``job.follow()`` goes on until the job has ended. Jobs that nobody follows don't tell anything
before their end, so this costs nothing unless it is used.
"""

from __future__ import annotations

import time

from node_option import command_line

import dispy

STEPS = 6
STEP_S = 0.3


def work(steps: int) -> str:
    """Run as a job: do something for a while, and print how far it has come."""
    for step in range(1, steps + 1):
        time.sleep(STEP_S)
        print(f"step {step} of {steps}")
    return "done"


def main() -> int:
    options = command_line(__doc__).parse_args()
    with dispy.JobCluster(work, nodes=options.nodes) as cluster:
        job = cluster.submit(STEPS)
        text = ""
        arrived = []  # after how many seconds
        began = time.monotonic()
        for output in job.follow():
            arrived.append(time.monotonic() - began)
            text += output.text
            for line in output.text.splitlines():
                print(f"after {arrived[-1]:.1f} s, {output.stream}: {line}", flush=True)
        result = job()
    if job.status != dispy.DispyJob.Finished:
        print(f"the job failed:\n{job.exception}")
        return 1
    live = len(arrived) > 1 and arrived[0] < arrived[-1] - STEP_S
    print(f"The job is {result}. Its output came while it ran:", live)
    return 0 if live and text == job.stdout and text.count("\n") == STEPS else 1


if __name__ == "__main__":
    raise SystemExit(main())
