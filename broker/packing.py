"""Messages to what a journal keeps, and back: a header as on the wire, and its chunks.

What is kept is what a client or a node has sent, so it is decoded as strictly as if it came from
the network, and never unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import Body, Buffer, Envelope, Frame, Large
from dispy.protocol.wire import Codec


class Packer:
    """Packs and unpacks single messages; not for two threads at a time."""

    def __init__(self) -> None:
        self._codec = Codec()

    def pack(self, message: Body) -> tuple[bytes, list[Buffer]]:
        """Return a message as a header and the chunks of its payloads, in order."""
        header, larges = self._codec.encode(Envelope(0, 0, 0, [message]))
        if not larges:
            return header, []
        return header, [chunk for large in larges for chunk in large.chunks if len(chunk)]

    def peek(self, header: bytes) -> Body:
        """Return the message without its payloads' chunks. Raises `ProtocolError` as `unpack`."""
        frame, _ = self._codec.decode(header)
        return _only(frame)

    def unpack(self, header: bytes, chunks: Iterable[bytes]) -> Body:
        """Return the message. Raises `ProtocolError` when it isn't one."""
        frame, larges = self._codec.decode(header)
        message = _only(frame)
        rest = iter(chunks)
        for large in larges:
            large.chunks = list(_taken(large, rest))
        if next(rest, None) is not None:
            raise ProtocolError("there are more bytes than the header says")
        return message


def _only(frame: Frame) -> Body:
    if not isinstance(frame, Envelope) or len(frame.messages) != 1:
        raise ProtocolError("a single message was expected")
    return frame.messages[0]


def _taken(large: Large, chunks: Iterator[bytes]) -> Iterator[Buffer]:
    """Yield the next chunks, as many as belong to a payload."""
    missing = large.size
    while missing > 0:
        chunk = next(chunks, b"")
        if not chunk:
            raise ProtocolError(f"{missing} bytes of a payload are missing")
        missing -= len(chunk)
        yield chunk
    if missing:
        raise ProtocolError("the pieces of a payload are longer than the whole")
