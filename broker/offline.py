"""What people can do with a journal while no broker uses it: look it through, export it, prune it.

A damaged journal is read as far as that goes: row by row, and what can't be read is told.
"""

from __future__ import annotations

import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    JobResult,
    JobSpec,
    Large,
)

from . import schema
from .durable import KeptBatch, KeptCluster
from .effects import DropCluster
from .journal import Journal, JournalError
from .statelock import StateLock
from .tables import Tables

STATUS = {
    CANCELLED: "Cancelled",
    TERMINATED: "Terminated",
    ABANDONED: "Abandoned",
    FINISHED: "Finished",
}
UNREADABLE = (sqlite3.DatabaseError, msgspec.MsgspecError, ProtocolError, ValueError)

Line = dict[str, Any]


@dataclass
class Findings:
    """What has been found in a journal."""

    damage: list[str] = field(default_factory=list)  # in words; empty: all is well
    size_bytes: int = 0
    unused_bytes: int = 0
    clusters: int = 0
    batches: int = 0
    jobs: int = 0  # of these batches
    ended: int = 0  # of these jobs
    results: int = 0  # jobs whose results haven't been heard
    nodes: int = 0

    def count(self, line: Line) -> None:
        """Count what a line of the export tells."""
        kind = line["kind"]
        self.clusters += kind == "cluster"
        self.nodes += kind == "node"
        self.results += kind == "result"
        if kind == "batch":
            self.batches += 1
            self.jobs += line["count"]
            self.ended += line["ended"]
        if kind == "unreadable":
            self.damage.append(f"{line['what']}: {line['reason']}")


def check(folder: Path) -> Findings:
    """Look a journal through, every row of it. Raises `JournalError` when it can't be opened."""
    with _opened(folder) as database:
        tables = Tables(database)
        findings = Findings(schema.damage(database, thorough=True))
        if not findings.damage:
            findings.damage += tables.strays()
        (idle,) = database.execute("PRAGMA freelist_count").fetchone()
        findings.unused_bytes = idle * schema.PAGE_BYTES
        findings.size_bytes = (folder / schema.FILE).stat().st_size
        for line in _lines(tables, payloads=True):
            findings.count(line)
    return findings


def export(folder: Path, payloads: bool) -> Iterator[Line]:
    """Yield all that can be read, as values for JSON, each with its "kind".

    ``payloads``: also the jobs, and the payloads of jobs and results, as base64. Raises
    `JournalError` when the journal can't be opened.
    """
    with _opened(folder) as database:
        yield from _lines(Tables(database), payloads)


def prune(folder: Path, away_s: float, now: float, dry: bool) -> list[KeptCluster]:
    """Remove clusters whose clients were last heard so long before ``now``, and return them.

    ``now`` is in seconds since the epoch; ``dry``: remove nothing. What becomes free is given back
    to the file system. Raises `JournalError`.
    """
    _expect(folder)
    with closing(Journal(folder)) as journal:
        clusters = journal.load().clusters
        gone = [cluster for cluster in clusters if 0 < cluster.meta.away_since <= now - away_s]
        if not dry:
            for cluster in gone:
                journal.apply([DropCluster(cluster.id)])
            journal.compact()
    return gone


def label(cluster: KeptCluster) -> str:
    """Return what people call a cluster."""
    return cluster.opened.label or cluster.opened.computation.name


@contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal that may be damaged, and keep brokers away from it meanwhile."""
    _expect(folder)
    lock = StateLock(folder)
    try:
        with closing(schema.opened(folder, "normal")) as database:
            yield database
    except sqlite3.DatabaseError as error:
        raise schema.explained(error, folder) from None
    finally:
        lock.release()


def _expect(folder: Path) -> None:
    if not (folder / schema.FILE).is_file():
        raise JournalError(
            f"there is no {schema.FILE} in {folder}: name the folder that the broker logs when it "
            "starts"
        )


def _lines(tables: Tables, payloads: bool) -> Iterator[Line]:
    for table, describe in DESCRIBE.items():
        numbers, reason = tables.ids(table)
        if reason:
            yield {"kind": "unreadable", "what": f"some {table}", "reason": reason}
        for number in numbers:
            try:
                yield from describe(tables, number, payloads)
            except UNREADABLE as error:
                yield {"kind": "unreadable", "what": f"{table} {number}", "reason": str(error)}


def _node(tables: Tables, number: int, payloads: bool) -> Iterator[Line]:
    node = tables.node(number)
    if node is not None:
        yield {"kind": "node", "id": number, **msgspec.structs.asdict(node)}


def _cluster(tables: Tables, number: int, payloads: bool) -> Iterator[Line]:
    cluster = tables.cluster(number)
    if cluster is not None:
        meta = msgspec.structs.asdict(cluster.meta)
        yield {"kind": "cluster", "id": number, "label": label(cluster), **meta}


def _batch(tables: Tables, number: int, payloads: bool) -> Iterator[Line]:
    batch = tables.batch(number)
    if batch is None:
        return
    ended = int.from_bytes(batch.progress.ended, "little")
    yield {
        "kind": "batch",
        "id": number,
        "cluster": batch.cluster,
        "first": batch.first,
        "last": batch.last,
        "count": batch.count,
        "ended": bin(ended).count("1"),
        "at_nodes": sum(mark.node != 0 for mark in batch.progress.jobs),
    }
    if payloads:
        for index, job in enumerate(tables.jobs(number) or []):
            yield _job(batch, job, bool(ended >> index & 1))


def _job(batch: KeptBatch, job: JobSpec, has_ended: bool) -> Line:
    return {
        "kind": "job",
        "cluster": batch.cluster,
        "batch": batch.id,
        "seq": job.seq,
        "ended": has_ended,
        **_payload(job.payload, job.parts),
    }


def _results(tables: Tables, number: int, payloads: bool) -> Iterator[Line]:
    kept = tables.results(number)
    if kept is not None:
        for result in kept.message.results:
            yield {
                "kind": "result",
                "id": number,
                "cluster": kept.cluster,
                "node": kept.message.node,
                **_result(result),
                **(_payload(result.payload, result.parts) if payloads else {}),
            }


def _result(result: JobResult) -> Line:
    return {
        "seq": result.seq,
        "attempt": result.attempt,
        "status": STATUS.get(result.status, str(result.status)),
        "start": result.start,
        "end": result.end,
    }


def _payload(payload: bytes, parts: list[Large]) -> Line:
    """Return both in base64, since no text can hold them as they are."""
    return {
        "payload": b64encode(payload).decode(),
        "parts": [b64encode(part.tobytes()).decode() for part in parts],
    }


DESCRIBE: dict[str, Callable[[Tables, int, bool], Iterator[Line]]] = {
    "nodes": _node,
    "clusters": _cluster,
    "batches": _batch,
    "results": _results,
}
