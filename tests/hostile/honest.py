"""Peers beside those that lie: they do what they should, and go on with their sessions."""

from __future__ import annotations

import random

from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived
from dispy.protocol.link import BEAT_S

from .babble import Babbler
from .liars import Liar, Wire

SPEC = m.ComputationSpec("c", [m.Code("3.11", m.JobSpec(0, 0, b"f"))])


class Honest(Liar):
    """Answers at once what it is told. ``sessions``: all that it has had, ``results``: of jobs."""

    def __init__(self, wire: Wire, identity: m.Identity, chance: random.Random) -> None:
        super().__init__(wire, identity, Babbler(chance, lies=0.0), f"{identity.name} over 0")
        self.sessions: list[str] = []
        self.results: list[m.JobResult] = []
        self._owed: list[m.Body] = []
        self._unsure: list[m.Body] = []  # said last; lost if the connection was broken before
        self._beat_at = 0.0
        self._connections = 0
        self._has_asked = False

    def hello(self) -> Arrived:
        """Come over a new connection, and go on with the session if there was one."""
        self._connections += 1
        self.route = f"{self.identity.name} over {self._connections}".encode()
        return self._hello(self.session, self._received)

    def owe(self, *messages: m.Body) -> None:
        """Say this next."""
        self._owed += messages

    def next_word(self, now: float) -> Arrived | None:
        """Take in what was said; return what is to be said to that, if there is anything."""
        self.listen()
        if not self.is_in:
            assert not self._has_asked, f"not let in: {self.dismissals[-1:]}"
            self._owed, self._unsure, self._has_asked = [*self._unsure, *self._owed], [], True
            return self.hello()
        self._has_asked = False
        if self.session not in self.sessions:
            self.sessions.append(self.session)
            if self.identity.role == "node":
                self._owed.insert(0, m.Holding([], []))
        for message in self.heard:
            self._owed += self._answers(message)
        if not self._owed and now < self._beat_at:
            return None
        self._beat_at = now + BEAT_S
        self._unsure, self._owed = self._owed, []
        return self.say(self._unsure)

    def _answers(self, message: m.Body) -> list[m.Body]:
        if isinstance(message, m.Prepare):
            return [m.Prepared(message.computation)]
        if isinstance(message, m.Run):
            ends = [
                m.JobResult(job.seq, job.attempt, m.FINISHED, 1.0, 1.5, b"") for job in message.jobs
            ]
            return [m.Done(message.computation, ends)]
        if isinstance(message, m.Withdraw):
            return [m.Returned(message.computation, [])]
        if isinstance(message, m.PutFile):
            return [m.FilePut(message.computation, message.request)]
        if isinstance(message, m.Release):
            return [m.Released(message.computation)]
        if isinstance(message, m.Results):
            self.results += message.results
            return [m.ResultsHeard(message.cluster, [message.record])] if message.record else []
        if isinstance(message, m.Done):
            self.results += message.results
        return []
