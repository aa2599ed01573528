"""The made-up networks themselves: who reaches whom, and that nothing of them stays."""

from __future__ import annotations

import signal
import subprocess

import pytest

from .namespaces import Host, Network, ip, partition, why_not

HEARS = """
import socket, sys
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("", 9701))
print("ready", flush=True)
print(door.recvfrom(100)[1][0], flush=True)
"""
CALLS = """
import socket, sys
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
door.sendto(b"x", (sys.argv[1], 9701))
"""


def reaches(one: Host, address: str) -> bool:
    """Tell whether an answer comes back from an address."""
    dial = f"""
import socket, sys
try:
    socket.create_connection(({address!r}, 1), 0.3)
except ConnectionRefusedError:
    sys.exit(0)  # an answer, too
except OSError:
    sys.exit(1)
"""
    try:
        one.run("python3", "-c", dial)
    except subprocess.CalledProcessError:
        return False
    return True


def test_hosts_of_a_subnet_reach_each_other_and_no_others(network: Network) -> None:
    left, right = network.subnet("left"), network.subnet("right")
    one, two, three = (network.host(name) for name in ("one", "two", "three"))
    one.join(left, "10.1.0.1/24", "fd00:1::1/64")
    two.join(left, "10.1.0.2/24", "fd00:1::2/64")
    two.join(right, "10.2.0.2/24")
    three.join(right, "10.2.0.3/24")
    assert reaches(one, "10.1.0.2") and reaches(one, "fd00:1::2")
    assert reaches(two, "10.2.0.3")
    assert not reaches(one, "10.2.0.3")
    two.forward()
    one.route("10.2.0.0/24", via="10.1.0.2")
    three.route("10.1.0.0/24", via="10.2.0.2")
    assert reaches(one, "10.2.0.3")


def test_a_partition_is_silent_and_can_be_healed(network: Network) -> None:
    lan = network.subnet("lan")
    one, two = network.host("one"), network.host("two")
    one.join(lan, "10.1.0.1/24", "fd00:1::1/64")
    two.join(lan, "10.1.0.2/24", "fd00:1::2/64")
    partition(one, two, back=False)
    assert not reaches(one, "10.1.0.2") and not reaches(one, "fd00:1::2")
    one.heal()
    partition(one, two, there=False)
    assert not reaches(one, "10.1.0.2")
    two.heal()
    assert reaches(one, "10.1.0.2") and reaches(two, "fd00:1::1")


def test_broadcasts_reach_the_subnet(network: Network) -> None:
    lan = network.subnet("lan")
    one, two = network.host("one"), network.host("two")
    one.join(lan, "10.1.0.1/24")
    two.join(lan, "10.1.0.2/24")
    hears = two.start("python3", "-c", HEARS)
    assert hears.stdout is not None
    assert hears.stdout.readline() == "ready\n"
    one.run("python3", "-c", CALLS, "10.1.0.255")
    assert hears.stdout.readline() == "10.1.0.1\n"
    assert hears.wait(5) == 0


def test_nothing_stays_when_a_test_fails() -> None:
    if reason := why_not():
        pytest.skip(reason)
    with pytest.raises(ZeroDivisionError), Network() as network:
        host = network.host("one")
        sleeper = host.start("sleep", "100")
        raise ZeroDivisionError
    assert host.namespace not in ip("netns", "list")
    assert sleeper.returncode == -signal.SIGKILL
