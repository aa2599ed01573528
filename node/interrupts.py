"""When SIGINT ends a job: in the one that it's meant for, and while that one's function runs."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in the place of `signal`: see `runner`

from .jobwire import BEGUN, INTERRUPTED, RUNNING


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt, in the job that it's meant for and nowhere else.

    The process is told the number of that job in the outbox. So an interrupt that arrives before
    the job begins is not lost, and one that arrives after its end hits no other.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.number = 0  # of the present job
        self.running = False  # its function runs
        self.held = False  # it runs, but nothing may be raised just now

    def install(self) -> None:
        """Answer SIGINT from now on, or as soon as it is not held back any more."""
        _signal.signal(_signal.SIGINT, self._on_signal)

    def begin(self, number: int) -> None:
        """Say that the job of this number is the present one; 0: none is."""
        self._words[RUNNING] = number
        if number:
            self.number = self._words[BEGUN] = number

    def is_meant(self) -> bool:
        """Whether the present job is to be interrupted, or was."""
        return self._words[INTERRUPTED] == self.number

    def hold(self) -> bool:
        """Raise nothing until `let_go`; return whether something could have been raised."""
        self.held, self.running = self.running, False
        return self.held

    def let_go(self) -> None:
        """Undo `hold`. Raises KeyboardInterrupt when one has come meanwhile."""
        self.held, self.running = False, True
        if self.running and self.is_meant():
            self.running = False
            raise KeyboardInterrupt

    def _on_signal(self, signum: int, frame: object) -> None:
        if self.running and self.is_meant():
            self.running = False  # once per job: nothing may be raised outside of it
            raise KeyboardInterrupt
