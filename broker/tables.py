"""What is written into the journal's tables for each effect, and read from them again.

No transactions and no errors here: those are the `journal`'s. Rows of batches and of results are
never changed, only added and removed. What is kept of a cluster, batch or node that isn't there
(any more) is a stray: it is passed over, and only a mistake of ours makes one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import Body, Buffer, JobSpec, OpenCluster, Results, Submit

from .crashpoints import crashpoint
from .durable import (
    RESULTS_BYTES,
    ClusterMeta,
    Kept,
    KeptBatch,
    KeptCluster,
    KeptResults,
    NodeMeta,
    Progress,
    bytes_of,
)
from .effects import (
    DropBatch,
    DropCluster,
    DropNode,
    DropResults,
    DropTaken,
    JournalEffect,
    KeepAbandoned,
    KeepBatch,
    KeepCluster,
    KeepNode,
    KeepProgress,
    KeepResults,
    KeepTaken,
)
from .packing import Packer

CLUSTER = "SELECT id, meta, header FROM clusters"
BATCH = """
SELECT id, cluster, extent, state FROM batches LEFT JOIN progress ON progress.batch = batches.id
"""
NOTE_RECORD = "UPDATE meta SET value = max(value, ?) WHERE name = 'last_record'"
SEQ_BYTES = 8  # of a job's number, which may be too large for a column
DROP_CLUSTER = (
    "DELETE FROM record_chunks WHERE owner IN (SELECT id FROM batches WHERE cluster = ?1"
    " UNION ALL SELECT id FROM results WHERE cluster = ?1)",
    "DELETE FROM progress WHERE batch IN (SELECT id FROM batches WHERE cluster = ?)",
    "DELETE FROM batches WHERE cluster = ?",
    "DELETE FROM results WHERE cluster = ?",
    "DELETE FROM abandoned WHERE cluster = ?",
    "DELETE FROM cluster_chunks WHERE owner = ?",
    "DELETE FROM clusters WHERE id = ?",
)
STRAYS = {  # which rows belong to nothing
    "batches": "cluster NOT IN (SELECT id FROM clusters)",
    "results": "cluster NOT IN (SELECT id FROM clusters)",
    "abandoned": "cluster NOT IN (SELECT id FROM clusters)",
    "progress": "batch NOT IN (SELECT id FROM batches)",
    "cluster_chunks": "owner NOT IN (SELECT id FROM clusters)",
    "record_chunks": "owner NOT IN (SELECT id FROM batches UNION ALL SELECT id FROM results)",
}

Rows = list[tuple[Any, ...]]


class Extent(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a batch beside its jobs, so that they needn't be read: see `KeptBatch`."""

    first: int
    last: int
    count: int
    plain: bool
    priority: int


class Tables:
    """The tables of an open journal. All methods raise `sqlite3.Error`.

    Those that read also raise `ProtocolError` or `msgspec.MsgspecError` for what can't be decoded.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._packer = Packer()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_cluster = msgspec.msgpack.Decoder(ClusterMeta).decode
        self._decode_extent = msgspec.msgpack.Decoder(Extent).decode
        self._decode_progress = msgspec.msgpack.Decoder(Progress).decode
        self._decode_node = msgspec.msgpack.Decoder(NodeMeta).decode
        self._decode_loser = msgspec.msgpack.Decoder(tuple[str, int]).decode

    # -- writing, within a transaction -----------------------------------------------------------

    def write(self, effects: Iterable[JournalEffect]) -> None:
        """Write all of this, in this order."""
        for kind, run in groupby(effects, type):
            WRITERS[kind](self, list(run))
            crashpoint("after-write")

    def remove_strays(self) -> None:
        """Remove what belongs to nothing."""
        for table, condition in STRAYS.items():
            self._database.execute(f"DELETE FROM {table} WHERE {condition}")

    def _keep_clusters(self, effects: Sequence[KeepCluster]) -> None:
        for effect in effects:
            meta = self._encode(effect.meta)
            if effect.opened is None:
                self._many("UPDATE clusters SET meta = ? WHERE id = ?", [(meta, effect.id)])
                continue
            header, chunks = self._packer.pack(effect.opened)
            row = (effect.id, meta, header)
            self._many("INSERT OR REPLACE INTO clusters VALUES (?, ?, ?)", [row])
            self._many("DELETE FROM cluster_chunks WHERE owner = ?", [(effect.id,)])
            rows: Rows = [(effect.id, chunk) for chunk in chunks]
            self._many("INSERT INTO cluster_chunks (owner, data) VALUES (?, ?)", rows)

    def _drop_clusters(self, effects: Sequence[DropCluster]) -> None:
        ids = _ids(effects)
        for statement in DROP_CLUSTER:
            self._many(statement, ids)

    def _keep_batches(self, effects: Sequence[KeepBatch]) -> None:
        rows: Rows = []
        for effect in effects:
            header = self._packed(effect.id, effect.submit)
            rows.append((effect.id, effect.cluster, self._encode(_extent(effect)), header))
        self._many("INSERT INTO batches VALUES (?, ?, ?, ?)", rows)
        self._many(NOTE_RECORD, [rows[-1][:1]])

    def _keep_progress(self, effects: Sequence[KeepProgress]) -> None:
        rows: Rows = [(effect.batch, self._encode(effect.progress)) for effect in effects]
        self._many("INSERT OR REPLACE INTO progress VALUES (?, ?)", rows)

    def _drop_batches(self, effects: Sequence[DropBatch]) -> None:
        ids = _ids(effects)
        self._many("DELETE FROM batches WHERE id = ?", ids)
        self._many("DELETE FROM progress WHERE batch = ?", ids)
        self._many("DELETE FROM record_chunks WHERE owner = ?", ids)

    def _keep_results(self, effects: Sequence[KeepResults]) -> None:
        rows: Rows = []
        for effect in effects:
            rows.append((effect.id, effect.cluster, self._packed(effect.id, effect.message)))
        self._many("INSERT INTO results VALUES (?, ?, ?)", rows)
        self._many(NOTE_RECORD, [rows[-1][:1]])

    def _drop_results(self, effects: Sequence[DropResults]) -> None:
        ids: Rows = [(record,) for effect in effects for record in effect.ids]
        self._many("DELETE FROM results WHERE id = ?", ids)
        self._many("DELETE FROM record_chunks WHERE owner = ?", ids)

    def _keep_abandoned(self, effects: Sequence[KeepAbandoned]) -> None:
        for effect in effects:
            for seq, attempt in effect.jobs:
                key = (effect.cluster, seq.to_bytes(SEQ_BYTES, "big"))
                if attempt:
                    row = (*key, attempt)
                    self._many("INSERT OR REPLACE INTO abandoned VALUES (?, ?, ?)", [row])
                else:
                    self._many("DELETE FROM abandoned WHERE cluster = ? AND seq = ?", [key])

    def _keep_nodes(self, effects: Sequence[KeepNode]) -> None:
        rows: Rows = [(effect.id, self._encode(effect.meta)) for effect in effects]
        self._many("INSERT OR REPLACE INTO nodes VALUES (?, ?)", rows)
        self._many("UPDATE meta SET value = max(value, ?) WHERE name = 'last_node'", _ids(effects))

    def _drop_nodes(self, effects: Sequence[DropNode]) -> None:
        self._many("DELETE FROM nodes WHERE id = ?", _ids(effects))

    def _keep_taken(self, effects: Sequence[KeepTaken]) -> None:
        rows: Rows = [(self._loser(effect), effect.cluster) for effect in effects]
        self._many("INSERT OR REPLACE INTO taken (loser, cluster) VALUES (?, ?)", rows)

    def _drop_taken(self, effects: Sequence[DropTaken]) -> None:
        rows: Rows = [(self._loser(effect),) for effect in effects]
        self._many("DELETE FROM taken WHERE loser = ?", rows)

    def _loser(self, effect: KeepTaken | DropTaken) -> bytes:
        return self._encode((effect.owner, effect.number))

    def _packed(self, record: int, message: Body) -> bytes:
        """Write the chunks of a message, and return its header."""
        header, chunks = self._packer.pack(message)
        if chunks:
            rows: list[tuple[int, Buffer]] = [(record, chunk) for chunk in chunks]
            self._many("INSERT INTO record_chunks (owner, data) VALUES (?, ?)", rows)
        return header

    def _many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._database.executemany(statement, rows)

    # -- reading ---------------------------------------------------------------------------------

    def token(self) -> bytes:
        """Return what proves the broker's instance, which is that of its journal."""
        return bytes(self._meta("token"))

    def load(self) -> Kept:
        """Return all that is there, batches without their jobs; strays are left out."""
        kept = Kept(
            clusters=[self._as_cluster(*row) for row in self._rows(f"{CLUSTER} ORDER BY id")],
            nodes=dict(map(self._as_node, self._rows("SELECT id, meta FROM nodes"))),
            taken=dict(map(self._as_taken, self._rows("SELECT * FROM taken ORDER BY id"))),
            last_node=self._meta("last_node"),
            last_record=self._meta("last_record"),
        )
        clusters = {cluster.id: cluster for cluster in kept.clusters}
        for row in self._rows(f"{BATCH} ORDER BY id"):
            batch = self._as_batch(*row)
            if batch.cluster in clusters:
                clusters[batch.cluster].batches.append(batch)
        self._load_results(clusters)
        for cluster, seq, attempt in self._rows("SELECT cluster, seq, attempt FROM abandoned"):
            if cluster in clusters:
                clusters[cluster].abandoned.append((int.from_bytes(seq, "big"), attempt))
        return kept

    def _load_results(self, clusters: dict[int, KeptCluster]) -> None:
        """Read what fits into memory; of the rest only whose results they are."""
        size = 0
        for number, cluster, header in self._rows("SELECT * FROM results ORDER BY id"):
            if cluster not in clusters:
                continue
            if size < RESULTS_BYTES:
                message = self._as_results(number, header)
                size += bytes_of(message.results)
                clusters[cluster].results.append(KeptResults(number, cluster, message))
            else:
                message = self._expect_results(number, self._packer.peek(header))
                clusters[cluster].stored[number] = [each.seq for each in message.results]

    def ids(self, table: str) -> tuple[list[int], str]:
        """Return the ids of all rows that can be found, and why not more can; empty: these are all.

        A damaged table is read from both ends, up to the damage.
        """
        found: set[int] = set()
        reason = ""
        for order in ("ASC", "DESC"):
            try:
                for (number,) in self._rows(f"SELECT id FROM {table} ORDER BY id {order}"):
                    found.add(number)
                return sorted(found), ""
            except sqlite3.DatabaseError as error:
                reason = str(error)
        return sorted(found), reason

    def cluster(self, number: int) -> KeptCluster | None:
        """Return a cluster without what belongs to it; None: there is no such cluster."""
        row = self._row(f"{CLUSTER} WHERE id = ?", number)
        return None if row is None else self._as_cluster(*row)

    def batch(self, number: int) -> KeptBatch | None:
        """Return what is said of a batch; None: there is no such batch."""
        row = self._row(f"{BATCH} WHERE id = ?", number)
        return None if row is None else self._as_batch(*row)

    def node(self, number: int) -> NodeMeta | None:
        """Return what is known of a node; None: nothing."""
        row = self._row("SELECT id, meta FROM nodes WHERE id = ?", number)
        return None if row is None else self._as_node(row)[1]

    def jobs(self, batch: int) -> list[JobSpec] | None:
        """Return the jobs of a batch as they were submitted; None: there is no such batch."""
        row = self._row("SELECT header FROM batches WHERE id = ?", batch)
        if row is None:
            return None
        submit = self._unpacked(batch, row[0])
        if not isinstance(submit, Submit):
            raise ProtocolError(f"{batch} is no batch of jobs")
        return submit.jobs

    def results(self, record: int) -> KeptResults | None:
        """Return results that are kept; None: there are none of this number."""
        row = self._row("SELECT cluster, header FROM results WHERE id = ?", record)
        return row and KeptResults(record, row[0], self._as_results(record, row[1]))

    def strays(self) -> list[str]:
        """Return what belongs to nothing, in words."""
        found = []
        for table, condition in STRAYS.items():
            (count,) = self._rows(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()
            if count:
                found.append(f"{count} rows of {table} belong to nothing")
        return found

    def _as_cluster(self, number: int, meta: bytes, header: bytes) -> KeptCluster:
        opened = self._packer.unpack(header, self._chunks("cluster_chunks", number))
        if not isinstance(opened, OpenCluster):
            raise ProtocolError(f"{number} is no cluster")
        return KeptCluster(number, self._decode_cluster(meta), opened)

    def _as_batch(self, number: int, cluster: int, extent: bytes, state: bytes | None) -> KeptBatch:
        its = self._decode_extent(extent)
        progress = Progress() if state is None else self._decode_progress(state)
        return KeptBatch(
            number, cluster, its.first, its.last, its.count, progress, its.plain, its.priority
        )

    def _as_node(self, row: tuple[int, bytes]) -> tuple[int, NodeMeta]:
        return row[0], self._decode_node(row[1])

    def _as_taken(self, row: tuple[int, bytes, int]) -> tuple[tuple[str, int], int]:
        return self._decode_loser(row[1]), row[2]

    def _as_results(self, record: int, header: bytes) -> Results:
        return self._expect_results(record, self._unpacked(record, header))

    @staticmethod
    def _expect_results(record: int, message: Body) -> Results:
        if not isinstance(message, Results):
            raise ProtocolError(f"{record} is no results")
        return message

    def _unpacked(self, record: int, header: bytes) -> Body:
        return self._packer.unpack(header, self._chunks("record_chunks", record))

    def _chunks(self, table: str, owner: int) -> Iterator[bytes]:
        query = f"SELECT data FROM {table} WHERE owner = ? ORDER BY id"
        return (data for (data,) in self._database.execute(query, (owner,)))

    def _rows(self, query: str) -> sqlite3.Cursor:
        return self._database.execute(query)

    def _row(self, query: str, number: int) -> Any:
        return self._database.execute(query, (number,)).fetchone()

    def _meta(self, name: str) -> Any:
        query = "SELECT value FROM meta WHERE name = ?"
        return self._database.execute(query, (name,)).fetchone()[0]


WRITERS: dict[type, Callable[[Tables, list[Any]], None]] = {
    KeepCluster: Tables._keep_clusters,
    DropCluster: Tables._drop_clusters,
    KeepBatch: Tables._keep_batches,
    KeepProgress: Tables._keep_progress,
    DropBatch: Tables._drop_batches,
    KeepResults: Tables._keep_results,
    DropResults: Tables._drop_results,
    KeepAbandoned: Tables._keep_abandoned,
    KeepNode: Tables._keep_nodes,
    DropNode: Tables._drop_nodes,
    KeepTaken: Tables._keep_taken,
    DropTaken: Tables._drop_taken,
}


def _ids(effects: Iterable[DropCluster | DropBatch | KeepNode | DropNode]) -> Rows:
    return [(effect.id,) for effect in effects]


def _extent(effect: KeepBatch) -> Extent:
    seqs = [*map(attrgetter("seq"), effect.submit.jobs)]
    return Extent(min(seqs), max(seqs), len(seqs), effect.plain, effect.priority)
