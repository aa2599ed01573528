"""The broker's journal as its owner sees it: what was applied is loaded, in memory and from files.

Deaths, full disks and damage are in test_journal_misfortunes.py.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.broker.durable import (
    CANCELLED_MARK,
    ClusterMeta,
    JobMark,
    Kept,
    KeptBatch,
    NodeMeta,
    Progress,
)
from dispy.broker.effects import (
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
from dispy.broker.journal import Journal
from dispy.protocol.messages import (
    FINISHED,
    Code,
    ComputationSpec,
    JobOptions,
    JobResult,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Results,
    Submit,
)
from dispy.protocol.wire import CHUNK_BYTES, chunked

MEBIBYTE = 1 << 20
HUGE = (1 << 64) - 1  # as large as a number in a message can be
NODE = NodeMeta("instance", "name", "127.0.0.1:9701", drained="by ann", place="here")


@pytest.fixture(params=["memory", "file"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(None if request.param == "memory" else tmp_path / "state")
    yield journal
    assert not journal.strays()
    journal.close()


def cluster(number: int = 1, code: bytes = b"code") -> KeepCluster:
    layers = [Code("3.11", JobSpec(0, 0, b"", [chunked(code)]), "source")]
    opened = OpenCluster(number, ComputationSpec("name", layers), [NodeSpec("*")], label="label")
    return KeepCluster(number, ClusterMeta("owner", number, "ann@lab", 1.5), opened)


def submitted(*seqs: int, payload: bytes = b"arguments") -> Submit:
    return Submit(1, [JobSpec(seq, 0, payload) for seq in seqs])


def results(*seqs: int, payload: bytes = b"result") -> Results:
    return Results(1, 3, [JobResult(seq, 1, FINISHED, 1.0, 2.5, payload) for seq in seqs])


def seqs_of(jobs: list[JobSpec] | None) -> list[int]:
    assert jobs is not None
    return [job.seq for job in jobs]


# -- what is kept ------------------------------------------------------------------------------


def test_a_new_journal_is_empty_and_has_an_instance(journal: Journal) -> None:
    assert journal.load() == Kept()
    assert len(journal.token) == 32
    assert journal.trouble == ""
    assert journal.size_bytes() > 0
    assert journal.read_batch(1) is None
    assert journal.read_results(1) is None


def test_what_was_applied_is_loaded(journal: Journal) -> None:
    progress = Progress(b"\x05", [JobMark(1, 2, 7, 1, 0, CANCELLED_MARK)])
    journal.apply(
        [
            cluster(),
            KeepBatch(11, 1, submitted(4, 5, 3), True, -2),
            KeepBatch(12, 1, submitted(9), False, 0),
            KeepProgress(11, progress),
            KeepResults(13, 1, results(4, 3)),
            KeepAbandoned(1, [(2, 1), (1, 3)]),
            KeepNode(7, NODE),
        ]
    )
    kept = journal.load()
    (found,) = kept.clusters
    assert (found.id, found.meta, found.opened) == (1, cluster().meta, cluster().opened)
    assert found.batches == [
        KeptBatch(11, 1, 3, 5, 3, progress, True, -2),
        KeptBatch(12, 1, 9, 9, 1, Progress(), False, 0),
    ]
    assert [(each.id, each.message) for each in found.results] == [(13, results(4, 3))]
    assert found.abandoned == [(1, 3), (2, 1)]
    assert (kept.nodes, kept.last_node, kept.last_record) == ({7: NODE}, 7, 13)
    assert journal.read_batch(11) == submitted(4, 5, 3).jobs
    assert journal.read_results(13) == results(4, 3)


def test_what_changes_replaces_what_was(journal: Journal) -> None:
    journal.apply([cluster(code=b"old"), KeepNode(7, NODE), KeepBatch(2, 1, submitted(1), True, 0)])
    meta = ClusterMeta("other", 9, "bob@lab", 2.0, away_since=5.0)
    journal.apply([KeepCluster(1, meta, None)])
    assert journal.load().clusters[0].opened == cluster(code=b"old").opened
    journal.apply([cluster(code=b"new" * MEBIBYTE)])
    journal.apply([cluster(code=b"newer" * MEBIBYTE), KeepCluster(1, meta, None)])
    journal.apply([KeepProgress(2, Progress(b"\0")), KeepProgress(2, Progress(b"\1"))])
    kept = journal.load()
    assert kept.clusters[0].opened == cluster(code=b"newer" * MEBIBYTE).opened
    assert kept.clusters[0].meta == meta
    assert kept.clusters[0].batches[0].progress == Progress(b"\1")


def test_what_is_dropped_is_gone(journal: Journal) -> None:
    large = b"x" * (MEBIBYTE + 1)
    journal.apply([cluster(1), cluster(2, large), KeepNode(7, NODE), KeepNode(5, NODE)])
    for number in (1, 2):
        parts = Submit(1, [JobSpec(1, 0, b"", [chunked(large)])])
        ended = Results(1, 3, [JobResult(1, 1, FINISHED, 1.0, 2.0, b"", [chunked(large)])])
        journal.apply([KeepBatch(10 * number, number, parts, True, 0)])
        journal.apply([KeepBatch(10 * number + 1, number, submitted(2), True, 0)])
        journal.apply([KeepProgress(10 * number, Progress(b"\1"))])
        journal.apply([KeepResults(10 * number + 2, number, ended)])
        journal.apply([KeepResults(10 * number + 3, number, results(2))])
        journal.apply([KeepAbandoned(number, [(1, 1)])])
    journal.apply([DropBatch(10), DropResults([12]), DropNode(7)])
    kept = journal.load()
    assert [batch.id for batch in kept.clusters[0].batches] == [11]
    assert [each.id for each in kept.clusters[0].results] == [13]
    assert (list(kept.nodes), kept.last_node, kept.last_record) == ([5], 7, 23)
    journal.apply([DropCluster(2)])
    kept = journal.load()
    assert [each.id for each in kept.clusters] == [1]
    assert kept.last_record == 23, "no number is given twice"
    assert journal.read_batch(20) is None and journal.read_batch(21) is None
    journal.apply([DropCluster(1), DropNode(5)])
    assert journal.load() == Kept(last_node=7, last_record=23)


def test_who_has_lost_a_cluster_is_kept_in_order(journal: Journal) -> None:
    journal.apply([KeepTaken("a", 1, 5), KeepTaken("b", HUGE, 5), KeepTaken("c", 1, 6)])
    journal.apply([DropTaken("b", HUGE), DropTaken("nobody", 1), KeepTaken("a", 1, 7)])
    assert list(journal.load().taken.items()) == [(("c", 1), 6), (("a", 1), 7)]


def test_a_journal_of_before_that_was_kept_is_read(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.apply([cluster()])
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database:
        database.execute("DROP TABLE taken")
    with closing(Journal(tmp_path)) as journal:
        kept = journal.load()
        assert ([each.id for each in kept.clusters], kept.taken) == ([1], {})
        journal.apply([KeepTaken("a", 1, 5)])
        assert journal.load().taken == {("a", 1): 5}


def test_an_attempt_that_will_not_finish_is_forgotten(journal: Journal) -> None:
    journal.apply([cluster(), KeepAbandoned(1, [(1, 1), (2, 3)]), KeepAbandoned(1, [(1, 0)])])
    journal.apply([KeepAbandoned(1, [(HUGE, 5), (7, 1), (2, 4)]), KeepAbandoned(1, [(9, 0)])])
    assert journal.load().clusters[0].abandoned == [(2, 4), (7, 1), (HUGE, 5)]


def test_effects_of_one_flush_count_in_their_order(journal: Journal) -> None:
    batch = KeepBatch(3, 1, submitted(1, 2), True, 0)
    journal.apply([cluster(), batch, DropBatch(3), batch, KeepNode(1, NODE), DropNode(1)])
    kept = journal.load()
    assert [batch.id for batch in kept.clusters[0].batches] == [3]
    assert not kept.nodes


def test_nothing_to_apply_is_no_transaction(journal: Journal) -> None:
    before = journal.size_bytes()
    journal.apply([])
    assert journal.size_bytes() == before


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * MEBIBYTE])
def test_large_payloads_come_back_in_chunks(journal: Journal, size: int) -> None:
    data = os.urandom(size)
    parts = [chunked(data), chunked(b""), chunked(memoryview(data)[: size // 2])]
    options = JobOptions(priority=HUGE, node=HUGE)
    submit = Submit(1, [JobSpec(1, 0, b"", parts, options), JobSpec(2, 0, b"small")])
    end = JobResult(1, 1, FINISHED, 1.0, 2.0, b"", parts)
    journal.apply([cluster(), KeepBatch(5, 1, submit, False, 0)])
    journal.apply([KeepResults(6, 1, Results(1, 2, [end]))])
    jobs = journal.read_batch(5)
    assert jobs == submit.jobs
    chunks = [chunk for part in jobs[0].parts for chunk in part.chunks]
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    (kept,) = journal.load().clusters[0].results
    assert kept.message.results == [end]


def test_numbers_of_clients_may_be_as_large_as_they_like(journal: Journal) -> None:
    meta = ClusterMeta("owner", HUGE, "user", 1.0)
    journal.apply([cluster()._replace(meta=meta)])
    journal.apply([KeepBatch(1, 1, submitted(HUGE, 0), True, HUGE), KeepAbandoned(1, [(HUGE, 1)])])
    (found,) = journal.load().clusters
    assert (found.batches[0].first, found.batches[0].last) == (0, HUGE)
    assert found.batches[0].priority == HUGE
    assert found.abandoned == [(HUGE, 1)]
    assert seqs_of(journal.read_batch(1)) == [HUGE, 0]


def test_strays_are_told_passed_over_and_removed(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.apply([KeepBatch(1, 9, submitted(1), True, 0), KeepResults(2, 9, results(1))])
        journal.apply([KeepProgress(3, Progress()), KeepAbandoned(9, [(1, 1)])])
        assert len(journal.strays()) == 4
        assert journal.load() == Kept(last_record=2)
        journal.compact()
        assert not journal.strays()


# -- any effects in any order ------------------------------------------------------------------

IDS = st.integers(1, 4)
OPERATIONS = st.lists(st.tuples(st.sampled_from("CBPRAN"), IDS, st.booleans()), max_size=30)


class Model:
    """What should be kept, as plain values; makes effects that the scheduler could have made."""

    def __init__(self) -> None:
        self.clusters: dict[int, dict[str, list[int]]] = {}
        self.progress: dict[int, bytes] = {}
        self.nodes: set[int] = set()
        self.last = 0

    def effect(self, kind: str, number: int, drops: bool) -> JournalEffect | None:
        """Note that something happens, and return it; None: it can't."""
        if kind == "N":
            (self.nodes.discard if drops else self.nodes.add)(number)
            return DropNode(number) if drops else KeepNode(number, NODE)
        if kind == "C" and not drops:
            self.clusters.setdefault(number, {"B": [], "R": [], "A": []})
            return cluster(number)
        found = self.clusters.get(number)
        if found is None:
            return None
        if kind == "C":
            del self.clusters[number]
            return DropCluster(number)
        if kind == "P":
            return self._progressed(found["B"])
        if kind == "A":
            found["A"] = [number]
            return KeepAbandoned(number, [(number, 1)])
        return self._dropped(kind, found[kind]) if drops else self._kept(kind, number, found[kind])

    def matches(self, kept: Kept) -> bool:
        """Whether this is what was found."""
        found = {
            each.id: {
                "B": [batch.id for batch in each.batches],
                "R": [each.id for each in each.results],
                "A": [seq for seq, _ in each.abandoned],
            }
            for each in kept.clusters
        }
        batches = [batch for each in kept.clusters for batch in each.batches]
        bits = {batch.id: batch.progress.ended for batch in batches}
        return (
            found == self.clusters
            and bits == {number: self.progress.get(number, b"") for number in bits}
            and set(kept.nodes) == self.nodes
        )

    def _progressed(self, batches: list[int]) -> JournalEffect | None:
        if not batches:
            return None
        bits = self.progress[batches[0]] = os.urandom(2)
        return KeepProgress(batches[0], Progress(bits))

    def _kept(self, kind: str, number: int, records: list[int]) -> JournalEffect:
        self.last += 1
        records.append(self.last)
        if kind == "B":
            return KeepBatch(self.last, number, submitted(self.last), True, 0)
        return KeepResults(self.last, number, results(self.last))

    def _dropped(self, kind: str, records: list[int]) -> JournalEffect | None:
        if not records:
            return None
        return DropBatch(records.pop(0)) if kind == "B" else DropResults([records.pop(0)])


@settings(max_examples=100, deadline=None)
@given(st.lists(OPERATIONS, max_size=6))
def test_any_flushes_leave_what_they_say(flushes: list[list[tuple[str, int, bool]]]) -> None:
    model, journal = Model(), Journal(None)
    for flush in flushes:
        made = [model.effect(*operation) for operation in flush]
        journal.apply([effect for effect in made if effect is not None])
        assert model.matches(journal.load())
        assert not journal.strays()
    journal.close()


# -- files -------------------------------------------------------------------------------------


def test_it_is_found_again_and_stays_the_same_instance(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        instance = journal.token
        journal.apply([cluster(), KeepBatch(2, 1, submitted(1), True, 0), KeepNode(4, NODE)])
        journal.apply([DropNode(4)])
    for durability in ("full", "normal"):
        with closing(Journal(tmp_path, durability)) as journal:
            assert journal.token == instance
            kept = journal.load()
            assert kept.clusters[0].batches[0].count == 1
            assert (kept.nodes, kept.last_node) == ({}, 4)
            assert seqs_of(journal.read_batch(2)) == [1]
    with closing(Journal(tmp_path / "other")) as journal:
        assert journal.token != instance


def test_only_its_owner_can_look_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    with closing(Journal(folder)) as journal:
        journal.apply([cluster()])
        files = list(folder.iterdir())
        assert {file.name for file in files} >= {"journal.sqlite", "journal.sqlite-wal"}
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_removing_leaves_a_new_one(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        instance = journal.token
        journal.apply([cluster()])
    Journal.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["journal.lock"]
    with closing(Journal(tmp_path)) as journal:
        assert journal.token != instance
        assert journal.load() == Kept()


def test_the_file_stays_small_under_steady_load(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.apply([cluster()])
        sizes = []
        for record in range(1, 4000, 2):
            effects: list[JournalEffect] = [
                KeepBatch(record, 1, submitted(*range(100), payload=b"x" * 100), True, 0),
                KeepResults(record + 1, 1, results(*range(30), payload=b"x" * 100)),
            ]
            if record > 20:
                effects += [DropBatch(record - 20), DropResults([record - 19])]
            journal.apply(effects)
            sizes.append(journal.size_bytes())
        assert max(sizes[1000:]) <= 1.1 * max(sizes[:1000])
        assert max(sizes) < 40 * MEBIBYTE


def test_unused_space_is_given_back(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with closing(Journal(tmp_path)) as journal:
        journal.apply([cluster()])
        for record in range(1, 41):
            large = submitted(record, payload=os.urandom(MEBIBYTE))
            journal.apply([KeepBatch(record, 1, large, True, 0)])
        journal.apply([DropCluster(1)])
        for now in range(100):
            journal.look(now)
    assert file.stat().st_size < 20 * MEBIBYTE, "some is kept for what comes next"
    with closing(Journal(tmp_path)) as journal:
        journal.compact()
    assert file.stat().st_size < MEBIBYTE


def test_above_its_limit_it_says_so_until_there_is_room(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, max_bytes=2 * MEBIBYTE)) as journal:
        journal.apply([cluster()])
        large = submitted(1, payload=bytes(3 * MEBIBYTE // 4))
        for record in (1, 2):
            journal.apply([KeepBatch(record, 1, large, True, 0)])
        journal.look(1.0)
        assert journal.trouble == ""
        journal.apply([KeepBatch(3, 1, large, True, 0)])
        journal.look(2.0)
        assert "limit of 2 MiB" in journal.trouble
        journal.apply([KeepBatch(4, 1, large, True, 0), DropBatch(1), DropBatch(2)])
        journal.look(3.0)
        assert journal.trouble == ""


def test_a_million_jobs_are_ready_at_once(tmp_path: Path) -> None:
    batches, size = 2000, 500
    with closing(Journal(tmp_path)) as journal:
        journal.apply([cluster()])
        for number in range(batches):
            seqs = range(number * size, (number + 1) * size)
            journal.apply([KeepBatch(number + 1, 1, submitted(*seqs), True, 0)])
            journal.apply([KeepProgress(number + 1, Progress(bytes(size // 8)))])
    begin = time.perf_counter()
    with closing(Journal(tmp_path)) as journal:
        (found,) = journal.load().clusters
        assert seqs_of(journal.read_batch(batches)) == list(seqs)
        assert time.perf_counter() - begin < 5.0
    assert [batch.first for batch in found.batches] == list(range(0, batches * size, size))
    assert sum(batch.count for batch in found.batches) == batches * size
