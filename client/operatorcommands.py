"""Commands for people who look after a broker: ``dispy status``, ``nodes``, ``drain`` and others.

Each asks one question and prints the answer: a table or a sentence, or JSON with ``--json``.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dispy.protocol.commandline import SETTINGS, SecretOptions, secret_options
from dispy.protocol.errors import DispyError
from dispy.protocol.keys import Keys
from dispy.protocol.printable import lines
from dispy.protocol.protection import Protection

if TYPE_CHECKING:
    from .operator import Operator

PORT = 9702  # of a broker's door for clients
REFUSED = 1
UNREACHABLE = 3
INTERRUPTED = 130
WATCH_S = 2.0
CODES = """\b
Exit codes: 0 done; 1 refused, or there is no such node, cluster or job;
2 wrong options; 3 no broker answers; 130 interrupted.
"""
STATUS_EPILOG = f"""\b
Examples:
  dispy status
  dispy status --broker head.example.org --watch
  dispy status --json | jq '.clusters[] | select(.waiting > 0) | .label'

{CODES}
"""
NODES_EPILOG = f"""\b
States: up; away: can't be reached, it is given up after its lease; drained: by
"dispy drain"; set aside: it failed too often; out of service: by its own hours;
stopping. CPU, MEMORY and DISK are what the node has free.

{CODES}
"""
CANCEL_EPILOG = f"""\b
Examples:
  dispy cancel 17               all jobs of cluster 17
  dispy cancel ann:simulation   ... of ann's cluster of that name
  dispy cancel simulation 4 5   two jobs: the fourth and the fifth that were submitted

{CODES}
"""


class NotDone(click.ClickException):
    """The broker has refused."""

    exit_code = REFUSED


class NoAnswer(click.ClickException):
    """There is no broker, or it says nothing."""

    exit_code = UNREACHABLE


class Where(NamedTuple):
    """The broker to ask, and how long to wait for its answer."""

    address: str
    timeout_s: float
    keys: Keys | None


def _asks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that all of these have; it gets `Where` as ``where``."""

    @functools.wraps(function)
    def collected(
        *args: Any, broker: str, timeout: float, secret: SecretOptions, **more: Any
    ) -> Any:
        protection = secret.find()
        for line in (*secret.warnings(), *protection.warnings()):
            click.echo(f"Warning: {line}", err=True)
        where = Where(_find(broker, protection), timeout, protection.keys)
        return function(*args, where=where, **more)

    decorated: Callable[..., Any] = collected
    for option in (
        secret_options,
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=10.0,
            show_default=True,
            metavar="S",
            help="Seconds to wait for an answer.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object."),
        click.option(
            "-b",
            "--broker",
            default="localhost",
            envvar="DISPY_BROKER",
            show_envvar=True,
            show_default=True,
            metavar="HOST[:PORT]",
            help="Where the broker is; its port is 9702 unless given.",
        ),
    ):
        decorated = option(decorated)
    return decorated


def _find(broker: str, protection: Protection) -> str:
    from .remote import read_address

    try:
        return read_address("--broker", broker, PORT, protection)
    except (ValueError, DispyError) as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise NoAnswer(str(error)) from None


@contextmanager
def _asking(where: Where) -> Iterator[Operator]:
    """Connect to a broker; what goes wrong becomes one line and an exit code."""
    from .operator import Operator, Refused, Unreachable

    try:
        with Operator(*where) as operator:
            yield operator
    except Refused as error:
        raise NotDone(str(error)) from None
    except Unreachable as error:
        raise NoAnswer(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def _do(where: Where, as_json: bool, *question: Any) -> None:
    """Ask, and print the sentence that is the answer."""
    with _asking(where) as operator:
        text = operator.ask(*question).text
    if as_json:
        _print_json({"text": text})
    else:
        click.echo(lines(text))


@click.command(
    epilog=STATUS_EPILOG,
    context_settings=SETTINGS,
    short_help="Show a broker: what waits and runs.",
)
@_asks
@click.option(
    "-w", "--watch", is_flag=True, help="Show it anew every two seconds, until interrupted."
)
def status(where: Where, as_json: bool, watch: bool) -> None:
    """Show a broker: its clusters, its nodes, and what waits and runs there."""
    from .tables import as_json as objects
    from .tables import show_status

    with _asking(where) as operator:
        while True:
            report = operator.status()
            if watch and not as_json:
                click.clear()
            if as_json:
                _print_json(objects(report))
            else:
                click.echo(show_status(report, where.address, time.time()))
            if not watch:
                return
            operator.rest(WATCH_S)


@click.command(epilog=NODES_EPILOG, context_settings=SETTINGS)
@_asks
def nodes(where: Where, as_json: bool) -> None:
    """List a broker's nodes, and why some of them get no jobs."""
    from .tables import as_json as objects
    from .tables import show_nodes

    with _asking(where) as operator:
        report = operator.status()
    if as_json:
        _print_json(objects(report.nodes))
    else:
        click.echo(show_nodes(report.nodes))


@click.command(epilog=CODES, context_settings=SETTINGS)
@_asks
@click.option("--reason", default="", metavar="TEXT", help="Shown to everyone who asks.")
@click.argument("node")
def drain(where: Where, as_json: bool, reason: str, node: str) -> None:
    """Give NODE no more jobs; those that run there go on.

    NODE is a name, an address or a number as "dispy nodes" lists them. It stays drained when it
    or the broker is started anew, until "dispy resume".
    """
    _do(where, as_json, "drain", node, (), reason)


@click.command(epilog=CODES, context_settings=SETTINGS, short_help="Use NODE again after drain.")
@_asks
@click.argument("node")
def resume(where: Where, as_json: bool, node: str) -> None:
    """Use NODE again that was drained, or that the broker has set aside."""
    _do(where, as_json, "resume", node)


@click.command(epilog=CANCEL_EPILOG, context_settings=SETTINGS)
@_asks
@click.argument("cluster")
@click.argument("jobs", nargs=-1, type=click.IntRange(1), metavar="[JOB...]")
def cancel(where: Where, as_json: bool, cluster: str, jobs: tuple[int, ...]) -> None:
    """Cancel jobs of CLUSTER: these, or all of them.

    CLUSTER is a label, USER:LABEL, or the number that "dispy status" shows. Jobs are numbered in
    the order in which they were submitted, from 1.
    """
    _do(where, as_json, "cancel", cluster, jobs)


@click.command(
    epilog=CODES, context_settings=SETTINGS, short_help="Say why jobs of CLUSTER haven't ended."
)
@_asks
@click.argument("cluster")
@click.argument("jobs", nargs=-1, type=click.IntRange(1), metavar="[JOB...]")
def explain(where: Where, as_json: bool, cluster: str, jobs: tuple[int, ...]) -> None:
    """Say why jobs of CLUSTER haven't ended: what they wait for, or where they run.

    Without JOB, say how the cluster stands.
    """
    _do(where, as_json, "why", cluster, jobs)


COMMANDS = (status, nodes, drain, resume, cancel, explain)
