"""Checksums, words and compressed sizes of all files of a source tree, one job a file.

The same is then computed in this process, and both are compared. The files' contents travel
with the jobs, so the nodes need not have the files.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from node_option import command_line

import dispy

NOT_SOURCES = {"__pycache__", "site-packages"}
SHOWN = 5  # differences and failures that are printed


class Summary(NamedTuple):
    """What is computed of a file."""

    sha256: str
    words: int
    packed_bytes: int


class Outcome(NamedTuple):
    """Summaries by file (None: the job failed), and the seconds that it took to get them."""

    summaries: dict[Path, Summary | None]
    seconds: float


def summarize(content: bytes) -> tuple[str, int, int]:
    """Run as a job, on a node."""
    packed = zlib.compress(content, level=6)
    return hashlib.sha256(content).hexdigest(), len(content.split()), len(packed)


def files_below(tree: Path, limit: int) -> list[Path]:
    """Return the regular files of the tree, in order, without what is installed or made."""
    paths = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    sources = [path for path in paths if not NOT_SOURCES & set(path.relative_to(tree).parts)]
    return sources[:limit]


def by_jobs(contents: dict[Path, bytes], nodes: list[str] | None) -> Outcome:
    """Compute all summaries on nodes."""
    began = time.perf_counter()
    # The jobs are short and leave nothing behind, so they may share processes.
    with dispy.JobCluster(summarize, nodes=nodes, max_tasks_per_child=None) as cluster:
        jobs = {path: cluster.submit(content) for path, content in contents.items()}
        summaries = {path: summary_of(job) for path, job in jobs.items()}
        seconds = time.perf_counter() - began
        cluster.print_status()
    report_failures(jobs)
    return Outcome(summaries, seconds)


def summary_of(job: dispy.DispyJob) -> Summary | None:
    """Wait for the job and return its result, or None if it failed."""
    result = job()
    return Summary(*result) if job.status == dispy.DispyJob.Finished else None


def report_failures(jobs: dict[Path, dispy.DispyJob]) -> None:
    """Print how many jobs failed, and why the first of them did."""
    failed = {path: job for path, job in jobs.items() if job.status != dispy.DispyJob.Finished}
    if failed:
        print(f"{len(failed):,} jobs failed, for example:")
    for path, job in list(failed.items())[:SHOWN]:
        print(f"{path}: {job.exception}")


def by_this_process(contents: dict[Path, bytes]) -> Outcome:
    """Compute all summaries here, one after the other."""
    began = time.perf_counter()
    summaries = {path: Summary(*summarize(content)) for path, content in contents.items()}
    return Outcome(dict(summaries), time.perf_counter() - began)


def compare(jobs: Outcome, here: Outcome, size_bytes: int) -> int:
    """Print totals, times and what differs; return the number of differing files."""
    known = [summary for summary in jobs.summaries.values() if summary]
    words, packed = sum(one.words for one in known), sum(one.packed_bytes for one in known)
    print(f"{len(known):,} files, {size_bytes:,} bytes, {words:,} words, {packed:,} bytes packed")
    print(f"as jobs: {jobs.seconds:.2f} s; in this process: {here.seconds:.2f} s")
    differing = [path for path, one in here.summaries.items() if jobs.summaries[path] != one]
    for path in differing[:SHOWN]:
        print(f"differs: {path}: {jobs.summaries[path]} != {here.summaries[path]}")
    print(f"DIFFERENT: {len(differing):,} files" if differing else "the results are the same")
    return len(differing)


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument("--tree", type=Path, default=standard_library)
    parser.add_argument("--limit", type=int, default=800, help="at most so many files")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    contents = {path: path.read_bytes() for path in files_below(options.tree, options.limit)}
    if not contents:
        print(f"no files below {options.tree}")
        return 1
    print(f"{len(contents):,} files of {options.tree}", flush=True)
    size_bytes = sum(map(len, contents.values()))
    jobs = by_jobs(contents, options.nodes)
    return 1 if compare(jobs, by_this_process(contents), size_bytes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
