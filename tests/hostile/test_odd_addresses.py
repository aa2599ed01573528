"""Whatever somebody says is an address: it can't be dialled, and nothing else comes of it."""

from __future__ import annotations

import time

import pytest

from dispy.protocol.arrivals import Down
from dispy.protocol.transport import Bus

PATIENCE_S = 10.0


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:99999999", "127.0.0.1:-1", "127.0.0.1:x", "127.0.0.1", "", ":", "\0:1",
     "127.0.0.1\0x:1", "é" * 300 + ":1", "[::1:1", "[]:1", "a" * 70 + ":1", "..:1", "\ud7ff:1",
     "127.0.0.1:9" + "9" * 5000, "127.0.0.1;127.0.0.2:1", "\x1b[2J:1"],
)  # fmt: skip
def test_an_odd_address(address: str) -> None:
    bus = Bus()
    try:
        route = bus.dial(address)
        deadline = time.monotonic() + PATIENCE_S
        down: list[Down] = []
        while not down:
            assert time.monotonic() < deadline
            down += [each for each in bus.poll(0.1) if isinstance(each, Down)]
        assert down[0].route == route and down[0].reason
    finally:
        bus.close()
