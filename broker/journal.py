"""The broker's journal: what must survive its death, in one SQLite file, with one writer.

Each `apply` is one transaction: all of a flush is on disk, or nothing is, and nothing of it may
leave the broker before. After any error but a full disk the journal is broken for good: a disk
that has lost what it was given once isn't asked again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.identity import new_token
from dispy.protocol.messages import JobSpec, Results

from . import ballast, schema
from .ballast import Room
from .crashpoints import crashpoint
from .durable import Kept
from .effects import JournalEffect
from .journalerrors import (
    JournalBroken,
    JournalError,
    JournalForbidden,
    JournalFull,
    JournalLocked,
    JournalUnreadable,
)
from .statelock import StateLock, refusal
from .tables import Tables

__all__ = [
    "Journal",
    "JournalBroken",
    "JournalError",
    "JournalForbidden",
    "JournalFull",
    "JournalLocked",
    "JournalUnreadable",
]

NORMAL = "normal"  # survives the broker's death, also by kill -9
IDLE_PAGES = 4096  # are kept for what comes next, rather than given back to the file system
SHRINK_PAGES = 512  # given back in one look
UNDECODABLE = (msgspec.MsgspecError, ProtocolError, ValueError)


class Journal:
    """The journal in a folder; None: in memory, for tests. All methods are for one thread."""

    def __init__(self, folder: Path | None, durability: str = NORMAL, max_bytes: int = 0) -> None:
        """Open it, or make it when there is none.

        ``durability`` "full" is for power failures, too. When more than ``max_bytes`` of it are in
        use, that is `trouble`; 0: no limit. Raises `JournalError`: locked, damaged, of a newer
        version, not writable, full.
        """
        self._folder = folder
        self._lock = None if folder is None else StateLock(folder)
        self._room: Room | None = None
        self._broken = ""  # why nothing can be written any more
        try:
            self._database = self._open(durability, max_bytes)
            self._tables = Tables(self._database)
            self.token = self._tables.token()  # random when it was made, and kept
            self.look(0.0)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove the journal of a folder. Raises `JournalError`, such as while it is in use."""
        lock = StateLock(folder)
        try:
            for path in (*folder.glob(f"{schema.FILE}*"), folder / ballast.FILE):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(folder, error) from None
        finally:
            lock.release()

    @property
    def trouble(self) -> str:
        """Why no new jobs should be taken, for users; empty: they may be."""
        return self._room.trouble if self._room is not None else ""

    def apply(self, effects: Sequence[JournalEffect]) -> None:
        """Write all of this in one transaction.

        Raises `JournalFull` when there's no room even without the ballast (nothing was written,
        and it may be tried again), or else `JournalBroken` (and again from then on).
        """
        if not effects:
            return
        if self._broken:
            raise JournalBroken(self._broken)
        try:
            self._write(effects)
        except sqlite3.DatabaseError as error:
            if not self._has_made_room(error):
                raise self._failed(error) from None
            self._write_again(effects)

    def load(self) -> Kept:
        """Return all that is there, batches without their jobs. Raises `JournalError`."""
        try:
            return self._tables.load()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from None
        except UNDECODABLE as error:
            raise self._undecodable(error) from None

    def read_batch(self, batch: int) -> list[JobSpec] | None:
        """Return the jobs of a batch as they were submitted; None: there is no such batch.

        Raises `JournalBroken`.
        """
        try:
            return self._tables.jobs(batch)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from None
        except UNDECODABLE as error:
            raise self._failed(self._undecodable(error)) from None

    def read_results(self, record: int) -> Results | None:
        """Return results as they were given; None: there are none. Raises `JournalBroken`."""
        try:
            kept = self._tables.results(record)
            return None if kept is None else kept.message
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from None
        except UNDECODABLE as error:
            raise self._failed(self._undecodable(error)) from None

    def look(self, now: float) -> None:
        """See whether there is room; to be called about every second. Raises `JournalBroken`."""
        if self._room is None:
            return
        try:
            pages, idle = self._number("page_count"), self._number("freelist_count")
            self._room.look((pages - idle) * schema.PAGE_BYTES)
            if idle > IDLE_PAGES and 2 * idle > pages and not self._room.trouble:
                schema.shrink(self._database, SHRINK_PAGES)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._failed(error) from None

    def size_bytes(self) -> int:
        """Return how much it takes on the disk, or in memory."""
        if self._folder is None:
            return self._number("page_count") * self._number("page_size")
        return sum(_size(path) for path in self._folder.glob(f"{schema.FILE}*"))

    def strays(self) -> list[str]:
        """Return what belongs to nothing, in words; for tests: there should be no such things."""
        return self._tables.strays()

    def compact(self) -> None:
        """Remove strays and give all unused space back; takes long. Raises `JournalBroken`."""
        try:
            self._tables.remove_strays()
            schema.shrink(self._database, 0)
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Let others have it; does nothing the second time."""
        with suppress(sqlite3.Error):  # all is in the log already; the next start moves it
            if not self._broken:
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open(self, durability: str, max_bytes: int) -> sqlite3.Connection:
        """Open the file and look it through. Raises `JournalError`."""
        folder = self._folder
        if folder is None:
            return schema.in_memory(new_token())
        self._room = Room(folder, max_bytes)
        try:
            database = schema.opened(folder, durability, new_token())
        except JournalFull:
            if not self._room.give_up():
                raise
            database = schema.opened(folder, durability, new_token())
        found = schema.damage(database)
        if found:
            database.close()
            raise schema.unreadable(folder, found[0])
        return database

    # -- what has to be done when the disk is full, or worse -------------------------------------

    def _write(self, effects: Sequence[JournalEffect]) -> None:
        """Write, or leave nothing of it."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            crashpoint("before-write")
            self._tables.write(effects)
            crashpoint("before-commit")
            self._database.execute("COMMIT")
            crashpoint("after-commit")
        except BaseException:
            if self._database.in_transaction:  # SQLite rolls back by itself after some errors
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    self._database.execute("ROLLBACK")
            raise

    def _write_again(self, effects: Sequence[JournalEffect]) -> None:
        """Write once more, where the ballast was."""
        try:
            self._write(effects)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from None

    def _has_made_room(self, error: sqlite3.Error) -> bool:
        """Whether only the disk was full, and there is room now, where the ballast was."""
        if self._folder is None or self._room is None:
            return False
        return schema.is_full(error, self._folder) and self._room.give_up()

    def _failed(self, error: Exception) -> JournalBroken:
        """Return what to raise; after any error but a full disk nothing is written any more."""
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise error  # a mistake of ours
        told = self._explained(error)
        broken = told if isinstance(told, JournalBroken) else JournalBroken(str(told))
        if not isinstance(broken, JournalFull):
            self._broken = str(broken)
        return broken

    def _explained(self, error: Exception) -> JournalError:
        if isinstance(error, JournalError):
            return error
        if isinstance(error, sqlite3.Error) and self._folder is not None:
            return schema.explained(error, self._folder)
        return JournalBroken(f"the journal in {self._folder} can't be used: {error}")

    def _undecodable(self, error: Exception) -> JournalError:
        return schema.unreadable(self._folder or Path(), f"undecodable, {error}")

    def _number(self, pragma: str) -> int:
        value: Any = self._database.execute(f"PRAGMA {pragma}").fetchone()[0]
        return int(value)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:  # removed just now
        return 0
