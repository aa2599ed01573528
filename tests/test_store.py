"""Blobs on a real disk, also on one that is full."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dispy.protocol import blobs
from dispy.protocol.store import SpoiledBlob, Store, idle_bytes

CONTENT = os.urandom(3000)
NAME = blobs.digest_of(CONTENT)
FULL_DISK = """
import errno, os, sys
from pathlib import Path
from dispy.protocol.store import Store

folder = Path(sys.argv[1])
assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize == 1 << 20
store = Store(folder / "blobs")
try:
    for index in range(100):
        store.write(b"x" * 32, index << 16, [bytes(1 << 16)])
except OSError as error:
    assert error.errno == errno.ENOSPC and index > 10, (error, index)
else:
    sys.exit("the disk was not full")
assert list(store.folder.iterdir()) == []
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Have the kernel refuse to write beyond this size (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_a_blob_has_its_name_only_when_it_is_whole_and_verified(store: Store) -> None:
    store.write(NAME, 0, [CONTENT[:1000], memoryview(CONTENT)[1000:2000]])
    assert not store.path(NAME).exists() and store.has_begun(NAME)
    store.write(NAME, 2000, [CONTENT[2000:]])
    store.commit(NAME)
    assert store.path(NAME).read_bytes() == CONTENT
    assert files(store) == [NAME.hex()] and not store.has_begun(NAME)


def test_a_wrong_content_is_removed(store: Store) -> None:
    store.write(NAME, 0, [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])])
    with pytest.raises(SpoiledBlob):
        store.commit(NAME)
    assert files(store) == []
    store.write(NAME, 0, [CONTENT])
    store.commit(NAME)
    assert files(store) == [NAME.hex()]


def test_a_blob_that_is_begun_anew_has_nothing_of_before(store: Store) -> None:
    store.write(NAME, 0, [b"something else"])
    store.write(NAME, 0, [CONTENT])
    store.commit(NAME)
    assert store.path(NAME).read_bytes() == CONTENT


def test_an_empty_blob(store: Store) -> None:
    empty = blobs.digest_of(b"")
    store.write(empty, 0, [])
    store.commit(empty)
    assert store.path(empty).read_bytes() == b""


def test_dropping_leaves_nothing(store: Store) -> None:
    store.write(NAME, 0, [CONTENT])
    store.drop(NAME)
    assert files(store) == []
    store.write(NAME, 0, [CONTENT])
    store.commit(NAME)
    store.drop(NAME)
    store.drop(NAME)
    assert files(store) == []


def test_closing_leaves_only_whole_blobs(store: Store) -> None:
    other = b"\1" * 32
    store.write(NAME, 0, [CONTENT])
    store.commit(NAME)
    store.write(other, 0, [b"half"])
    store.close()
    assert files(store) == [NAME.hex()]


def test_what_the_disk_refuses_leaves_nothing_and_others_go_on(store: Store) -> None:
    store.write(b"\1" * 32, 0, [b"another, before"])
    with no_file_longer_than(2000):
        store.write(NAME, 0, [CONTENT[:1500]])
        with pytest.raises(OSError):
            store.write(NAME, 1500, [CONTENT[1500:]])
    assert not store.has_begun(NAME) and files(store) == [f"{'01' * 32}.part"]
    store.write(NAME, 0, [CONTENT])
    store.commit(NAME)
    assert store.path(NAME).read_bytes() == CONTENT


def test_a_full_disk(tmp_path: Path) -> None:
    """A small tmpfs that only the process that fills it can see."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting needs root and the unshare command")
    fill = f'exec "{sys.executable}" -c "$0" {tmp_path}'
    command = ["unshare", "-m", "sh", "-c", f"{mount} && {fill}", FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_store_takes_no_more_than_a_share_of_what_is_free(tmp_path: Path) -> None:
    assert idle_bytes(tmp_path, 10) == 10
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert idle_bytes(tmp_path, 1 << 62) <= free
