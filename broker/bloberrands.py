"""The part of the broker's shell that has files: it does what the scheduler wants done in a store.

It decides nothing. Whatever is wrong with the disk concerns one file and is told to the scheduler.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dispy.protocol.messages import BlobPiece, BlobPieces, Body
from dispy.protocol.payload import PIECE_PART_BYTES
from dispy.protocol.store import SpoiledBlob, Store, idle_bytes
from dispy.protocol.wire import chunked

from .core import Scheduler
from .effects import BlobErrand, KeepPiece, ReadPiece

IDLE_BYTES = 1 << 30  # what is kept although no cluster needs it now ends here
log = logging.getLogger("dispy.broker")


class BlobErrands:
    """The copies of files that a shared broker has.

    ``folder`` is made when it isn't there; what is whole in there is offered to the scheduler, so
    this comes before `Scheduler.restore`. ``send`` sends a message to a registered peer.
    ``synced``: files survive a loss of power. ``spare_bytes`` of the disk are left to others, the
    journal above all. Raises `OSError` when the folder can't be used.
    """

    def __init__(
        self,
        folder: Path,
        scheduler: Scheduler,
        send: Callable[[str, Body], None],
        synced: bool = False,
        spare_bytes: int = 0,
    ) -> None:
        self.store = Store(folder, synced)
        self._spare_bytes = spare_bytes
        self._scheduler = scheduler
        self._send = send
        scheduler.blobs_present(self.store.sweep(), idle_bytes(folder, IDLE_BYTES))

    def carry_out(self, errand: BlobErrand) -> None:
        """Do something; how it went is told to the scheduler, whose next flush goes on from it."""
        if isinstance(errand, KeepPiece):
            self._keep(errand)
        elif isinstance(errand, ReadPiece):
            self._read(errand)
        else:
            self.store.drop(errand.digest)

    def close(self) -> None:
        """Leave only what is whole."""
        self.store.close()

    def _keep(self, piece: KeepPiece) -> None:
        digest = piece.digest
        try:
            if piece.offset and not self.store.has_begun(digest):
                return  # an earlier piece of the same moment could not be written
            self._write(piece)
            if piece.last:
                self.store.commit(digest)
                self._scheduler.blob_kept(digest)
        except SpoiledBlob:
            self._scheduler.blob_spoiled(digest)
        except OSError as error:
            reason = f"it can't be written at the broker: {error.strerror or error}"
            log.warning("blob %s: %s", digest.hex()[:12], reason)
            self._scheduler.blob_failed(digest, reason)

    def _write(self, piece: KeepPiece) -> None:
        system = os.statvfs(self.store.folder)
        size = sum(map(len, piece.buffers))
        if size > system.f_bavail * system.f_frsize - self._spare_bytes:
            self.store.drop(piece.digest)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.store.write(piece.digest, piece.offset, piece.buffers)

    def _read(self, errand: ReadPiece) -> None:
        wanted = errand.piece
        try:
            data = self.store.read(wanted)
        except OSError as error:
            log.warning("blob %s can't be read: %s", wanted.digest.hex()[:12], error)
            self._scheduler.blob_unreadable(errand)
            return
        piece = BlobPiece(wanted.digest, wanted.offset, b"")
        if len(data) < PIECE_PART_BYTES:
            piece.data = data
        else:
            piece.parts = [chunked(data)]
        self._send(errand.peer, BlobPieces(errand.computation, errand.node, [piece]))
