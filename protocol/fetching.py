"""Which pieces of which blobs to ask for, through whom; what is in the store, and what may go.

Pure, for nodes and for brokers that keep files. A blob that several computations want is fetched
once, through one of them. Its pieces are asked for and taken in order, so what is here is always
a beginning of it. Only this file changes these records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .blobs import DIGEST_BYTES
from .messages import PIECE_BYTES, BlobPiece, BlobRange, Buffer, FileSpec

BYTES_AHEAD = 8 * PIECE_BYTES  # asked for and not here yet
PIECES_AHEAD = 64  # ... when they are small
TRIES = 2  # how often a blob may turn out to be another than announced
STORE_BYTES = 4 << 30  # what is kept although nobody needs it now ends here
PATIENCE_S = 30.0  # after so long without any piece, ask again; doubles
PATIENCE_MAX_S = 600.0


class KeepPiece(NamedTuple):
    """An effect: append a piece to a blob; at offset 0, begin it anew.

    Answered by `failed` when that can't be done; after the ``last`` piece by `kept` or `spoiled`.
    """

    digest: bytes
    offset: int
    buffers: list[Buffer]
    last: bool


class DropBlob(NamedTuple):
    """An effect: remove a blob, or the part of it that is here."""

    digest: bytes


class Claim:
    """Files that something here needs, for as long as it needs them.

    ``owner`` is whoever waits for them; ``computation`` the one through which to ask.
    """

    __slots__ = ("computation", "files", "missing", "owner")

    def __init__(self, computation: int, owner: Any, files: Sequence[FileSpec]) -> None:
        self.computation = computation
        self.owner = owner
        self.files = {file.digest: file for file in files}
        self.missing: set[bytes] = set()  # not in the store yet


@dataclass(eq=False)
class Blob:
    """A blob on its way."""

    digest: bytes
    size: int
    source: int  # the computation through which it is fetched
    claims: dict[Claim, None] = field(default_factory=dict)
    got: int = 0  # bytes that are here
    asked: int = 0  # bytes that have been asked for, with those
    asked_of: Hashable = None  # whom they were asked of
    tries: int = 0


@dataclass
class Ahead:
    """What one peer has been asked for and hasn't sent yet."""

    size: int = 0
    pieces: int = 0

    def add(self, size: int) -> None:
        """Count some more."""
        self.size += size
        self.pieces += -(-size // PIECE_BYTES)

    @property
    def is_full(self) -> bool:
        """Whether that is enough for now."""
        return self.size >= BYTES_AHEAD or self.pieces >= PIECES_AHEAD


def the_broker(computation: int) -> Hashable:
    """Say whom a node asks."""
    return "broker"


class Fetching:
    """What this process, a ``taker``, has of files, and how it gets the others.

    ``store_bytes`` bounds what is kept; what is claimed stays beyond that. ``max_file_bytes``:
    larger files are refused; 0: none are. ``peer_of`` says who is asked through a computation;
    None: nobody can be now. Computations through which the same peer is asked share its time.
    """

    def __init__(
        self,
        store_bytes: int = STORE_BYTES,
        max_file_bytes: int = 0,
        taker: str = "node",
        peer_of: Callable[[int], Hashable] = the_broker,
    ) -> None:
        self.pieces = 0  # that have arrived, ever
        self.stirred = False  # there may be something to ask for, or to tell
        self.effects: list[KeepPiece | DropBlob] = []
        self.settled: list[tuple[Claim, str]] = []  # complete, or failed for this reason
        self._store_bytes = store_bytes
        self._max_file_bytes = max_file_bytes
        self._taker = taker
        self._peer_of = peer_of
        self.held: dict[bytes, int] = {}  # sizes of what is in the store
        self._idle: dict[bytes, None] = {}  # what nobody claims of it, longest unused first
        self._claimed: Counter[bytes] = Counter()
        self._bytes = 0  # in the store or on the way
        self._blobs: dict[bytes, Blob] = {}
        self._unasked: dict[int, dict[bytes, Blob]] = {}  # by source, in order
        self._asked: dict[bytes, Blob] = {}  # pieces of them are on the way
        self._heard_at = 0.0
        self._patience_s = PATIENCE_S
        self._told = 0  # pieces that the broker knows to have arrived

    @property
    def has_news(self) -> bool:
        """Whether anything of this has happened that somebody has to see to."""
        return bool(self.stirred or self.effects or self.settled)

    def limit(self, store_bytes: int) -> None:
        """Change the bound of what is kept."""
        self._store_bytes = store_bytes
        self._evict()

    def found(self, held: Mapping[bytes, int]) -> None:
        """Take over what is in the store at the start: sizes by digest."""
        for digest, size in held.items():
            if digest not in self._blobs and digest not in self.held:
                self.held[digest] = size
                self._bytes += size
                if not self._claimed[digest]:
                    self._idle[digest] = None
        self._evict()

    # -- claims ---------------------------------------------------------------------------

    def add(self, claim: Claim) -> str:
        """Begin to fetch what is missing for a claim; return why it is refused, or nothing.

        When `Claim.missing` is empty afterwards, all is there; else it gets `settled` later.
        """
        for file in claim.files.values():
            if objection := self._objection(file):
                return f"{file.path}: {objection}"
        for digest, file in claim.files.items():
            self._claimed[digest] += 1
            self._idle.pop(digest, None)
            if digest not in self.held:
                self._want(claim, file)
        self._evict()
        return ""

    def drop(self, claim: Claim) -> None:
        """Whoever made the claim needs these files no more."""
        for digest in claim.missing:
            blob = self._blobs[digest]
            del blob.claims[claim]
            if not blob.claims:
                self._forget(blob)
                self.effects.append(DropBlob(digest))
            elif not self._is_wanted_by(blob, blob.source):
                self._ask_anew(blob)
        claim.missing = set()
        for digest in claim.files:
            self._unclaim(digest)
        claim.files = {}
        self._evict()

    def _objection(self, file: FileSpec) -> str:
        if len(file.digest) != DIGEST_BYTES or file.size < 0:
            return "its description makes no sense"
        if 0 < self._max_file_bytes < file.size:
            return (
                f"it has {file.size} bytes, and this {self._taker} takes no files of more than "
                f"{self._max_file_bytes} (--max-file-size)"
            )
        blob = self._blobs.get(file.digest)
        known = blob.size if blob else self.held.get(file.digest, file.size)
        return "" if known == file.size else "its size isn't that of its content"

    def _want(self, claim: Claim, file: FileSpec) -> None:
        blob = self._blobs.get(file.digest)
        if blob is None:
            blob = self._blobs[file.digest] = Blob(file.digest, file.size, claim.computation)
            self._bytes += blob.size
            if blob.size:
                self._unask(blob)
            else:
                self.effects.append(KeepPiece(blob.digest, 0, [], True))
        blob.claims[claim] = None
        claim.missing.add(file.digest)
        if self._peer_of(blob.source) is None:
            self._ask_anew(blob)

    def _unclaim(self, digest: bytes) -> None:
        self._claimed[digest] -= 1
        if not self._claimed[digest]:
            del self._claimed[digest]
            if digest in self.held:
                self._idle[digest] = None

    def _evict(self) -> None:
        while self._bytes > self._store_bytes and self._idle:
            self.lost(next(iter(self._idle)))

    # -- asking ---------------------------------------------------------------------------

    def requests(self, now: float) -> list[tuple[int, list[BlobRange]]]:
        """Return what to ask for now, by computation; sources take turns.

        One that doesn't answer holds nobody up: each may always have one piece on the way.
        """
        self.stirred = False
        if not self._asked:
            self._heard_at, self._patience_s = now, PATIENCE_S
        has_some = {blob.source for blob in self._asked.values()}
        ahead = self._ahead()
        asks: dict[int, list[BlobRange]] = {}
        turns = [source for source in self._unasked if self._peer_of(source) is not None]
        while turns:
            for source in list(turns):
                peer = self._peer_of(source)
                if source not in self._unasked or (ahead[peer].is_full and source in has_some):
                    turns.remove(source)
                    continue
                wanted = self._next_of(source, peer)
                asks.setdefault(source, []).append(wanted)
                has_some.add(source)
                ahead[peer].add(wanted.size)
        return list(asks.items())

    def tell(self) -> int:
        """Return how many pieces have arrived, ever; 0 if that has been told.

        Each request tells it. When there is none it must be told nevertheless: the broker holds
        back what others ask for, and perhaps the rest of ours, until it knows.
        """
        told, self._told = self._told, self.pieces
        return self.pieces if self.pieces > told else 0

    def _ahead(self) -> defaultdict[Hashable, Ahead]:
        """Count what is on the way, by those who were asked for it."""
        ahead: defaultdict[Hashable, Ahead] = defaultdict(Ahead)
        for blob in self._asked.values():
            ahead[blob.asked_of].add(blob.asked - blob.got)
        return ahead

    def _next_of(self, source: int, peer: Hashable) -> BlobRange:
        unasked = self._unasked[source]
        blob = next(iter(unasked.values()))
        if blob.asked_of != peer:  # what another one was asked for may never come
            blob.asked = blob.got
        wanted = BlobRange(blob.digest, blob.asked, min(PIECE_BYTES, blob.size - blob.asked))
        blob.asked += wanted.size
        blob.asked_of = peer
        self._asked[blob.digest] = blob
        if blob.asked == blob.size:
            self._take_off(blob)
        return wanted

    def ask_again(self, sources: Collection[int] | None = None) -> None:
        """What has been asked for (through these) may be lost: ask for it once more."""
        for blob in reversed(list(self._asked.values())):
            if sources is None or blob.source in sources:
                del self._asked[blob.digest]
                blob.asked = blob.got
                self._take_off(blob)
                self._unask(blob, first=True)

    def look_around(self) -> None:
        """Peers may have come or gone, or have changed: ask those who are there now."""
        for blob in list(self._blobs.values()):
            peer = self._peer_of(blob.source)
            if peer is None or (blob.digest in self._asked and blob.asked_of != peer):
                self._ask_anew(blob)
        self.stirred = self.stirred or bool(self._unasked)

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._heard_at + self._patience_s if self._asked else float("inf")

    def tick(self, now: float) -> None:
        """Ask again when nothing has come for long."""
        if now >= self.deadline():
            self.ask_again()
            self._heard_at = now
            self._patience_s = min(self._patience_s * 2, PATIENCE_MAX_S)

    def _unask(self, blob: Blob, first: bool = False) -> None:
        """Have the rest of a blob asked for."""
        others = self._unasked.setdefault(blob.source, {})
        if first:
            self._unasked[blob.source] = {blob.digest: blob, **others}
        else:
            others[blob.digest] = blob
        self.stirred = True

    def _take_off(self, blob: Blob) -> None:
        others = self._unasked.get(blob.source, {})
        if others.pop(blob.digest, None) is not None and not others:
            del self._unasked[blob.source]

    # -- answers --------------------------------------------------------------------------

    def receive(self, computation: int, piece: BlobPiece, now: float) -> None:
        """Take a piece in; one that isn't expected (any more) is dropped."""
        self.pieces += 1
        self._heard_at, self._patience_s = now, PATIENCE_S
        self.stirred = True
        blob = self._blobs.get(piece.digest)
        if blob is None or blob.source != computation:
            return
        if piece.error:
            self._refused(blob, piece.error)
        elif piece.offset == blob.got < blob.asked:
            self._append(blob, piece)

    def _append(self, blob: Blob, piece: BlobPiece) -> None:
        buffers: list[Buffer] = [piece.data] if piece.data else []
        for part in piece.parts:
            buffers += part.chunks
        size = sum(map(len, buffers))
        if size != min(PIECE_BYTES, blob.size - blob.got):
            self._refused(blob, "the client sent a piece of another size than asked for")
            return
        self.effects.append(KeepPiece(blob.digest, blob.got, buffers, blob.got + size == blob.size))
        blob.got += size
        if blob.got == blob.asked:
            del self._asked[blob.digest]

    def kept(self, digest: bytes) -> None:
        """A blob is in the store, whole and verified."""
        blob = self._blobs.get(digest)
        if blob is None or blob.got != blob.size:
            return  # nobody wanted it any more; it's being dropped
        self._forget(blob)
        self.held[digest] = blob.size
        self._bytes += blob.size
        for claim in blob.claims:
            claim.missing.discard(digest)
            if not claim.missing:
                self.settled.append((claim, ""))

    def spoiled(self, digest: bytes) -> None:
        """What has come of a blob isn't what its name says; the store has dropped it."""
        blob = self._blobs.get(digest)
        if blob is None or blob.got != blob.size:
            return
        if not blob.size:
            self.failed(digest, "its description makes no sense")
            return
        blob.tries += 1
        self._start_over(blob)
        if blob.tries >= TRIES:
            self._refused(blob, "what the client sent is not the file that it announced")

    def failed(self, digest: bytes, reason: str) -> None:
        """The store can't take a blob; what was there of it is removed.

        While there is something that nobody needs, that goes, and it is tried again.
        """
        blob = self._blobs.get(digest)
        if blob is None:
            return
        if self._idle and blob.size:
            for idle in list(self._idle):
                self.lost(idle)
            self._start_over(blob)
            return
        for claim in list(blob.claims):
            self._fail(claim, digest, reason)

    def lost(self, digest: bytes) -> None:
        """A blob is not to be in the store any more, or can't be read there."""
        if digest in self.held:
            self._idle.pop(digest, None)
            self._bytes -= self.held.pop(digest)
            self.effects.append(DropBlob(digest))

    def _refused(self, blob: Blob, reason: str) -> None:
        """The source doesn't have it; maybe another has."""
        for claim in [each for each in blob.claims if each.computation == blob.source]:
            self._fail(claim, blob.digest, reason)

    def _fail(self, claim: Claim, digest: bytes, reason: str) -> None:
        self.settled.append((claim, f"{claim.files[digest].path}: {reason}"))
        self.drop(claim)

    def _ask_anew(self, blob: Blob) -> None:
        """Ask for the rest of it through whoever of those that want it can be asked now."""
        if blob.got == blob.size:
            return  # all of it is here, it is only not verified yet
        self._asked.pop(blob.digest, None)
        self._take_off(blob)
        sources = [claim.computation for claim in blob.claims]
        source = next((each for each in sources if self._peer_of(each) is not None), sources[0])
        if source != blob.source:
            blob.source, blob.tries = source, 0
        blob.asked = blob.got
        self._unask(blob)

    def _start_over(self, blob: Blob) -> None:
        """Nothing of a blob is here any more: ask for all of it."""
        self._asked.pop(blob.digest, None)
        self._take_off(blob)
        blob.got = blob.asked = 0
        self._unask(blob)

    def _forget(self, blob: Blob) -> None:
        """The blob isn't on its way any more."""
        del self._blobs[blob.digest]
        self._asked.pop(blob.digest, None)
        self._take_off(blob)
        self._bytes -= blob.size
        self.stirred = True

    @staticmethod
    def _is_wanted_by(blob: Blob, computation: int) -> bool:
        return any(claim.computation == computation for claim in blob.claims)

    # -- invariants -----------------------------------------------------------------------

    def check(self, claims: Iterable[Claim] | None = None) -> None:
        """Assert what must hold between any two calls; ``claims`` are all that there are."""
        if claims is not None:
            assert Counter([digest for claim in claims for digest in claim.files]) == self._claimed
        coming = sum(blob.size for blob in self._blobs.values())
        assert self._bytes == sum(self.held.values()) + coming
        assert not self.held.keys() & self._blobs.keys()
        assert self._idle.keys() == self.held.keys() - self._claimed.keys()
        assert not self._idle or self._bytes <= self._store_bytes
        assert all(self._unasked.values())
        for peer, ahead in self._ahead().items():
            sources = {blob.source for blob in self._asked.values() if blob.asked_of == peer}
            assert ahead.size <= BYTES_AHEAD + PIECE_BYTES * len(sources)
        for blob in self._blobs.values():
            self._check_blob(blob)

    def _check_blob(self, blob: Blob) -> None:
        assert blob.claims and 0 <= blob.got <= blob.asked <= blob.size
        assert all(blob.digest in claim.missing for claim in blob.claims)
        assert len(blob.claims) <= self._claimed[blob.digest]
        assert (blob.digest in self._asked) == (blob.asked > blob.got)
        is_unasked = blob.digest in self._unasked.get(blob.source, {})
        assert is_unasked == (blob.asked < blob.size)
        assert blob.got == blob.size or self._is_wanted_by(blob, blob.source)
