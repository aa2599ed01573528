"""Files from jobs: whole and below the folder, or refused with a reason and no trace."""

from __future__ import annotations

import io
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispy import incoming
from dispy.incoming import FILES_AT_ONCE_MAX, OPEN_MAX, Receiver
from dispy.protocol.folders import NewFile
from dispy.protocol.messages import FILE, Envelope, JobRecord, Large, Records
from dispy.protocol.payload import INLINE_BYTES, pack_file_piece
from dispy.protocol.wire import Codec

MTIME = 1_600_000_000.25


def travelled(record: JobRecord) -> JobRecord:
    """Return a record as it arrives: encoded, decoded, its parts behind it."""
    header, sent = Codec().encode(Envelope(1, 1, 0, [Records(1, [record])]))
    envelope, missing = Codec().decode(header)
    for old, new in zip(sent, missing, strict=True):
        new.chunks = [bytes(chunk) for chunk in old.chunks]
    assert isinstance(envelope, Envelope)
    [message] = envelope.messages
    assert isinstance(message, Records)
    return message.records[0]


def piece(
    path: str,
    offset: int,
    data: bytes,
    size: int,
    seq: int = 1,
    attempt: int = 1,
    mode: int = 0o640,
    mtime: float = MTIME,
) -> JobRecord:
    """Return a record with a piece of a file; it is the last if it reaches the end."""
    last = offset + len(data) == size
    payload = pack_file_piece(path, offset, size, mode, mtime, last, data)
    if len(payload) < INLINE_BYTES:
        return JobRecord(seq, attempt, 1, FILE, payload)
    return JobRecord(seq, attempt, 1, FILE, b"", [Large(len(payload), [payload])])


def lying(path: str, offset: int, data: bytes, size: int, last: bool) -> JobRecord:
    payload = pack_file_piece(path, offset, size, 0o644, MTIME, last, data)
    return JobRecord(1, 1, 1, FILE, payload)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture()
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path)
    yield receiver
    receiver.drop()


# -- files that arrive ----------------------------------------------------------------------


def test_a_file_in_pieces_with_its_folders_mode_and_time(
    receiver: Receiver, tmp_path: Path
) -> None:
    content = random.Random(1).randbytes(700_000)
    for offset in range(0, len(content), 1 << 18):
        assert not (tmp_path / "out/data/x.bin").exists()
        data = content[offset : offset + (1 << 18)]
        assert receiver.take(travelled(piece("out/data/x.bin", offset, data, len(content)))) == ""
    path = tmp_path / "out/data/x.bin"
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_mtime == MTIME


def test_an_empty_file(receiver: Receiver, tmp_path: Path) -> None:
    assert receiver.take(piece("x", 0, b"", 0)) == ""
    assert (tmp_path / "x").read_bytes() == b""


def test_names_that_are_not_utf8(receiver: Receiver, tmp_path: Path) -> None:
    assert receiver.take(travelled(piece("\udcff", 0, b"", 0))) == ""
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]


def test_an_old_file_stays_until_the_new_one_is_whole(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    receiver.take(piece("x", 0, b"ne", 3))
    assert (tmp_path / "x").read_bytes() == b"old"
    receiver.take(piece("x", 2, b"w", 3))
    assert (tmp_path / "x").read_bytes() == b"new"


def test_several_files_of_several_jobs_at_once(receiver: Receiver, tmp_path: Path) -> None:
    names = [(seq, f"{seq}/{number}") for seq in range(8) for number in range(20)]
    assert len(names) > OPEN_MAX
    before = open_descriptors()
    for offset in range(3):
        for seq, name in names:
            assert receiver.take(piece(name, offset, b"%d" % offset, 3, seq=seq)) == ""
            assert open_descriptors() <= before + 2 * OPEN_MAX + 2
    assert all((tmp_path / name).read_bytes() == b"012" for _, name in names)
    assert len(everything(tmp_path)) == len(names) + 8
    assert open_descriptors() == before


def test_a_file_that_rests_before_its_first_byte(receiver: Receiver, tmp_path: Path) -> None:
    receiver.take(lying("x", 0, b"", 1, last=False))
    for seq in range(2, OPEN_MAX + 3):
        receiver.take(piece(f"y{seq}", 0, b"a", 2, seq=seq))
    assert receiver.take(lying("x", 0, b"1", 1, last=True)) == ""
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_file_that_is_sent_again_from_its_beginning(receiver: Receiver, tmp_path: Path) -> None:
    receiver.take(piece("x", 0, b"old", 9))
    assert receiver.take(piece("x", 0, b"new", 4)) == ""
    assert receiver.take(piece("x", 3, b"!", 4)) == ""
    assert (tmp_path / "x").read_bytes() == b"new!"


# -- files that are refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\\..\\x", "x" * 300, "\0"])
def test_bad_names(receiver: Receiver, tmp_path: Path, name: str) -> None:
    assert "the file name" in receiver.take(piece(name, 0, b"abc", 3))
    assert everything(tmp_path) == []


def test_links_on_the_way(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    error = Receiver(inside).take(piece("link/x", 0, b"abc", 3))
    assert "'link/x'" in error
    assert "link where the name needs a folder" in error
    assert everything(outside) == []


def test_too_large(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, limit=3)
    assert receiver.take(piece("x", 0, b"abc", 3)) == ""
    for offset in (0, 2):
        error = receiver.take(piece("y", offset, b"ab", 4))
        assert "'y' has 4 bytes" in error
        assert "more than 3" in error
    assert everything(tmp_path) == ["x"]


@pytest.mark.parametrize("offset", [1, 3])
def test_wrong_offsets_refuse_the_whole_file(
    receiver: Receiver, tmp_path: Path, offset: int
) -> None:
    receiver.take(piece("x", 0, b"ab", 9))
    assert "a piece of 'x' is missing" in receiver.take(piece("x", offset, b"c", 9))
    assert "a piece of 'x' is missing" in receiver.take(piece("x", 2, b"cdefghi", 9))
    assert everything(tmp_path) == []
    assert receiver.take(piece("x", 0, b"abc", 3)) == ""  # and once more, rightly


def test_a_file_without_a_beginning(receiver: Receiver) -> None:
    assert "first byte" in receiver.take(piece("x", 1, b"ab", 3))


def test_the_last_piece_is_not_the_end(receiver: Receiver, tmp_path: Path) -> None:
    assert "'x' ended after 2 of 3 bytes" in receiver.take(lying("x", 0, b"ab", 3, last=True))
    assert everything(tmp_path) == []


def test_a_file_that_changes_on_the_way(receiver: Receiver, tmp_path: Path) -> None:
    receiver.take(piece("x", 0, b"ab", 4))
    assert "has changed" in receiver.take(piece("x", 2, b"cd", 4, mtime=MTIME + 1))
    receiver.take(piece("y", 0, b"ab", 4))
    assert "has changed" in receiver.take(piece("y", 2, b"cd", 5))
    assert everything(tmp_path) == []


def test_times_that_no_file_can_have(receiver: Receiver, tmp_path: Path) -> None:
    for mtime in (float("nan"), 1e300):
        assert "'x'" in receiver.take(piece("x", 0, b"a", 1, mtime=mtime))
    assert everything(tmp_path) == []


def test_rubbish_is_an_error_text(receiver: Receiver) -> None:
    assert "cut off" in receiver.take(JobRecord(1, 1, 1, FILE, b""))
    assert "cut off" in receiver.take(JobRecord(1, 1, 1, FILE, b"rubbish"))


def test_a_folder_in_the_place_of_the_file(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert "can't write 'x'" in receiver.take(piece("x", 0, b"a", 1))


def test_the_folder_has_gone(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "none")
    assert "No such file or directory" in receiver.take(piece("x", 0, b"a", 1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnFullDisk(NewFile):
        def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
            super().__init__(folder, name)
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, self.file.fileno())
            os.close(full)

    monkeypatch.setattr(incoming, "NewFile", OnFullDisk)
    before = open_descriptors()
    for offset in (0, 1):
        error = receiver.take(piece("x", offset, b"a", 3))
        assert error == "the client can't write 'x': No space left on device"
    assert everything(tmp_path) == []
    assert open_descriptors() == before


def test_a_system_that_takes_few_bytes_at_a_time(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trickle(io.FileIO):
        def write(self, data: Any, /) -> int:
            return super().write(data[:3])

    class OnSlowDisk(NewFile):
        def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
            super().__init__(folder, name)
            with self.file as file:
                self.file = Trickle(os.dup(file.fileno()), "wb")

    monkeypatch.setattr(incoming, "NewFile", OnSlowDisk)
    assert receiver.take(piece("x", 0, b"abcdefgh", 8)) == ""
    assert (tmp_path / "x").read_bytes() == b"abcdefgh"


def test_too_many_files_at_once(receiver: Receiver, tmp_path: Path) -> None:
    for number in range(FILES_AT_ONCE_MAX):
        assert receiver.take(piece(f"x{number}", 0, b"a", 2)) == ""
    assert "files at the same time" in receiver.take(piece("one more", 0, b"a", 2))
    assert receiver.take(piece("one more", 1, b"b", 2))  # still an error, for whoever waits
    assert receiver.take(piece("x0", 1, b"b", 2)) == ""
    assert receiver.take(piece("one more", 0, b"a", 2)) == ""


# -- what is left unfinished ----------------------------------------------------------------


def test_the_end_of_a_job_discards_its_files_only(receiver: Receiver, tmp_path: Path) -> None:
    before = open_descriptors()
    receiver.take(piece("x", 0, b"a", 2, seq=1))
    receiver.take(piece("y", 0, b"a", 2, seq=2))
    receiver.drop_job(1)
    receiver.drop_job(7)
    assert receiver.take(piece("y", 1, b"b", 2, seq=2)) == ""
    assert everything(tmp_path) == ["y"]
    assert "first byte" in receiver.take(piece("x", 1, b"b", 2, seq=1))
    assert open_descriptors() == before


def test_a_new_attempt_discards_what_the_old_one_began(receiver: Receiver, tmp_path: Path) -> None:
    receiver.take(piece("x", 0, b"old", 6, attempt=1))
    assert receiver.take(piece("x", 0, b"n", 3, attempt=2)) == ""
    assert "started anew" in receiver.take(piece("x", 3, b"old", 6, attempt=1))
    assert receiver.take(piece("x", 1, b"ew", 3, attempt=2)) == ""
    assert (tmp_path / "x").read_bytes() == b"new"


def test_drop_discards_everything_even_what_rests(receiver: Receiver, tmp_path: Path) -> None:
    before = open_descriptors()
    for seq in range(OPEN_MAX + 9):
        receiver.take(piece(f"x{seq}", 0, b"a", 2, seq=seq))
    receiver.drop()
    assert everything(tmp_path) == []
    assert open_descriptors() == before


def test_nothing_is_kept_of_files_that_are_done(receiver: Receiver) -> None:
    for seq in range(50):
        receiver.take(piece(f"x{seq}", 0, b"a", 1, seq=seq))
        receiver.take(piece("../x", 0, b"a", 1, seq=seq))
    assert not receiver._senders
    assert not receiver._open


@pytest.mark.parametrize("seed", range(20))
def test_files_of_random_pieces_are_whole_or_absent(
    receiver: Receiver, tmp_path: Path, seed: int
) -> None:
    """Jobs whose pieces get lost, come twice or are those of another attempt."""
    chance = random.Random(seed)
    names = [f"d{number % 3}/{number}" for number in range(6)]
    contents = {(name, a): chance.randbytes(chance.randrange(40)) for name in names for a in (1, 2)}
    for attempt in (1, 2):
        pieces = []
        for name in names:
            content = contents[name, attempt]
            pieces.append(
                [
                    piece(name, offset, content[offset : offset + 9], len(content), 1, attempt)
                    for offset in range(0, len(content) or 1, 9)
                ]
            )
        while pieces:
            line = chance.choice(pieces)
            if chance.random() < 0.9:
                receiver.take(line[0])
            if chance.random() < 0.9:
                line.pop(0)
            pieces = [line for line in pieces if line]
    receiver.drop()
    arrived = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert arrived
    for path in arrived:
        name = str(path.relative_to(tmp_path))
        assert path.read_bytes() in (contents[name, 1], contents[name, 2])
