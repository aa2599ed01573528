"""What one job says while it runs, at the node's end: numbers, and how far ahead it may be.

The job process counts its own records, ever; towards the client all records of an attempt are
numbered from 1, those of output that the node reads among them. Pure.
"""

from __future__ import annotations

from collections import deque

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import FILE, OUTPUT, RECORD_BYTES, RECORDS_AHEAD, JobRecord, Large
from dispy.protocol.payload import INLINE_BYTES, PATH_BYTES_MAX, pack_output

from .jobwire import FILE_BYTES, OWN_AHEAD

OUTPUT_AHEAD = RECORDS_AHEAD - OWN_AHEAD
PIECE_BYTES_MAX = FILE_BYTES + PATH_BYTES_MAX + 64  # of a file, with what is told of it
assert OUTPUT_AHEAD >= 2 and FILE_BYTES <= RECORD_BYTES


class Conversation:
    """The records of one attempt. ``before`` have come from its process for other jobs."""

    def __init__(self, seq: int, attempt: int, before: int) -> None:
        self.seq = seq
        self.attempt = attempt
        self.own = before  # records that the process has sent, ever
        self._number = 0  # of the last record
        self._unheard: deque[tuple[int, int]] = deque()  # number, and of its own; 0: output
        self.told = [0, 0]  # bytes of stdout and stderr

    def tell(self, kind: int, payload: bytes, parts: list[Large]) -> JobRecord:
        """Number a record of the job. Raises `ProtocolError` for one that it may not send."""
        if kind == FILE and len(payload) + sum(part.size for part in parts) > PIECE_BYTES_MAX:
            raise ProtocolError("a job process sent too large a piece of a file")
        if sum(1 for _, own in self._unheard if own) >= OWN_AHEAD:
            raise ProtocolError("a job process sent records without waiting for its turn")
        self.own += 1
        return self._record(self.own, kind, payload, parts)

    @property
    def has_room(self) -> bool:
        """Whether more output may be told."""
        return sum(1 for _, own in self._unheard if not own) < OUTPUT_AHEAD

    def tell_output(self, stream: int, data: bytes) -> JobRecord:
        """Number a record of output, which continues what has been told of it."""
        content = pack_output(stream, self.told[stream - 1], data)
        self.told[stream - 1] += len(data)
        if len(content) < INLINE_BYTES:
            return self._record(0, OUTPUT, content, [])
        return self._record(0, OUTPUT, b"", [Large(len(content), [content])])

    def _record(self, own: int, kind: int, payload: bytes, parts: list[Large]) -> JobRecord:
        self._number += 1
        self._unheard.append((self._number, own))
        return JobRecord(self.seq, self.attempt, self._number, kind, payload, parts)

    def hear(self, number: int, error: str) -> tuple[int, str]:
        """Note that the client has dealt with all records up to this number.

        Returns how many of the process's own that makes, and why it refuses the last of them;
        0 when there is nothing to tell the process.
        """
        heard = 0
        refusal = ""
        while self._unheard and self._unheard[0][0] <= number:
            last, own = self._unheard.popleft()
            heard = own or heard
            refusal = error if own and last == number else ""
        return heard, refusal
