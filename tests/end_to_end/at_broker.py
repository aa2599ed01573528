"""The tests of `JobCluster`, played with clusters at a broker of its own process.

``DISPY_TEST_SHARED=1`` does so with all of them, also with the clusters of the programs that
they start; modules that have ``AT_A_BROKER = True`` are always played that way. What can't be
at such a broker is marked with `embedded_only`, and with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

import dispy

SHARED = bool(os.environ.get("DISPY_TEST_SHARED"))
AT_A_BROKER = "AT_A_BROKER"  # of a module
OPTIONS = ("--cooperative", "--pulse-interval", "0.5")  # what JobCluster may and tests are told

_at = ""  # the address of the broker; empty: clusters are what they are called


def embedded_only(reason: str) -> pytest.MarkDecorator:
    """Mark what holds for a broker in the program's own process only."""
    return pytest.mark.embedded_only(reason)


def is_wanted(module: ModuleType) -> bool:
    """Tell whether the tests of a module are to be played at a broker."""
    return SHARED or bool(getattr(module, AT_A_BROKER, False))


@contextmanager
def used(address: str) -> Iterator[None]:
    """Have clusters and programs use a broker meanwhile."""
    global _at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispy, "JobCluster", clusters_at(address))
        _at = address
        try:
            yield
        finally:
            _at = ""


def clusters_at(address: str) -> Callable[..., dispy.SharedJobCluster]:
    """Return what makes clusters at a broker as if they were `JobCluster`s."""

    def new(
        computation: Any, nodes: Any = None, *, pulse_interval: Any = None, **more: Any
    ) -> dispy.SharedJobCluster:  # the pulse is the broker's to choose
        return dispy.SharedJobCluster(computation, nodes, scheduler_node=address, **more)

    return new


def played(source: str) -> str:
    """Return a program with clusters at the broker, if one is in use; lines stay where they are."""
    if not _at:
        return source
    new = f"__import__('functools').partial(dispy.SharedJobCluster, scheduler_node={_at!r})("
    return source.replace("dispy.JobCluster(", new)
