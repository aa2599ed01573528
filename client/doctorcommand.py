"""The command ``dispy doctor``: looks at this machine, or at the way to another one.

What is found out by `surroundings` and `probing` and judged by `doctor` is shown here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from dispy.protocol.commandline import SETTINGS, SecretOptions, listen_at, secret_options
from dispy.protocol.printable import line

if TYPE_CHECKING:
    from dispy.protocol.protection import Protection

    from .doctor import Contact, Machine, Remark

EPILOG = """\b
Examples:
  dispy doctor                        this machine: secret, networks, limits, who listens
  dispy doctor node1                  ports 9700 to 9702 of another one
  dispy doctor node1:9711
  dispy doctor --json | jq -r '.advice[]'

It starts nothing and changes nothing. Other machines are only spoken to with a secret (or with
--insecure); without one, it is tried whether their ports are open.

\b
Exit codes: 0 all is well; 1 there are problems; 2 wrong options; 130 interrupted.
"""
INTERRUPTED = 130
TIMEOUT_S = 3.0
SEEK_S = 1.5  # two questions


@dataclass
class Examination:
    """All that was found out."""

    sections: dict[str, list[Remark]] = field(default_factory=dict)
    machine: Machine | None = None
    contacts: list[Contact] = field(default_factory=list)
    found: dict[str, list[Contact]] = field(default_factory=dict)

    @property
    def remarks(self) -> list[Remark]:
        """All remarks."""
        return [remark for remarks in self.sections.values() for remark in remarks]


def _target(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    from dispy.protocol.listening import split

    if value is None:
        return None
    try:
        return split(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "doctor",
    epilog=EPILOG,
    context_settings=SETTINGS,
    short_help="Find out why machines don't reach each other.",
)
@click.argument("target", required=False, metavar="[HOST[:PORT]]", callback=_target)
@click.option(
    "-p",
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Look at this port, too, beside 9700 to 9702; may be repeated.",
)
@click.option(
    "-i",
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Address of this machine to look for others from; may be repeated  "
    "[default: as that of daemons]",
)
@secret_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=60),
    default=TIMEOUT_S,
    show_default=True,
    metavar="S",
    help="Seconds to wait for each answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def doctor(
    target: tuple[str, int] | None,
    ports: tuple[int, ...],
    hosts: tuple[str, ...],
    secret: SecretOptions,
    timeout: float,
    as_json: bool,
) -> None:
    """Look at this machine, or at the way to HOST, and say what is wrong and what to do.

    Without a PORT, those that dispy usually has are tried.
    """
    from .doctor import PORTS, has_problem

    for warning in secret.warnings():
        click.echo(f"Warning: {warning}", err=True)
    try:
        if target is None:
            examination = _look_here(secret, hosts, (*PORTS, *ports), timeout)
        else:
            host, port = target
            wanted = (port, *ports) if port else (*PORTS, *ports)
            is_exact = bool(port or ports)
            examination = _look_there(secret, host, wanted, is_exact, timeout)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if as_json:
        click.echo(json.dumps(_as_json(examination), indent=2))
    else:
        _show(examination)
    sys.exit(1 if has_problem(examination.remarks) else 0)


def _protection(options: SecretOptions) -> tuple[Protection, str]:
    """Return how others are spoken to, and what is wrong with the secret."""
    from dispy.protocol import protection
    from dispy.protocol.secret import SecretError

    text, file, keyfile, certfile = (each or "" for each in options[:4])
    try:
        return protection.find(text, file, keyfile, certfile, options.insecure), ""
    except SecretError as error:
        return protection.Protection(), str(error)


def _look_here(
    options: SecretOptions, hosts: Sequence[str], ports: Sequence[int], timeout: float
) -> Examination:
    from . import doctor, probing, surroundings

    protected, error = _protection(options)
    hosts = listen_at(hosts, protected)
    machine = surroundings.look(protected, error, hosts, ports)
    found = Examination(machine=machine)
    found.sections[f"This machine: {machine.name}"] = doctor.judge_machine(machine)
    keys = protected.keys
    contacts = probing.probe(_doors(machine, ports), keys, protected.insecure, timeout)
    found.contacts = contacts
    found.sections["Who listens here"] = doctor.judge_contacts(
        doctor.Target("this machine", is_here=True, is_wanted=False), contacts, machine.means
    )
    if keys is not None:
        sought = probing.seek(keys, hosts, min(timeout, SEEK_S))
        every = [each for addresses in sought.values() for each in addresses]
        tried = {each.address: each for each in probing.probe(every, keys, False, timeout)}
        found.found = {
            instance: [tried[each] for each in addresses] for instance, addresses in sought.items()
        }
        remarks = doctor.judge_found(found.found, machine.means)
        found.sections["Who is found with our secret"] = remarks
    return found


def _doors(machine: Machine, ports: Sequence[int]) -> list[str]:
    """Return what to try on this machine: loopback, or where somebody listens instead."""
    from dispy.protocol.listening import joined

    addresses = []
    for port in dict.fromkeys(ports):
        hosts = [each for each in machine.listening.get(port, ()) if each not in ("0.0.0.0", "::")]
        is_anywhere = len(hosts) < len(machine.listening.get(port, ()))
        addresses += [joined(each, port) for each in hosts]
        if not hosts or (is_anywhere and "127.0.0.1" not in hosts):
            addresses.append(f"127.0.0.1:{port}")
    return addresses


def _look_there(
    options: SecretOptions, host: str, ports: Sequence[int], is_exact: bool, timeout: float
) -> Examination:
    from . import doctor, probing, surroundings

    protected, error = _protection(options)
    means = surroundings.means_of(protected)
    found = Examination()
    if error:
        found.sections["This machine"] = [doctor.secret_error(error)]
    title = f"The way to {host}"
    try:
        addresses = probing.addresses_of(host, list(dict.fromkeys(ports)))
    except (OSError, UnicodeError) as why:
        found.sections[title] = [
            doctor.unknown_host(host, getattr(why, "strerror", "") or str(why))
        ]
        return found
    found.contacts = probing.probe(addresses, protected.keys, protected.insecure, timeout)
    found.sections[title] = doctor.judge_contacts(
        doctor.Target(host, probing.is_here(addresses), is_exact), found.contacts, means
    )
    return found


# -- what is shown ------------------------------------------------------------------------------


def _show(examination: Examination) -> None:
    from .doctor import NOTE, OK, PROBLEM, advices

    marks = {OK: click.style("ok      ", fg="green"), NOTE: "note    "}
    marks[PROBLEM] = click.style("PROBLEM ", fg="red", bold=True)
    for title, remarks in examination.sections.items():
        click.echo(click.style(line(title), bold=True))
        for remark in remarks:
            click.echo(f"  {marks[remark.level]} {line(remark.about)}: {line(remark.text)}")
    todo = advices(examination.remarks)
    if not todo:
        click.echo(click.style("All is well.", bold=True))
        return
    click.echo(click.style("What to do", bold=True))
    for number, advice in enumerate(todo, 1):
        click.echo(f"  {number}. {line(advice)}")


def _as_json(examination: Examination) -> dict[str, Any]:
    from .doctor import advices, has_problem

    machine = examination.machine
    return {
        "well": not has_problem(examination.remarks),
        "machine": None if machine is None else asdict(machine),
        "contacts": [asdict(each) for each in examination.contacts],
        "found": [[asdict(each) for each in contacts] for contacts in examination.found.values()],
        "remarks": [
            {"section": section, **asdict(remark)}
            for section, remarks in examination.sections.items()
            for remark in remarks
        ],
        "advice": advices(examination.remarks),
    }
