"""Messages with anything in them that their types allow, mostly plausible, now and then absurd.

What is plausible (numbers of clusters that exist, jobs that run) is said by whoever asks, so that
babble gets beyond the first look that a receiver takes at it.
"""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, get_args

import msgspec

from dispy.protocol import messages as m
from dispy.protocol.messages import Large

INTS = (-1, 0, 1, 2, -(1 << 63), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 31, -7, 1 << 53, 10**6)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e308, -1e308, 5e-324, 1e18)
TEXTS = ("", "../x", "/etc/passwd", "\0", "a\nb", "\x1b[2J\x07", "\u202e", "*", "[!", "x" * 3000,
         "[::1]:9701", "é" * 300, "host:99999999", "tcp://x", "\ud7ff\U0010ffff")  # fmt: skip
BYTES = (b"", b"\0" * 32, b"\xff" * 31, b"\xff" * 33, b"x" * 3000)
ACTIONS = (m.ALLOCATE, m.DISCOVER, m.DEALLOCATE, m.CLOSE, m.RESETUP, m.SET_CPUS,
           m.STATUS, m.DRAIN, m.RESUME, m.CANCEL, m.WHY)  # fmt: skip
MANY = 300
# As msgpack writes the lengths of arrays, bytes and texts: absurd ones, and some near the truth.
LENGTHS = (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff",
           b"\xdc\xff\xff", b"\xc4\x00", b"\x90", b"\x91", b"\x95", b"\x9f")  # fmt: skip
SIZE_MAX = 5000  # of a payload beside a header, so that a test doesn't move much


class Babbler:
    """Makes up messages. ``likely``: values by field name, or by type for whole structs.

    ``lies``: how often a value is absurd, 0 to 1. ``many``: what a list may have. ``spoils``: how
    often a message is spoilt on its way, 0 to 1; ``spoilt`` counts these.
    """

    def __init__(self, chance: random.Random, lies: float, many: int = MANY) -> None:
        self.chance = chance
        self.lies = lies
        self.spoils = 0.0
        self.spoilt = 0
        self._many = many
        self.likely: dict[str | type, Sequence[Any]] = {}

    def message(self, kind: type[Any]) -> Any:
        """Make up a message of a kind."""
        whole = self.likely.get(kind)
        if whole and self.chance.random() < 0.8:
            return _copy(self.chance.choice(whole))
        values = {name: self._value(name, hint) for name, hint in _fields(kind)}
        return kind(**values)

    def spoil(self, frames: list[m.Buffer]) -> list[m.Buffer]:
        """Return a message as it arrives: mostly as it was."""
        if self.spoils and frames and self.chance.random() < self.spoils:
            return self.spoilt_frames(frames)
        return frames

    def spoilt_frames(self, frames: list[m.Buffer]) -> list[m.Buffer]:
        """Mutate the header, or one of the frames beside it; or drop, double or add a frame."""
        chance, frames = self.chance, list(frames)
        self.spoilt += 1
        place, kind = chance.randrange(len(frames)), chance.randrange(8)
        if kind < 5:
            place = place if kind == 0 else 0
            frames[place] = spoilt(chance, bytes(frames[place]))
        elif kind == 5:
            del frames[place]
        elif kind == 6:
            frames.insert(place, frames[place])
        else:
            frames.insert(place + 1, chance.randbytes(chance.randrange(99)))
        return frames

    def _value(self, name: str, hint: Any) -> Any:
        origin = typing.get_origin(hint)
        if origin in (typing.Union, types.UnionType):
            present = [each for each in get_args(hint) if each is not type(None)]
            return None if self.chance.random() < 0.5 else self._value(name, present[0])
        if origin is list:
            return [self._value(name, get_args(hint)[0]) for _ in range(self._count())]
        if origin is tuple:
            names = _tuple_names(len(get_args(hint)), name)
            return tuple(map(self._value, names, get_args(hint)))
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return self.message(hint)
        if hint is Large:
            return Large(size := self.chance.randrange(SIZE_MAX), [bytes(size)] if size else [])
        return self._leaf(name, hint)

    def _count(self) -> int:
        if self.chance.random() < self.lies / 4:
            return self.chance.randrange(self._many)
        return self.chance.choice((0, 1, 1, 1, 2, 3))

    def _leaf(self, name: str, hint: Any) -> Any:
        chance = self.chance
        is_lie = chance.random() < self.lies
        likely = self.likely.get(name)
        if likely and not is_lie and isinstance(likely[0], hint):
            return chance.choice(likely)
        if hint is bool:
            return chance.random() < 0.5
        return chance.choice(POOLS[hint] if is_lie else USUAL[hint])


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """Spoil an encoded frame: change, cut, insert or repeat bytes, or write a length there."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        position = chance.randrange(len(spoilt) + 1)
        kind = chance.randrange(9)
        if kind < 3 and position < len(spoilt):
            spoilt[position] = chance.randrange(256)
        elif kind == 3:
            del spoilt[position:]
        elif kind < 6:
            spoilt[position:position] = chance.randbytes(chance.randint(1, 9))
        elif kind < 8:
            spoilt[position:position] = spoilt[: chance.randint(0, 20)]
        else:
            length = chance.choice(LENGTHS)
            spoilt[position : position + len(length)] = length
    return bytes(spoilt)


POOLS: dict[type, Sequence[Any]] = {int: INTS, float: FLOATS, str: TEXTS, bytes: BYTES}
USUAL: dict[type, Sequence[Any]] = {
    int: (0, 1, 2, 3),
    float: (0.0, 0.01, 1.0, 5.0),
    str: ("", "name"),
    bytes: (b"", b"payload"),
}


def _copy(value: Any) -> Any:
    return msgspec.structs.replace(value)


_hints: dict[type[Any], list[tuple[str, Any]]] = {}


def _fields(kind: type[Any]) -> list[tuple[str, Any]]:
    if kind not in _hints:
        _hints[kind] = list(typing.get_type_hints(kind).items())
    return _hints[kind]


def _tuple_names(count: int, name: str) -> list[str]:
    if count == 3 and name == "jobs":
        return ["computation", "seq", "attempt"]
    return ["seq", "attempt", "start"][:count]


KINDS: tuple[type[Any], ...] = get_args(m.Body)
Send = Callable[[m.Body], None]
