"""dispy: run a Python function many times, on the CPUs of many machines.

The public face: what is listed in ``__all__`` is promised, the rest is not. Names are loaded
when they are first used, so that ``import dispy`` costs nothing, and the broker and the node,
which live below this package, pay only for what they use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from dispy.protocol.errors import DispyError, SecretNeededError

    from . import config
    from .allocate import LocalNode, NodeAllocate
    from .cluster import JobCluster
    from .errors import ClusterClosedError, NotSupportedError
    from .job import DispyJob
    from .log import logger
    from .nodes import DispyNode, DispyNodeAvailInfo
    from .output import Output
    from .pickling import PicklingError
    from .recorded import RecoverError
    from .recover import recover_jobs
    from .shared import SharedJobCluster
    from .status import ClusterStatus


__all__ = [
    "ClusterClosedError",
    "ClusterStatus",
    "DispyError",
    "DispyJob",
    "DispyNode",
    "DispyNodeAvailInfo",
    "JobCluster",
    "LocalNode",
    "NodeAllocate",
    "NotSupportedError",
    "Output",
    "PicklingError",
    "RecoverError",
    "SecretNeededError",
    "SharedJobCluster",
    "__version__",
    "config",
    "logger",
    "recover_jobs",
]

_HOMES = {
    "ClusterClosedError": ".errors",
    "ClusterStatus": ".status",
    "DispyError": ".protocol.errors",
    "DispyJob": ".job",
    "DispyNode": ".nodes",
    "DispyNodeAvailInfo": ".nodes",
    "JobCluster": ".cluster",
    "LocalNode": ".allocate",
    "NodeAllocate": ".allocate",
    "NotSupportedError": ".errors",
    "Output": ".output",
    "PicklingError": ".pickling",
    "RecoverError": ".recorded",
    "SecretNeededError": ".protocol.errors",
    "SharedJobCluster": ".shared",
    "logger": ".log",
    "recover_jobs": ".recover",
}


def __getattr__(name: str) -> object:
    if name == "config":
        return import_module(".config", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value  # the next access doesn't come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
