"""What a job prints, told while it runs.

A `Feed` takes the pieces that arrive in the session's thread and gives them to one consumer, an
iterator or a callback, as text. A piece counts as heard only when the consumer has taken it, so
whoever is slow holds up the node's reading, and no more than `RECORDS_AHEAD` pieces wait here.
At the job's end what did not come live is taken from the job's result by its offset: everything
is told once, up to the limit of `OUTPUT_BYTES`, and whatever is missing is said with a mark.
"""

from __future__ import annotations

import codecs
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import RECORDS_AHEAD, JobRecord
from dispy.protocol.payload import STDERR, STDOUT, OutputPiece, unpack_output

from . import callbacks
from .log import logger

NOBODY_YET, CALLBACK, GONE = 0, -1, -2  # consumers; a positive number is a follower's
OUTPUT_BYTES = 1 << 20  # of a stream in a result; nodes cut the rest and end it with a mark
NAMES = {STDOUT: "stdout", STDERR: "stderr"}
END_UNKNOWN = "\n[if there was more output, it came too late to be told]\n"

Due: TypeAlias = list[tuple[int, int]]  # attempts and numbers of records


class Output(NamedTuple):
    """Some text that a job has printed."""

    stream: str  # "stdout" or "stderr"
    text: str


class Stream:
    """How far one of the two streams has been told."""

    def __init__(self) -> None:
        self.offset = 0  # bytes told
        self._again = ""  # a mark to be told before anything else
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def restart(self, attempt: int) -> None:
        """The job begins again."""
        if self.offset or self._again:
            self._again = f"\n[the job began again: attempt {attempt}]\n"
        self.offset = 0
        self._decoder.reset()

    def tell(self, offset: int, data: bytes | memoryview) -> str:
        """Return the text of some bytes, without those that were told before."""
        missing = offset - self.offset
        data = data[max(0, -missing) :]
        if not data:
            return ""
        text = self._take_mark()
        if missing > 0:
            text += self._decoder.decode(b"", final=True)
            self._decoder.reset()
            text += f"\n[{missing} bytes of output were not told in time]\n"
        self.offset = max(offset, self.offset) + len(data)
        return text + self._decoder.decode(data)

    def finish(self, final: bytes) -> str:
        """Return the text that remains, given all that the result holds."""
        rest = final[self.offset :]
        cut = len(final) > OUTPUT_BYTES and self.offset > OUTPUT_BYTES
        text = self._take_mark() if rest else ""
        text += self._decoder.decode(b"" if cut else rest, final=True)
        return text + END_UNKNOWN if cut else text

    def _take_mark(self) -> str:
        mark, self._again = self._again, ""
        return mark


class Feed:
    """The output of one job, on its way to its one consumer.

    ``heard(attempt, number)`` is called once for each record, in whichever thread, when it has
    been consumed or is of no use; never while a lock is held. ``to_callback``: the consumer is
    a callback (`deliver`), and `follow` raises. Otherwise it is whoever comes first.
    """

    def __init__(self, heard: Callable[[int, int], None], to_callback: bool = False) -> None:
        self._heard = heard
        self._change = threading.Condition()  # its lock, which may be taken twice, guards:
        self._attempt = 0
        self._streams = {stream: Stream() for stream in NAMES}
        self._pieces: deque[tuple[int, OutputPiece]] = deque()  # with their numbers
        self._ready: deque[Output] = deque()
        self._due: Due = []  # consumed, as soon as nothing is ready any more
        self._final: dict[int, bytes] | None = None  # by stream, from the job's end until told
        self._over = False  # there is nothing more to come
        self._consumer = CALLBACK if to_callback else NOBODY_YET
        self._followers = 0  # that there have been

    # -- for the session's thread --------------------------------------------------------

    def put(self, record: JobRecord) -> bool:
        """Take an OUTPUT record; whether there is now something to `deliver`."""
        try:
            parts = record.parts
            piece = unpack_output(
                record.payload if record.payload or not parts else parts[0].tobytes()
            )
        except ProtocolError as error:
            logger.error("some output of a job was dropped: %s", error)
            self._heard(record.attempt, record.number)
            return False
        with self._change:
            useless = self._put(record.attempt, record.number, piece)
            self._change.notify()
        self._hear(useless)
        return not useless or useless[-1] != (record.attempt, record.number)

    def end(self, attempt: int, stdout: bytes, stderr: bytes) -> None:
        """The job has ended, with this in its result (b"": it has none)."""
        useless: Due = []
        with self._change:
            if self._over or self._final is not None:
                return
            if (stdout or stderr) and attempt > self._attempt:
                useless = self._begin(attempt)
            if self._consumer == GONE:
                self._over = True
            else:
                self._final = {STDOUT: stdout, STDERR: stderr}
            self._change.notify_all()
        self._hear(useless)

    def orphan(self) -> None:
        """In a forked child: whatever was going on goes on in the parent."""
        self._heard = _ignore
        self._change = threading.Condition()
        self._pieces.clear()
        self._ready.clear()
        self._due.clear()
        self._over = True

    # -- for the consumer ----------------------------------------------------------------

    def follow(self) -> Follower:
        """Return the iterator over the output.

        Raises `RuntimeError` while there is another consumer: output is told once. When that
        has gone, a new one gets what comes from then on.
        """
        with self._change:
            if self._consumer not in (NOBODY_YET, GONE):
                raise RuntimeError("the output of the job is being followed already")
            self._followers += 1
            self._consumer = self._followers
        return Follower(self, self._consumer)

    def deliver(self, function: Callable[[Any, str, str], object], job: object) -> None:
        """Call ``function(job, stream, text)`` for what has come; a follower has precedence."""
        with self._change:
            if self._consumer == NOBODY_YET:
                self._consumer = CALLBACK
        while True:
            output, due = self._take(CALLBACK)
            if output is not None:
                callbacks.call(function, job, output.stream, output.text)
            self._hear(due)
            if output is None:
                return

    def next(self, follower: int) -> Output | None:
        """Wait for some output; None: there is no more, or the follower has left."""
        while True:
            output, due = self._take(follower)
            self._hear(due)
            if output is not None or not due:
                return output

    def leave(self) -> None:
        """The follower goes: nobody listens any more, and nothing is held back for it."""
        with self._change:
            self._consumer = GONE
            self._ready.clear()
            due = self._due + [(self._attempt, number) for number, _ in self._pieces]
            self._due = []
            self._pieces.clear()
            if self._final is not None:
                self._final, self._over = None, True
            self._change.notify_all()
        self._hear(due)

    # -- with the lock -------------------------------------------------------------------

    def _put(self, attempt: int, number: int, piece: OutputPiece) -> Due:
        """Keep a piece; return the records that nobody needs."""
        useless: Due = []
        if attempt > self._attempt:
            useless = self._begin(attempt)
        late = self._over or self._final is not None or attempt < self._attempt
        full = len(self._pieces) >= RECORDS_AHEAD  # the node has lost count
        if late or full or self._consumer == GONE:
            useless.append((attempt, number))
        else:
            self._pieces.append((number, piece))
        return useless

    def _begin(self, attempt: int) -> Due:
        """Begin with a new attempt; what waits of the old one is out of date."""
        useless = [(self._attempt, number) for number, _ in self._pieces]
        self._pieces.clear()
        self._attempt = attempt
        for stream in self._streams.values():
            stream.restart(attempt)
        return useless

    def _take(self, consumer: int) -> tuple[Output | None, Due]:
        """Return the next output, and which records are heard once it has been consumed.

        Without both there is no more, or none yet for a callback, which doesn't wait.
        """
        with self._change:
            while not self._ready and not self._over and self._consumer == consumer:
                if self._pieces:
                    self._tell_piece(*self._pieces.popleft())
                elif self._final is not None:
                    self._tell_rest(self._final)
                elif self._due or consumer == CALLBACK:  # no text yet, but the node shall go on
                    break
                else:
                    self._change.wait()
            if self._consumer != consumer:
                return None, []
            output = self._ready.popleft() if self._ready else None
            due, self._due = self._due, []
            return output, due

    def _tell_piece(self, number: int, piece: OutputPiece) -> None:
        self._due.append((self._attempt, number))
        self._tell(piece.stream, self._streams[piece.stream].tell(piece.offset, piece.data))

    def _tell_rest(self, final: dict[int, bytes]) -> None:
        self._final, self._over = None, True
        for stream, content in final.items():
            self._tell(stream, self._streams[stream].finish(content))

    def _tell(self, stream: int, text: str) -> None:
        if text:
            self._ready.append(Output(NAMES[stream], text))

    def _hear(self, due: Due) -> None:
        for attempt, number in due:
            self._heard(attempt, number)


class Follower:
    """Iterates over what a job prints, until it ends. Threads may share it.

    Leaving it (by `close`, at the end of a ``with``, or by dropping it) lets the job print on
    without anybody listening.
    """

    def __init__(self, feed: Feed, number: int) -> None:
        self._feed: Feed | None = feed
        self._number = number

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> Output:
        feed = self._feed
        output = None if feed is None else feed.next(self._number)
        if output is None:
            raise StopIteration
        return output

    def close(self) -> None:
        """End the iteration."""
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.leave()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def whole(stdout: str | None, stderr: str | None) -> Iterator[Output]:
    """Go through the output of a job that has ended."""
    for stream, text in (("stdout", stdout), ("stderr", stderr)):
        if text:
            yield Output(stream, text)


def _ignore(attempt: int, number: int) -> None:
    """Tell nobody."""
