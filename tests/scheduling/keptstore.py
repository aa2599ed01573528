"""What a journal holds, in plain dictionaries, and encoded as on disk: nothing is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from dispy.broker.durable import (
    ClusterMeta,
    Kept,
    KeptBatch,
    KeptCluster,
    KeptResults,
    NodeMeta,
    Progress,
)
from dispy.broker.effects import (
    DropBatch,
    DropCluster,
    DropNode,
    DropResults,
    DropTaken,
    Effect,
    KeepAbandoned,
    KeepBatch,
    KeepCluster,
    KeepNode,
    KeepProgress,
    KeepResults,
    KeepTaken,
)
from dispy.broker.journal import Journal
from dispy.broker.packing import Packer
from dispy.protocol.messages import Body, JobSpec, OpenCluster, Results, Submit

Packed = tuple[bytes, list[bytes]]
Kind = TypeVar("Kind")
pack_value = msgspec.msgpack.encode


@dataclass
class Shelf:
    """A batch."""

    cluster: int
    seqs: list[int]
    plain: bool
    priority: int
    submit: Packed
    progress: bytes = pack_value(Progress())


class KeptStore:
    """Applies effects of a scheduler, and gives back what a broker finds at its start."""

    def __init__(self) -> None:
        self.packer = Packer()
        self.clusters: dict[int, tuple[bytes, Packed]] = {}  # meta, opened
        self.batches: dict[int, Shelf] = {}
        self.results: dict[int, tuple[int, Packed]] = {}  # cluster
        self.abandoned: dict[int, dict[int, int]] = {}
        self.nodes: dict[int, bytes] = {}
        self.taken: dict[tuple[str, int], int] = {}
        self.last_node = self.last_record = 0

    def apply(self, effects: Iterable[Effect]) -> None:
        """Keep what is to be kept."""
        for effect in effects:
            keep = KEEPING.get(type(effect))
            if keep is not None:
                fields: Any = effect
                keep(self, *fields)

    def _keep_cluster(self, number: int, meta: ClusterMeta, opened: OpenCluster | None) -> None:
        packed = self.clusters[number][1] if opened is None else self._pack(opened)
        self.clusters[number] = pack_value(meta), packed

    def _keep_progress(self, number: int, progress: Progress) -> None:
        self.batches[number].progress = pack_value(progress)

    def _drop_batch(self, number: int) -> None:
        self.batches.pop(number, None)

    def _keep_results(self, number: int, cluster: int, results: Results) -> None:
        assert number > self.last_record and cluster in self.clusters
        self.last_record = number
        self.results[number] = cluster, self._pack(results)

    def _drop_results(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.results[number]

    def _keep_abandoned(self, cluster: int, jobs: list[tuple[int, int]]) -> None:
        kept = self.abandoned.setdefault(cluster, {})
        kept.update(jobs)
        self.abandoned[cluster] = {seq: attempt for seq, attempt in kept.items() if attempt}

    def _keep_node(self, number: int, meta: NodeMeta) -> None:
        self.nodes[number] = pack_value(meta)
        self.last_node = max(self.last_node, number)

    def _drop_node(self, number: int) -> None:
        self.nodes.pop(number, None)

    def _keep_taken(self, owner: str, number: int, cluster: int) -> None:
        self.taken[owner, number] = cluster

    def _drop_taken(self, owner: str, number: int) -> None:
        self.taken.pop((owner, number), None)

    def _keep_batch(
        self, number: int, cluster: int, submit: Submit, plain: bool, priority: int
    ) -> None:
        assert number > self.last_record and cluster in self.clusters
        self.last_record = number
        seqs = [spec.seq for spec in submit.jobs]
        assert not plain or seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        self.batches[number] = Shelf(cluster, seqs, plain, priority, self._pack(submit))

    def _drop_cluster(self, number: int) -> None:
        del self.clusters[number]
        self.abandoned.pop(number, None)
        self.batches = {key: each for key, each in self.batches.items() if each.cluster != number}
        self.results = {key: each for key, each in self.results.items() if each[0] != number}

    def read_batch(self, number: int) -> list[JobSpec] | None:
        """Return the jobs of a batch."""
        shelf = self.batches.get(number)
        return None if shelf is None else self._unpack(shelf.submit, Submit).jobs

    def read_results(self, number: int) -> Results | None:
        """Return results, as they were given."""
        kept = self.results.get(number)
        return None if kept is None else self._unpack(kept[1], Results)

    def counts(self) -> tuple[int, ...]:
        """Return how many batches and results there are; nothing if there are none."""
        counts = len(self.batches), len(self.results)
        return counts if any(counts) else ()

    def load(self) -> Kept:
        """Return all that is kept."""
        nodes = {
            key: msgspec.msgpack.decode(each, type=NodeMeta) for key, each in self.nodes.items()
        }
        clusters = [self._cluster(number) for number in sorted(self.clusters)]
        return Kept(clusters, nodes, dict(self.taken), self.last_node, self.last_record)

    def _cluster(self, number: int) -> KeptCluster:
        meta, opened = self.clusters[number]
        return KeptCluster(
            number,
            msgspec.msgpack.decode(meta, type=ClusterMeta),
            self._unpack(opened, OpenCluster),
            [
                self._batch(key, each)
                for key, each in sorted(self.batches.items())
                if each.cluster == number
            ],
            [
                KeptResults(key, number, self._unpack(packed, Results))
                for key, (cluster, packed) in sorted(self.results.items())
                if cluster == number
            ],
            list(self.abandoned.get(number, {}).items()),
        )

    @staticmethod
    def _batch(number: int, shelf: Shelf) -> KeptBatch:
        seqs = shelf.seqs
        progress = msgspec.msgpack.decode(shelf.progress, type=Progress)
        ends = min(seqs), max(seqs), len(seqs)
        return KeptBatch(number, shelf.cluster, *ends, progress, shelf.plain, shelf.priority)

    def _pack(self, message: Body) -> Packed:
        header, chunks = self.packer.pack(message)
        return bytes(header), [bytes(chunk) for chunk in chunks]

    def _unpack(self, packed: Packed, kind: type[Kind]) -> Kind:
        message = self.packer.unpack(*packed)
        assert isinstance(message, kind)
        return message


class JournalStore:
    """The journal that the broker uses, in memory, in the place of such a store."""

    def __init__(self) -> None:
        self.journal = Journal(None)
        self.load = self.journal.load
        self.read_batch = self.journal.read_batch
        self.read_results = self.journal.read_results

    def apply(self, effects: Iterable[Effect]) -> None:
        """Keep what is to be kept."""
        self.journal.apply([effect for effect in effects if type(effect) in KEEPING])  # type: ignore[misc]

    def counts(self) -> tuple[int, ...]:
        """Return how many batches and results there are; nothing if there are none."""
        [kept] = self.load().clusters
        counts = len(kept.batches), len(kept.results)
        return counts if any(counts) else ()


KEEPING: dict[type[Effect], Callable[..., None]] = {
    KeepCluster: KeptStore._keep_cluster,
    DropCluster: KeptStore._drop_cluster,
    KeepBatch: KeptStore._keep_batch,
    KeepProgress: KeptStore._keep_progress,
    DropBatch: KeptStore._drop_batch,
    KeepResults: KeptStore._keep_results,
    DropResults: KeptStore._drop_results,
    KeepAbandoned: KeptStore._keep_abandoned,
    KeepNode: KeptStore._keep_node,
    DropNode: KeptStore._drop_node,
    KeepTaken: KeptStore._keep_taken,
    DropTaken: KeptStore._drop_taken,
}
