"""Other systems on the same work, when they happen to be installed: nothing is installed for it.

Each is started as its documentation says for one machine, with `WORKERS` processes of one
thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .work import WORKERS, Function, Runner, Start, Wait


def installed(module: str) -> bool:
    """Tell whether a module could be imported."""
    return importlib.util.find_spec(module) is not None


@contextmanager
def dask(function: Function) -> Iterator[Runner]:
    """Run on dask.distributed; pure=False, else equal arguments give one task."""
    client_class = importlib.import_module("distributed").Client
    with client_class(
        n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
    ) as client:

        def submit(argument: Any) -> Wait:
            wait: Wait = client.submit(function, argument, pure=False).result
            return wait

        yield Runner(submit)


@contextmanager
def ray(function: Function) -> Iterator[Runner]:
    """Run on Ray tasks."""
    module = importlib.import_module("ray")
    module.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    remote = module.remote(function)

    def submit(argument: Any) -> Wait:
        reference = remote.remote(argument)
        return lambda: module.get(reference)

    try:
        yield Runner(submit)
    finally:
        module.shutdown()


@contextmanager
def ipyparallel(function: Function) -> Iterator[Runner]:
    """Run on the load-balanced view of an ipyparallel cluster."""
    with importlib.import_module("ipyparallel").Cluster(n=WORKERS) as client:
        client.wait_for_engines(WORKERS)
        view = client.load_balanced_view()

        def submit(argument: Any) -> Wait:
            wait: Wait = view.apply_async(function, argument).get
            return wait

        yield Runner(submit)


@contextmanager
def parsl(function: Function) -> Iterator[Runner]:
    """Run on Parsl's high-throughput executor."""
    module = importlib.import_module("parsl")
    executors = importlib.import_module("parsl.executors")
    providers = importlib.import_module("parsl.providers")
    executor = executors.HighThroughputExecutor(
        max_workers_per_node=WORKERS,
        provider=providers.LocalProvider(init_blocks=1, max_blocks=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        module.load(module.Config(executors=[executor], run_dir=folder))
        app = module.python_app(function)

        def submit(argument: Any) -> Wait:
            wait: Wait = app(argument).result
            return wait

        try:
            yield Runner(submit)
        finally:
            module.dfk().cleanup()


# By name: the module that must be there, and how to start it.
PEERS: dict[str, tuple[str, Start]] = {
    "Dask": ("distributed", dask),
    "Ray": ("ray", ray),
    "ipyparallel": ("ipyparallel", ipyparallel),
    "Parsl": ("parsl", parsl),
}
