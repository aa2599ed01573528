"""The command line of clients: ``dispy run``, ``dispy recover``, and those of operators.

What takes long to import is imported when a command needs it, so that ``--help`` is quick.
What jobs print goes where they printed it; all else is a line per job, and errors are one line.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import reprlib
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy.protocol.commandline import (
    SETTINGS,
    SecretOptions,
    host_options,
    secret_options,
)

from ._version import __version__
from .doctorcommand import doctor
from .journalcommands import journal
from .operatorcommands import COMMANDS
from .secretcommand import secret

if TYPE_CHECKING:
    from .cluster import JobCluster
    from .job import DispyJob

CALL_CHARS = 70  # of the arguments of a job in its line
INTERRUPTED = 128  # the exit code, and the number of the signal
EPILOG = """\b
Examples:
  dispy run -a "1 2" -a "3 4" ./program       two jobs on this machine
  dispy run -n node1 -n node2:9711 -f data.csv -a 1 -a 2 ./program.py
  dispy run --broker localhost -a 1 -a 2 ./program      where others run theirs, too
  dispy recover                               results of a program that was killed
  dispy status                                what a broker does that others use, too
  dispy doctor                                what keeps machines from reaching each other
\b
`dispy COMMAND --help` says more about a command; `dispy-node` runs a node.
"""
RUN_EPILOG = """\b
Examples:
  dispy run ./program
      one job without arguments, on the node of this machine; if none runs,
      one is started for as long as it takes
  dispy run -f table.csv -a "north 2024" -a "south 2024" ./report.py
      two jobs; table.csv is in the folder where they run
  dispy run -n node1 -n '10.0.0.*' -a 1 -a 2 -a 3 ./program -- --fast
      three jobs, whose arguments begin with --fast
  dispy run --broker localhost --name nightly -a 1 -a 2 ./program
      two jobs at the broker that runs here (see dispy-broker --help)
\b
Exit codes: 0 all jobs exited with 0; 1 a job didn't, or can't be run;
2 wrong options; 130 interrupted (jobs are cancelled, nodes cleaned up).
"""
RECOVER_EPILOG = """\b
Examples:
  dispy recover                           wait for all jobs, print what they left
  dispy recover _dispy_20240131120000 --timeout 60
      what has ended within a minute; the others go on, try again later
  dispy recover --timeout 1 --terminate-pending
      free the nodes, ending the jobs that still run
  dispy recover --cluster nightly --broker localhost
      of a program that had its jobs at a broker, wherever it ran
\b
Exit codes: 0 all jobs finished; 1 some didn't, or nothing can be recovered;
2 wrong options; 130 interrupted (what has come is kept for the next time).
"""
BROKER = "HOST[:PORT]"


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to end."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def _arguments(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> list[list[str]]:
    """Split each value as a shell would."""
    return [_split(value) for value in values]


def _split(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}, in {value!r}") from None


def _program(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the path of a program that is here, or on PATH."""
    if Path(value).is_dir():
        raise click.BadParameter(f"{value!r} is a folder")
    found = value if Path(value).is_file() else shutil.which(value)
    if found is None:
        raise click.BadParameter(f"there is no file {value!r}, nor a program of that name on PATH")
    return str(Path(found).absolute())


def _seconds(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and not 0 <= value < float("inf"):
        raise click.BadParameter("it must be a number of seconds, 0 or more")
    return value


@click.group(epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="dispy")
def main() -> None:
    """Run programs on many machines, and recover what they did."""


@main.command(
    epilog=RUN_EPILOG,
    context_settings=SETTINGS,
    short_help="Run a program on nodes, once for each list of arguments.",
)
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True),
    help="A file or folder that the program needs. Repeatable.",
)
@click.option(
    "-a",
    "--args",
    "arguments",
    multiple=True,
    metavar="ARGS",
    callback=_arguments,
    help="One job's arguments, in a shell's quoting. Repeatable.",
)
@click.option(
    "-n",
    "--nodes",
    "--node",
    "nodes",
    multiple=True,
    metavar="NODE",
    help="HOST, HOST:PORT or a pattern of addresses. Repeatable  [default: this machine]",
)
@click.option(
    "--broker",
    "--scheduler-node",
    "broker",
    metavar=BROKER,
    help="Run at a broker that others use, too, on its nodes.",
)
@click.option("--name", metavar="TEXT", help="What the jobs are called at the broker.")
@click.option(
    "--timeout", type=float, callback=_seconds, metavar="S", help="Seconds that a job may run."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Run a job again that was killed or lost, so often.",
)
@host_options
@secret_options
@click.option("-c", "--no-cleanup", is_flag=True, help="Leave the files on the nodes.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but what jobs print.")
@click.option("-v", "--verbose", is_flag=True, help="Print a table of the nodes at the end.")
@click.option("-d", "--debug", is_flag=True, help="Log much, and print the table.")
@click.argument("program", callback=_program)
@click.argument("common", nargs=-1, metavar="[-- ARGS...]")
def run(
    files: tuple[str, ...],
    arguments: list[list[str]],
    nodes: tuple[str, ...],
    broker: str | None,
    name: str | None,
    timeout: float | None,
    retries: int,
    hosts: tuple[str, ...],
    ext_hosts: tuple[str, ...],
    secret: SecretOptions,
    no_cleanup: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
    program: str,
    common: tuple[str, ...],
) -> None:
    """Run PROGRAM on nodes, once for each -a, and print what the jobs print.

    A Python program (.py) is run by the node's Python, any other is executed. ARGS after the
    program are given to each job, before its own; after -- they may begin with a dash. Programs
    have nothing to read on standard input. What one prints is shown when it has ended, up to
    1 MiB.
    """
    jobs = [[*common, *own] for own in arguments or [[]]]
    if name and not broker:
        raise click.UsageError("--name is what jobs are called at a broker: give --broker")
    protected = _protected(secret)
    with _told_in_one_line():
        ended: queue.SimpleQueue[DispyJob] = queue.SimpleQueue()
        try:
            cluster = _kind_of_cluster(broker, name)(
                program,
                nodes=list(nodes) or None,
                depends=[str(Path(file).absolute()) for file in files],
                job_status=ended.put,
                cleanup=not no_cleanup,
                timeout=timeout,
                retries=retries,
                host=hosts or None,
                ext_host=ext_hosts or None,
                **protected,
                loglevel=logging.DEBUG if debug else logging.WARNING,
            )
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
        screen = Screen(len(jobs), quiet)
        try:
            all_well = _run(cluster, jobs, ended.get, screen)
            cluster.close()
        except BaseException:
            screen.clear()
            cluster.close(timeout=0, terminate=True)
            raise
        if verbose or debug:
            cluster.print_status()
    sys.exit(0 if all_well else 1)


def _protected(secret: SecretOptions) -> dict[str, Any]:
    """Return the parameters by which a cluster gets what the options say."""
    protection = secret.find()
    for line in secret.warnings():
        click.echo(f"Warning: {line}", err=True)
    return {"secret": protection.secret, "insecure": protection.insecure}


def _kind_of_cluster(broker: str | None, name: str | None) -> Callable[..., JobCluster]:
    """Return what makes a cluster of our own, or one at a broker."""
    if broker is None:
        from .cluster import JobCluster

        return JobCluster
    from .shared import SharedJobCluster

    return partial(SharedJobCluster, scheduler_node=broker, name=name)


def _run(
    cluster: JobCluster,
    jobs: list[list[str]],
    next_ended: Callable[[], DispyJob],
    screen: Screen,
) -> bool:
    """Run all jobs; return whether all of them exited with 0."""
    titles = {}
    for number, own in enumerate(jobs, 1):
        job = cluster.submit_job_id(number, *own)
        titles[job] = f"job {number}" + (f" ({shlex.join(own)})" if own else "")
    all_well = True
    screen.progress()
    while titles:
        job = next_ended()
        title = titles.pop(job, None)
        if title is None:  # an abandoned one that came back after all
            continue
        screen.show(f"{title}: {_exit(job)}", job)
        all_well &= _is_well(job)
    return all_well


@main.command(epilog=RECOVER_EPILOG, context_settings=SETTINGS)
@click.argument("file", required=False)
@click.option("--cluster", metavar="NAME", help="Instead of FILE: what it is called at a broker.")
@click.option(
    "--broker",
    "--scheduler-node",
    "broker",
    metavar=BROKER,
    help="The broker  [default: the one that FILE names; with --cluster that of DISPY_BROKER, or "
    "of this machine]",
)
@click.option(
    "--timeout",
    type=float,
    callback=_seconds,
    metavar="S",
    help="Seconds to wait for jobs  [default: until all have ended]",
)
@click.option(
    "--terminate-pending",
    is_flag=True,
    help="End the jobs that still run, after --timeout or else at once.",
)
@secret_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list of all jobs.")
@click.option("-d", "--debug", is_flag=True, help="Log much.")
def recover(
    file: str | None,
    cluster: str | None,
    broker: str | None,
    timeout: float | None,
    terminate_pending: bool,
    secret: SecretOptions,
    as_json: bool,
    debug: bool,
) -> None:
    """Get the results of a program that was killed, and free its nodes.

    FILE is what the program has left, by default the newest _dispy_* here.
    """
    if file and cluster:
        raise click.UsageError("give FILE or --cluster, not both")
    if cluster:
        broker = broker or os.environ.get("DISPY_BROKER")
    protected = _protected(secret)
    with _told_in_one_line():
        from .log import logger
        from .recover import recover_jobs

        told = logging.INFO if sys.stderr.isatty() else logging.WARNING
        logger.setLevel(logging.DEBUG if debug else told)
        try:
            jobs = recover_jobs(
                file,
                timeout,
                terminate_pending,
                cluster=cluster,
                scheduler_node=broker,
                **protected,
            )
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps([_as_json(job) for job in jobs], indent=2))
    else:
        _list(jobs)
    sys.exit(0 if all(job.status == job.Finished for job in jobs) else 1)


def _list(jobs: Sequence[DispyJob]) -> None:
    if not jobs:
        click.echo("no job has ended that could be recovered", err=True)
    screen = Screen(0, False)
    for job in jobs:
        if job.status == job.Cancelled:  # it has left nothing, and there may be very many
            click.echo(f"==> job {job.id}{_call(job)}: Cancelled, {job.exception} <==")
        else:
            result = f", result {job.result!r}" if job.status == job.Finished else ""
            screen.show(f"job {job.id}: {_status(job)}{result}{_where(job)}", job)


def _call(job: DispyJob) -> str:
    """Show the arguments of a job, in short."""
    if job.args is None:
        return ""
    values = [reprlib.repr(value) for value in job.args]
    values += [f"{name}={reprlib.repr(value)}" for name, value in job.kwargs.items()]
    return f" ({textwrap.shorten(', '.join(values), CALL_CHARS, placeholder='...')})"


def _as_json(job: DispyJob) -> dict[str, Any]:
    """Describe a job; what JSON doesn't know becomes its `repr`."""
    from .job import as_text

    return {
        "id": _plain(job.id),
        "status": _status(job),
        "result": _plain(job.result),
        "stdout": as_text(job.stdout),
        "stderr": as_text(job.stderr),
        "exception": job.exception,
        "host": job.host,
        "args": None if job.args is None else [_plain(value) for value in job.args],
        "kwargs": {name: _plain(value) for name, value in job.kwargs.items()},
        "submit_time": job.submit_time,
        "start_time": job.start_time,
        "end_time": job.end_time,
    }


def _plain(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


# -- what is shown ------------------------------------------------------------------------


class Screen:
    """Standard output for jobs, and a line on how far it is on a terminal."""

    def __init__(self, total: int, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._ended = 0
        self._has_progress = bool(total) and not quiet and sys.stderr.isatty()

    def show(self, title: str, job: DispyJob) -> None:
        """Print what a job has left."""
        self.clear()
        if not self._quiet:
            click.echo(f"==> {title} <==")
        _print(job.stdout, err=False)
        _print(job.stderr, err=True)
        if job.exception:
            _print(job.exception, err=True)
        self._ended += 1
        self.progress()

    def progress(self) -> None:
        """Say how far it is, in a line that whatever comes next overwrites."""
        if self._has_progress and self._ended < self._total:
            text = f"{self._ended} of {self._total} jobs have ended\r"
            click.echo(text, nl=False, err=True)

    def clear(self) -> None:
        """Take that line away."""
        if self._has_progress:
            click.echo("\r\x1b[K", nl=False, err=True)


def _print(text: str | bytes | None, err: bool) -> None:
    """Write what was printed as it is, but end its last line."""
    if text:
        click.echo(text, nl=text[-1:] not in ("\n", b"\n"), err=err)


def _exit(job: DispyJob) -> str:
    """Say how a program has ended."""
    if job.status != job.Finished:
        return _status(job) + _where(job)
    if isinstance(job.result, int) and job.result < 0:
        return f"killed by signal {-job.result}{_where(job)}"
    return f"exit code {job.result}{_where(job)}"


def _where(job: DispyJob) -> str:
    if job.host is None or job.start_time is None or job.end_time is None:
        return ""
    return f", {max(0.0, job.end_time - job.start_time):.2f} s at {job.host}"


def _status(job: DispyJob) -> str:
    from .job import STATUS_NAMES

    return STATUS_NAMES.get(job.status, str(job.status))


def _is_well(job: DispyJob) -> bool:
    return job.status == job.Finished and job.result == 0


# -- ends ---------------------------------------------------------------------------------


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Turn what users can do something about into a line, and signals into exit codes."""
    from dispy.protocol.errors import DispyError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except Interrupted as interruption:
        sys.exit(INTERRUPTED + interruption.signum)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED + signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has had enough, which click deals with
        raise
    except (DispyError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


for command in (*COMMANDS, doctor, journal, secret):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="dispy")
