"""Frames to bytes and back.

The only place that decodes what comes from a network: whatever the bytes are, nothing but
`ProtocolError` leaves `Codec.decode`, and it reserves no memory that the bytes don't fill.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .errors import ProtocolError
from .messages import Buffer, Frame, Large

CHUNK_BYTES = 1 << 20  # a larger payload travels in pieces, so that it holds nobody up for long
HEADER_BYTES = 1 << 20  # links split batches whose header would be longer
FRAME_BYTES_MAX = 4 << 20  # sockets refuse longer frames, before anything is allocated
# Of one message. Links need hundreds at most; whoever sends more wants to keep us busy.
FRAMES_MAX = 4096
INCOMPLETE_MAX_BYTES = 16 << 30  # of payloads of all peers that have come in part: for nonsense


def chunked(buffer: Buffer) -> Large:
    """Wrap a payload for the way: slices of at most `CHUNK_BYTES`, not copies."""
    view = memoryview(buffer).cast("B")
    if len(view) <= CHUNK_BYTES:
        return Large(len(view), [buffer] if len(view) else [])
    slices: list[Buffer] = [
        view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES)
    ]
    return Large(len(view), slices)


class Codec:
    """An encoder and a decoder of header frames; one for each thread.

    `Large` values leave a header as their sizes. They are collected in the order in which
    they occur, since their chunks travel in that order beside the header.
    """

    def __init__(self) -> None:
        self._larges: list[Large] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._on_large_out)
        self._decoder = msgspec.msgpack.Decoder(Frame, dec_hook=self._on_large_in)

    def encode(self, frame: Frame) -> tuple[bytes, list[Large]]:
        """Return the header's bytes and the payloads that have to travel beside it."""
        self._larges = []
        header = self._encoder.encode(frame)
        return header, self._larges

    def decode(self, header: Buffer) -> tuple[Frame, list[Large]]:
        """Return the frame and the `Large` values in it, whose chunks are still missing.

        Raises `ProtocolError` for anything that isn't a `Frame` of this protocol.
        """
        self._larges = []
        try:
            frame = self._decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"unreadable message: {error}") from None
        return frame, self._larges

    def _on_large_out(self, value: Any) -> int:
        if not isinstance(value, Large):
            raise TypeError(f"{type(value).__name__} is no type of the protocol")
        self._larges.append(value)
        return value.size

    def _on_large_in(self, kind: type, value: Any) -> Large:
        if kind is not Large or type(value) is not int or value < 0:
            raise ValueError("a size is expected here")
        large = Large(value, [])
        self._larges.append(large)
        return large
