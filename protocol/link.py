"""One session with one peer: numbered, acknowledged, resent after a broken connection.

A socket is only a fast pipe: over a reconnect it loses and reorders messages. A link
outlives its connections: what the peer has not acknowledged is sent again over the next one,
what it has is never delivered twice. Pure: time and the way to send are passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from .arrivals import Route
from .errors import Gap, ProtocolError
from .messages import Body, Buffer, Envelope, Identity, Large
from .wire import CHUNK_BYTES, HEADER_BYTES, Codec

BEAT_S = 1.0  # a link that has nothing to say says so this often
SILENCE_S = 3.5  # a connection without any sign of life for so long is taken for broken
RETRY_S = 0.005  # how soon to try again when the transport takes no more
ACK_ENVELOPES = 16  # acknowledge at least every so many envelopes
BEHIND_ENVELOPES = 2 * ACK_ENVELOPES  # unacknowledged: what can wait should wait
ACK_BYTES = CHUNK_BYTES  # ... and so many bytes
WINDOW_BYTES = 16 * CHUNK_BYTES  # unacknowledged at most; bounds what lies in the sockets' queues
# Behind a relay others share the way, which may be slow: signs of life come later.
RELAYED_SILENCE_S = 10.0
RELAYED_WINDOW_BYTES = 4 * CHUNK_BYTES
RELAYED_CHUNK_BYTES = CHUNK_BYTES // 16
# Of payloads in one envelope with several messages: the peer gets none before all are there.
ENVELOPE_BYTES = 4 * CHUNK_BYTES
PIECE_CHUNKS = 512  # in one envelope, however short they are; far fewer than `wire.FRAMES_MAX`
CRUMB_BYTES = 4096  # nobody cuts a payload into shorter chunks than this, but for the last ones
CHUNK_COST_BYTES = 256  # of memory for each chunk, beside its bytes
# Messages that wait for a peer: a limit for those that ask and ask and never take in an answer.
OWED_MAX = 100_000
# Where a message that is too long can be cut in two.
BATCH_FIELDS = ("jobs", "results", "records", "pieces", "ranges")

Transmit = Callable[[list[Buffer]], bool]
Stamp = tuple[int, int, int]  # epoch, seq, ack
Fit = tuple[list[Body], list[Large], bytes]  # messages of one envelope, and its header


class Outgoing(msgspec.Struct, eq=False):
    """An envelope on its way: encoded when sent, since epoch and ack change."""

    seq: int
    messages: list[Body]
    chunks: list[Buffer]
    more: bool
    size: int  # bytes
    header: bytes = b""  # as it was encoded to see whether it fits
    stamp: Stamp | None = None  # what this header says beside the messages


class Link:
    """The session's state on one side. ``route`` is None while there is no connection.

    With ``acks_late``, what has arrived is acknowledged only after `confirm`.
    """

    def __init__(
        self, peer: Identity, session: str, codec: Codec, now: float, acks_late: bool = False
    ) -> None:
        self.peer = peer
        self.session = session
        self.epoch = 0
        self.route: Route | None = None
        self.heard = now
        self.silence_s = SILENCE_S  # without any sign of life: the connection is broken
        self.received = 0  # seq of the last envelope that has arrived
        self.confirmed = 0  # ... of the last that may be acknowledged
        self._acks_late = acks_late
        self._codec = codec
        self._sent_at = now
        self._seq = 0  # of the last envelope made
        self._outbox: list[Body] = []
        self._waiting: deque[Outgoing] = deque()  # made, not handed to the transport
        self._unacked: deque[Outgoing] = deque()
        self._unacked_bytes = 0
        self._chunks: list[Buffer] = []  # arrived ahead of their header
        self.incomplete_bytes = 0  # of memory that these take
        self._window_bytes = WINDOW_BYTES
        self._chunk_bytes = CHUNK_BYTES
        self._acked = 0  # what we last told the peer that we received
        self._unreported_bytes = 0
        self.blocked = False

    # -- the connection under it ---------------------------------------------------------

    def can_resume(self, session: str, received: int) -> bool:
        """Whether a peer that has had so much of a session can go on with it here."""
        return session == self.session and 0 <= received <= self._seq

    def connect(self, route: Route, epoch: int, received: int, now: float) -> None:
        """Go on over a new connection; the peer has had the envelopes up to ``received``."""
        if not 0 <= received <= self._seq:
            raise ProtocolError(f"acknowledges envelope {received}, but {self._seq} were sent")
        self._acknowledged(received)
        self._waiting.extendleft(reversed(self._unacked))
        self._unacked.clear()
        self._unacked_bytes = 0
        self.route, self.epoch, self.heard, self._sent_at = route, epoch, now, now
        self._acked = self.confirmed
        self.blocked = False

    def limit(self, is_relayed: bool) -> None:
        """Keep to the limits of this kind of connection, from now on."""
        self.silence_s = RELAYED_SILENCE_S if is_relayed else SILENCE_S
        self._window_bytes = RELAYED_WINDOW_BYTES if is_relayed else WINDOW_BYTES
        self._chunk_bytes = RELAYED_CHUNK_BYTES if is_relayed else CHUNK_BYTES

    def disconnect(self) -> None:
        """The connection is gone; keep all that isn't acknowledged."""
        self.route = None

    def undelivered(self) -> list[Body]:
        """What the peer has not acknowledged, in order, when the session itself is over."""
        kept = [message for out in (*self._unacked, *self._waiting) for message in out.messages]
        return kept + self._outbox

    # -- sending -------------------------------------------------------------------------

    def send(self, message: Body) -> None:
        """Queue a message; `flush` sends it with all others of the same moment."""
        self._outbox.append(message)

    def flush(self, now: float, transmit: Transmit) -> None:
        """Hand over what is queued, as far as ``transmit`` and the window take it."""
        self.blocked = False
        has_spoken = False
        while self.route is not None and self._unacked_bytes < self._window_bytes:
            if not self._waiting:
                if not self._outbox:
                    break
                self._pack()
            if not self._transmit(self._waiting[0], now, transmit):
                break  # but a sign of life may still pass
            out = self._waiting.popleft()
            self._unacked.append(out)
            self._unacked_bytes += out.size
            has_spoken = True
        if has_spoken or self.route is None:
            return
        if self._owes_a_sign(now):
            self.beat(now, transmit)

    def beat(self, now: float, transmit: Transmit) -> None:
        """Give a bare sign of life, which carries an acknowledgement too."""
        self._transmit(Outgoing(0, [], [], False, 0), now, transmit)

    @property
    def _sent(self) -> int:
        """The last envelope handed to the transport."""
        return self._waiting[0].seq - 1 if self._waiting else self._seq

    @property
    def is_sent(self) -> bool:
        """Whether all that was to be said has been handed to the transport."""
        return not self._waiting and not self._outbox

    @property
    def owes_too_much(self) -> bool:
        """Whether more waits for the peer than for anybody who takes in what it is sent."""
        return len(self._outbox) > OWED_MAX

    @property
    def is_behind(self) -> bool:
        """Whether the peer has yet to take in much of what was said before."""
        return not self.is_sent or len(self._unacked) > BEHIND_ENVELOPES

    def needs_flush(self, now: float) -> bool:
        """Whether `flush` would have something to do; cheap, for the periodic round."""
        return self.route is not None and (
            bool(self._outbox or self._waiting) or self._owes_a_sign(now)
        )

    def _owes_a_sign(self, now: float) -> bool:
        """Whether an acknowledgement is due, or a sign of life."""
        news = self.confirmed - self._acked
        if news >= ACK_ENVELOPES or (news > 0 and self._unreported_bytes >= ACK_BYTES):
            return True
        return now >= self._sent_at + BEAT_S

    def _transmit(self, out: Outgoing, now: float, transmit: Transmit) -> bool:
        if out.stamp == (self.epoch, out.seq, self.confirmed):
            header = out.header
        else:
            sent = 0 if out.seq else self._sent
            envelope = Envelope(self.epoch, out.seq, self.confirmed, out.messages, out.more, sent)
            header, _ = self._codec.encode(envelope)
        if not transmit([header, *out.chunks]):
            self.blocked = True
            return False
        out.header, out.stamp = b"", None
        self._sent_at = now
        self._acked = self.confirmed
        if self.confirmed == self.received:
            self._unreported_bytes = 0
        return True

    def _pack(self) -> None:
        """Turn the outbox into envelopes: long payloads first, in pieces, then the header."""
        messages, self._outbox = self._outbox, []
        stamp = self.epoch, self._seq + 1, self.confirmed
        for batch, larges, header in self._fitting(messages, stamp):
            last = self._make_pieces(larges) if larges else []
            self._seq += 1
            size = len(header) + sum(map(len, last))
            self._waiting.append(Outgoing(self._seq, batch, last, False, size, header, stamp))

    def _make_pieces(self, larges: list[Large]) -> list[Buffer]:
        """Make envelopes of payloads; return the last piece, which goes with the header."""
        chunks = [chunk for large in larges for chunk in large.chunks]
        pieces = _pieces(_cut(chunks, self._chunk_bytes), self._chunk_bytes)
        for piece in pieces[:-1]:
            self._seq += 1
            self._waiting.append(Outgoing(self._seq, [], piece, True, sum(map(len, piece))))
        return pieces[-1] if pieces else []

    def _fitting(self, messages: list[Body], stamp: Stamp) -> list[Fit]:
        """Cut a batch until each header fits into a frame, and no message waits for many others."""
        header, larges = self._codec.encode(Envelope(*stamp, messages))
        fit = messages, larges, header
        if len(header) <= HEADER_BYTES:
            if not larges or len(messages) == 1:
                return [fit]
            if sum([large.size for large in larges]) <= ENVELOPE_BYTES:
                return [fit]
        halves = _halves(messages)
        return [part for half in halves for part in self._fitting(half, stamp)] or [fit]

    def confirm(self) -> None:
        """All that has arrived may be acknowledged: what came of it survives this process."""
        self.confirmed = self.received

    # -- receiving -----------------------------------------------------------------------

    def receive(
        self,
        envelope: Envelope,
        larges: list[Large],
        chunks: list[Buffer],
        now: float,
        header_bytes: int = 0,
    ) -> list[Body]:
        """Take one envelope in; return its messages, complete and in order.

        Raises `ProtocolError` for what the peer can't have meant, `Gap` when one is missing.
        """
        if envelope.epoch != self.epoch:
            return []  # a late one of an earlier connection: it will be or was sent again
        self.heard = now
        if not 0 <= envelope.ack <= self._seq:
            raise ProtocolError(f"acknowledges envelope {envelope.ack} of {self._seq}")
        self._acknowledged(envelope.ack)
        if envelope.seq == 0 and envelope.sent > self.received:
            raise Gap(f"envelope {envelope.sent} was sent, but only {self.received} have come")
        if envelope.seq <= self.received:
            return []
        if envelope.seq != self.received + 1:
            raise Gap(f"envelope {envelope.seq} came after {self.received}")
        self.received = envelope.seq
        if not self._acks_late:
            self.confirmed = self.received
        self._unreported_bytes += header_bytes
        if chunks or larges or self._chunks:
            self._take_chunks(larges, chunks, envelope.more)
        return envelope.messages if not envelope.more else []

    def _take_chunks(self, larges: list[Large], chunks: list[Buffer], more: bool) -> None:
        """Keep pieces of payloads until their header has come, which says whose they are."""
        size = sum(map(len, chunks))
        self._unreported_bytes += size
        self._chunks += chunks
        if more:
            self.incomplete_bytes += size + CHUNK_COST_BYTES * len(chunks)
            return
        arrived, self._chunks = self._chunks, []
        self.incomplete_bytes = 0
        _distribute(larges, arrived)

    def _acknowledged(self, seq: int) -> None:
        while self._unacked and self._unacked[0].seq <= seq:
            self._unacked_bytes -= self._unacked.popleft().size
        while self._waiting and self._waiting[0].seq <= seq:
            self._waiting.popleft()

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert self._acked <= self.confirmed <= self.received
        assert self._unacked_bytes == sum(out.size for out in self._unacked)
        seqs = [out.seq for out in (*self._unacked, *self._waiting)]
        assert seqs == list(range(self._seq - len(seqs) + 1, self._seq + 1))


def _cut(chunks: list[Buffer], size: int) -> list[Buffer]:
    """Cut chunks that are longer than this, without copying them."""
    if size >= CHUNK_BYTES:
        return chunks
    return [
        chunk if len(chunk) <= size else memoryview(chunk)[start : start + size]
        for chunk in chunks
        for start in range(0, len(chunk), size)
    ]


def _pieces(chunks: list[Buffer], size: int = CHUNK_BYTES) -> list[list[Buffer]]:
    """Group chunks so that none of the groups is much longer than one chunk, or has very many."""
    pieces: list[list[Buffer]] = []
    room = 0
    for chunk in chunks:
        if len(chunk) > room or len(pieces[-1]) == PIECE_CHUNKS:
            pieces.append([])
            room = size
        pieces[-1].append(chunk)
        room -= len(chunk)
    return pieces


def _halves(messages: list[Body]) -> list[list[Body]]:
    """Cut a list of messages in two, or its only message if that is a batch."""
    if len(messages) > 1:
        middle = len(messages) // 2
        return [messages[:middle], messages[middle:]]
    for name in BATCH_FIELDS:
        items = getattr(messages[0], name, [])
        if len(items) > 1:
            middle = len(items) // 2
            cut = msgspec.structs.replace
            return [
                [cut(messages[0], **{name: items[:middle]})],
                [cut(messages[0], **{name: items[middle:]})],
            ]
    return []


def _distribute(larges: list[Large], chunks: list[Buffer]) -> None:
    """Give each payload the chunks that make up its size; nothing may be left over."""
    rest = iter(chunks)
    for large in larges:
        missing = large.size
        while missing > 0:
            chunk = next(rest, b"")
            if not chunk:
                raise ProtocolError("a payload is shorter than its header says")
            large.chunks.append(chunk)
            missing -= len(chunk)
        if missing:
            raise ProtocolError("a payload is longer than its header says")
        if len(large.chunks) > 2 + large.size // CRUMB_BYTES:
            raise ProtocolError("a payload has come in crumbs")
    if next(rest, None) is not None:
        raise ProtocolError("a payload that no header mentions")
