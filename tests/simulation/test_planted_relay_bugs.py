"""The same for relays: each bug planted in what goes through them must be caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from dispy.protocol import connections, framecache, introductions, link, pacing, trunks
from dispy.relay import connections as relay_connections

from .planting import PART, Bug, catching_seed, planted
from .relayedworlds import (
    play_dead_node,
    play_dead_relay,
    play_relayed_seed,
    play_shared_file,
    play_slow_trunk,
)
from .world import World

FAULTS = 12
GOOD = (37, 24)  # they catch most, so they go first
SEEDS: Sequence[int] = (*GOOD, *range(FAULTS, 1500, FAULTS + 1))

DIRECTED: dict[int, Callable[[], World]] = {
    -6: partial(play_dead_node, 2),
    -5: partial(play_slow_trunk, 3e5),
    -4: partial(play_slow_trunk, 3e5, 2),
    -3: partial(play_dead_relay, 2, 2.0),
    -2: partial(play_dead_relay, 1, 0.0),
    -1: play_shared_file,
}

X, Y = connections.Connections, introductions.Introductions
R, P, T, L = relay_connections.Connections, pacing.Pacing, trunks.Trunk, link.Link
BUGS = [
    Bug(X, "_orphan", "self.broken(link, reason, False, relay.heard, self.news)", "pass"),
    Bug(X, "_orphan", "self.trunks.close(route)", "pass"),
    Bug(Y, "_on_lost", "connections.broken(link, lost.text, lost.refused, now, events)", "pass"),
    Bug(Y, "_on_introduced", "self._handshake.say_hello(dial, route, now)", "pass"),
    Bug(X, "with_news", "return news + events", "return events"),
    Bug(X, "forget", 'self._orphan(link, route, "its relay has left")', "pass"),
    Bug(X, "enter", "is_relayed or isinstance(route, tuple)", "False"),
    Bug(trunks.Trunks, "answer", "self._send(route, [header])", "pass"),
    Bug(trunks.Trunks, "send", "trunk.pacing.is_full and", "False and"),
    Bug(T, "enter", "len(self._entered) >= CACHED_FROM", "False"),
    Bug(P, "marked", "self._arrived_bytes = mark.sent_bytes", "pass"),
    Bug(P, "flush", "self._on_its_way < self._way_bytes", "True"),
    Bug(framecache.Sent, "sent", "self._sizes[digest] = size", "pass"),
    Bug(L, "limit", "RELAYED_CHUNK_BYTES if is_relayed else CHUNK_BYTES", "CHUNK_BYTES"),
    Bug(R, "down", "self._trunk.tell(child.number, LOST, down.reason, down.refused)", "pass"),
]


def play(seed: int) -> None:
    play_relayed_seed(seed, FAULTS)


@pytest.mark.parametrize("bug", BUGS[::PART], ids=lambda bug: f"{bug.function}: {bug.line}")
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    with planted(bug):
        seed = catching_seed(play, SEEDS, DIRECTED)
    assert seed is not None, "the bug survived all seeds"
    print(f"caught by seed {seed}")


def test_without_a_bug_nothing_fails() -> None:
    assert catching_seed(play, GOOD, DIRECTED) is None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.function}: {bug.line}")
def test_each_bug_can_be_planted(bug: Bug) -> None:
    with planted(bug):
        pass


def test_there_are_enough_bugs() -> None:
    assert len(set(BUGS)) == len(BUGS) >= 12
