"""How a cluster is doing, as values and as a table. Pure: the caller prints it."""

from __future__ import annotations

from typing import NamedTuple

from .nodes import DispyNode

NODE_WIDTH = 30
HEADER = (
    f"{'Node':>{NODE_WIDTH}} |  CPUs |    Jobs |    Sec/Job | Node Time Sec |    Sent |    Rcvd"
)
UNITS = "BKMGT"


class ClusterStatus(NamedTuple):
    """What `JobCluster.status` returns."""

    nodes: list[DispyNode]  # all that the cluster has used so far
    jobs_pending: int  # submitted, and not ended


def table(status: ClusterStatus, wall_time: float) -> str:
    """Lay out one line for each node, and the totals. ``wall_time`` in seconds."""
    lines = ["", HEADER, "-" * len(HEADER)]
    lines += [_row(node) for node in status.nodes]
    lines.append("")
    if status.jobs_pending:
        lines.append(f"Jobs pending: {status.jobs_pending}")
    job_time = sum(node.cpu_time for node in status.nodes)
    speedup = job_time / wall_time if wall_time > 0 else 0.0
    lines.append(
        f"Total job time: {job_time:.3f} sec, wall time: {wall_time:.3f} sec, "
        f"speedup: {speedup:.3f}"
    )
    return "\n".join(lines) + "\n"


def _row(node: DispyNode) -> str:
    name = f"{node.ip_addr} ({node.name})"[:NODE_WIDTH]
    per_job = node.cpu_time / node.jobs_done if node.jobs_done else 0.0
    return (
        f"{name:>{NODE_WIDTH}} | {node.cpus:5} | {node.jobs_done:7} | {per_job:10.3f} | "
        f"{node.cpu_time:13.3f} | {_size(node.tx):>7} | {_size(node.rx):>7}"
    )


def _size(count: float) -> str:
    """Bytes for people: 999 B, 1.5 K, 2.0 M."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {UNITS[-1]}"
