"""The addresses of this machine, from what the system might say."""

from __future__ import annotations

import socket
from typing import NamedTuple

from dispy.protocol.interfaces import InterfaceAddress, addresses, read


class Entry(NamedTuple):
    """As psutil's ``snicaddr``."""

    family: int
    address: str
    netmask: str | None = None
    broadcast: str | None = None
    ptp: str | None = None


class State(NamedTuple):
    """As psutil's ``snicstats``, as far as it is read."""

    isup: bool = True
    flags: str = "up,broadcast,running,multicast"


def v4(address: str, netmask: str = "255.255.255.0", **more: str) -> Entry:
    return Entry(socket.AF_INET, address, netmask, **more)


def v6(address: str) -> Entry:
    return Entry(socket.AF_INET6, address, "ffff:ffff:ffff:ffff::")


def names(found: list[InterfaceAddress]) -> list[str]:
    return [one.address for one in found]


def test_others_use_real_interfaces_first_and_loopback_last() -> None:
    found = {
        "lo": [v4("127.0.0.1", "255.0.0.0"), v6("::1")],
        "docker0": [v4("172.17.0.1")],
        "wg0": [Entry(socket.AF_INET, "10.9.0.1", "255.255.255.255", ptp="10.9.0.2")],
        "eth0": [v6("fe80::1%eth0"), v6("fd00::2"), v4("10.0.0.5")],
        "eth1": [v4("192.168.1.5")],
    }
    states = {name: State() for name in found} | {"lo": State(flags="up,loopback,running")}
    assert names(read(found, states, {})) == [
        "10.0.0.5",
        "192.168.1.5",
        "fd00::2",
        "172.17.0.1",
        "10.9.0.1",
        "fe80::1",
        "127.0.0.1",
        "::1",
    ]


def test_what_is_down_and_what_has_no_address_is_left_out() -> None:
    found = {"eth0": [v4("10.0.0.5")], "eth1": [Entry(socket.AF_PACKET, "02:fc:00:00:00:01")]}
    assert read(found, {"eth0": State(isup=False), "eth1": State()}, {}) == []


def test_a_broadcast_address_is_known_even_if_the_system_does_not_say_it() -> None:
    found = {
        "a": [v4("10.1.2.3", "255.255.0.0")],
        "b": [v4("10.2.0.1", broadcast="10.2.0.255")],
        "c": [v4("10.3.0.1", "255.255.255.255")],
        "d": [Entry(socket.AF_INET, "10.4.0.1", "255.255.255.0", ptp="10.4.0.2")],
        "e": [v6("fd00::1")],
    }
    read_ = read(found, {name: State() for name in found}, {"a": 7})
    assert {one.name: one.broadcast for one in read_} == {
        "a": "10.1.255.255",
        "b": "10.2.0.255",
        "c": "",
        "d": "",
        "e": "",
    }
    assert [one.prefix for one in read_ if one.name in "ae"] == [16, 64]
    assert next(one.index for one in read_ if one.name == "a") == 7


def test_a_system_that_tells_no_flags_may_multicast() -> None:
    (one,) = read({"Ethernet": [v4("10.0.0.5")]}, {"Ethernet": State(flags="")}, {})
    assert one.can_multicast
    (one,) = read({"sit0": [v4("10.0.0.5")]}, {"sit0": State(flags="up,running")}, {})
    assert not one.can_multicast


def test_this_machine_has_loopback() -> None:
    assert any(one.is_loopback for one in addresses())
