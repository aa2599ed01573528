"""Data in a node's memory is replaced while the cluster is open.

There are more volumes than nodes, and each fills a node's memory. Each node is given one; when
the jobs on it are done, ``resetup_node`` cleans the node up and sets it up with the next. Which
one that is, ``allocate`` says each time.
"""

from __future__ import annotations

import queue
import random
from pathlib import Path
from typing import Any

from node_option import command_line, hosts_and_ports
from scratch_folder import scratch_folder

import dispy

VOLUMES = 4
WORDS = ("alder", "beech", "cedar")  # one job each looks for one word

volume: str  # made by set_up, at the node
words: list[str]

Event = tuple[int, "dispy.DispyNode | None", "dispy.DispyJob | None"]
events: queue.SimpleQueue[Event] = queue.SimpleQueue()


def set_up(file: str) -> int:
    """Read a volume into memory, in place of the one before."""
    global volume, words
    volume, words = file, Path(file).read_text().split()
    return 0


def clean_up(file: str) -> None:
    """Delete the volume's file, to make room for the next."""
    Path(file).unlink()


def count(word: str) -> tuple[str, str, int]:
    """Run as a job: return which volume was in memory, and how often it has the word."""
    return volume, word, words.count(word)


class NextVolume(dispy.NodeAllocate):
    """Gives a node another volume each time it is set up, as long as there are any."""

    waiting: list[Path]  # of all nodes

    def allocate(self, cluster: dispy.JobCluster, *node: Any, **more: Any) -> int:
        cpus = super().allocate(cluster, *node, **more)
        if not cpus or not self.waiting:
            return 0
        path = self.waiting.pop(0)
        self.depends = [str(path)]
        self.setup_args = (path.name,)
        print(f"{node[1]} gets {path.name}", flush=True)
        return cpus


def heard(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
    """Leave what happened to the main thread."""
    events.put((status, node, job))


def write_volumes() -> dict[tuple[str, str], int]:
    """Write all volumes; return how often each has each word."""
    dice = random.Random(0)
    counts: dict[tuple[str, str], int] = {}
    for number in range(1, VOLUMES + 1):
        text = dice.choices(WORDS, k=100_000)
        path = Path(f"volume-{number}.txt")
        path.write_text(" ".join(text))
        counts |= {(path.name, word): text.count(word) for word in WORDS}
    return counts


def read_all(cluster: dispy.JobCluster) -> dict[tuple[str, str], int]:
    """Run all jobs on all volumes; return what they counted."""
    counts: dict[tuple[str, str], int] = {}
    left: dict[str, int] = {}  # jobs that a node has still to do on its volume
    while len(counts) < VOLUMES * len(WORDS):
        status, node, job = events.get(timeout=30)
        if node is None:
            continue
        if status == dispy.DispyNode.Initialized:
            left[node.name] = len(WORDS)
            for word in WORDS:
                cluster.submit_node(node, word)
        elif job is not None and status == dispy.DispyJob.Finished:
            name, word, number = job.result
            counts[name, word] = number
            print(f"{node.name}: {name} has {word} {number:,} times", flush=True)
            left[node.name] -= 1
            if not left[node.name] and NextVolume.waiting:
                cluster.resetup_node(node)
        elif job is not None and status in (dispy.DispyJob.Terminated, dispy.DispyJob.Cancelled):
            raise SystemExit(f"job {job.id} failed:\n{job.exception}")
    return counts


def main() -> int:
    options = command_line(__doc__).parse_args()
    with scratch_folder():
        expected = write_volumes()
        NextVolume.waiting = [Path(name) for name in sorted({name for name, _ in expected})]
        nodes = [NextVolume(host, port) for host, port in hosts_and_ports(options.nodes)]
        cluster = dispy.JobCluster(
            count, nodes=nodes, setup=set_up, cleanup=clean_up, cluster_status=heard
        )
        with cluster:
            counts = read_all(cluster)
    print(f"{VOLUMES} volumes were read, and all counts are right:", counts == expected)
    return 0 if counts == expected else 1


if __name__ == "__main__":
    raise SystemExit(main())
