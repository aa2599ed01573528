"""What all our commands have in common: how options are spelled, and the options of several.

Give `SETTINGS` as ``context_settings`` to a click command or to the group it belongs to. Options
that belong together are a decorator, and reach the command as one parameter.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click

from . import configfile, exitcodes, listening, logs, protection
from .errors import DispyError
from .lookup import SEPARATOR
from .protection import Protection
from .secret import SecretError

if TYPE_CHECKING:  # it loads ZeroMQ
    from .transport import Bus

UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_dashes(name: str) -> str:
    """Take ``--dispy_port`` for ``--dispy-port``: dispy's options had underscores."""
    return name.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": with_dashes,
}


def refuse(code: int, text: str) -> NoReturn:
    """End with a message for the user, and a code for scripts."""
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


# -- values ------------------------------------------------------------------------------------


def size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """How many bytes are meant by "10m" and the like; a callback."""
    number, unit = (value[:-1], value[-1:].lower()) if value[-1:].isalpha() else (value, "")
    if not number.isdecimal() or unit not in UNITS:
        raise click.BadParameter(f"{value!r} is not a number, or one with k, m, g or t")
    return int(number) << UNITS[unit]


def addresses(port: int) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that makes "host:port" of HOST or HOST:PORT, one or many."""

    def read(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(_address(each, port) for each in value)
        return value and _address(value, port)

    return read


def _address(value: str, port: int) -> str:
    try:
        return listening.with_port(value, port)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


# -- options -----------------------------------------------------------------------------------


def config_options(function: Function) -> Function:
    """Add --config and --save-config; the latter is the parameter ``save_config``."""
    function = click.option(
        "--save-config",
        type=click.Path(dir_okay=False),
        help="Write these options to a file for --config, and exit; secrets are left out.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=configfile.read_options,
        help="Options in a file; those of the command line come first.",
    )(function)


class LogOptions(NamedTuple):
    """What the options say about the log."""

    debug: bool
    format: str
    file: Path | None

    def configure(self, level: int = logging.INFO) -> None:
        """Log as is said, from ``level`` up unless --debug is given; exit if that's impossible."""
        try:
            logs.configure(logging.DEBUG if self.debug else level, self.format, self.file)
        except OSError as error:
            refuse(exitcodes.CANNOT_CREATE, f"can't write the log {self.file}: {error.strerror}")


def log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --debug, --log-format and --log-file; the command gets `LogOptions` as ``log_as``."""

    @functools.wraps(function)
    def collected(
        *args: Any, debug: bool, log_format: str, log_file: Path | None, **more: Any
    ) -> Any:
        return function(*args, log_as=LogOptions(debug, log_format, log_file), **more)

    for option in (
        click.option(
            "--log-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Log to this file  [default: standard error]",
        ),
        click.option(
            "--log-format", default=logs.TEXT, show_default=True, type=click.Choice(logs.FORMATS)
        ),
        click.option("-d", "--debug", is_flag=True, help="Log more."),
    ):
        collected = option(collected)
    return collected


class SecretOptions(NamedTuple):
    """Where a command is told to get a secret from."""

    text: str | None = None
    file: str | None = None
    keyfile: str | None = None
    certfile: str | None = None
    insecure: bool = False

    @property
    def is_given(self) -> bool:
        """Whether anything but --insecure is."""
        return any(self[:4])

    def find(self, default: Protection | None = None) -> Protection:
        """Return the protection that is meant; ``default`` if nothing is given.

        Without a default it is that of the environment. Ends the command when it can't be read.
        """
        if default is not None and not self.is_given:
            return default
        text, file, keyfile, certfile = (each or "" for each in self[:4])
        try:
            return protection.find(text, file, keyfile, certfile, self.insecure)
        except SecretError as error:
            raise click.UsageError(str(error)) from None

    def warnings(self) -> list[str]:
        """What is wrong with the way it's given, a line each."""
        if not self.text:
            return []
        return [
            "a secret on the command line can be seen by all users of this machine in its list "
            "of processes: use --secret-file, DISPY_SECRET or 'dispy secret new'"
        ]


def secret_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --secret and all that goes with it; the command gets `SecretOptions` as ``secret``."""
    flag = click.option(
        "--insecure",
        is_flag=True,
        help="Use no secret and no encryption, and allow other machines nevertheless.",
    )
    return _with_secret("", "", "-s", ("insecure",))(flag(function))


def secret_options_of(whose: str, who: str) -> Decorator:
    """Add --WHOSE-secret and the like; the command gets `SecretOptions` as ``WHOSE_secret``."""
    return _with_secret(f"{whose}-", f" of {who} only, instead of the common one", "", ())


def _with_secret(prefix: str, whose: str, short: str, more: Sequence[str]) -> Decorator:
    name = prefix.replace("-", "_")
    keys = [f"{name}{key}" for key in ("secret", "secret_file", "keyfile", "certfile")]
    path = click.Path(dir_okay=False)
    texts = ("Private key that serves as the secret", "Certificate with the private key")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def collected(*args: Any, **given: Any) -> Any:
            options = SecretOptions(*(given.pop(key) for key in (*keys, *more)))
            return function(*args, **{f"{name}secret": options}, **given)

        for option in (
            click.option(f"--{prefix}certfile", type=path, help=f"{texts[1]}{whose}."),
            click.option(f"--{prefix}keyfile", type=path, help=f"{texts[0]}{whose}."),
            click.option(
                f"--{prefix}secret-file",
                type=path,
                help=f"File with the secret{whose or ' that all peers share'}.",
            ),
            click.option(
                *filter(None, (short, f"--{prefix}secret")),
                metavar="TEXT",
                help=f"The secret{whose} itself: others may see it in the list of processes.",
            ),
        ):
            collected = option(collected)
        return collected

    return decorate


def host_options(function: Function) -> Function:
    """Add --host and --ext-host, as the parameters ``hosts`` and ``ext_hosts``; see `listen_at`."""
    function = click.option(
        "--ext-host",
        "ext_hosts",
        multiple=True,
        metavar="HOST[:PORT]",
        callback=_known,
        help="Address under which others reach this machine, if it is another; may be repeated.",
    )(function)
    return click.option(
        "-i",
        "--host",
        "hosts",
        multiple=True,
        metavar="HOST",
        help="Address to listen at, * for all; may be repeated  "
        "[default: DISPY_HOST; else with a secret all, without one 127.0.0.1]",
    )(function)


def _known(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        _address(value, 1)
    return values


def listen_at(hosts: Sequence[str], protection: Protection) -> list[str]:
    """Return where to listen; ends the command if that isn't allowed."""
    try:
        return listening.hosts_to_listen("--host", hosts, protection)
    except (OSError, DispyError) as error:
        raise click.UsageError(str(error)) from None


def may_dial(option: str, address: str, protection: Protection) -> str:
    """Return an address to dial; ends the command if that isn't allowed.

    With a secret a name needn't be known yet: networks come and go.
    """
    host, port = listening.split(address)
    if protection.reaches_out and host != "localhost":
        return address
    try:
        found = listening.numerics(option, host)
        for each in found:
            protection.allow(option, host, listening.is_loopback(option, each))
    except (OSError, DispyError) as error:
        raise click.UsageError(str(error)) from None
    return listening.joined(SEPARATOR.join(found), port)  # no name: it may lead elsewhere later


def check_doors(bus: Bus, doors: Sequence[str], protection: Protection) -> None:
    """End a daemon that has a secret, but lets strangers in at its doors: a broken ZeroMQ."""
    if protection.secret is None or not doors:
        return
    from .selftest import OpenDoor, self_test

    try:
        self_test(bus, doors)
    except OpenDoor as error:
        refuse(exitcodes.UNEXPECTED, str(error))
