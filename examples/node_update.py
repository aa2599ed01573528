"""A program that is run once at each node, as soon as the node is there.

For chores such as updating what is installed. Nodes may join at any time; each is given the
program when it is ready, whatever the others do.
"""

from __future__ import annotations

import queue
from pathlib import Path

from node_option import command_line

import dispy

PROGRAM = Path(__file__).parent / "programs" / "describe_node.py"
PATIENCE_S = 30.0

Event = tuple[int, "dispy.DispyNode | None", "dispy.DispyJob | None"]
events: queue.SimpleQueue[Event] = queue.SimpleQueue()


def heard(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
    """Leave what happened to the main thread."""
    events.put((status, node, job))


def update(cluster: dispy.JobCluster, expected: int) -> dict[str, dispy.DispyJob]:
    """Run the program at so many nodes; return the jobs that have ended, by node."""
    ended: dict[str, dispy.DispyJob] = {}
    jobs: dict[str, dispy.DispyJob] = {}
    while len(ended) < expected:
        status, node, job = events.get(timeout=PATIENCE_S)
        if node is None:
            continue
        if status == dispy.DispyNode.Initialized and node.name not in jobs:
            print(f"{node.name} is there", flush=True)
            jobs[node.name] = cluster.submit_node(node, "note.txt")
        elif job is not None and status >= dispy.DispyJob.Cancelled and status < node.Closed:
            ended[node.name] = jobs[node.name]
    return ended


def main() -> int:
    options = command_line(__doc__).parse_args()
    expected = len(options.nodes or ["the node of this machine"])
    with dispy.JobCluster(str(PROGRAM), nodes=options.nodes, cluster_status=heard) as cluster:
        jobs = update(cluster, expected)
    updated = sum(report(name, job) for name, job in jobs.items())
    print(f"\n{updated} of {expected} nodes are up to date")
    return 0 if updated == expected else 1


def report(name: str, job: dispy.DispyJob) -> bool:
    """Print what the program has printed at a node; return whether the node is up to date."""
    if not isinstance(job.stdout, bytes):  # of a program it is bytes, which need not be text
        print(f"\n{name}: the program could not be run:\n{job.exception}")
        return False
    text = job.stdout.decode()
    print(f"\n{name}, exit code {job.result}:\n{text}", end="")
    return job.result == 0 and "updated on" in text


if __name__ == "__main__":
    raise SystemExit(main())
