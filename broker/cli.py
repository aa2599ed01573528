"""The command line of a shared broker: ``dispy-broker``."""

from __future__ import annotations

import gc
import getpass
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from dispy._version import __version__
from dispy.protocol import configfile, exitcodes, logs
from dispy.protocol.commandline import SETTINGS

from .settings import FAIR, POLICIES, Settings

if TYPE_CHECKING:
    from dispy.protocol.transport import Bus

    from .daemon import BrokerDaemon
    from .journal import Journal

PORT = 9700  # where nodes dial in; clients at the next but one
LOOPBACK = ("127.", "localhost", "::1")
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
WEIGHT_MIN = 0.001
STEP_S = 3600.0  # a step ends earlier when there is something to do
log = logging.getLogger("dispy.broker")

EPILOG = """\b
Examples:
  dispy-broker                           nodes dial 127.0.0.1:9700, clients 127.0.0.1:9702
  dispy-broker -n 127.0.0.1:9701         dial this node
  dispy-broker --policy fifo             first come, first served
  dispy-broker --weight ann@lab=2        twice the share of other users
  dispy-broker --state-dir /var/lib/dispy --durability full
  dispy-broker --no-journal              jobs don't survive a restart
\b
Look at it with "dispy status"; stop it with Ctrl-C or SIGTERM: jobs that run go on, and
are found again when it is started anew.
\b
Exit codes: 0 stopped as asked; 1 unexpected error; 2 wrong options; 69 port taken;
  73 state folder can't be made; 74 journal can't be written any more;
  75 journal in use by another broker; 76 journal corrupt or of a newer version.
"""


def _hosts(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Without a shared secret nobody but this machine may reach a broker."""
    for value in values:
        if not value.startswith(LOOPBACK):
            raise click.BadParameter(
                f"{value} can be reached from other machines, and this release can't protect "
                "that yet: use 127.0.0.1"
            )
    return tuple("127.0.0.1" if value == "localhost" else value for value in values)


def _nodes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    return tuple(_address(context, parameter, value) for value in values)


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    bracketed = value.startswith("[")
    if bracketed:
        host, _, port = value[1:].partition("]")
        port = port.lstrip(":")
    elif value.count(":") == 1:
        host, _, port = value.partition(":")
    else:
        host, port = value, ""
    port = port or str(PORT + 1)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{value!r} is not HOST or HOST:PORT")
    (host,) = _hosts(context, parameter, (host,))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _weights(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        try:
            user, weight = _weight(value)
        except ValueError:
            user, weight = "", 0.0
        if not user or not WEIGHT_MIN <= weight <= 1 / WEIGHT_MIN:
            limits = f"from {WEIGHT_MIN} to {1 / WEIGHT_MIN:g}"
            raise click.BadParameter(f"{value!r} is not USER=WEIGHT with a weight {limits}")
    return values


def _weight(value: str) -> tuple[str, float]:
    user, _, weight = value.rpartition("=")
    return user, float(weight)


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """How many bytes are meant by "10m" and the like."""
    number, unit = (value[:-1], value[-1:].lower()) if value[-1:].isalpha() else (value, "")
    if not number.isdecimal() or unit not in UNITS:
        raise click.BadParameter(f"{value!r} is not a number, or one with k, m, g or t")
    return int(number) << UNITS[unit]


@click.command(epilog=EPILOG, context_settings=SETTINGS)
@click.option(
    "-i",
    "--host",
    "hosts",
    multiple=True,
    default=("127.0.0.1",),
    show_default=True,
    callback=_hosts,
    help="Address to listen at; may be repeated.",
)
@click.option(
    "-p",
    "--dispy-port",
    "--port",
    "port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65533),
    help="Where nodes dial in; clients at this port + 2. 0: any free ports.",
)
@click.option(
    "-n",
    "--node",
    "nodes",
    multiple=True,
    metavar="HOST[:PORT]",
    callback=_nodes,
    help="Dial this node; may be repeated.",
)
@click.option("--name", default="", help="Name of the broker  [default: USER's broker at HOST]")
@click.option(
    "--state-dir",
    "--dest-path-prefix",
    "state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of journal and files  [default: in the user's state folder]",
)
@click.option("--no-journal", is_flag=True, help="Keep nothing on disk: jobs end with the broker.")
@click.option(
    "--durability",
    default="normal",
    show_default=True,
    type=click.Choice(["normal", "full"]),
    help="What the journal survives: normal the broker's death, full also a power failure.",
)
@click.option(
    "--policy",
    default=FAIR,
    show_default=True,
    type=click.Choice(POLICIES),
    help="fair: equal shares of users and clusters; fifo: the oldest cluster first.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="USER=W",
    callback=_weights,
    help="Share of a user (login, or login@host) beside others, who have 1; may be repeated.",
)
@click.option(
    "--pulse-interval",
    default=0.0,
    metavar="SECONDS",
    type=click.FloatRange(0, 1000),
    help="How often nodes tell what they have to spare; 0: as each client says.",
)
@click.option(
    "--zombie-interval",
    "zombie_min",
    default=60.0,
    show_default=True,
    metavar="MINUTES",
    type=click.FloatRange(min=0),
    help="Cancel the jobs of a client that has been away for so long; 0: never.",
)
@click.option(
    "--retain",
    "retain_days",
    default=7.0,
    show_default=True,
    metavar="DAYS",
    type=click.FloatRange(min=0),
    help="Keep results for such a client for so long.",
)
@click.option(
    "--max-file-size",
    default="0",
    show_default=True,
    metavar="N[kmgt]",
    callback=_size,
    help="Refuse larger files; 0: no limit.",
)
@click.option(
    "--max-journal-size",
    default="0",
    show_default=True,
    metavar="N[kmgt]",
    callback=_size,
    help="Take no more jobs when the journal is larger; 0: no limit but the disk.",
)
@click.option(
    "--cooperative", is_flag=True, help="Let clients change how many CPUs of a node are used."
)
@click.option("--clean", is_flag=True, help="Forget all that an earlier broker has kept here.")
@click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=configfile.read_options,
    help="Options in a file; those of the command line come first.",
)
@click.option(
    "--save-config",
    type=click.Path(dir_okay=False),
    help="Write these options to a file for --config, and exit.",
)
@click.option("-d", "--debug", is_flag=True, help="Log more.")
@click.option("--log-format", default="text", show_default=True, type=click.Choice(logs.FORMATS))
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Log to this file  [default: standard error]",
)
@click.option("--daemon", is_flag=True, hidden=True, help="For old command lines: it is one.")
@click.version_option(__version__, prog_name="dispy-broker")
@click.pass_context
def main(
    context: click.Context,
    hosts: tuple[str, ...],
    port: int,
    nodes: tuple[str, ...],
    name: str,
    state: Path | None,
    no_journal: bool,
    durability: str,
    policy: str,
    weights: tuple[str, ...],
    pulse_interval: float,
    zombie_min: float,
    retain_days: float,
    max_file_size: int,
    max_journal_size: int,
    cooperative: bool,
    clean: bool,
    save_config: str | None,
    debug: bool,
    log_format: str,
    log_file: Path | None,
    daemon: bool,
) -> None:
    """Share nodes among the programs of many users: the scheduler behind SharedJobCluster."""
    if save_config is not None:
        configfile.save_options(context, save_config)
    _configure_logs(logging.DEBUG if debug else logging.INFO, log_format, log_file)
    settings = Settings(
        durable=not no_journal,
        policy=policy,
        weights=dict(map(_weight, weights)),
        client_lease_s=zombie_min * 60 or float("inf"),
        retain_s=retain_days * 86400,
        pulse_s=pulse_interval,
        cooperative=cooperative,
        shared=True,
        max_file_bytes=max_file_size,
        nodes=nodes,
    )
    with ExitStack() as stack:
        if no_journal:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dispy-broker-")))
            journal = None
        else:
            folder = _folder(state or _default_folder(port), clean)
            journal = _open_journal(folder, durability, max_journal_size)
        synced = durability == "full"
        _serve(hosts, port, name or _title(), settings, folder, journal, synced)


def _configure_logs(level: int, log_format: str, file: Path | None) -> None:
    try:
        logs.configure(level, log_format, file)
    except OSError as error:
        _refuse(exitcodes.CANNOT_CREATE, f"can't write the log {file}: {error.strerror}")


def _default_folder(port: int) -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("dispy")) / f"broker-{port}"


def _folder(folder: Path, clean: bool) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _refuse(
            exitcodes.CANNOT_CREATE,
            f"can't make the folder {folder}: {error.strerror}. Name another one with "
            "--state-dir, or keep nothing with --no-journal",
        )
    if clean:
        _clean(folder)
    return folder


def _clean(folder: Path) -> None:
    """Remove what an earlier broker has left, if it has ended."""
    from .journal import Journal, JournalError

    try:
        Journal.remove(folder)
        shutil.rmtree(folder / "files", ignore_errors=True)
    except JournalError as error:
        _refuse(error.code, str(error))


def _open_journal(folder: Path, durability: str, max_bytes: int) -> Journal:
    from .journal import Journal, JournalError

    try:
        return Journal(folder, durability, max_bytes)
    except JournalError as error:
        _refuse(error.code, str(error))


def _serve(
    hosts: Sequence[str],
    port: int,
    name: str,
    settings: Settings,
    folder: Path,
    journal: Journal | None,
    synced: bool,
) -> None:
    from dispy.protocol.transport import Bus, raise_limits

    from .daemon import BrokerDaemon
    from .journal import JournalBroken

    raise_limits()
    bus = Bus()
    try:
        doors = [door for host in hosts for door in _open_doors(bus, host, port)]
    except OSError as error:
        _refuse(
            exitcodes.UNAVAILABLE,
            f"{error}. Does another broker run here? Choose another port with -p",
        )
    daemon = BrokerDaemon(bus, __version__, name, settings, journal, folder, synced)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.restore()
    gc.collect()
    gc.freeze()  # what was restored stays; it needn't be looked at again and again
    _say(daemon, doors, folder if journal is not None else None)
    try:
        while not daemon.stopping:
            daemon.step(STEP_S)
    except JournalBroken as error:
        log.critical("the journal can't be written any more, so the broker stops: %s", error)
        daemon.close(goodbye=False)
        sys.exit(exitcodes.BROKEN_DISK)
    log.info("stopped%s", "; jobs that run go on" if journal is not None else "")
    daemon.close(goodbye=journal is None)


def _open_doors(bus: Bus, host: str, port: int) -> list[str]:
    """Listen for nodes and for clients."""
    shown = f"[{host}]" if ":" in host else host
    return [bus.listen(f"{shown}:{port}"), bus.listen(f"{shown}:{port and port + 2}")]


def _say(daemon: BrokerDaemon, doors: Sequence[str], folder: Path | None) -> None:
    state = daemon.scheduler.state
    log.info(
        "broker %s: nodes dial %s, clients %s, %s, pid %d",
        daemon.exchange.identity.name,
        ", ".join(doors[::2]),
        ", ".join(doors[1::2]),
        f"journal in {folder}" if folder is not None else "no journal",
        os.getpid(),
    )
    if state.clusters:
        jobs = sum(len(cluster.jobs) for cluster in state.clusters.values())
        log.info("%d clusters with %d jobs go on", len(state.clusters), jobs)


def _title() -> str:
    user = ""
    with suppress(KeyError, OSError, ImportError):  # the user may have no name
        user = f"{getpass.getuser()}'s "
    return f"{user}broker at {socket.gethostname()}"


def _refuse(code: int, text: str) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
