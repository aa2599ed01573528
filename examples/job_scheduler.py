"""A program that decides by itself which job runs where, and when.

It hears of each change of a node or a job. When a node is ready it is sent as many files as it
has CPUs, with a job for each; each time a job has ended, the next file goes to that node.
"""

from __future__ import annotations

import hashlib
import queue
import random
import tempfile
from pathlib import Path

from node_option import command_line

import dispy

FILES = 12

Event = tuple[int, "dispy.DispyNode | None", "dispy.DispyJob | None"]
events: queue.SimpleQueue[Event] = queue.SimpleQueue()


def checksum(name: str) -> str:
    """Run as a job, in the folder where ``send_file`` puts files."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def heard(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
    """Leave what happened to the main thread."""
    events.put((status, node, job))


def write_files(folder: Path) -> list[Path]:
    dice = random.Random(0)
    paths = [folder / f"data{number:03}" for number in range(FILES)]
    for path in paths:
        path.write_bytes(dice.randbytes(dice.randint(10_000, 200_000)))
    return paths


class Scheduler:
    """Gives files to nodes one by one."""

    def __init__(self, cluster: dispy.JobCluster, paths: list[Path]) -> None:
        self.cluster = cluster
        self.waiting = list(paths)
        self.checksums: dict[str, str] = {}

    def run(self) -> None:
        """Return when all files are done."""
        files = len(self.waiting)
        while len(self.checksums) < files:
            status, node, job = events.get(timeout=30)
            if status == dispy.DispyNode.Initialized and node is not None:
                print(f"{node.name} is ready, with {node.avail_cpus} CPUs", flush=True)
                for _ in range(node.avail_cpus):
                    self.give_work(node)
            elif status == dispy.DispyJob.Finished and node is not None and job is not None:
                print(f"{node.name}: {job.id} {job.result[:16]}...", flush=True)
                self.checksums[job.id] = job.result
                self.give_work(node)
            elif status in (dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled):
                raise SystemExit(f"a job failed:\n{job and job.exception}")

    def give_work(self, node: dispy.DispyNode) -> None:
        """Send the next file to this node, and a job for it."""
        if self.waiting:
            path = self.waiting.pop(0)
            if self.cluster.send_file(str(path), node) != 0:
                raise SystemExit(f"{path.name} could not be sent to {node.name}")
            self.cluster.submit_job_id_node(path.name, node, path.name)


def main() -> int:
    options = command_line(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        cluster = dispy.JobCluster(checksum, nodes=options.nodes, cluster_status=heard)
        with cluster:
            scheduler = Scheduler(cluster, paths)
            scheduler.run()
            cluster.print_status()
    print(f"{FILES} checksums, all of them right:", scheduler.checksums == expected)
    return 0 if scheduler.checksums == expected else 1


if __name__ == "__main__":
    raise SystemExit(main())
