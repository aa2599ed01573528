"""The simulator finds bugs: each one planted here must be caught, or the faults are too tame.

A bug is a change of one line. It is made in the source text of a function, which is compiled
anew and put into place for the time of the test.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

from dispy.broker import core as broker_core
from dispy.broker import placement
from dispy.node import core as node_core
from dispy.protocol import exchange, link

from .scenarios import play_cancelled_queue, play_seed

SEEDS: Sequence[int] = range(200)
FAULTS = 5


class Bug(NamedTuple):
    """What is changed, and where."""

    owner: Any  # a class or a module
    function: str
    line: str
    wrong: str


S, A, L, X = broker_core.Scheduler, node_core.Agent, link.Link, exchange.Exchange
BUGS = [
    Bug(S, "_on_loss", "cluster.opened.reentrant and", "True and"),
    Bug(S, "_requeue", "cluster.waiting += 1", "pass"),
    Bug(S, "_place_turn", "spec.attempt += 1", "pass"),
    Bug(S, "away", "node.lost_at = now +", "node.lost_at = 1e9 +"),
    Bug(S, "back", "node.online = True", "pass"),
    Bug(S, "back", 'node.lost_at = float("inf")', "pass"),
    Bug(S, "_close", "self._send(allocation.node.peer, Release(cluster.id))", "pass"),
    Bug(S, "_grant", "cluster.credit = limit", "return"),
    Bug(S, "_end", "del cluster.jobs[job.spec.seq]", "pass"),
    Bug(S, "_end", "cluster.placed += 1", "pass"),
    Bug(S, "_on_released", "self._finish_closing(allocation.cluster)", "pass"),
    Bug(placement, "put", "allocation.node.load += 1", "pass"),
    Bug(placement, "take_off", "offer(other)", "pass"),
    Bug(A, "worker_exited", "self._take_back(worker, len(worker.tasks))", "pass"),
    Bug(A, "_idle", "self._busy -= 1", "pass"),
    Bug(A, "_press", "self._effects.append(Destroy(worker.id))", "pass"),
    Bug(A, "_release", "self._effects.append(StopTemplate(computation.id))", "pass"),
    Bug(A, "revoked", "self._take_back(worker, count)", "pass"),
    Bug(A, "template_gone", "self._send(Released(number))", "pass"),
    Bug(A, "joined", "self._send(Holding(", "str(Holding("),
    Bug(L, "receive", "if envelope.seq != self.received + 1:", "if False:"),
    Bug(L, "receive", "envelope.sent > self.received", "False"),
    Bug(L, "connect", "self._waiting.extendleft(reversed(self._unacked))", "pass"),
    Bug(L, "connect", "reversed(self._unacked)", "self._unacked"),
    Bug(L, "_acknowledged", "self._unacked[0].seq <= seq", "self._unacked[0].seq <= seq + 1"),
    Bug(X, "tick", "now > link.heard + SILENCE_S", "False"),
    Bug(X, "_broken", "self._hang_up(dial)", "pass"),
    Bug(X, "forget", "if dial.peer == peer:", "if False:"),
]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Have the bug in the running program for a while."""
    function = inspect.unwrap(getattr(bug.owner, bug.function))
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(bug.line) == 1, f"{bug.function} has no line {bug.line!r} to spoil"
    right, function.__code__ = function.__code__, compiled(bug, source)
    try:
        yield
    finally:
        function.__code__ = right


def compiled(bug: Bug, source: str) -> CodeType:
    """Compile the function with the bug in it."""
    module = compile(source.replace(bug.line, bug.wrong), f"<planted in {bug.function}>", "exec")
    codes = [const for const in module.co_consts if isinstance(const, CodeType)]
    return next(code for code in codes if code.co_name == bug.function)


def catching_seed() -> int | None:
    """Return the first seed whose run fails; -1 for the run that needs none."""
    for seed in (-1, *SEEDS):
        try:
            if seed < 0:
                play_cancelled_queue()
            else:
                play_seed(seed, FAULTS)
        except Exception:
            return seed
    return None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.function}: {bug.line}")
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    with planted(bug):
        seed = catching_seed()
    assert seed is not None, "the bug survived all seeds"
    print(f"caught by seed {seed}")


def test_there_are_enough_bugs() -> None:
    assert len(BUGS) >= 12
    assert len(set(BUGS)) == len(BUGS)
