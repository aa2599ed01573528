"""Looks after the connections to the processes of the node: who can be read, who can be written.

They are all in one selector, with what is to be called as the data of each.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .channel import Channel

READ = selectors.EVENT_READ
_READ_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE


def send(
    selector: selectors.BaseSelector,
    connection: Channel,
    message: tuple[Any, ...],
    descriptors: Sequence[int] = (),
) -> None:
    """Send a message to the zygote or a template, or keep it until that is possible."""
    if connection.fileno() < 0:
        return
    connection.send(message, descriptors)
    watch_write(selector, connection, connection.unsent)


def watch_write(
    selector: selectors.BaseSelector, connection: Channel | socket.socket, wanted: bool
) -> None:
    """Have it called also when it can be written, from now on, or no more."""
    with suppress(KeyError):  # it has closed its end
        key = selector.get_key(connection)
        events = _READ_WRITE if wanted else READ
        if key.events != events:
            selector.modify(connection, events, key.data)
