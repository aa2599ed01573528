"""When to seek peers, whom to answer, and how long to follow what was found.

Pure: the time, what was heard and the source of nonces are passed in, and what is to be done
comes out. What is found is only a hint: an address to dial, forgotten when it leads nowhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias

from . import beacon
from .beacon import HERE, SEEK, Beacon, parse

SEEK_AT_S = (0.0, 1.0, 3.0)  # datagrams get lost, and the others may be starting just now
ANSWER_S = 5.0  # how long an answer may take; what comes later is somebody's recording
HINT_S = 10.0  # a found peer that has not registered by then is forgotten
PATIENCE_S = 2.0  # who seeks us should have dialled by then; else try it the other way round
FRESH_S = 2.0  # so far apart a question may come by different ways; later it is a recording
NONCES_MAX = 4096  # questions that are remembered
WAYS_MAX = 16  # on which a question comes; more are a recording with forged senders
QUESTIONS_MAX = 16  # own ones that may still be answered
ANSWERS_MAX = 100  # in a second
ANSWERS_PER_SOURCE = 10  # ... to the same address
HINTS_MAX = 10_000
SEEKERS_MAX = 1000  # who were answered and are expected to dial

NEVER = float("inf")


class Stance(Enum):
    """How to answer those who seek."""

    OPEN = "open"  # come
    BUSY = "busy"  # I'm here, but work for another
    SILENT = "silent"


@dataclass(frozen=True)
class Face:
    """As what a process shows itself to those who seek, and for whom it looks."""

    role: str
    instance: str
    addresses: tuple[str, ...]  # of its door, "host:port", the best one first
    seeks: frozenset[str]  # roles whose answers count
    answers: frozenset[str]  # roles that are answered


class Ask(NamedTuple):
    """Send this to all."""

    datagram: bytes


class Reply(NamedTuple):
    """Send this to the one whose datagram was heard just now."""

    datagram: bytes


class Follow(NamedTuple):
    """Dial this address, where ``instance`` should answer."""

    address: str
    instance: str


class Drop(NamedTuple):
    """Dial this address no more, if it was for this instance."""

    address: str
    instance: str


class Failed(NamedTuple):
    """A found peer could not be reached; ``why`` says how each of its addresses failed."""

    instance: str
    why: str


class Busy(NamedTuple):
    """A peer is there, but works for another."""

    instance: str
    source: str


Effect: TypeAlias = Ask | Reply | Follow | Drop | Failed | Busy


@dataclass
class Hint:
    """Where a found peer may be."""

    until: float  # forgotten then, unless it has registered
    addresses: dict[str, str] = field(default_factory=dict)  # and how dialling each one failed


class Seeking:
    """What one face of a process knows of others.

    ``is_known`` tells whether an instance is registered here. ``interval_s``: how often to seek
    after the first times; 0: no more.
    """

    def __init__(
        self,
        face: Face,
        key: bytes,
        make_nonce: Callable[[], bytes],
        is_known: Callable[[str], bool],
        interval_s: float = 0.0,
    ) -> None:
        self.face = face
        self.stance = Stance.OPEN
        self.interval_s = interval_s
        self.strangers = 0  # datagrams of other secrets
        self._key = key
        self._make_nonce = make_nonce
        self._is_known = is_known
        self._seek_at: list[float] = []  # ascending
        self._last_asked = -NEVER
        self._asked: OrderedDict[bytes, float] = OrderedDict()  # own nonces, and when
        self._heard: OrderedDict[bytes, _Question] = OrderedDict()  # those of others
        self._hints: dict[str, Hint] = {}
        self._where: dict[str, str] = {}  # whose hint an address is
        self._seekers: dict[str, float] = {}  # who should have dialled, by then
        self._invited: dict[str, None] = {}  # who was told where to dial us
        self._second = 0
        self._answers: dict[str, int] = {}  # in this second, by source

    # -- seeking ---------------------------------------------------------------------------

    @property
    def is_seeking(self) -> bool:
        """Whether something is to be asked, now or later."""
        return bool(self._seek_at)

    def expects_answers(self, now: float) -> bool:
        """Whether an answer to the last question may still come."""
        return now <= self._last_asked + ANSWER_S

    def seek(self, now: float) -> None:
        """Begin anew to ask who is there."""
        self._seek_at = [now + after_s for after_s in SEEK_AT_S]

    def rest(self) -> None:
        """Ask no more, until `seek`."""
        self._seek_at = []
        self._seekers = {}

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        first = self._seek_at[0] if self._seek_at else NEVER
        seekers = min(self._seekers.values(), default=NEVER)
        hints = min((hint.until for hint in self._hints.values()), default=NEVER)
        return min(first, seekers, hints)

    def tick(self, now: float) -> list[Effect]:
        """Ask when it is time, and forget hints that have led nowhere."""
        effects: list[Effect] = []
        self._mind_seekers(now)
        if self._seek_at and now >= self._seek_at[0]:
            effects.append(Ask(self._question(now)))
        for instance, hint in list(self._hints.items()):
            if now >= hint.until:
                hint.until = now + HINT_S
                if not self._is_known(instance):
                    effects += [*self.left(instance), _failed(instance, hint)]
        return effects

    def _question(self, now: float) -> bytes:
        while self._seek_at and self._seek_at[0] <= now:
            self._seek_at.pop(0)
        if not self._seek_at and self.interval_s > 0:
            self._seek_at = [now + self.interval_s]
        nonce = self._make_nonce()
        self._asked[nonce] = self._last_asked = now
        if len(self._asked) > QUESTIONS_MAX:
            self._asked.popitem(last=False)
        return self._say(SEEK, nonce, self.face.addresses)

    def _say(self, kind: int, nonce: bytes, addresses: tuple[str, ...]) -> bytes:
        face = self.face
        return beacon.encode(Beacon(kind, face.role, face.instance, nonce, addresses), self._key)

    def _mind_seekers(self, now: float) -> None:
        """Those who have sought us should have dialled by now: perhaps they can't."""
        for instance, until in list(self._seekers.items()):
            if now >= until:
                del self._seekers[instance]
                if not self._is_known(instance) and self.stance is Stance.OPEN:
                    self._seek_at = sorted({now, *self._seek_at})

    # -- hearing ---------------------------------------------------------------------------

    def heard(self, datagram: bytes, source: str, now: float) -> list[Effect]:
        """Deal with a datagram that came from an IP address, which anybody may have forged."""
        said = beacon.decode(datagram, self._key)
        if said is None:
            self.strangers += beacon.is_ours(datagram)
            return []
        if said.instance == self.face.instance:
            return []
        if said.kind == SEEK:
            return self._on_seek(said, source, now)
        return self._on_here(said, source, now)

    def _on_seek(self, seek: Beacon, source: str, now: float) -> list[Effect]:
        stance = self.stance
        if seek.role not in self.face.answers or stance is Stance.SILENT:
            return []
        if not self._is_new(seek.nonce, source, now) or not self._may_answer(source, now):
            return []
        is_open = stance is Stance.OPEN or self._is_known(seek.instance)
        if is_open:
            self._invite(seek.instance)
        if is_open and seek.role in self.face.seeks and len(self._seekers) < SEEKERS_MAX:
            self._seekers.setdefault(seek.instance, now + PATIENCE_S)
        return [Reply(self._say(HERE, seek.nonce, self.face.addresses if is_open else ()))]

    def _invite(self, instance: str) -> None:
        if len(self._invited) >= HINTS_MAX and instance not in self._invited:
            del self._invited[next(iter(self._invited))]
        self._invited[instance] = None

    def _is_new(self, nonce: bytes, source: str, now: float) -> bool:
        """Whether a question wasn't answered before: once for each way on which it came."""
        question = self._heard.get(nonce)
        if question is None:
            question = self._heard[nonce] = _Question(now)
            if len(self._heard) > NONCES_MAX:
                self._heard.popitem(last=False)
        if now > question.since + FRESH_S or source in question.sources:
            return False
        if len(question.sources) >= WAYS_MAX:
            return False
        question.sources.add(source)
        return True

    def _may_answer(self, source: str, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._answers = int(now), {}
        count = self._answers.get(source, 0)
        if count >= ANSWERS_PER_SOURCE or sum(self._answers.values()) >= ANSWERS_MAX:
            return False
        self._answers[source] = count + 1
        return True

    def _on_here(self, here: Beacon, source: str, now: float) -> list[Effect]:
        asked_at = self._asked.get(here.nonce, -NEVER)
        if here.role not in self.face.seeks or now > asked_at + ANSWER_S:
            return []
        if self._is_known(here.instance):
            return []
        if not here.addresses:
            return [Busy(here.instance, source)]
        hint = self._hints.get(here.instance)
        if hint is None:
            if len(self._hints) >= HINTS_MAX:
                return []
            hint = self._hints[here.instance] = Hint(now + HINT_S)
        new = [each for each in places(here, source) if each not in hint.addresses]
        new = [each for each in new if len(hint.addresses) < beacon.ADDRESSES_MAX * 2]
        effects: list[Effect] = []
        for address in new:
            before = self._where.get(address)
            if before and self._is_known(before) and address not in here.addresses:
                continue  # nobody but the source says so, and that may be forged
            hint.addresses[address] = ""
            if before is not None:  # whoever was found there: it is this one's by now
                effects.append(Drop(address, before))
            self._where[address] = here.instance
            effects.append(Follow(address, here.instance))
        return effects

    # -- what becomes of hints ---------------------------------------------------------------

    def failed(self, address: str, reason: str) -> bool:
        """Note how dialling an address failed; return whether it was a hint's."""
        hint = self._hints.get(self._where.get(address, ""))
        if hint is None:
            return False
        hint.addresses[address] = reason
        return True

    def left(self, instance: str) -> list[Effect]:
        """Forget a found peer: it has gone, or nobody wants it any more."""
        self._invited.pop(instance, None)
        hint = self._hints.pop(instance, None)
        if hint is None:
            return []
        dropped = [each for each in hint.addresses if self._where.get(each) == instance]
        for address in dropped:
            del self._where[address]
        return [Drop(address, instance) for address in dropped]

    def keep_only(self, instances: Iterable[str]) -> list[Effect]:
        """Forget all found peers but these."""
        kept = set(instances)
        return [drop for each in self.found if each not in kept for drop in self.left(each)]

    @property
    def found(self) -> list[str]:
        """All peers that were found, or have found us, and were not forgotten since."""
        return list({**self._invited, **self._hints})


@dataclass
class _Question:
    """Somebody's nonce: when it was first heard, and from where."""

    since: float
    sources: set[str] = field(default_factory=set)


def places(here: Beacon, source: str) -> list[str]:
    """Return the addresses to try: those that were announced, and where the answer came from.

    A loopback address means the same machine only to those that are on it.
    """
    first = parse(here.addresses[0])
    assert first is not None
    shown = f"[{source}]" if ":" in source else source
    announced = [each for each in here.addresses if is_loopback(source) or not is_loopback(each)]
    return list(dict.fromkeys([*announced, f"{shown}:{first[1]}"]))


def is_loopback(address: str) -> bool:
    """Whether an address, with or without a port, means the machine itself."""
    return address.startswith("127.") or address == "::1" or address.startswith("[::1]")


def _failed(instance: str, hint: Hint) -> Failed:
    why = "; ".join(f"{where}: {how or 'no answer'}" for where, how in hint.addresses.items())
    return Failed(instance, why)
