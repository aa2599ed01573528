"""What a broker reports, as tables and as JSON, for people and their programs.

Pure functions from reports to text. Tables fit `WIDTH` columns: long names lose their middle.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import msgspec

from dispy.protocol.messages import SERIALS, BrokerReport, ClusterReport, NodeReport

WIDTH = 100
ELLIPSIS = "..."
CLUSTER_HEAD = (
    *("CLUSTER", "USER", "LABEL", "STATE", "WAITING", "RUNNING", "ENDED", "UNHEARD"),
    *("SHARE", "CPU-TIME", "JOBS/S"),
)
NODE_HEAD = (
    *("NODE", "NAME", "ADDRESS", "STATE", "CPUS", "RUNNING", "HELD", "DONE"),
    *("CPU", "MEMORY", "DISK"),
)


def as_json(value: Any) -> Any:
    """Turn a report into objects whose keys are the names of its fields."""
    if isinstance(value, msgspec.Struct):
        return {name: as_json(each) for name, each in msgspec.structs.asdict(value).items()}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return value


# -- a broker -------------------------------------------------------------------------------


def show_status(status: BrokerReport, address: str, now: float) -> str:
    """Describe a broker, its clusters and its nodes. ``now`` in seconds since the epoch."""
    parts = [_headline(status, address, now)]
    parts.append(show_clusters(status.clusters))
    parts.append(show_nodes(status.nodes))
    return "\n\n".join(part for part in parts if part)


def _headline(status: BrokerReport, address: str, now: float) -> str:
    up = f", up for {duration(now - status.since)}" if status.since else ""
    lines = [f"broker {status.name} at {address}, version {status.software}, {status.policy}{up}"]
    if status.journal:
        lines.append(f"journal: {status.journal}, {size(status.journal_bytes)}")
    else:
        lines.append("no journal: jobs don't survive its restart")
    usable = [node for node in status.nodes if node.state == "up"]
    running = sum(node.running for node in status.nodes)
    cpus = sum(node.cpus for node in usable)
    waiting = sum(cluster.waiting for cluster in status.clusters)
    lines.append(
        f"{count(len(usable), 'node')} up with {count(cpus, 'CPU')}, "
        f"{count(status.clients, 'client')}, {count(len(status.clusters), 'cluster')}; "
        f"jobs: {running} running, {waiting} waiting, {status.rate:.1f}/s ending"
    )
    if status.trouble:
        lines.append(f"NO NEW JOBS ARE ACCEPTED: {status.trouble}")
    return "\n".join(_folded(line) for line in lines)


def show_clusters(clusters: Sequence[ClusterReport]) -> str:
    """List clusters."""
    if not clusters:
        return "no clusters"
    rows = [
        [
            str(each.id % SERIALS),
            each.user or "-",
            each.label,
            f"{each.state}{' excl.' if each.exclusive else ''}",
            str(each.waiting),
            str(each.running),
            str(each.ended),
            str(each.unheard),
            f"{100 * each.share:.0f}%",
            duration(each.used_s),
            f"{each.rate:.1f}",
        ]
        for each in clusters
    ]
    return table(CLUSTER_HEAD, rows, left=(0, 1, 2, 3), elastic=(1, 2))


def show_nodes(nodes: Sequence[NodeReport]) -> str:
    """List nodes, and why some of them get no jobs."""
    if not nodes:
        return "no nodes"
    rows = [[*_node(each), *_vitals(each)] for each in nodes]
    reasons = [_folded(f"{each.name}: {_reason(each)}") for each in nodes if each.reason]
    listed = table(NODE_HEAD, rows, left=(0, 1, 2, 3), elastic=(1, 2))
    return "\n".join([listed, *(["", *reasons] if reasons else [])])


def _reason(node: NodeReport) -> str:
    if node.reason.startswith(node.state):
        return node.reason
    return f"{node.state}: {node.reason}"


def _node(node: NodeReport) -> list[str]:
    return [
        str(node.id or "-"),
        node.name,
        f"{node.address or '-'}{f' via {node.via}' if node.via else ''}",
        node.state,
        str(node.cpus),
        str(node.running),
        str(node.held),
        str(node.done),
    ]


def _vitals(node: NodeReport) -> list[str]:
    """Return what a node has free."""
    if node.vitals is None:
        return ["-", "-", "-"]
    free = node.vitals
    return [f"{free.cpu:.0f}%", size(free.memory), size(free.disk)]


# -- tables and words -----------------------------------------------------------------------


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], elastic: Sequence[int]
) -> str:
    """Align columns, those in ``left`` to the left; those in ``elastic`` may be shortened."""
    cells = [list(head), *[[_printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widest = max(elastic, key=lambda column: widths[column])
        if widths[widest] <= len(head[widest]):
            break
        widths[widest] -= 1
    return "\n".join(_row(row, widths, left) for row in cells)


def _row(row: Sequence[str], widths: Sequence[int], left: Sequence[int]) -> str:
    cells = [
        shortened(cell, width).ljust(width) if column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _printable(text: str) -> str:
    """Keep what others have chosen as names from moving the cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shortened(text: str, width: int) -> str:
    """Leave out the middle of what is too long."""
    if len(text) <= width:
        return text
    if width <= len(ELLIPSIS) + 1:
        return text[:width]
    kept = width - len(ELLIPSIS)
    return text[: -(-kept // 2)] + ELLIPSIS + text[len(text) - kept // 2 :]


def _folded(text: str) -> str:
    return textwrap.fill(_printable(text), WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def duration(seconds: float) -> str:
    """Say how long something takes, with two units at most."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count_bytes: int) -> str:
    """Say how many bytes these are."""
    number, units = float(count_bytes), ["B", "KB", "MB", "GB", "TB", "PB"]
    while number >= 1000 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return (
        f"{number:.0f} {units[0]}"
        if number >= 10 or units[0] == "B"
        else f"{number:.1f} {units[0]}"
    )


def count(number: int, thing: str) -> str:
    """Say how many of something there are."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
