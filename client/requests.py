"""Questions to the broker about nodes and jobs, and the threads that wait for the answers.

Each has a number in its cluster. Nobody waits for ever: what isn't answered in time has failed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple


class Reply(NamedTuple):
    """What a question came to."""

    code: int  # 0 or a count; -1: it failed
    text: str  # why, or what was asked for


class Requests:
    """The open questions of one cluster."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._change = threading.Condition()
        self._open: dict[int, Reply | None] = {}
        self._closed = False

    def ask(
        self,
        send: Callable[[int], None],
        timeout_s: float,
        progress: Callable[[], object] = lambda: None,
    ) -> Reply:
        """Send a question with its number and wait for the answer.

        The time begins anew whenever ``progress`` returns something else than before.
        """
        number = next(self._numbers)
        with self._change:
            if self._closed:
                return Reply(-1, "the cluster is closed")
            self._open[number] = None
        try:
            send(number)
            return self._wait(number, timeout_s, progress)
        finally:
            with self._change:
                del self._open[number]

    def answer(self, number: int, code: int, text: str) -> None:
        """The answer has come."""
        with self._change:
            if number in self._open:
                self._open[number] = Reply(code, text)
                self._change.notify_all()

    def close(self) -> None:
        """No answer comes any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def orphan(self) -> None:
        """In a forked child, where nobody answers."""
        self._change = threading.Condition()
        self._closed = True

    def _wait(self, number: int, timeout_s: float, progress: Callable[[], object]) -> Reply:
        before = progress()
        while not self._over(number, timeout_s):
            now = progress()
            if now == before:
                return Reply(-1, f"there was no answer for {timeout_s:g} seconds")
            before = now
        return self._open[number] or Reply(-1, "the cluster is closed")

    def _over(self, number: int, timeout_s: float) -> bool:
        with self._change:
            return self._change.wait_for(
                lambda: self._closed or self._open[number] is not None, timeout_s
            )
