"""No test uses the secret of whoever runs the tests, nor listens to other machines.

``DISPY_TEST_SECRET=1`` plays all tests from the outside with a secret: processes find it in the
environment, as clusters of the test's own process do. It is a new one in each process that runs
tests, else those of one would find the nodes of another.
"""

from __future__ import annotations

import os

import pytest

from dispy.protocol import secret as secrets

os.environ.pop("DISPY_SECRET", None)
os.environ["DISPY_SECRET_FILE"] = ""  # not even the default one
os.environ["DISPY_HOST"] = "127.0.0.1"  # with a secret it would be all addresses
if os.environ.get("DISPY_TEST_SECRET"):
    os.environ["DISPY_SECRET"] = secrets.new()

# Modules that take longest begin first: else one process is left with one of them at the end.
LONGEST = (
    "test_every_message",
    "test_scale",
    "test_soak",
    "test_random_faults",
    "test_relay",
    "test_faults",
    "test_examples",
    "test_broker_faults",
    "test_recover",
    "test_callbacks",
    "test_broker_network",
    "test_an_hour",
    "test_chaos",
    "test_queue",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of these modules before all others."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))
