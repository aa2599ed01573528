"""A user's program, for hosts that the tests can't be on: it says "ok" when all is as it should be.

``program.py features CLUSTER`` tries all that jobs can do; ``program.py many CLUSTER RECORD COUNT
SECONDS`` has jobs note in a file that they run. CLUSTER: the cluster's keywords, as JSON, with the
``names`` of nodes to wait for, and those that are to be the ``only`` ones.
``program.py dying CLUSTER FILE`` kills itself while jobs run, ``program.py recovering FILE`` gets
their results.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dispy

PATIENCE_S = 60.0
JOBS = 4  # of a program that is killed: one for each CPU of two nodes


def cluster_of(work: Callable[..., Any], text: str, **more: Any) -> dispy.JobCluster:
    """Make a cluster at a broker, or without one; wait for the nodes that it is to have."""
    keywords = {"pulse_interval": 2.0, **json.loads(text), **more}
    keywords.pop("only", None)
    names = set(keywords.pop("names", ()))
    if "scheduler_node" in keywords:
        del keywords["pulse_interval"]  # it's the broker's to choose
        cluster: dispy.JobCluster = dispy.SharedJobCluster(work, **keywords)
    else:
        cluster = dispy.JobCluster(work, **keywords)
    until(lambda: names <= {node.name for node in cluster.status().nodes})
    return cluster


def end(job: dispy.DispyJob, status: int = dispy.DispyJob.Finished) -> Any:
    """Wait for a job to end; return its result."""
    assert job.finish.wait(PATIENCE_S), f"{job} hasn't ended"
    assert job.status == status, f"{job}: {job.exception}"
    return job.result


# -- all that jobs can do ----------------------------------------------------------------------


def work(what: str, argument: Any = None) -> Any:
    """Do what a test is about."""
    import hashlib
    import time
    from pathlib import Path

    if what == "digest":
        return hashlib.sha256(Path(argument).read_bytes()).hexdigest()
    if what == "sleep":
        time.sleep(argument)
    if what == "fail":
        raise ValueError(argument)
    if what == "say":
        print(argument)
        dispy_provisional_result(argument)  # type: ignore[name-defined]  # noqa: F821
    if what == "send":
        Path("sent").write_bytes(argument)
        dispy_send_file("sent")  # type: ignore[name-defined]  # noqa: F821
    return argument


def features(text: str) -> None:
    """Try them."""
    data = os.urandom(3_000_000)
    Path("data").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    said: list[Any] = []
    heard = threading.Event()

    def hear(job: dispy.DispyJob) -> None:
        if job.status == dispy.DispyJob.ProvisionalResult:
            said.append(job.result)
            heard.set()

    cluster = cluster_of(work, text, depends=["data"], job_status=hear)
    assert end(cluster.submit("digest", "data")) == digest  # a file of the cluster
    Path("other").write_bytes(data[::-1])
    job = cluster.submit("digest", "other", dispy_job_depends=["other"])  # one of the job's own
    assert end(job) == hashlib.sha256(data[::-1]).hexdigest()
    jobs = [cluster.submit("echo", number) for number in range(40)]
    assert [end(job) for job in jobs] == list(range(40))
    assert end(cluster.submit("echo", data)) == data
    job = cluster.submit("fail", "on purpose")
    end(job, dispy.DispyJob.Terminated)
    assert "on purpose" in str(job.exception)
    job = cluster.submit("say", "aloud")
    end(job)
    assert heard.wait(PATIENCE_S) and said == ["aloud"] and "aloud" in str(job.stdout)
    end(cluster.submit("send", data))
    assert Path("sent").read_bytes() == data
    job = cluster.submit("sleep", 600)
    until(lambda: job.status == dispy.DispyJob.Running)
    assert cluster.cancel(job) == 0
    end(job, dispy.DispyJob.Terminated)
    if "only" in json.loads(text):
        names = [node.name for node in cluster.status().nodes]
        assert names == json.loads(text)["only"], names
    cluster.close(terminate=True)


# -- many jobs ---------------------------------------------------------------------------------


def noting(record: str, number: int, seconds: float) -> int:
    """Note that it runs; entries never mix, since each is one write."""
    import os
    import time

    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, number.to_bytes(8, "little"))
    os.close(descriptor)
    time.sleep(seconds)
    return number * number


def many(text: str, record: str, count: str, seconds: str) -> None:
    """Run them, and check each result."""
    ends: list[int] = []

    def note_end(job: dispy.DispyJob) -> None:
        if job.status >= dispy.DispyJob.Cancelled:
            ends.append(job.id)

    cluster = cluster_of(noting, text, max_tasks_per_child=None, job_status=note_end)
    jobs = [cluster.submit(record, number, float(seconds)) for number in range(int(count))]
    for job in jobs:
        end(job)
    assert [job.result for job in jobs] == [number**2 for number in range(int(count))]
    assert cluster.wait(PATIENCE_S)
    cluster.close()
    assert sorted(ends) == sorted(job.id for job in jobs), "a job ended twice"


# -- a program that is killed --------------------------------------------------------------------


def dying(text: str, file: str) -> None:
    """Have a job on each CPU, and be killed while they run."""
    cluster = cluster_of(work, text, recover_file=file)
    jobs = [cluster.submit("sleep", 2.0 + number) for number in range(JOBS)]
    until(lambda: all(job.status == dispy.DispyJob.Running for job in jobs))
    print("running", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def recovering(file: str) -> None:
    """Get all results of such a program."""
    jobs = dispy.recover_jobs(file, timeout=PATIENCE_S)
    assert [end(job) for job in jobs] == [2.0 + number for number in range(JOBS)]
    assert not Path(file).exists()


def until(condition: Callable[[], object]) -> None:
    """Wait for something to happen."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


if __name__ == "__main__":
    tests: dict[str, Callable[..., None]] = {
        "features": features,
        "many": many,
        "dying": dying,
        "recovering": recovering,
    }
    tests[sys.argv[1]](*sys.argv[2:])
    print("ok", flush=True)
