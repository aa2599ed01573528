"""The broker's copies of files on a real disk, also on one that is full, and over real sockets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from dispy.blobs import BlobSource
from dispy.broker.bloberrands import BlobErrands
from dispy.broker.core import Scheduler
from dispy.broker.effects import DropBlob, Effect, KeepPiece, ReadPiece, Send
from dispy.broker.settings import Settings
from dispy.protocol.events import Event, Joined, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.fetching import Claim, Fetching
from dispy.protocol.identity import describe, random_name
from dispy.protocol.messages import (
    PIECE_BYTES,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    Code,
    ComputationSpec,
    FileSpec,
    Holding,
    Identity,
    JobSpec,
    NeedBlobs,
    NodeSpec,
    OpenCluster,
    Prepare,
)
from dispy.protocol.store import Store
from dispy.protocol.transport import Bus

DEADLINE_S = 20.0
Kind = TypeVar("Kind")
CONTENT = bytes(range(250)) * ((PIECE_BYTES + 1000) // 250)
LAYER = Code("3.11", JobSpec(0, 0, b"f"))
FULL_DISK = """
import os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from tests.test_bloberrands import CONTENT, Desk, fill_and_go_on

disk = Path(sys.argv[1])
assert os.statvfs(disk).f_blocks * os.statvfs(disk).f_frsize == 2 << 20
fill_and_go_on(disk, Path(sys.argv[3]))
"""


def identity(role: str) -> Identity:
    return Identity(role, role, role, "0", "3", "Linux", 1)


class Desk:
    """A shared broker's scheduler with its errands, a client with one file, and a node."""

    def __init__(
        self, folder: Path, file: Path, synced: bool = False, spare_bytes: int = 0
    ) -> None:
        self.sent: list[tuple[str, Body]] = []
        self.scheduler = Scheduler(settings=Settings(shared=True))
        self.errands = BlobErrands(folder, self.scheduler, self.say, synced, spare_bytes)
        self.scheduler.joined("client", identity("client"), [], "", 0.0)
        self.scheduler.joined("node", identity("node"), [], "127.0.0.1:9700", 0.0)
        self.scheduler.receive("node", Holding([], []), 0.0)
        self.source = BlobSource()
        self.file = self.source.add_file(file, "data")
        spec = ComputationSpec("c", [LAYER], [self.file])
        self.tell("client", OpenCluster(1, spec, [NodeSpec("*")]))
        [self.computation] = self.scheduler.clusters

    def say(self, peer: str, message: Body) -> None:
        self.sent.append((peer, message))

    def tell(self, peer: str, message: Body) -> None:
        self.scheduler.receive(peer, message, 0.0)
        self.flush()

    def flush(self) -> None:
        """Carry out what is to be done, until there is nothing more."""
        again = True
        while again:
            for effect in self.scheduler.flush(0.0):
                self.carry_out(effect)
            self.scheduler.check()
            again = self.scheduler.deadline() <= 0.0

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.say(effect.peer, effect.message)
        elif isinstance(effect, (KeepPiece, ReadPiece, DropBlob)):
            self.errands.carry_out(effect)

    def ask(self) -> list[BlobPiece]:
        """Have the node ask for the file, and the client send it; return what the node gets."""
        self.tell("node", NeedBlobs(self.computation, 0, ranges_of(self.file)))
        while asked := self.take(NeedBlobs):
            for wanted in [wanted for message in asked for wanted in message.ranges]:
                self.tell("client", BlobPieces(1, 0, [self.source.read(wanted)]))
        return [piece for message in self.take(BlobPieces) for piece in message.pieces]

    def take(self, kind: type[Kind]) -> list[Kind]:
        taken: list[Kind] = [message for _, message in self.sent if isinstance(message, kind)]
        self.sent = [each for each in self.sent if not isinstance(each[1], kind)]
        return taken


def ranges_of(file: FileSpec) -> list[BlobRange]:
    """Return all pieces of a file."""
    return [
        BlobRange(file.digest, offset, min(PIECE_BYTES, file.size - offset))
        for offset in range(0, file.size, PIECE_BYTES)
    ]


def content_of(pieces: list[BlobPiece]) -> bytes:
    """Join what has come."""
    assert not any(piece.error for piece in pieces)
    return b"".join(
        piece.data + b"".join(part.tobytes() for part in piece.parts) for piece in pieces
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the client's, of two pieces."""
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_kept_and_read_again(tmp_path: Path, file: Path, synced: bool) -> None:
    desk = Desk(tmp_path / "files", file, synced)
    assert content_of(desk.ask()) == CONTENT
    file.unlink()
    assert content_of(desk.ask()) == CONTENT
    assert names(tmp_path / "files") == [desk.file.digest.hex()]


def test_after_a_restart_whole_files_are_there_and_halves_are_not(
    tmp_path: Path, file: Path
) -> None:
    folder = tmp_path / "files"
    before = Desk(folder, file)
    before.ask()
    before.errands.carry_out(KeepPiece(b"1" * 32, 0, [b"half"], False))
    assert len(names(folder)) == 2
    (folder / "notes.txt").write_text("an operator's")
    after = Desk(folder, file)
    file.unlink()  # the client can't send it any more
    assert content_of(after.ask()) == CONTENT
    assert names(folder) == sorted([after.file.digest.hex(), "notes.txt"])


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_a_copy_that_was_harmed_is_fetched_again(tmp_path: Path, file: Path, harm: str) -> None:
    desk = Desk(tmp_path / "files", file)
    desk.ask()
    copy = desk.errands.store.path(desk.file.digest)
    if harm == "removed":
        copy.unlink()
    else:
        os.truncate(copy, 10)
    pieces = desk.ask()
    pieces.sort(key=lambda piece: piece.offset)
    assert content_of(pieces) == CONTENT and copy.stat().st_size == len(CONTENT)


def test_a_file_that_changes_while_it_is_sent_is_an_error_and_leaves_nothing(
    tmp_path: Path, file: Path
) -> None:
    desk = Desk(tmp_path / "files", file)
    file.write_bytes(CONTENT + b"more")
    assert all("has changed" in piece.error for piece in desk.ask())
    assert names(tmp_path / "files") == []


def test_closing_leaves_only_what_is_whole(tmp_path: Path, file: Path) -> None:
    desk = Desk(tmp_path / "files", file)
    desk.errands.carry_out(KeepPiece(b"1" * 32, 0, [b"half"], False))
    desk.errands.close()
    assert names(tmp_path / "files") == []


def test_some_of_the_disk_is_left_to_the_journal(tmp_path: Path, file: Path) -> None:
    desk = Desk(tmp_path / "files", file, spare_bytes=1 << 62)
    pieces = desk.ask()
    assert {piece.error for piece in pieces} == {
        "it can't be written at the broker: No space left on device"
    }
    assert names(tmp_path / "files") == []


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path: Path, file: Path) -> None:
    with pytest.raises(OSError):
        Desk(file / "files", file)


def fill_and_go_on(disk: Path, file: Path) -> None:
    """Have a broker whose disk is full; in a process that has such a disk."""
    fill = disk / "fill"
    fill.write_bytes(bytes(3 << 19))
    desk = Desk(disk / "files", file)
    pieces = desk.ask()
    assert {piece.error for piece in pieces} == {
        "it can't be written at the broker: No space left on device"
    }
    assert len(pieces) == 2 and names(disk / "files") == []
    fill.unlink()
    assert content_of(desk.ask()) == CONTENT


def test_a_full_disk_is_named_and_later_it_works_again(tmp_path: Path, file: Path) -> None:
    """A small tmpfs that only the process that fills it can see."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2m none {disk}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting needs root and the unshare command")
    root = Path(__file__).parents[1]
    work = f'exec "{sys.executable}" -c "$0" {disk} {root} {file}'
    command = ["unshare", "-m", "sh", "-c", f"{mount} && {work}", FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- over real sockets --------------------------------------------------------------------------


class Peer:
    """One end of real connections; ``act`` does what its messages ask for."""

    def __init__(self, role: str) -> None:
        self.bus = Bus()
        self.exchange = Exchange(describe(role, "1", cpus=1), self.bus, random_name)

    def turn(self) -> None:
        """Do what is to be done now, and hardly wait."""
        for arrival in self.bus.poll(0.002):
            self.handle(self.exchange.receive(arrival, time.monotonic()))
        self.handle(self.exchange.tick(time.monotonic()))
        self.work()
        self.exchange.flush(time.monotonic())

    def handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Joined):
                self.joined(event)
            elif isinstance(event, Received):
                self.received(event.peer, event.message)

    def joined(self, event: Joined) -> None:
        raise NotImplementedError

    def received(self, peer: str, message: Body) -> None:
        raise NotImplementedError

    def work(self) -> None:
        """Say what there is to say."""


class BrokerPeer(Peer):
    """A shared broker with a store."""

    def __init__(self, folder: Path) -> None:
        super().__init__("broker")
        self.address = self.bus.listen("127.0.0.1:0")
        self.scheduler = Scheduler(settings=Settings(shared=True))
        self.errands = BlobErrands(folder, self.scheduler, self.exchange.send)

    def joined(self, event: Joined) -> None:
        now = time.monotonic()
        self.scheduler.joined(event.peer, event.identity, [], event.address, now)

    def received(self, peer: str, message: Body) -> None:
        self.scheduler.receive(peer, message, time.monotonic())

    def work(self) -> None:
        for effect in self.scheduler.flush(time.monotonic()):
            if isinstance(effect, Send):
                self.exchange.send(effect.peer, effect.message)
            elif isinstance(effect, (KeepPiece, ReadPiece, DropBlob)):
                self.errands.carry_out(effect)


class ClientPeer(Peer):
    """A client with files."""

    def __init__(self, address: str, files: list[Path]) -> None:
        super().__init__("client")
        self.source = BlobSource()
        self.files = [self.source.add_file(path, path.name) for path in files]
        self.pieces = 0
        self.exchange.dial(address)

    def joined(self, event: Joined) -> None:
        spec = ComputationSpec("c", [LAYER], self.files)
        self.exchange.send(event.peer, OpenCluster(1, spec, [NodeSpec("*")]))

    def received(self, peer: str, message: Body) -> None:
        if isinstance(message, NeedBlobs):
            for wanted in message.ranges:
                self.pieces += 1
                piece = self.source.read(wanted)
                self.exchange.send(peer, BlobPieces(message.cluster, message.node, [piece]))


class NodePeer(Peer):
    """What a node has of files, without the rest of it."""

    def __init__(self, address: str, folder: Path) -> None:
        super().__init__("node")
        self.store = Store(folder)
        self.fetching = Fetching()
        self.is_ready = False
        self.broker = ""
        self.exchange.dial(address)

    def joined(self, event: Joined) -> None:
        self.broker = event.peer
        self.exchange.send(event.peer, Holding([], []))

    def received(self, peer: str, message: Body) -> None:
        if isinstance(message, Prepare):
            claim = Claim(message.computation, None, message.spec.files)
            assert self.fetching.add(claim) == ""
        elif isinstance(message, BlobPieces):
            for piece in message.pieces:
                self.fetching.receive(message.cluster, piece, time.monotonic())

    def work(self) -> None:
        effects, self.fetching.effects = self.fetching.effects, []
        for effect in effects:
            assert isinstance(effect, KeepPiece)
            self.store.write(effect.digest, effect.offset, effect.buffers)
            if effect.last:
                self.store.commit(effect.digest)
                self.fetching.kept(effect.digest)
        for _, error in self.fetching.settled:
            assert not error
            self.is_ready = True
        if self.broker and self.fetching.stirred:
            for number, ranges in self.fetching.requests(time.monotonic()) or [(0, [])]:
                needed = NeedBlobs(number, 0, ranges, self.fetching.pieces)
                self.exchange.send(self.broker, needed)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.bus.close()


def until(condition: Callable[[], object], peers: list[Peer]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        for peer in peers:
            peer.turn()


def test_files_go_through_the_broker_once_over_real_connections(
    tmp_path: Path, peers: list[Peer]
) -> None:
    files = [tmp_path / name for name in ("big", "small", "empty")]
    for path, size in zip(files, (9 * PIECE_BYTES + 5, 70, 0), strict=True):
        path.write_bytes(os.urandom(size))
    broker = BrokerPeer(tmp_path / "broker")
    client = ClientPeer(broker.address, files)
    nodes = [NodePeer(broker.address, tmp_path / name) for name in ("one", "two")]
    peers += [broker, client, *nodes]
    until(lambda: all(node.is_ready for node in nodes), peers)
    assert client.pieces == 11  # whatever the number of nodes
    peers.remove(client)
    client.bus.close()
    late = NodePeer(broker.address, tmp_path / "late")
    peers.append(late)
    until(lambda: late.is_ready, peers)
    for node in (*nodes, late):
        for spec, path in zip(client.files, files, strict=True):
            assert node.store.path(spec.digest).read_bytes() == path.read_bytes()
