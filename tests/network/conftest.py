"""What tests of networks start with: a network, and the processes of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.processes import Marked

from .lans import SECRET, Running
from .namespaces import Network, remove_leftovers, why_not
from .places import Place


@pytest.fixture
def network() -> Iterator[Network]:
    """Make hosts and subnets; to be asked for before the processes in them."""
    if reason := why_not():
        pytest.skip(reason)
    remove_leftovers()
    with Network() as new:
        yield new


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes in networks of our own may listen at all addresses."""
    monkeypatch.delenv("DISPY_HOST", raising=False)


@pytest.fixture
def running(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Start processes on hosts, which share a secret."""
    monkeypatch.setenv("DISPY_SECRET", SECRET)
    new = Running(tmp_path)
    try:
        yield new
        new.stop()
    finally:
        new.clear_away()


@pytest.fixture
def place(network: Network, tmp_path: Path) -> Iterator[Place]:
    """Type commands at machines, as users do."""
    new = Place(network, tmp_path)
    try:
        yield new
        new.stop()
    finally:
        new.kill()


@pytest.fixture
def run(network: Network) -> Iterator[Callable[[Marked], Marked]]:
    """End processes at the end of the test, before their network is gone."""
    started: list[Marked] = []

    def remember(process: Marked) -> Marked:
        started.append(process)
        return process

    yield remember
    for process in started:
        process.clear_away()
