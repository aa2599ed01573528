"""Files of which a shared broker has a copy: which, for which clusters, and who waits for them.

Each file comes from a client once, however many nodes need it, and stays while a cluster needs
it, so that nodes can be set up when its client is away. How files get here is decided in
`fetching`; `blobs` says it to clients and nodes. Only this file changes these records.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dispy.protocol.blobs import file_name
from dispy.protocol.fetching import Claim, DropBlob, Fetching, KeepPiece
from dispy.protocol.messages import PIECE_BYTES, BlobPiece, BlobRange, FileSpec

if TYPE_CHECKING:
    from .state import Allocation, Cluster

LOOK_S = 5.0  # how often it is looked who needs what, and which clients are there
STOCK_S = 60.0  # after the start: until then clusters and jobs have said what they need

_ALL = 1 << 62  # bytes


@dataclass(eq=False)
class Need:
    """A file that a cluster needs. ``waiting``: its nodes that have asked for it too early."""

    cluster: Cluster
    file: FileSpec
    claim: Claim | None = None  # None: it isn't asked for before a node asks, or couldn't be had
    waiting: dict[Allocation, None] = field(default_factory=dict)


class Request(NamedTuple):
    """What a node has asked for and needn't wait for any more; ``error``: it can't be had."""

    allocation: Allocation
    piece: BlobRange
    error: str = ""


class Warehouse:
    """What clusters need, and what the broker has of that.

    ``ahead``: files are fetched at once and not only when a node asks, so that clients may end.
    ``peer_of`` names the client of a cluster; None: it isn't there. ``max_file_bytes``: larger
    files are refused; 0: none are.
    """

    def __init__(
        self, ahead: bool, peer_of: Callable[[int], Hashable], max_file_bytes: int = 0
    ) -> None:
        self.fetching = Fetching(_ALL, max_file_bytes, "broker", peer_of)
        self.look_at = 0.0  # when to `look` next
        self._limit_at = -1.0  # when the limit begins to hold; below 0: not known yet
        self._idle_bytes = 0  # what may lie unused
        self._ahead = ahead
        self._needs: dict[int, dict[bytes, Need]] = {}  # by cluster id and digest
        self._changing: set[int] = set()  # clusters that may need less later on

    @property
    def stirred(self) -> bool:
        """Whether there may be something to ask for, to write or to pass on now."""
        fetching = self.fetching
        return bool(fetching.stirred or fetching.effects or fetching.settled)

    def take_stock(self, sizes: Mapping[bytes, int], idle_bytes: int) -> None:
        """See what is in the store at the start; some time later, what nobody needs may go."""
        self._idle_bytes = idle_bytes
        self.fetching.found(sizes)

    # -- what clusters need -----------------------------------------------------------------

    def need(self, cluster: Cluster, files: Iterable[FileSpec], lasting: bool = False) -> None:
        """Have files that a cluster needs; ``lasting``: until it is closed."""
        for file in files:
            needs = self._needs.setdefault(cluster.id, {})
            if not lasting:
                self._changing.add(cluster.id)
            if file.digest not in needs:
                need = needs[file.digest] = Need(cluster, file)
                if self._ahead:
                    self._claim(need)

    def look(self, clusters: dict[int, Cluster], now: float) -> None:
        """Let go what nobody needs any more, and ask those clients that are there now.

        Jobs and requests that needed files end in many places; nothing is lost when these files
        stay some seconds longer.
        """
        self.look_at = now + LOOK_S
        if self._limit_at < 0:
            self._limit_at = now + STOCK_S
        elif now >= self._limit_at:
            self.fetching.limit(self._idle_bytes)
        for number in list(self._needs):
            cluster = clusters.get(number)
            if cluster is None or cluster.closing:
                for need in self._needs.pop(number).values():
                    self._unclaim(need)
                self._changing.discard(number)
            elif number in self._changing:
                self._let_go(cluster)
        self.fetching.look_around()

    def _let_go(self, cluster: Cluster) -> None:
        """Let go what a cluster needs no more."""
        needs = self._needs[cluster.id]
        for digest in needs.keys() - {file.digest for file in files_of(cluster)}:
            if not needs[digest].waiting:  # else a node still has a job that has ended
                self._unclaim(needs.pop(digest))

    def _claim(self, need: Need) -> str:
        """Begin to fetch a file that isn't here; return why it is refused, or nothing."""
        claim = Claim(need.cluster.id, need, [need.file])
        refusal = self.fetching.add(claim)
        if refusal:
            return refusal.removeprefix(f"{need.file.path}: ")  # whoever asks knows its name
        need.claim = claim
        return ""

    # -- what nodes ask for -----------------------------------------------------------------

    def ask(self, allocation: Allocation, piece: BlobRange) -> Request | None:
        """A node asks for a piece. None: it waits until the broker has the whole file."""
        need = self._needs.get(allocation.cluster.id, {}).get(piece.digest)
        if need is None:
            error = f"no file of this cluster has the content {file_name(piece.digest)}"
            return Request(allocation, piece, error)
        size = need.file.size
        if not (0 <= piece.size <= PIECE_BYTES and 0 <= piece.offset <= size - piece.size):
            return Request(allocation, piece, f"it has only {size} bytes")
        if need.claim is None or self._is_lost(need):
            self._unclaim(need)
            if refusal := self._claim(need):
                return Request(allocation, piece, refusal)
        assert need.claim is not None
        if not need.claim.missing:
            return Request(allocation, piece)
        need.waiting[allocation] = None
        allocation.asked[piece.digest, piece.offset] = piece
        return None

    def _is_lost(self, need: Need) -> bool:
        """Whether a file that was here can't be read any more."""
        assert need.claim is not None
        return not need.claim.missing and need.file.digest not in self.fetching.held

    def _unclaim(self, need: Need) -> None:
        if need.claim is not None:
            self.fetching.drop(need.claim)
            need.claim = None

    def awaited(self, allocation: Allocation) -> list[str]:
        """Return the names of files that a node waits for, since the broker hasn't got them yet."""
        needs = self._needs.get(allocation.cluster.id, {})
        return sorted({needs[digest].file.path for digest, _ in allocation.asked})

    def forget(self, allocation: Allocation) -> None:
        """A node doesn't wait for files of a cluster any more."""
        needs = self._needs.get(allocation.cluster.id, {})
        for digest, _ in allocation.asked:
            if digest in needs:
                needs[digest].waiting.pop(allocation, None)
        allocation.asked.clear()

    # -- what comes -------------------------------------------------------------------------

    def settle(self) -> list[Request]:
        """Return the requests that waited for files which are here now, or can't be had."""
        settled, self.fetching.settled = self.fetching.settled, []
        ready: list[Request] = []
        for claim, error in settled:
            need: Need = claim.owner
            if error and need.claim is claim:
                need.claim = None
            ready += self._answer(need, error.removeprefix(f"{need.file.path}: "))
        return ready

    @staticmethod
    def _answer(need: Need, error: str) -> list[Request]:
        waiting, need.waiting = need.waiting, {}
        ready: list[Request] = []
        for allocation in waiting:
            for key in [key for key in allocation.asked if key[0] == need.file.digest]:
                ready.append(Request(allocation, allocation.asked.pop(key), error))
        return ready

    def receive(self, cluster: int, pieces: Iterable[BlobPiece], now: float) -> None:
        """Take in what a client has sent for the broker itself."""
        for piece in pieces:
            self.fetching.receive(cluster, piece, now)

    def requests(self, now: float) -> list[tuple[int, list[BlobRange]]]:
        """Return what to ask clients for now, by cluster."""
        self.fetching.tick(now)
        return self.fetching.requests(now) if self.fetching.stirred else []

    def take_effects(self) -> list[KeepPiece | DropBlob]:
        """Return what is to be done in the store."""
        effects, self.fetching.effects = self.fetching.effects, []
        return effects

    # -- invariants -------------------------------------------------------------------------

    def check(self, clusters: Iterable[Cluster]) -> None:
        """Assert what must hold between any two calls; ``clusters`` are all that there are."""
        needs = [need for each in self._needs.values() for need in each.values()]
        self.fetching.check([need.claim for need in needs if need.claim is not None])
        for need in needs:
            assert not need.waiting or need.claim is not None
            for allocation in need.waiting:
                assert any(digest == need.file.digest for digest, _ in allocation.asked)
        for cluster in clusters:
            if cluster.closing:
                continue
            known = self._needs.get(cluster.id, {})
            assert {file.digest for file in files_of(cluster)} <= known.keys()
            for allocation in cluster.allocations.values():
                for digest, _ in allocation.asked:
                    assert allocation in known[digest].waiting


def files_of(cluster: Cluster) -> Iterator[FileSpec]:
    """Go over all files that a cluster needs now: its own, and those of its nodes and jobs."""
    yield from cluster.computation.files
    for spec in cluster.specs:
        yield from spec.files
    for share in cluster.shares.values():
        yield from share.files
    for allocation in cluster.allocations.values():
        yield from allocation.share.files
        yield from allocation.puts.values()
    for job in cluster.jobs.values():
        if job.spec.options is not None:
            yield from job.spec.options.files
