"""A shared broker gets each file once, keeps it, and serves nodes from its own copy."""

from __future__ import annotations

import random
from typing import TypeVar

import pytest

from dispy.broker.blobs import HELD_MAX, LATE_S, UNDERWAY_MAX
from dispy.broker.core import Scheduler
from dispy.broker.durable import Kept, KeptBatch, KeptCluster, Progress
from dispy.broker.effects import (
    DropBlob,
    Effect,
    KeepBatch,
    KeepPiece,
    Load,
    ReadPiece,
    Send,
)
from dispy.broker.explain import explain_cluster
from dispy.broker.settings import Settings
from dispy.broker.warehouse import LOOK_S, STOCK_S
from dispy.protocol.blobs import digest_of
from dispy.protocol.errors import ProtocolError
from dispy.protocol.fetching import BYTES_AHEAD, TRIES
from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    PIECE_BYTES,
    Allocate,
    Answer,
    Attach,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    CancelJobs,
    CloseCluster,
    ComputationSpec,
    Explain,
    FilePut,
    FileSpec,
    Holding,
    JobOptions,
    JobSpec,
    NeedBlobs,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Prepare,
    Prepared,
    SendFile,
    Submit,
)

from .stage import LAYER, identity

Kind = TypeVar("Kind")
CONTENTS: dict[bytes, bytes] = {}
AHEAD = BYTES_AHEAD // PIECE_BYTES


def make(name: str, size: int = 10) -> FileSpec:
    """Make a file whose content depends on its name and size."""
    content = (name.encode() + b".") * (size // (len(name) + 1) + 1)
    content = content[:size]
    CONTENTS[digest_of(content)] = content
    return FileSpec(name, digest_of(content), size)


def ranges_of(file: FileSpec) -> list[BlobRange]:
    """Return all pieces of a file."""
    offsets = range(0, file.size, PIECE_BYTES)
    sizes = [min(PIECE_BYTES, file.size - offset) for offset in offsets]
    return [BlobRange(file.digest, *each) for each in zip(offsets, sizes, strict=True)]


class Depot:
    """A shared broker with a store in memory, and all that was said to its peers."""

    def __init__(
        self,
        durable: bool = False,
        max_file_bytes: int = 0,
        present: tuple[FileSpec, ...] = (),
        idle_bytes: int = 1 << 40,
    ) -> None:
        settings = Settings(
            shared=True, durable=durable, max_file_bytes=max_file_bytes, client_lease_s=3600.0
        )
        self.scheduler = Scheduler(settings=settings)
        self.now = 0.0
        self.is_full = False
        self.parts: dict[bytes, bytes] = {}
        self.whole = {file.digest: CONTENTS[file.digest] for file in present}
        self.kept: list[bytes] = []  # digests of all that was ever completed
        self.sent: list[tuple[str, Body]] = []
        self.batches: dict[int, list[JobSpec]] = {}
        self.journal: list[KeptBatch] = []
        self.scheduler.blobs_present({file.digest: file.size for file in present}, idle_bytes)

    # -- the broker's shell -----------------------------------------------------------------

    def flush(self) -> None:
        """Let the scheduler act, until it has nothing more to do."""
        while True:
            self.scheduler.tick(self.now)
            self.scheduler.check()
            for effect in self.scheduler.flush(self.now):
                self.carry_out(effect)
            self.scheduler.check()
            if self.scheduler.deadline() > self.now:
                return

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.sent.append((effect.peer, effect.message))
        elif isinstance(effect, KeepPiece):
            self.keep(effect)
        elif isinstance(effect, ReadPiece):
            self.read(effect)
        elif isinstance(effect, DropBlob):
            self.parts.pop(effect.digest, None)
            self.whole.pop(effect.digest, None)
        elif isinstance(effect, KeepBatch):
            plain = effect.plain
            self.batches[effect.id] = effect.submit.jobs
            seqs = [spec.seq for spec in effect.submit.jobs]
            count = len(seqs)
            self.journal.append(
                KeptBatch(effect.id, effect.cluster, seqs[0], seqs[-1], count, Progress(), plain)
            )
        elif isinstance(effect, Load):
            self.scheduler.loaded(effect.batch, self.batches[effect.batch])

    def keep(self, piece: KeepPiece) -> None:
        digest = piece.digest
        if piece.offset and digest not in self.parts:
            return
        if self.is_full:
            self.parts.pop(digest, None)
            self.scheduler.blob_failed(digest, "No space left on device")
            return
        part = self.parts.pop(digest) if piece.offset else b""
        assert len(part) == piece.offset
        part += b"".join(bytes(each) for each in piece.buffers)
        if not piece.last:
            self.parts[digest] = part
        elif digest_of(part) != digest:
            self.scheduler.blob_spoiled(digest)
        else:
            assert digest not in self.whole, "it was there already"
            self.whole[digest] = part
            self.kept.append(digest)
            self.scheduler.blob_kept(digest)

    def read(self, errand: ReadPiece) -> None:
        wanted = errand.piece
        if wanted.digest not in self.whole:
            self.scheduler.blob_unreadable(errand)
            return
        data = self.whole[wanted.digest][wanted.offset :][: wanted.size]
        piece = BlobPiece(wanted.digest, wanted.offset, data)
        self.sent.append((errand.peer, BlobPieces(errand.computation, errand.node, [piece])))

    # -- the peers --------------------------------------------------------------------------

    def tell(self, peer: str, message: Body) -> None:
        self.scheduler.receive(peer, message, self.now)
        self.flush()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.flush()

    def take(self, kind: type[Kind], peer: str = "") -> list[Kind]:
        """Take out all messages of a kind that went to a peer, or to any."""
        mine = [each for each in self.sent if isinstance(each[1], kind) and peer in ("", each[0])]
        self.sent = [each for each in self.sent if each not in mine]
        return [message for _, message in mine]  # type: ignore[misc]

    def open(
        self,
        client: str,
        *files: FileSpec,
        number: int = 1,
        specs: tuple[NodeSpec, ...] = (NodeSpec("*"),),
        asks: bool = False,
    ) -> int:
        """Have a client open a cluster; return what the broker calls it."""
        if client not in self.scheduler.clients:
            self.join(client)
        spec = ComputationSpec("c", [LAYER], list(files))
        self.tell(client, OpenCluster(number, spec, list(specs), asks=asks))
        return self.scheduler.clients[client].clusters[number].id

    def join(self, client: str) -> None:
        self.scheduler.joined(client, identity("client", client), [], "", self.now)
        self.flush()

    def node(self, name: str) -> int:
        """Have a node join that is told to set up all clusters; return its id."""
        self.scheduler.joined(name, identity("node", name, 1), [], f"127.0.0.1:{name}", self.now)
        self.tell(name, Holding([], []))
        return self.scheduler.nodes[name].id

    def ask(self, node: str, computation: int, *files: FileSpec, had: int = 0) -> None:
        """Have a node ask for all of some files."""
        ranges = [piece for file in files for piece in ranges_of(file)]
        self.tell(node, NeedBlobs(computation, 0, ranges, had))

    def got(self, node: str) -> list[BlobPiece]:
        """Take out the pieces that a node has been sent."""
        return [piece for message in self.take(BlobPieces, node) for piece in message.pieces]

    def asked(self, client: str) -> list[tuple[int, BlobRange]]:
        """Take out what a client has been asked for: its number of the cluster, and the piece."""
        messages = self.take(NeedBlobs, client)
        assert all(message.node == 0 for message in messages)
        return [(message.cluster, piece) for message in messages for piece in message.ranges]

    def answer(self, client: str, error: str = "") -> int:
        """Have a client send all that it is asked for; return how many pieces these were."""
        count = 0
        while asked := self.asked(client):
            for cluster, wanted in asked:
                data = CONTENTS[wanted.digest][wanted.offset :][: wanted.size]
                piece = BlobPiece(wanted.digest, wanted.offset, b"" if error else data)
                piece.error = error
                self.tell(client, BlobPieces(cluster, 0, [piece]))
                count += 1
        return count


def error_of(pieces: list[BlobPiece]) -> str:
    """Return what is wrong with the only piece."""
    [piece] = pieces
    assert not piece.data
    return piece.error


# -- once for all nodes -------------------------------------------------------------------------


def test_a_file_comes_once_however_many_nodes_need_it() -> None:
    depot = Depot()
    file = make("data", 3 * PIECE_BYTES + 7)
    number = depot.open("ann", file)
    names = [f"n{count}" for count in range(3)]
    for name in names:
        depot.node(name)
        depot.ask(name, number, file)
    assert depot.got("n0") == []  # it isn't here yet
    assert depot.answer("ann") == 4
    for name in names:
        pieces = depot.got(name)
        assert [piece.offset for piece in pieces] == [each.offset for each in ranges_of(file)]
        assert b"".join(piece.data for piece in pieces) == CONTENTS[file.digest]
    depot.node("late")
    depot.ask("late", number, file)
    assert len(depot.got("late")) == 4 and depot.answer("ann") == 0
    assert depot.kept == [file.digest]


def test_a_file_comes_once_for_clusters_of_several_clients() -> None:
    depot = Depot()
    file = make("shared")
    first, second = depot.open("ann", file), depot.open("bob", file)
    depot.node("n")
    depot.ask("n", first, file)
    depot.ask("n", second, file)
    assert depot.answer("ann") + depot.answer("bob") == 1
    assert len(depot.got("n")) == 2


def test_an_empty_file_needs_no_client() -> None:
    depot = Depot(durable=True)
    file = make("empty", 0)
    depot.open("ann", file)
    assert depot.kept == [file.digest] and depot.asked("ann") == []


def test_a_private_broker_keeps_nothing() -> None:
    scheduler = Scheduler()
    assert scheduler.state.warehouse is None


def test_a_broker_without_a_journal_asks_for_a_file_only_when_a_node_does() -> None:
    depot = Depot()
    file = make("lazy")
    number = depot.open("ann", file)
    depot.node("n")
    assert depot.asked("ann") == []
    depot.ask("n", number, file)
    assert depot.answer("ann") == 1


# -- clients that end early ---------------------------------------------------------------------


def test_with_a_journal_files_come_before_a_node_asks_and_their_client_may_end() -> None:
    depot = Depot(durable=True)
    own, of_node, of_job = make("own"), make("of-node"), make("of-job")
    number = depot.open("ann", own, specs=(NodeSpec("*", files=[of_node]),))
    depot.tell("ann", Submit(1, [JobSpec(1, 0, b"x", [], JobOptions(files=[of_job]))]))
    assert depot.answer("ann") == 3
    depot.scheduler.away("ann", "its connection broke", False, depot.now)
    depot.node("n")
    depot.ask("n", number, own, of_node, of_job)
    assert [piece.digest for piece in depot.got("n")] == [
        each.digest for each in (own, of_node, of_job)
    ]


@pytest.mark.parametrize("session", ["old", "new"])
def test_a_client_that_is_not_there_is_asked_as_soon_as_it_is_back(session: str) -> None:
    depot = Depot()
    file = make("later", 3 * PIECE_BYTES)
    number = depot.open("ann", file)
    depot.node("n")
    depot.scheduler.away("ann", "silence", False, depot.now)
    depot.ask("n", number, file)
    depot.wait(LOOK_S)
    assert depot.asked("ann") == []
    if session == "old":
        depot.scheduler.back("ann")
        depot.flush()
    else:
        depot.join("ann")
    assert depot.answer("ann") == 3
    assert len(depot.got("n")) == 3


def test_it_is_explained_which_file_is_still_to_come_and_from_whom() -> None:
    depot = Depot()
    files = [make("b.dat"), make("a.dat")]
    number = depot.open("ann", *files)
    depot.node("n")
    depot.ask("n", number, *files)
    depot.tell("ann", Submit(1, [JobSpec(1, 0, b"x")]))
    depot.tell("ann", Explain(1, 1, 1))
    [answer] = depot.take(Answer, "ann")
    assert "the file 'a.dat' and 1 other, still to come from the client." in answer.text
    depot.scheduler.away("ann", "silence", False, depot.now)
    cluster = depot.scheduler.clusters[number]
    text = explain_cluster(depot.scheduler.state, cluster, depot.now)
    assert "still to come from the client, which is away" in text


def test_a_client_with_a_new_session_is_asked_again_from_where_it_stopped() -> None:
    depot = Depot()
    file = make("again", 4 * PIECE_BYTES)
    number = depot.open("ann", file)
    depot.node("n")
    depot.ask("n", number, file)
    asked = depot.asked("ann")
    _, first = asked[0]
    data = CONTENTS[file.digest][:PIECE_BYTES]
    depot.tell("ann", BlobPieces(1, 0, [BlobPiece(first.digest, 0, data)]))
    depot.join("ann")
    assert depot.asked("ann") == asked[1:]


def test_when_one_client_is_gone_another_that_has_the_file_is_asked() -> None:
    depot = Depot()
    file = make("common", 3 * PIECE_BYTES)
    numbers = [depot.open(client, file) for client in ("ann", "bob")]
    depot.node("n")
    for number in numbers:
        depot.ask("n", number, file)
    assert len(depot.asked("ann")) == 3 and depot.asked("bob") == []
    depot.scheduler.away("ann", "silence", False, depot.now)
    depot.wait(LOOK_S)
    assert depot.answer("bob") == 3
    assert len(depot.got("n")) == 6


def test_a_client_that_comes_with_what_another_has_promised_but_is_away_is_asked_at_once() -> None:
    depot = Depot(durable=True)
    file = make("promised", 2 * PIECE_BYTES)
    depot.open("ann", file)
    depot.scheduler.away("ann", "silence", False, depot.now)
    depot.open("bob", file)
    assert depot.answer("bob") == 2 and depot.kept == [file.digest]


def test_a_cluster_that_another_client_takes_over_is_fetched_from_that_one() -> None:
    depot = Depot(durable=True)
    file = make("moved", 2 * PIECE_BYTES)
    depot.open("ann", file)
    assert len(depot.asked("ann")) == 2
    depot.join("bob")
    depot.tell("bob", Attach(7, owner="ann", number=1, force=True))
    depot.wait(LOOK_S)
    assert depot.answer("bob") == 2 and depot.kept == [file.digest]


# -- nobody holds others up ---------------------------------------------------------------------


def test_little_of_each_client_is_on_its_way_and_one_that_hangs_holds_nobody_up() -> None:
    depot = Depot()
    slow, quick = make("slow", 100 * PIECE_BYTES), make("quick", 20 * PIECE_BYTES)
    hung = [depot.open("ann", slow, number=number) for number in (1, 2)]
    number = depot.open("bob", quick)
    depot.node("n")
    depot.tell("n", NeedBlobs(hung[0], 0, ranges_of(slow)))
    depot.tell("n", NeedBlobs(hung[1], 0, ranges_of(slow)))
    assert len(depot.asked("ann")) == AHEAD  # of both clusters
    depot.ask("n", number, quick)
    assert len(depot.take(NeedBlobs, "bob")[0].ranges) == AHEAD
    depot.join("bob")
    assert depot.answer("bob") == 20
    assert len(depot.got("n")) == 20 and depot.asked("ann") == []


def test_little_is_on_its_way_to_nodes_and_they_take_turns() -> None:
    depot = Depot()
    file = make("wide", (UNDERWAY_MAX + 8) * PIECE_BYTES)
    number = depot.open("ann", file)
    names = ["one", "two"]
    for name in names:
        depot.node(name)
        depot.ask(name, number, file)
    depot.answer("ann")
    first = depot.got("one")
    assert len(first) + len(depot.got("two")) == UNDERWAY_MAX
    depot.tell("one", NeedBlobs(number, 0, [], 10))
    assert len(depot.got("one")) + len(depot.got("two")) == 10
    depot.wait(LATE_S)  # the others aren't heard of any more, and hold nobody up
    assert len(depot.got("one")) + len(depot.got("two")) == UNDERWAY_MAX


@pytest.mark.parametrize("end", ["lost", "closed", "new session"])
def test_a_node_that_needs_nothing_any_more_is_sent_nothing(end: str) -> None:
    depot = Depot()
    file = make(f"end {end}", 2 * PIECE_BYTES)
    number = depot.open("ann", file)
    ident = depot.node("n")
    depot.node("other")
    depot.ask("n", number, file)
    depot.ask("other", number, file)
    if end == "lost":
        depot.scheduler.left("n", "killed")
    elif end == "closed":
        depot.tell("ann", NodeRequest(1, 9, CLOSE, ident))
    else:
        depot.scheduler.joined("n", identity("node", "n", 1), [], "127.0.0.1:n", depot.now)
    depot.answer("ann")
    assert depot.got("n") == [] and len(depot.got("other")) == 2


def test_a_node_may_not_ask_for_too_much_at_once() -> None:
    depot = Depot()
    file = make("asked-for")
    number = depot.open("ann", file)
    depot.node("n")
    wanted = [BlobRange(file.digest, 0, 1)] * (HELD_MAX + 1)
    with pytest.raises(ProtocolError):
        depot.tell("n", NeedBlobs(number, 0, wanted))


# -- what can't be had --------------------------------------------------------------------------


def test_what_the_client_can_not_send_is_said_to_the_nodes_and_tried_again_when_asked() -> None:
    depot = Depot()
    file = make("changed")
    number = depot.open("ann", file)
    depot.node("n")
    depot.ask("n", number, file)
    depot.answer("ann", error="the file has changed")
    assert error_of(depot.got("n")) == "the file has changed"
    depot.ask("n", number, file, had=1)
    depot.answer("ann")
    assert depot.got("n")[0].data == CONTENTS[file.digest]


def test_a_file_that_is_too_large_is_refused() -> None:
    depot = Depot(durable=True, max_file_bytes=100)
    file = make("huge", 101)
    number = depot.open("ann", file)
    depot.node("n")
    depot.ask("n", number, file)
    text = error_of(depot.got("n"))
    assert "101" in text and "broker" in text and "100" in text and depot.asked("ann") == []


def test_a_content_that_no_file_has_and_a_piece_outside_it_are_refused() -> None:
    depot = Depot()
    file = make("small", 5)
    number = depot.open("ann", file)
    depot.node("n")
    depot.tell("n", NeedBlobs(number, 0, [BlobRange(b"?" * 32, 0, 1)]))
    assert (b"?" * 32).hex() in error_of(depot.got("n"))
    for offset, size in ((0, 6), (5, 1), (-1, 1), (0, -1), (0, PIECE_BYTES + 1)):
        depot.tell("n", NeedBlobs(number, 0, [BlobRange(file.digest, offset, size)], 1))
        assert "5 bytes" in error_of(depot.got("n"))


def test_a_wrong_content_is_fetched_once_more_and_then_refused() -> None:
    depot = Depot()
    file = make("true")
    number = depot.open("ann", file)
    depot.node("n")
    depot.ask("n", number, file)
    for _ in range(TRIES):
        [(cluster, wanted)] = depot.asked("ann")
        assert depot.got("n") == []
        lie = BlobPiece(wanted.digest, 0, b"!" * wanted.size)
        depot.tell("ann", BlobPieces(cluster, 0, [lie]))
    assert "not the file that it announced" in error_of(depot.got("n"))


def test_a_full_disk_is_said_and_what_is_asked_for_later_works_again() -> None:
    depot = Depot(durable=True)
    depot.is_full = True
    file = make("wide-disk", 2 * PIECE_BYTES)
    number = depot.open("ann", file)
    depot.node("n")
    depot.answer("ann")
    depot.ask("n", number, file)
    depot.answer("ann")
    errors = {piece.error for piece in depot.got("n")}
    assert errors == {"No space left on device"}
    depot.is_full = False
    depot.ask("n", number, file, had=2)
    depot.answer("ann")
    assert len(depot.got("n")) == 2 and depot.kept == [file.digest]


def test_a_copy_that_can_not_be_read_is_fetched_again() -> None:
    depot = Depot()
    file = make("eaten", 3 * PIECE_BYTES)
    number = depot.open("ann", file)
    depot.node("n")
    depot.ask("n", number, file)
    depot.answer("ann")
    assert len(depot.got("n")) == 3
    depot.whole.clear()
    depot.node("other")
    depot.ask("other", number, file)
    assert depot.got("other") == [] and depot.answer("ann") == 3
    assert len(depot.got("other")) == 3


# -- what is kept -------------------------------------------------------------------------------


def test_files_of_jobs_and_requests_are_kept_until_these_have_ended() -> None:
    depot = Depot(durable=True, idle_bytes=0)
    of_job, put = make("job-file"), make("put-file")
    number = depot.open("ann")
    ident = depot.node("n")
    for prepare in depot.take(Prepare, "n"):
        depot.tell("n", Prepared(prepare.computation))
    options = JobOptions(files=[of_job])
    depot.tell("ann", Submit(1, [JobSpec(seq, 0, b"x", [], options) for seq in (1, 2)]))
    depot.tell("ann", SendFile(1, 5, ident, put))
    assert depot.answer("ann") == 2
    depot.wait(STOCK_S + LOOK_S)
    depot.wait(LOOK_S)
    assert set(depot.whole) == {of_job.digest, put.digest}
    depot.tell("n", FilePut(number, 5))
    depot.wait(LOOK_S)
    assert set(depot.whole) == {of_job.digest}
    depot.tell("ann", CancelJobs(1, [2]))
    depot.wait(LOOK_S)
    assert set(depot.whole) == {of_job.digest}
    depot.tell("ann", CloseCluster(1))
    depot.wait(LOOK_S)
    assert depot.whole == {}


def test_files_that_come_by_requests_are_known() -> None:
    depot = Depot()
    offered, named = make("offered"), make("named")
    number = depot.open("ann", specs=(NodeSpec("*"),), asks=True)
    ident = depot.node("n")
    depot.tell("ann", Allocate(1, ident, 1, [offered]))
    depot.tell("ann", NodeRequest(1, 3, ALLOCATE, nodes=[NodeSpec("10.*", files=[named])]))
    depot.ask("n", number, offered, named)
    depot.answer("ann")
    assert len(depot.got("n")) == 2


def test_what_nobody_needs_stays_while_there_is_room_the_longest_unused_go_first() -> None:
    depot = Depot(idle_bytes=25)
    files = [make(f"old{count}") for count in range(3)]
    depot.node("n")
    depot.wait(STOCK_S + 2 * LOOK_S)
    for file in files:
        number = depot.open("ann", file)
        depot.ask("n", number, file)
        depot.answer("ann")
        depot.tell("ann", CloseCluster(1))
        depot.scheduler.left("n", "stopped")
        depot.node("n")
        depot.wait(LOOK_S)
    assert set(depot.whole) == {file.digest for file in files[1:]}
    number = depot.open("ann", files[1])
    depot.ask("n", number, files[1])
    assert depot.answer("ann") == 0 and len(depot.kept) == 3


def test_after_a_restart_what_is_there_is_not_fetched_and_the_rest_may_go_later() -> None:
    needed, unneeded = make("needed"), make("unneeded")
    depot = Depot(durable=True, present=(needed, unneeded), idle_bytes=5)
    depot.flush()
    number = depot.open("ann", needed)
    assert depot.asked("ann") == []
    depot.node("n")
    depot.ask("n", number, needed)
    assert depot.got("n")[0].data == CONTENTS[needed.digest]
    assert len(depot.whole) == 2  # others may still say that they need it
    depot.wait(STOCK_S)
    depot.wait(LOOK_S)
    assert set(depot.whole) == {needed.digest}


def test_after_a_restart_files_of_clusters_and_jobs_are_known() -> None:
    own, of_job = make("kept-own"), make("kept-of-job")
    before = Depot(durable=True)
    number = before.open("ann", own)
    options = JobOptions(files=[of_job])
    before.tell("ann", Submit(1, [JobSpec(1, 0, b"x", [], options)]))
    cluster = before.scheduler.clusters[number]
    assert before.answer("ann") == 2 and not before.journal[0].plain
    after = Depot(durable=True, present=(own, of_job), idle_bytes=0)
    after.batches = before.batches
    kept = KeptCluster(number, cluster.meta, cluster.opened, before.journal)
    after.scheduler.restore(Kept([kept]), after.now)
    after.flush()
    after.wait(STOCK_S + LOOK_S)
    assert set(after.whole) == {own.digest, of_job.digest}
    after.node("n")
    after.ask("n", number, own, of_job)
    assert len(after.got("n")) == 2


def test_a_cluster_that_could_not_be_opened_before_has_its_files_fetched() -> None:
    depot = Depot(durable=True)
    depot.scheduler.set_trouble("the disk is full")
    depot.join("ann")
    file = make("troubled")
    depot.tell("ann", OpenCluster(1, ComputationSpec("c", [LAYER], [file]), [NodeSpec("*")]))
    assert depot.asked("ann") == []
    depot.scheduler.set_trouble("")
    depot.flush()
    assert depot.answer("ann") == 1


# -- any order ----------------------------------------------------------------------------------


class AnyOrder:
    """Random events; in the end each node has what it asked for, or knows why not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.depot = Depot(durable=bool(seed % 2), idle_bytes=40)
        self.files = [make(f"any{count}", size) for count, size in enumerate((0, 9, 30, 3 << 20))]
        self.clusters: dict[int, tuple[str, list[FileSpec]]] = {}
        self.opened = 0
        self.had: dict[str, int] = {}

    def play(self, steps: int) -> None:
        acts = [self.open, self.close, self.node, self.lose, self.ask, self.answer, self.had_some]
        acts += [self.ask, self.answer, self.away, self.back, self.eat, self.fill, self.submit]
        for _ in range(steps):
            self.random.choice(acts)()
            if self.random.random() < 0.2:
                self.depot.wait(self.random.choice((0.1, LOOK_S, 30.0)))

    def pick_cluster(self) -> int:
        known = [each for each in self.clusters if each in self.depot.scheduler.clusters]
        return self.random.choice(known) if known else 0

    def open(self) -> None:
        client = self.random.choice(("ann", "bob", "eve"))
        files = self.random.sample(self.files, self.random.randint(0, 3))
        self.opened += 1
        if client in self.depot.scheduler.clients:
            self.depot.scheduler.back(client)
        self.clusters[self.depot.open(client, *files, number=self.opened)] = (client, files)

    def submit(self) -> None:
        number = self.pick_cluster()
        if number:
            cluster = self.depot.scheduler.clusters[number]
            file = self.random.choice(self.files)
            spec = JobSpec(len(cluster.jobs) + 1, 0, b"x", [], JobOptions(files=[file]))
            self.depot.tell(cluster.client.peer, Submit(cluster.number, [spec]))

    def close(self) -> None:
        number = self.pick_cluster()
        if number:
            cluster = self.depot.scheduler.clusters[number]
            self.depot.tell(cluster.client.peer, CloseCluster(cluster.number))

    def node(self) -> None:
        name = self.random.choice(("n1", "n2"))
        self.had[name] = 0
        self.depot.node(name)

    def lose(self) -> None:
        if self.random.random() < 0.3 and self.depot.scheduler.nodes:
            self.depot.scheduler.left(self.random.choice(list(self.depot.scheduler.nodes)), "lost")

    def ask(self) -> None:
        number = self.pick_cluster()
        if number and self.depot.scheduler.nodes:
            node = self.random.choice(list(self.depot.scheduler.nodes))
            self.depot.ask(node, number, *self.clusters[number][1])

    def had_some(self) -> None:
        for name in self.depot.scheduler.nodes:
            self.had[name] += len(self.depot.got(name))
            self.depot.tell(name, NeedBlobs(0, 0, [], self.had[name]))

    def answer(self) -> None:
        client = self.random.choice(("ann", "bob", "eve"))
        if client in self.depot.scheduler.clients:
            self.depot.answer(client, self.random.choice(("", "", "", "no")))

    def away(self) -> None:
        client = self.random.choice(("ann", "bob", "eve"))
        self.depot.scheduler.away(client, "silence", False, self.depot.now)

    def back(self) -> None:
        client = self.random.choice(list(self.depot.scheduler.clients) or [""])
        if client:
            self.depot.join(client)

    def eat(self) -> None:
        if self.depot.whole and self.random.random() < 0.3:
            del self.depot.whole[self.random.choice(list(self.depot.whole))]

    def fill(self) -> None:
        self.depot.is_full = self.random.random() < 0.2

    def finish(self) -> None:
        """Let everything that is asked for arrive; then nothing may wait."""
        depot = self.depot
        depot.is_full = False
        for client in list(depot.scheduler.clients):
            depot.join(client)
        for _ in range(20):
            self.had_some()
            for client in list(depot.scheduler.clients):
                depot.answer(client)
            depot.wait(LOOK_S)
        self.had_some()
        state = depot.scheduler.state
        assert not state.fetchers and not state.underway and not depot.parts
        for cluster in depot.scheduler.clusters.values():
            assert not any(each.asked for each in cluster.allocations.values())


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order(seed: int) -> None:
    game = AnyOrder(seed)
    game.play(80)
    game.finish()
