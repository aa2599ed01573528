"""The systems under test, each as a `Runner`: dispy and the two pools of the standard library."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from .work import WORKERS, Function, Runner, Wait

HOST = "127.0.0.1"
START_S = 20.0
STOP_S = 10.0


@contextmanager
def reused(function: Function) -> Iterator[Runner]:
    """Run on dispy, whose job processes run many jobs each."""
    with _dispy(function, None) as runner:
        yield runner


@contextmanager
def fresh(function: Function) -> Iterator[Runner]:
    """Run on dispy, with a fresh process for each job: its default."""
    with _dispy(function, 1) as runner:
        yield runner


@contextmanager
def executor(function: Function) -> Iterator[Runner]:
    """Run on `concurrent.futures.ProcessPoolExecutor`, job by job (chunksize 1)."""
    with ProcessPoolExecutor(WORKERS) as pool:

        def submit(argument: Any) -> Wait:
            return pool.submit(function, argument).result

        yield Runner(submit)


@contextmanager
def pool_of_fresh(function: Function) -> Iterator[Runner]:
    """Run on `multiprocessing.Pool`, with a fresh process for each job."""
    with multiprocessing.Pool(WORKERS, maxtasksperchild=1) as pool:

        def submit(argument: Any) -> Wait:
            return pool.apply_async(function, (argument,)).get

        yield Runner(submit)
        pool.close()
        pool.join()


@contextmanager
def _dispy(function: Function, max_tasks_per_child: int | None) -> Iterator[Runner]:
    import dispy

    with node() as address:
        cluster = dispy.JobCluster(
            function, nodes=[address], max_tasks_per_child=max_tasks_per_child
        )
        try:
            yield Runner(cluster.submit)
        finally:
            cluster.close(timeout=STOP_S, terminate=True)


@contextmanager
def node() -> Iterator[str]:
    """Run a node on loopback; the context is the address of its door."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    # A node's own door is the port after the base port.
    command = [sys.executable, "-m", "dispy.node.cli", "-c", str(WORKERS)]
    process = subprocess.Popen([*command, "-i", HOST, "-p", str(port - 1)])
    try:
        _wait_for_door(process, port)
        yield f"{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(STOP_S)


def _wait_for_door(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"no node on port {port}; its exit code is {process.poll()}")
