"""The trunk: the connection towards the broker, over which all children's messages go.

What goes up takes turns here; of what has come down the long frames are kept, so that they
needn't come again. Nothing of either outlives the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dispy.protocol.arrivals import Route, Transport
from dispy.protocol.framecache import Kept, Shelf
from dispy.protocol.messages import MARKED, Buffer, Cached, Relayed
from dispy.protocol.pacing import FULL_BYTES, OWN, Pacing
from dispy.protocol.wire import Codec

MARKED_MAX_BYTES = 4 * FULL_BYTES  # when so much waits, the broker doesn't listen to answers


class Trunk:
    """One at a time, or none. ``new_shelf`` makes room for frames that aren't in memory."""

    def __init__(self, codec: Codec, transport: Transport, new_shelf: Callable[[], Shelf]) -> None:
        self.route: Route | None = None  # None: there is none
        self._codec = codec
        self._transport = transport
        self._new_shelf = new_shelf
        self._upward = Pacing(codec)
        self._kept = Kept(new_shelf())

    def begin(self, route: Route | None) -> None:
        """There is a connection; None: it's gone already, as the next event will say."""
        self.route = route

    def end(self) -> None:
        """It is gone, with all that waited to go over it and all that came."""
        self.route = None
        self._upward = Pacing(self._codec)
        self._kept.close()
        self._kept = Kept(self._new_shelf())

    # -- up ----------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """How much waits to go up."""
        return self._upward.waiting_bytes

    @property
    def is_full(self) -> bool:
        """Whether so much waits to go up that nothing more should be taken from children."""
        return self.waiting_bytes > FULL_BYTES

    @property
    def has_room(self) -> bool:
        """Whether children may be listened to again."""
        return self.waiting_bytes <= FULL_BYTES // 2

    def carry(self, child: int, frames: list[Buffer]) -> None:
        """Pass on what a child says; its number is in front already."""
        self._upward.add(child, frames)

    def tell(self, child: int, event: int, text: str = "", refused: bool = False) -> None:
        """Say something about a child, after all that it has said itself."""
        self._upward.add(child, [self._encode(Relayed(child, event, text, refused))])

    def answer(self, mark: int) -> None:
        """Tell the broker that its mark has arrived, before all else."""
        if self.waiting_bytes <= MARKED_MAX_BYTES:
            self._upward.add(OWN, [self._encode(Relayed(mark, MARKED))])

    def marked(self, mark: int, now: float) -> None:
        """The broker says that a mark has arrived there."""
        self._upward.marked(mark, now)

    def flush(self, now: float) -> bool:
        """Send what may go; return False if the transport takes no more for the moment."""
        if self.route is None:
            return True
        return self._upward.flush(now, partial(self._transport.send, self.route))

    # -- down --------------------------------------------------------------------------------

    def restore(self, cached: Cached | None, frames: Sequence[Buffer]) -> list[Buffer] | None:
        """Put back what was left out of a message on its way down; see `Kept.restore`."""
        return self._kept.restore(cached, frames)

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self._upward.check()
        self._kept.check()
        assert self.route is not None or not self.waiting_bytes

    def _encode(self, relayed: Relayed) -> bytes:
        header, _ = self._codec.encode(relayed)
        return header
