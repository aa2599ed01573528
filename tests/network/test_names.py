"""Names with several addresses, the first of which lead nowhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.waiting import until

from .lans import Running, ended_well
from .namespaces import Host, Network

FOLDER = Path("/etc/netns")  # "ip netns exec" puts its files in the place of those of /etc
HOSTS = """127.0.0.1 localhost
10.1.0.77 machine2
10.1.0.78 machine2
fd00::77 machine2
10.1.0.2 machine2
10.1.0.78 nobody
10.1.0.1 nobody
"""


@pytest.fixture
def two(network: Network) -> Iterator[tuple[Host, Host]]:
    """Two hosts; the first knows the second by a name that has dead addresses as well."""
    lan = network.subnet("lan")
    one, other = network.host("one"), network.host("other")
    one.join(lan, "10.1.0.1/24")
    other.join(lan, "10.1.0.2/24")
    folder = FOLDER / one.namespace
    had_folder = FOLDER.exists()
    folder.mkdir(parents=True)
    try:
        (folder / "hosts").write_text(HOSTS)
        yield one, other
    finally:
        shutil.rmtree(folder)
        if not had_folder:
            FOLDER.rmdir()


def test_a_program_finds_a_node_by_a_name_with_dead_addresses(
    running: Running, two: tuple[Host, Host]
) -> None:
    one, other = two
    running.node(other)
    ended_well(running.features(one, nodes=["machine2"], names=["other"]))


def test_a_node_and_a_program_find_a_broker_by_a_name_with_dead_addresses(
    running: Running, two: tuple[Host, Host]
) -> None:
    one, other = two
    running.broker(other)
    running.node(one, "--broker", "machine2")
    ended_well(running.features(one, scheduler_node="machine2", names=["one"]))


def test_when_no_address_works_the_log_says_how_each_has_failed(
    running: Running, two: tuple[Host, Host]
) -> None:
    one, _ = two
    node = running.node(one, "--broker", "nobody")
    until(lambda: "10.1.0.78: no answer" in node.log(), "the failure in the log", 30.0)
    assert "10.1.0.1: connection refused" in node.log()
