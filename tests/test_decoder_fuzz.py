"""Random and mutated bytes from the network: nothing but `ProtocolError` leaves the decoder.

Scenario A6. ``DISPY_FUZZ`` says how many mutations, by default 200,000.
"""

from __future__ import annotations

import os
import random
import re
import time
import tracemalloc
from typing import Any, get_args

import msgspec
import pytest

from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived, Up
from dispy.protocol.errors import ProtocolError
from dispy.protocol.exchange import Exchange
from dispy.protocol.wire import Codec
from tests.hostile.babble import spoilt

COUNT = int(os.environ.get("DISPY_FUZZ", "200000"))
PORTION = 10_000
MEAN_S_MAX = 100e-6  # of a decoding; ten times what it takes, since machines are busy
MEMORY_MAX = 1 << 20  # reserved for a message of a few bytes, whatever it announces
ROUTE = b"somebody"

IDENTITY = m.Identity("node", "n1", "node", "0", "3.11.7", "Linux", 4, "here", "127.0.0.1:9701")
FILE = m.FileSpec("folder/file", b"digest", 4, 0o755, 1.5)
OPTIONS = m.JobOptions(1, 2.0, 3, 4, True, [FILE])
SPEC = m.JobSpec(7, 2, b"payload", [m.Large(5, [b"large"])], OPTIONS)
CODE = m.Code("3.11", m.JobSpec(0, 0, b"", [m.Large(5, [b"layer"])]), "source", b"by name")
RESULT = m.JobResult(7, 2, m.FINISHED, 1.5, 2.5, b"result", [m.Large(3, [b"abc"])])


STRUCTS: dict[str, Any] = {
    "JobSpec": SPEC,
    "JobResult": RESULT,
    "NodeSpec": m.NodeSpec("10.0.*", 9701, -1, [FILE], SPEC),
    "JobRecord": m.JobRecord(7, 2, 1, m.FILE, b"", [m.Large(4, [b"data"])]),
    "Heard": m.Heard(7, 2, 1, "refused"),
    "BlobRange": m.BlobRange(b"digest", 0, 4),
    "BlobPiece": m.BlobPiece(b"digest", 0, b"", [m.Large(4, [b"data"])], "vanished"),
    "FileSpec": FILE,
    "Code": CODE,
    "ComputationSpec": m.ComputationSpec("name", [CODE], [FILE], "program", "folder"),
    "Vitals": m.Vitals(90.0, 1 << 30, 1 << 40, 100.0),
    "NodeInfo": m.NodeInfo(1, "127.0.0.1:9701", "node", 4, "Linux"),
}
NODE = m.NodeReport(
    1, "n", "h:1", 2, "up", "", 1, 2, 3, [4], 5.5, "Linux", "0", m.Vitals(1.5, 2, 3, 4.5)
)
CLUSTER = m.ClusterReport(1, "c", "u@h", "open", False, 1.0, 2, 3, 4, 5, 6, 7.5, 0.5, 8.5, 9.5)
STATUS = m.BrokerReport("b", "0", "fair", 1.5, "folder", 2, "", 3, 4.5, [NODE], [CLUSTER])
SIMPLE: dict[str, Any] = {"bool": True, "str": "x", "float": 0.5, "int": 3}


def sample(kind: Any) -> Any:
    """Make a message of a kind, with something in each field that has no default."""
    fields = msgspec.structs.fields(kind)
    return kind(**{field.name: value_of(str(field.type)) for field in fields if field.required})


def value_of(text: str) -> Any:
    """Make a value of a type."""
    known = {**STRUCTS, **SIMPLE}
    if "tuple" in text:
        return [tuple(known[name] for name in re.findall("int|float", text))]
    value = next(value for name, value in known.items() if name in text)
    return [value] if "list" in text else value


def frames() -> list[bytes]:
    """Encode one frame of each kind, and envelopes of every message."""
    codec = Codec()
    bodies = [sample(kind) for kind in get_args(m.Body)] + [m.Report(1, "", "", STATUS)]
    whole = m.Envelope(1, 2, 3, bodies)
    singles = [m.Envelope(1, 1, 0, [body]) for body in bodies]
    hello = m.Hello(1, 0, IDENTITY, "session", 4)
    welcome = m.Welcome(0, IDENTITY, "session", 2, 5)
    others: list[m.Frame] = [hello, welcome, m.Refused("no"), m.Unknown(), m.Goodbye("bye")]
    return [codec.encode(frame)[0] for frame in (whole, *singles, *others)]


SEEDS = frames()


def mutated(chance: random.Random) -> bytes:
    """Spoil a good frame."""
    return spoilt(chance, chance.choice(SEEDS))


def test_every_kind_of_frame_comes_back_as_it_was() -> None:
    codec = Codec()
    for data in SEEDS:
        frame, larges = codec.decode(data)
        for large in larges:
            large.chunks.append(bytes(large.size))
        assert codec.encode(frame)[0] == data


def test_mutated_frames_are_refused_or_read() -> None:
    chance, codec, refused, spent_s = random.Random(0), Codec(), 0, 0.0
    for _ in range(COUNT // PORTION):
        inputs = [mutated(chance) for _ in range(PORTION)]
        began = time.perf_counter()
        for data in inputs:
            try:
                codec.decode(data)
            except ProtocolError:
                refused += 1
        spent_s += time.perf_counter() - began
    assert spent_s / COUNT < MEAN_S_MAX
    assert COUNT / 4 < refused < COUNT  # else they are spoilt too much, or not at all


HOSTILE = {
    "nothing": b"",
    "arrays in arrays": b"\x91" * 100_000,
    "maps in maps": b"\x81" * 100_000,
    "an array of 4e9": b"\xdd\xff\xff\xff\xff",
    "bytes of 4e9": b"\xc6\xff\xff\xff\xff",
    "text of 4e9": b"\xdb\xff\xff\xff\xff" + b"x" * 10,
    "an envelope of 4e9 messages": b"\x95\x06\x01\x01\x00\xdd\xff\xff\xff\xff",
    "a submission of 4e9 jobs": b"\x95\x06\x01\x01\x00\x91\x93\x0b\x01\xdd\xff\xff\xff\xff",
    "no UTF-8": b"\x92\x03\xa2\xff\xfe",
    "an unknown tag": b"\x92\x7f\x01",
    "a huge number": b"\x95\x06\xcf" + b"\xff" * 8,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_are_refused_without_memory_for_them(name: str) -> None:
    codec = Codec()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            codec.decode(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


class Nowhere:
    """A transport that leads nowhere."""

    def dial(self, address: str) -> int:
        return 1

    def drop(self, route: object) -> None:
        pass

    def send(self, route: object, frames: object) -> bool:
        return True


@pytest.mark.parametrize("registered", [False, True])
def test_nothing_raises_out_of_an_exchange(registered: bool) -> None:
    exchange = Exchange(IDENTITY, Nowhere(), lambda: "session")
    hello = Codec().encode(m.Hello(1, 0, msgspec.structs.replace(IDENTITY, instance="peer")))[0]
    chance = random.Random(1)
    exchange.dial("somewhere")
    exchange.tick(0.0)
    exchange.receive(Up(1), 0.0)
    for number in range(COUNT // 50):
        now = number * 1e-3
        if registered and "peer" not in exchange.links:
            exchange.receive(Arrived(ROUTE, [hello]), now)
        parts = [chance.randbytes(chance.randrange(9)) for _ in range(chance.randrange(3))]
        route = ROUTE if number % 3 else 1
        exchange.receive(Arrived(route, [mutated(chance), *parts][chance.random() < 0.01 :]), now)
        exchange.tick(now)
        exchange.flush(now)
    assert exchange.malformed > 0
    assert len(exchange.links) < 100
