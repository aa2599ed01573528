"""What outlives a broker: its journal, its copies of files, and what it can't take back.

The journal is the real one, in memory. Whatever gets into it is compared with what was there
before: a job ends once, and what a client has heard is gone for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispy.broker.core import Scheduler
from dispy.broker.durable import JobMark
from dispy.broker.effects import (
    BlobErrand,
    DropCluster,
    DropResults,
    JournalEffect,
    KeepCluster,
    KeepPiece,
    KeepResults,
    ReadPiece,
)
from dispy.broker.journal import Journal
from dispy.broker.state import Job, State
from dispy.protocol.messages import ABANDONED, FINISHED, BlobPieces, Body, Results

from .files import Store, piece

IDLE_BYTES = 1 << 30  # of files that nobody needs now
FULL = "the disk of the broker's journal is full"


class Disk(Journal):
    """The disk of a broker, which takes note of what is written."""

    def __init__(self) -> None:
        super().__init__(None)
        self.store = Store()
        self.is_full = False
        self.heard: set[int] = set()  # results by record
        self._heard_now: set[int] = set()  # a moment ago: they may be on their way once more
        self.ends: dict[tuple[int, int], int] = {}  # status by cluster's number and job
        self.names: dict[int, str] = {}  # of clusters
        self.expired: set[str] = set()  # clusters whose clients were given up
        self.closed: set[str] = set()  # clusters of which nothing is left
        self.reopened: set[str] = set()  # of these, those that came back from their client

    @property
    def trouble(self) -> str:
        """Why no jobs should be taken."""
        return FULL if self.is_full else ""

    def apply(self, effects: Sequence[JournalEffect]) -> None:
        """Write it; what is rolled back is not noted."""
        super().apply(effects)
        self.heard |= self._heard_now
        self._heard_now = set()
        for effect in effects:
            if isinstance(effect, KeepResults):
                self._note_results(effect)
            elif isinstance(effect, DropResults):
                self._heard_now.update(effect.ids)
            elif isinstance(effect, KeepCluster):
                if effect.opened is not None:
                    name = self.names[effect.id] = effect.opened.computation.name
                    if name in self.closed:
                        self.reopened.add(name)
                if effect.meta.expired:
                    self.expired.add(self.names[effect.id])
            elif isinstance(effect, DropCluster):
                self.closed.add(self.names[effect.id])

    def _note_results(self, kept: KeepResults) -> None:
        for result in kept.message.results:
            key = (kept.cluster, result.seq)
            before = self.ends.get(key)
            again = before == ABANDONED and result.status == FINISHED
            assert before is None or again, f"job {key} ends as {result.status} after {before}"
            self.ends[key] = result.status

    def check_told(self, results: Results) -> None:
        """What was heard isn't told again."""
        assert results.record not in self.heard, f"results {results.record} were heard before"

    def check_agrees(self, state: State) -> None:
        """Between two turns, all that a broker knows of jobs and results is here."""
        kept = self.load()
        assert {each.id for each in kept.clusters} == state.clusters.keys()
        for node in state.nodes.values():
            meta = kept.nodes[node.past.kept_id]
            assert (meta.drained, meta.set_aside) == (node.past.drained, node.past.set_aside)
        for each in kept.clusters:
            cluster = state.clusters[each.id]
            assert (each.meta.owner, each.meta.number) == (cluster.client.peer, cluster.number)
            assert {batch.id for batch in each.batches} == cluster.batches.keys()
            assert {
                one.id for one in each.results
            } == cluster.unheard.keys() | cluster.stored.keys()
            late = {seq: attempt for seq, attempt in each.abandoned if attempt}
            assert set(cluster.abandoned.items()) <= set(late.items())
            for batch in each.batches:
                ended = batch.progress.ended.ljust(len(cluster.batches[batch.id].ended), b"\0")
                assert ended == cluster.batches[batch.id].ended, f"ends of batch {batch.id}"
            marks = {
                (batch.id, mark.index): mark
                for batch in each.batches
                for mark in batch.progress.jobs
            }
            for job in cluster.jobs.values():
                if job.spec.attempt:
                    check_mark(job, marks)

    def check_clean(self) -> None:
        """Nothing is left but nodes."""
        kept = self.load()
        assert not kept.clusters, f"clusters {[each.id for each in kept.clusters]} are left"
        assert not self.strays(), self.strays()
        assert self.store.is_settled, "the broker has parts of files"


def check_mark(job: Job, marks: dict[tuple[int, int], JobMark]) -> None:
    """What is kept of a job that has been at a node is how far it has got."""
    assert job.batch is not None
    node = 0 if job.allocation is None else job.allocation.node.id
    mark = marks[job.batch.id, job.index]
    assert (mark.node, mark.attempt) == (node, job.spec.attempt), f"job {job.spec.seq}: {mark}"
    assert (mark.failures, mark.losses) == (job.failures, job.losses), f"{job.spec.seq}: {mark}"


class Errands:
    """Does what `bloberrands.BlobErrands` does, without a folder."""

    def __init__(
        self, store: Store, scheduler: Scheduler, send: Callable[[str, Body], None]
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._send = send
        scheduler.blobs_present(store.sweep(), IDLE_BYTES)

    def carry_out(self, errand: BlobErrand) -> None:
        """Do it, and tell the scheduler."""
        store, scheduler = self._store, self._scheduler
        if isinstance(errand, KeepPiece):
            store.write(errand.digest, errand.offset, errand.buffers)
            if errand.last and store.commit(errand.digest):
                scheduler.blob_kept(errand.digest)
            elif errand.last:
                scheduler.blob_spoiled(errand.digest)
        elif not isinstance(errand, ReadPiece):
            store.drop(errand.digest)
        elif errand.piece.digest in store.whole:
            data = piece(errand.piece)
            self._send(errand.peer, BlobPieces(errand.computation, errand.node, [data]))
        else:
            scheduler.blob_unreadable(errand)

    def close(self) -> None:
        """Leave only what is whole."""
        self._store.sweep()
