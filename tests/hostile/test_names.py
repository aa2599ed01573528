"""Names, sizes and contents of files from a broker that means harm, at a real node (B17).

Whatever is refused leaves nothing outside the node's own folder, and nothing under the final name;
the node goes on, for the same broker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy.protocol import blobs
from dispy.protocol.messages import (
    BlobPiece,
    BlobPieces,
    Code,
    ComputationSpec,
    FilePut,
    FileSpec,
    Holding,
    JobSpec,
    NeedBlobs,
    Prepare,
    Prepared,
    PutFile,
    Release,
    Released,
)

from . import daemons
from .daemons import Daemon
from .peer import Peer

PROGRAM = "program.sh"
SECRET = b"not to be touched\n"
GOOD = b"x" * 100
LARGE = b"y" * ((2 << 20) + 5)
BAD_NAMES = [
    "../x", "a/../../x", "/tmp/x", "", ".", "a//b", "a/./b", "..", "a\\..\\x", "\0", "x\0y",
    "a\nb", "\x1b[2Jx", "a\x7f", "x" * 2000, "d/" * 70 + "x", "é" * 200, "link/x", "link", "file/x",
]  # fmt: skip
TAKEN = ("link",)  # this one may be replaced: what it leads to stays


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something in it that is none of the node's business."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "outside").mkdir()
    (folder / "outside" / "x").write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Daemon]:
    """A node that keeps the files of computations in a folder that a test can look into."""
    node = daemons.node(folder / "node", "--dest-path-prefix", str(folder / "files"))
    yield node
    node.stop()


@pytest.fixture(scope="module")
def broker(node: Daemon) -> Iterator[Peer]:
    with Peer("broker", node.address) as broker:
        broker.join()
        broker.hear(Holding)
        yield broker


def outside(folder: Path) -> list[tuple[str, bytes]]:
    """Everything beside the node's own folders."""
    found = []
    for top, _, names in os.walk(folder / "outside"):
        found += [(name, Path(top, name).read_bytes()) for name in names]
    return sorted(found)


def spec_of(content: bytes, path: str = "data", **changes: object) -> FileSpec:
    fields: dict[str, object] = {"size": len(content), **changes}
    return FileSpec(path, blobs.digest_of(content), **fields)  # type: ignore[arg-type]


def prepare(broker: Peer, number: int, files: list[FileSpec], dest_path: str = "") -> None:
    spec = ComputationSpec("c", [Code("3", JobSpec(0, 0, b""))], files, PROGRAM, dest_path)
    spec.layers = []
    broker.say(Prepare(number, spec))


def serve(broker: Peer, number: int, contents: list[bytes]) -> None:
    """Answer what the node asks for, until it is ready or has given up."""
    known = {blobs.digest_of(content): content for content in contents}
    while not any(isinstance(getattr(each, "message", None), (Prepared, FilePut)) for each in
                  broker.events):  # fmt: skip
        needs = [each for each in broker.events if type(getattr(each, "message", 0)) is NeedBlobs]
        for event in needs:
            broker.events.remove(event)
            for wanted in event.message.ranges:  # type: ignore[union-attr]
                if wanted.digest not in known:
                    continue  # asked for before the last of an earlier computation was heard
                data = known[wanted.digest][wanted.offset : wanted.offset + wanted.size]
                piece = BlobPiece(wanted.digest, wanted.offset, data)
                broker.say(BlobPieces(number, 0, [piece]))
        broker.pump()


def release(broker: Peer, number: int) -> None:
    broker.say(Release(number))
    broker.hear(Released)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_files_of_a_computation(broker: Peer, folder: Path, name: str) -> None:
    before = outside(folder)
    place = folder / "files" / "shared"
    place.mkdir(parents=True, exist_ok=True)
    (place / "link").unlink(missing_ok=True)
    (place / "link").symlink_to(folder / "outside")
    (place / "file").write_bytes(b"")
    prepare(broker, 1, [spec_of(GOOD, name)], "shared")
    serve(broker, 1, [GOOD])
    assert bool(broker.hear(Prepared).error) == (name not in TAKEN)
    assert outside(folder) == before
    release(broker, 1)
    works(broker)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../..", "\0", "a\nb", "link", "x" * 2000])
def test_folders_of_a_computation(broker: Peer, folder: Path, name: str) -> None:
    before = outside(folder)
    (folder / "files").mkdir(exist_ok=True)
    if not (folder / "files" / "link").is_symlink():
        (folder / "files" / "link").symlink_to(folder / "outside")
    prepare(broker, 2, [spec_of(GOOD)], name)
    serve(broker, 2, [GOOD])
    assert broker.hear(Prepared).error
    assert outside(folder) == before
    works(broker)


@pytest.mark.parametrize("name", BAD_NAMES[:12])
def test_files_that_are_put_later(broker: Peer, folder: Path, name: str) -> None:
    before = outside(folder)
    prepare(broker, 3, [])
    assert not broker.hear(Prepared).error
    broker.say(PutFile(3, 1, spec_of(GOOD, name)))
    serve(broker, 3, [GOOD])
    assert broker.hear(FilePut).error
    assert outside(folder) == before
    release(broker, 3)


def works(broker: Peer) -> None:
    """An honest computation is set up as always."""
    prepare(broker, 9, [spec_of(GOOD, "good", mode=0o7777)])
    serve(broker, 9, [GOOD])
    assert not broker.hear(Prepared).error
    release(broker, 9)


# -- what is in them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [{"size": len(LARGE) - 1}, {"size": 1 << 62}, {"size": -1}, {"mtime": float("nan")},
     {"mtime": 1e300}, {"digest": b"short"}, {"digest": bytes(32)}],
    ids=str,
)  # fmt: skip
def test_descriptions_that_lie(broker: Peer, lie: dict[str, object]) -> None:
    digest = lie.pop("digest", blobs.digest_of(LARGE))
    fields: dict[str, object] = {"size": len(LARGE), **lie}
    prepare(broker, 4, [FileSpec("large", digest, **fields)])  # type: ignore[arg-type]
    answer(broker, lambda wanted: LARGE[wanted.offset :][: wanted.size] or b"x" * wanted.size)
    assert broker.hear(Prepared).error
    works(broker)


@pytest.mark.parametrize("end", [0, 1, 2])
@pytest.mark.parametrize("how", ["other", "short", "long", "none", "silent"])
def test_contents_that_lie_or_end_early(broker: Peer, node: Daemon, end: int, how: str) -> None:
    """Piece number ``end`` is wrong, or never comes and the computation ends."""
    content = f"{how}{end}".encode() + LARGE  # nothing of it is in the node's store
    prepare(broker, 5, [spec_of(content, "large")])

    def piece(wanted: object) -> bytes | None:
        offset, size = wanted.offset, wanted.size  # type: ignore[attr-defined]
        data = content[offset : offset + size]
        if offset != end << 20:
            return data
        other = {"other": b"z" * size, "short": data[:-1], "long": data + b"z", "none": b""}
        return other.get(how)

    if how == "silent":
        answer(broker, piece, rounds=8)
        release(broker, 5)
        assert not list(node.log_path.parent.rglob("*.part"))
        return
    answer(broker, piece)
    assert broker.hear(Prepared).error
    works(broker)
    assert not list(node.log_path.parent.rglob("large"))


def answer(broker: Peer, piece: object, rounds: int = 0) -> None:
    """Answer what is asked for with anything; ``rounds``: so long only."""
    left = rounds
    while not any(isinstance(getattr(each, "message", None), Prepared) for each in broker.events):
        for event in [e for e in broker.events if type(getattr(e, "message", 0)) is NeedBlobs]:
            broker.events.remove(event)
            for wanted in event.message.ranges:  # type: ignore[union-attr]
                data = piece(wanted)  # type: ignore[operator]
                if data is not None:
                    found = BlobPiece(wanted.digest, wanted.offset, data)
                    broker.say(BlobPieces(event.message.cluster, 0, [found]))  # type: ignore[union-attr]
        broker.pump()
        left -= 1
        if not left:
            return
