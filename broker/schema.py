"""The journal's file: its tables, how it is opened, and what SQLite's errors mean.

Raise `SCHEMA_VERSION` when what is kept can't be read by older versions any more. What comes
from clients and nodes is in blobs only, so no number of theirs is too large for a column.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from .journalerrors import (
    JournalBroken,
    JournalError,
    JournalForbidden,
    JournalFull,
    JournalLocked,
    JournalUnreadable,
)

FILE = "journal.sqlite"
APPLICATION_ID = 0x64707962
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
CACHE_BYTES = 16 << 20
WAL_BYTES = 16 << 20  # the write-ahead log shrinks to this after a large transaction
WAL_PAGES = 4000  # written to the log before they are moved to their places
DURABILITY = {"normal": "NORMAL", "full": "FULL"}
PROBE_BYTES = 1 << 16
MAYBE_FULL = {"SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN"}  # such as when there are quotas
DAMAGE_LINES = 10  # more needn't be told

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE clusters (id INTEGER PRIMARY KEY, meta BLOB NOT NULL, header BLOB NOT NULL);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, cluster INTEGER NOT NULL, extent BLOB NOT NULL, header BLOB NOT NULL
);
CREATE INDEX batches_of_cluster ON batches (cluster);
CREATE TABLE progress (batch INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE results (id INTEGER PRIMARY KEY, cluster INTEGER NOT NULL, header BLOB NOT NULL);
CREATE INDEX results_of_cluster ON results (cluster);
CREATE TABLE abandoned (
    cluster INTEGER NOT NULL, seq BLOB NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (cluster, seq)
) WITHOUT ROWID;
CREATE TABLE nodes (id INTEGER PRIMARY KEY, meta BLOB NOT NULL);
CREATE TABLE cluster_chunks (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX cluster_chunks_of_owner ON cluster_chunks (owner);
CREATE TABLE record_chunks (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX record_chunks_of_owner ON record_chunks (owner);
"""
LATER_TABLES = """
CREATE TABLE IF NOT EXISTS taken (
    id INTEGER PRIMARY KEY, loser BLOB NOT NULL UNIQUE, cluster INTEGER NOT NULL
)
"""  # a journal of an earlier version gets them when it is opened


def in_memory(token: bytes) -> sqlite3.Connection:
    """Return an empty journal that no process but this one ever sees."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _create(connection, token)
    return connection


def opened(folder: Path, durability: str, token: bytes = b"") -> sqlite3.Connection:
    """Open the journal in a folder whose lock this process has; make it when there is none.

    ``token`` is what a new one gets, and one of an earlier version. Raises `JournalError`.
    """
    path = folder / FILE
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = _connect(path, durability)
    except OSError as error:
        raise _refused(folder, error) from None
    except sqlite3.Error as error:
        raise explained(error, folder) from None
    try:
        if _is_new(connection):
            _create(connection, token)
            _sync(folder)
        _check_version(connection, folder)
        connection.execute(LATER_TABLES)
        if token:
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('token', ?)", (token,))
    except sqlite3.Error as error:
        connection.close()
        raise explained(error, folder) from None
    except JournalError:
        connection.close()
        raise
    return connection


def damage(connection: sqlite3.Connection, thorough: bool = False) -> list[str]:
    """Return what is wrong with the file; ``thorough`` also compares indexes."""
    check = "integrity_check" if thorough else "quick_check"
    try:
        texts = [str(text) for (text,) in connection.execute(f"PRAGMA {check}({DAMAGE_LINES})")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("***")]
    return [] if lines == ["ok"] else lines


def shrink(connection: sqlite3.Connection, pages: int) -> None:
    """Give so many unused pages back to the file system, at most; 0: all."""
    # As a script: `execute` would stop after the first page.
    connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def is_full(error: sqlite3.Error, folder: Path) -> bool:
    """Whether a write failed, and nothing worse, since there is no room (or no quota) left."""
    if "is full" in str(error):
        return True
    name = getattr(error, "sqlite_errorname", "")  # Python 3.10 doesn't tell
    return name in MAYBE_FULL and _has_no_room(folder)


def explained(error: sqlite3.Error, folder: Path) -> JournalError:
    """Turn an error of SQLite into one for users."""
    text, path = str(error), folder / FILE
    if is_full(error, folder):
        return JournalFull(f"the disk of the broker's journal is full: {folder}. Make room there")
    if "locked" in text:
        return JournalLocked(f"another program has {path} open: close it first")
    if "readonly" in text or "unable to open" in text:
        return JournalForbidden(f"{path} can't be written ({text}): make it writable for this user")
    if "malformed" in text or "not a database" in text:
        return unreadable(folder, text)
    return JournalBroken(f"{path} can't be read or written: {text}. Look after the disk")


def unreadable(folder: Path, reason: str) -> JournalUnreadable:
    """Say that a journal is damaged, and what can be done."""
    return JournalUnreadable(
        f"the journal {folder / FILE} is damaged ({reason}). Copy the folder; then `dispy journal "
        f"export {folder}` prints what can be read; a broker starts with a new journal when the "
        "files journal.sqlite* have been moved away"
    )


def _connect(path: Path, durability: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # before the log is touched: it needs no shared memory then
            f"page_size = {PAGE_BYTES}",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"synchronous = {DURABILITY[durability]}",
            f"cache_size = {-CACHE_BYTES // 1024}",
            f"wal_autocheckpoint = {WAL_PAGES}",
            f"journal_size_limit = {WAL_BYTES}",
            "secure_delete = OFF",  # some builds overwrite what is deleted
            "temp_store = MEMORY",  # another disk may be full, too
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether the file has just been made, or its maker died before anything was in it."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not tables


def _create(connection: sqlite3.Connection, token: bytes) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in (*TABLES.split(";"), LATER_TABLES):
        connection.execute(statement)
    values = [("token", token), ("last_node", 0), ("last_record", 0)]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
    connection.execute("COMMIT")


def _check_version(connection: sqlite3.Connection, folder: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise JournalUnreadable(
            f"{folder / FILE} is no journal of a broker: move it away, or use another folder"
        )
    if version > SCHEMA_VERSION:
        raise JournalUnreadable(
            f"{folder / FILE} was written by a newer version of the broker (format {version}, "
            f"this one knows {SCHEMA_VERSION}): start that version, or use another folder"
        )


def _refused(folder: Path, error: OSError) -> JournalError:
    if error.errno == errno.ENOSPC:
        return JournalFull(f"the disk of the broker's journal is full: {folder}. Make room there")
    return JournalForbidden(f"{folder / FILE} can't be opened: {error.strerror}")


def _sync(folder: Path) -> None:
    """See to it that the new file's name survives a power failure, too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _has_no_room(folder: Path) -> bool:
    """Find out by writing a little: quotas aren't seen otherwise."""
    probe = folder / "probe"
    try:
        probe.write_bytes(os.urandom(PROBE_BYTES))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)
    return False
