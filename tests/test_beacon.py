"""Datagrams of discovery: whatever comes, nothing raises, and only the untouched is believed."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.protocol import beacon
from dispy.protocol.beacon import HERE, SEEK, Beacon, decode, encode, parse

KEY = b"k" * 32
NONCE = bytes(range(16))
NODE = Beacon(HERE, "node", "a" * 32, NONCE, ("10.0.0.5:9701", "[fd00::5]:9701"))


addresses = st.builds(
    lambda ip, port: f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}",
    st.ip_addresses(),
    st.integers(1, 65535),
)
beacons = st.builds(
    Beacon,
    st.sampled_from([SEEK, HERE]),
    st.sampled_from(["broker", "node", "relay"]),
    st.text("0123456789abcdef", min_size=1, max_size=64),
    st.binary(min_size=16, max_size=16),
    st.lists(addresses, max_size=8).map(tuple),
)


def signed(body: bytes) -> bytes:
    return body + hmac.new(KEY, body, hashlib.sha256).digest()


@given(beacons)
def test_what_is_said_is_heard(said: Beacon) -> None:
    datagram = encode(said, KEY)
    assert len(datagram) <= 512
    assert decode(datagram, KEY) == said


@given(beacons)
def test_an_answer_is_never_longer_than_the_question(said: Beacon) -> None:
    question = encode(said._replace(kind=SEEK), KEY)
    assert len(question) == 512
    assert len(encode(said._replace(kind=HERE), KEY)) <= len(question)


def test_what_finds_no_room_is_left_out() -> None:
    many = tuple(f"[2001:db8:1111:2222:3333:4444:5555:{i:x}]:65535" for i in range(1, 30))
    heard = decode(encode(Beacon(SEEK, "r" * 64, "i" * 64, NONCE, many), KEY), KEY)
    assert heard is not None
    assert 0 < len(heard.addresses) < 8
    assert heard.addresses == many[: len(heard.addresses)]


def test_names_of_hosts_are_left_out() -> None:
    said = NODE._replace(addresses=("node1.example.com:9701", "10.0.0.5:9701"))
    assert decode(encode(said, KEY), KEY) == said._replace(addresses=("10.0.0.5:9701",))


@given(st.binary(max_size=600))
def test_noise_is_nothing(noise: bytes) -> None:
    assert decode(noise, KEY) is None


@settings(max_examples=300)
@given(beacons, st.integers(0), st.integers(1, 255))
def test_one_changed_byte_is_enough(said: Beacon, at: int, change: int) -> None:
    datagram = bytearray(encode(said, KEY))
    datagram[at % len(datagram)] ^= change
    assert decode(bytes(datagram), KEY) is None


@given(beacons, st.integers(0, 511))
def test_cut_short_or_with_more_it_is_nothing(said: Beacon, length: int) -> None:
    datagram = encode(said, KEY)
    assert decode(datagram[: min(length, len(datagram) - 1)], KEY) is None
    assert decode(datagram + b"\0", KEY) is None


@given(beacons)
def test_another_secret_is_another_world(said: Beacon) -> None:
    assert decode(encode(said, b"o" * 32), KEY) is None
    assert beacon.is_ours(encode(said, b"o" * 32))


@settings(max_examples=300)
@given(st.binary(max_size=478), st.booleans())
def test_even_who_knows_the_secret_can_not_make_it_raise(body: bytes, seeks: bool) -> None:
    kind = SEEK if seeks else HERE
    heard = decode(signed(b"dspb\x01" + bytes((kind,)) + body), KEY)
    assert heard is None or all(parse(address) for address in heard.addresses)


@pytest.mark.parametrize(
    "body",
    [
        b"\x04node\x00" + b"\0",  # nobody's
        b"\x04node\x01a\x01\x0810.0.0.5",  # no port
        b"\x04node\x01a\x01\x08x.y:9701",  # a name
        b"\x04node\x01a\x09",  # too many
        b"\x04n\xffde\x01a\0",  # not ASCII
        b"\x04node\x01a\0rest",
    ],
)
def test_the_form_matters_too(body: bytes) -> None:
    assert decode(signed(b"dspb\x01\x02" + NONCE + body), KEY) is None


def test_a_short_question_is_not_answered() -> None:
    body = b"dspb\x01\x01" + NONCE + b"\x04node\x01a\0"
    assert decode(signed(body), KEY) is None
    assert decode(signed(body.ljust(480, b"\0")), KEY) is not None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.5",
        "10.0.0.5:",
        "10.0.0.5:0",
        "10.0.0.5:65536",
        "10.0.0.5:-1",
        "host:1",
        "fd00::1:9701",
        ":1",
        "[10.0.0.5]:1",
        "[fd00::5:1",
        "10.0.0.5:²",
    ],
)
def test_what_is_no_address(address: str) -> None:
    assert parse(address) is None


def test_addresses() -> None:
    assert parse("10.0.0.5:9701") == ("10.0.0.5", 9701)
    assert parse("[fe80::1%eth0]:9701") == ("fe80::1%eth0", 9701)
