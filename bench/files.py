"""What a large file in ``depends`` costs: time for two nodes, memory; nothing, once more."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from .nodes import Node, pair
from .work import check

if TYPE_CHECKING:
    import dispy

PEAK_S = 0.005  # how often memory is looked at


class Transfer(NamedTuple):
    """Figures of a file that goes to two nodes at once."""

    mb_per_s: float  # of each node, the slower one counts; from the first request to readiness
    whole_mb_per_s: float  # the same, with the time that it takes the client to hash the file
    client_growth_bytes: float  # at the peak
    node_growth_bytes: float  # of the one that grew more
    again_bytes: float  # sent for a second cluster with the same file


def size_of(name: str) -> int:
    """The job: how much has arrived."""
    return Path(name).stat().st_size


class Peak:
    """Watches how far the memory of some processes grows."""

    def __init__(self, pids: list[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._before = [process.memory_info().rss for process in self._processes]
        self._peaks = list(self._before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def growth(self) -> list[int]:
        """Stop watching; return how far each grew."""
        self._done.set()
        self._thread.join()
        return [peak - before for peak, before in zip(self._peaks, self._before, strict=True)]

    def _watch(self) -> None:
        while not self._done.wait(PEAK_S):
            now = [process.memory_info().rss for process in self._processes]
            self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=True)]


def transfer(mebibytes: int) -> Transfer:
    """Send a file of random bytes."""
    with tempfile.TemporaryDirectory() as folder, pair() as nodes:
        path = Path(folder, "data")
        with path.open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(1 << 20))
        _run(nodes, [])  # the first contact isn't the subject
        peak = Peak([os.getpid(), *(node.pid for node in nodes)])
        copying_s, all_s, _ = _run(nodes, [path])
        client, *others = peak.growth()
        _, _, again = _run(nodes, [path])
    megabytes = (mebibytes << 20) / 1e6
    return Transfer(megabytes / copying_s, megabytes / all_s, client, max(others), again)


def _run(nodes: list[Node], depends: list[Path]) -> tuple[float, float, int]:
    """Make a cluster of these nodes.

    Returns the seconds until both were ready, without and with those of hashing, and the bytes
    that were sent.
    """
    import dispy

    seen: set[int] = set()
    both = threading.Event()

    def on_status(status: int, node: dispy.DispyNode | None, job: dispy.DispyJob | None) -> None:
        if status == dispy.DispyNode.Initialized:
            seen.add(id(node))
            if len(seen) == len(nodes):
                both.set()

    addresses = [node.address for node in nodes]
    began = time.perf_counter()
    with dispy.JobCluster(
        size_of, nodes=addresses, depends=depends, cluster_status=on_status
    ) as cluster:
        hashed = time.perf_counter()
        check(both.wait(60), "both nodes have the file")
        ready = time.perf_counter()
        jobs = [cluster.submit(str(path.name)) for path in depends]
        check(all(job() == path.stat().st_size for job, path in zip(jobs, depends, strict=True)),
              "the file at the node")  # fmt: skip
        return ready - hashed, ready - began, sum(node.tx for node in cluster.status().nodes)
