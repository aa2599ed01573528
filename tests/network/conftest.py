"""What tests of networks start with: a network, and the processes of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .namespaces import Network, remove_leftovers, why_not


@pytest.fixture
def network() -> Iterator[Network]:
    """Make hosts and subnets; to be asked for before the processes in them."""
    if reason := why_not():
        pytest.skip(reason)
    remove_leftovers()
    with Network() as new:
        yield new
