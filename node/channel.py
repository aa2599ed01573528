"""Small messages with open descriptors, between the processes of one node that are ours.

A message is a tuple of plain values (marshal: both ends run the same Python, and neither runs
foreign code in its loop); one send is one message. Never used towards a job process, whose
bytes are not to be trusted.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

MESSAGE_BYTES = 65536  # the longest message; texts in messages are cut to TEXT_CHARS
TEXT_CHARS = 10000
DESCRIPTORS = 8  # at most so many travel with one message

# Where datagrams of this kind don't keep their bounds, plain ones do (macOS).
KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def pack(value: Any) -> bytes:
    """Return plain values as bytes, for another process of this node."""
    return marshal.dumps(value)


def unpack(data: bytes) -> Any:
    """Undo `pack`."""
    return marshal.loads(data)


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of the connection between two processes of the node.

    A blocking end sends at once. An end made with ``blocking=False`` keeps what the other
    does not take yet: call `flush` when the descriptor is writable while `unsent` is true.
    """

    def __init__(self, sock: socket.socket, blocking: bool) -> None:
        self._socket = sock
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        sock.setblocking(blocking)

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end, and the descriptors that were still to be sent."""
        while self._queue:
            _close_all(self._queue.popleft()[1])
        self._socket.close()

    @property
    def unsent(self) -> bool:
        """Whether messages wait for the other end to take them."""
        return bool(self._queue)

    def send(self, message: tuple[Any, ...], descriptors: Sequence[int] = ()) -> None:
        """Send a message. The descriptors are the channel's from now on, and closed once sent.

        To a peer that is gone nothing is sent: its end is noticed by `receive`.
        """
        data = marshal.dumps(message)
        assert len(data) <= MESSAGE_BYTES and len(descriptors) <= DESCRIPTORS
        self._queue.append((data, descriptors))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it."""
        while self._queue:
            data, descriptors = self._queue[0]
            try:
                self._send_one(data, descriptors)
            except BlockingIOError:
                return
            except OSError:
                # The peer is gone; or too many descriptors are on their way, and then it's
                # better to be told without than not at all: see `receive`.
                if descriptors:
                    _close_all(descriptors)
                    self._queue[0] = (data, ())
                    continue
            self._queue.popleft()
            _close_all(descriptors)

    def _send_one(self, data: bytes, descriptors: Sequence[int]) -> None:
        ancillary = []
        if descriptors:
            rights = array.array("i", descriptors)
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        self._socket.sendmsg([data], ancillary)

    def receive(self) -> tuple[tuple[Any, ...], list[int]] | None:
        """Return the next message and its descriptors (now the caller's); None: not yet.

        There are no descriptors when this process can't have so many more. Raises
        `ChannelClosed` when the other end is gone.
        """
        space = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_BYTES, space, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except OSError:
            raise ChannelClosed from None
        if not data:
            raise ChannelClosed
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % 4])
        if flags & socket.MSG_CTRUNC:
            _close_all(descriptors)
            del descriptors[:]
        return marshal.loads(data), descriptors.tolist()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make both ends of a channel, still as sockets: one of them is to be sent away."""
    return socket.socketpair(socket.AF_UNIX, KIND)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
