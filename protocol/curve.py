"""Encrypted connections: key pairs of sockets, and who is let in.

What is known of CURVE and ZAP is in here, as values; `transport` has the sockets. Who gets as
far as to be asked about has opened a box with the server's key, and so knows the secret: what
it may be is examined by a `Guard`, with the key that is noted here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import zmq
from zmq.utils import z85

from .keys import KEY_BYTES, Keys

ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # where ZeroMQ asks about peers; its name for it
ZAP_VERSION = b"1.0"
DOMAIN = b"dispy"  # not empty: else ZeroMQ lets everybody in when nobody answers
CURVE, NULL = b"CURVE", b"NULL"
SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
GREETING_BYTES = 64
VERSION_END = 12  # of a greeting; who has had so much says all of its own
ANOTHER = "it has another secret"
NONE_THERE = "it has no secret, and this side has one"
NONE_HERE = "it has a secret, and this side has none"
REQUEST_FRAMES = 7  # version, request, domain, address, routing id, mechanism, credentials


class KeyPair(NamedTuple):
    """A key pair of a socket, in the text form (Z85) of ZeroMQ."""

    public: bytes
    private: bytes

    def __repr__(self) -> str:
        return f"<KeyPair {self.public.decode()}>"


def random_pair() -> KeyPair:
    """Return a pair that nobody else has."""
    return KeyPair(*zmq.curve_keypair())


@functools.lru_cache(maxsize=64)
def server_pair(keys: Keys) -> KeyPair:
    """Return the pair of all who listen with the same secret."""
    private = z85.encode(keys.server)
    return KeyPair(zmq.curve_public(private), private)


def secure_listener(listener: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Let a socket accept only who knows the server's key; to be called before it is bound."""
    listener.setsockopt(zmq.CURVE_SERVER, 1)
    listener.setsockopt(zmq.CURVE_SECRETKEY, pair.private)
    listener.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    listener.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no answer is a refusal


def secure_dialler(dialler: zmq.Socket[bytes], server: bytes, pair: KeyPair) -> None:
    """Let a socket connect only to who has the server's key."""
    dialler.setsockopt(zmq.CURVE_SERVERKEY, server)
    dialler.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    dialler.setsockopt(zmq.CURVE_SECRETKEY, pair.private)


def answer(request: Sequence[bytes]) -> list[bytes]:
    """Return what to say to ZeroMQ when it asks about a peer: always something.

    The peer's key becomes the "User-Id" of all that it says.
    """
    number = request[1] if len(request) > 1 else b""
    if len(request) != REQUEST_FRAMES or request[0] != ZAP_VERSION:
        return _verdict(number, b"400", b"unknown kind of request")
    domain, way, key = request[2], request[5], request[6]
    if domain != DOMAIN or way != CURVE or len(key) != KEY_BYTES:
        return _verdict(number, b"400", b"no encrypted connection of dispy")
    return _verdict(number, b"200", b"OK", z85.encode(key))


def greeting(is_encrypted: bool) -> bytes:
    """Return what ZeroMQ says first (ZMTP 3.0), with the way in which it wants to go on."""
    mechanism = CURVE if is_encrypted else NULL
    return SIGNATURE + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def mechanism(greeting: bytes) -> bytes:
    """Return how a peer wants to go on: `CURVE`, `NULL`, or b"" if it isn't ZeroMQ's greeting."""
    is_whole = len(greeting) == GREETING_BYTES and greeting[0] == 0xFF and greeting[9] == 0x7F
    return greeting[12:32].rstrip(b"\0") if is_whole else b""


def refusal(failure: int, is_encrypted: bool) -> str:
    """Say why ZeroMQ let nobody in, by the number that it tells; empty: no matter of secrets."""
    if failure == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return NONE_THERE if is_encrypted else NONE_HERE
    return ANOTHER if failure == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC else ""


def _verdict(number: bytes, status: bytes, text: bytes, user: bytes = b"") -> list[bytes]:
    return [ZAP_VERSION, number, status, text, user, b""]
