"""A program that is killed: jobs at a shared broker, and their recovery in another process.

    program.py run|recover PLAN.json BROKER

The plan names the files and the numbers of the jobs. What becomes of each is written down the
moment it is known, one line per write; `chaos.py` reads them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dispy
from dispy import DispyJob, RecoverError, recoverfile

WINDOW = 300  # jobs underway, so that every kill comes while some are being submitted
RECOVER_S = 120.0


def compute(
    record: str, number: int, seconds: float, right: int = 0, name: str | None = None
) -> int:
    """Note that it runs, take some time, return the right result."""
    import os
    import time
    import zlib

    fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, number.to_bytes(8, "little"))
    os.close(fd)
    time.sleep(seconds)
    if name:
        with open(name, "rb") as file:
            assert zlib.crc32(file.read()) == right
    return number * number


class Log:
    """What became of the jobs."""

    def __init__(self, path: str, by: str) -> None:
        self._by = by
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def ended(self, job: DispyJob) -> None:
        """Write down the end of a job."""
        end = {"number": job.id, "status": int(job.status), "result": job.result}
        self._write({**end, "reason": str(job.exception or "")})

    def known(self, number: int) -> None:
        """The program had known the end of a job when it was killed."""
        self._write({"number": number, "status": 0, "result": None, "reason": "known"})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._fd, (json.dumps({"by": self._by, **line}) + "\n").encode())


def run(plan: dict[str, Any], broker: str) -> None:
    """Have all jobs done."""
    log = Log(plan["log"], plan["by"])
    room = threading.Semaphore(WINDOW)

    def on_end(job: DispyJob) -> None:
        log.ended(job)
        room.release()

    cluster = dispy.SharedJobCluster(
        compute,
        scheduler_node=broker,
        name=plan["name"],
        reentrant=plan["reentrant"],
        max_tasks_per_child=plan["max_tasks"],
        recover_file=plan["recover_file"],
        job_status=on_end,
        depends=plan["files"],
    )
    file = [os.path.basename(path) for path in plan["files"]]
    for number in plan["numbers"]:
        room.acquire()
        seconds = (number * 7919 % 13) / 200
        cluster.submit_job_id(number, plan["record"], number, seconds, plan["right"], *file)
    cluster.wait()
    cluster.close()


def recover(plan: dict[str, Any], broker: str) -> None:
    """Get what the broker has of the jobs of a process that was killed."""
    log = Log(plan["log"], plan["by"] + " recovered")
    if not os.path.exists(plan["recover_file"]):
        return  # nothing had been submitted, or the cluster was closed
    recorded = recoverfile.look_into(Path(plan["recover_file"]))
    for cluster in recorded.clusters.values():
        for seq, number in enumerate(plan["numbers"], 1):
            if cluster.has_ended(seq):
                log.known(number)
    until = time.monotonic() + RECOVER_S
    while True:
        try:
            for job in dispy.recover_jobs(plan["recover_file"]):
                log.ended(job)
            return
        except RecoverError as error:
            print(error, file=sys.stderr, flush=True)
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        {"run": run, "recover": recover}[sys.argv[1]](json.load(file), sys.argv[3])
