"""The broker in the client's own process: a transport, and a thing to wait on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dispy.broker.embedded import OUTSIDE, Broker

WAIT_S = 0.1
NONSENSE = b"\xc0"  # which the broker drops without an answer


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker("test", 0)
    yield broker
    broker.close()


def record_waits(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of how long the broker waits for its sockets from now on, as it grows."""
    broker.poll(0.0)
    selector = broker._bus._sockets.selector
    select, waits = selector.select, []

    def recorded(timeout: float) -> Any:
        waits.append(timeout)
        return select(timeout)

    monkeypatch.setattr(selector, "select", recorded)
    return waits


@pytest.mark.parametrize("has_looked", [True, False], ids=["sockets next", "client next"])
def test_who_wakes_it_is_seen_at_once_whatever_it_has_to_do(
    broker: Broker, has_looked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = record_waits(broker, monkeypatch)
    broker._bus.has_looked = has_looked
    broker.send(OUTSIDE, [NONSENSE])
    broker.wake()
    broker.poll(WAIT_S)
    assert waits == [0.0]


def test_it_waits_when_nobody_has_anything_to_say(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = record_waits(broker, monkeypatch)
    broker.send(OUTSIDE, [NONSENSE])
    broker.poll(WAIT_S)
    assert len(waits) == 1 and 0.0 < waits[0] <= WAIT_S
