"""The datagrams by which processes with the same secret find each other.

A seeker says SEEK to all, whom it concerns answers HERE. A SEEK has always the same length, which
no answer exceeds, so nobody can use us to flood others. All of a datagram is vouched for by the
secret, and an answer repeats the question's nonce. Pure; nothing of what is wrong is ever raised.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import NamedTuple

MAGIC = b"dspb"
VERSION = 1
SEEK = 1  # who is there?
HERE = 2  # I am, at these addresses; at none: but I work for another
KINDS = (SEEK, HERE)
BYTES_MAX = 512  # no network cuts that into pieces
NONCE_BYTES = 16
MAC_BYTES = 32
NAME_BYTES_MAX = 64  # of roles and instances
ADDRESSES_MAX = 8
PORT_MAX = 65535
_HEAD = len(MAGIC) + 2


class Beacon(NamedTuple):
    """What a datagram says. ``addresses``: of the sender's door, "host:port", the best first."""

    kind: int
    role: str  # "broker", "node" or "relay"
    instance: str  # the sender's
    nonce: bytes
    addresses: tuple[str, ...] = ()


def encode(beacon: Beacon, key: bytes) -> bytes:
    """Make the datagram; addresses that find no room are left out, and so are host names.

    Who hears it mustn't have to wait until a name is looked up.
    """
    body = bytearray(MAGIC)
    body += bytes((VERSION, beacon.kind))
    body += beacon.nonce
    for name in (beacon.role, beacon.instance):
        body += _text(name)
    count_at = len(body)
    body.append(0)
    for address in filter(parse, beacon.addresses):
        text = _text(address)
        if body[count_at] < ADDRESSES_MAX and len(body) + len(text) <= BYTES_MAX - MAC_BYTES:
            body += text
            body[count_at] += 1
    if beacon.kind == SEEK:
        body += bytes(BYTES_MAX - MAC_BYTES - len(body))
    return bytes(body) + _mac(body, key)


def decode(datagram: bytes, key: bytes) -> Beacon | None:
    """Read a datagram; None for what isn't one, or isn't of our secret."""
    if not is_ours(datagram) or len(datagram) < _HEAD + NONCE_BYTES + MAC_BYTES:
        return None
    body, mac = datagram[:-MAC_BYTES], datagram[-MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(body, key)):
        return None
    if body[_HEAD - 1] == SEEK and len(datagram) != BYTES_MAX:
        return None
    try:
        return _read(body)
    except (ValueError, IndexError):  # made by somebody who knows the secret, but not the form
        return None


def is_ours(datagram: bytes) -> bool:
    """Whether a datagram looks like one of these, whatever the secret."""
    return (
        len(datagram) <= BYTES_MAX
        and datagram.startswith(MAGIC + bytes((VERSION,)))
        and datagram[_HEAD - 1 : _HEAD] in (b"\x01", b"\x02")
    )


def is_question(datagram: bytes) -> bool:
    """Whether one that `is_ours` asks something."""
    return datagram[_HEAD - 1] == SEEK


def parse(address: str) -> tuple[str, int] | None:
    """Split "host:port" into an IP address and a port; None if it is anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= PORT_MAX:
        return None
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (":" in bare) != (bare is not host):
        return None
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return None
    return bare, int(port)


def _read(body: bytes) -> Beacon:
    at = _HEAD
    nonce = body[at : at + NONCE_BYTES]
    role, at = _read_text(body, at + NONCE_BYTES)
    instance, at = _read_text(body, at)
    count, at = body[at], at + 1
    if count > ADDRESSES_MAX or not role or not instance:
        raise ValueError("too many addresses, or nobody's")
    addresses = []
    for _ in range(count):
        address, at = _read_text(body, at)
        if parse(address) is None:
            raise ValueError("not an address")
        addresses.append(address)
    if any(body[at:]):
        raise ValueError("something follows")
    return Beacon(body[_HEAD - 1], role, instance, nonce, tuple(addresses))


def _text(text: str) -> bytes:
    encoded = text.encode("ascii")
    assert 0 < len(encoded) <= NAME_BYTES_MAX, text
    return bytes((len(encoded),)) + encoded


def _read_text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + body[at]
    if body[at] > NAME_BYTES_MAX or end > len(body):
        raise ValueError("cut short")
    return body[at + 1 : end].decode("ascii"), end


def _mac(body: bytes | bytearray, key: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()
