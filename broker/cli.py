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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from dispy._version import __version__
from dispy.protocol import configfile, exitcodes, listening
from dispy.protocol.commandline import (
    SETTINGS,
    LogOptions,
    SecretOptions,
    addresses,
    check_doors,
    config_options,
    host_options,
    listen_at,
    log_options,
    may_dial,
    refuse,
    secret_options,
    secret_options_of,
    size,
)
from dispy.protocol.keys import Keys
from dispy.protocol.listening import joined
from dispy.protocol.protection import Protection

from .settings import FAIR, POLICIES, Settings

if TYPE_CHECKING:
    from dispy.protocol.transport import Bus

    from .daemon import BrokerDaemon
    from .journal import Journal

PORT = 9700  # where nodes dial in; clients at the next but one
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


class House(NamedTuple):
    """How the two kinds of peers are kept from strangers."""

    clients: Protection
    nodes: Protection


class Search(NamedTuple):
    """How nodes are looked for in the network."""

    interval_s: float
    multicast: bool


class Entrance(NamedTuple):
    """Where the two kinds of peers get in, and what they need for it."""

    node_doors: tuple[str, ...]  # "host:port"
    client_doors: tuple[str, ...]
    node_keys: Keys | None
    client_keys: Keys | None
    ext_hosts: tuple[str, ...]  # by which nodes reach this machine, if they differ


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


@click.command(epilog=EPILOG, context_settings=SETTINGS)
@host_options
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
    callback=addresses(PORT + 1),
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
    callback=size,
    help="Refuse larger files; 0: no limit.",
)
@click.option(
    "--max-journal-size",
    default="0",
    show_default=True,
    metavar="N[kmgt]",
    callback=size,
    help="Take no more jobs when the journal is larger; 0: no limit but the disk.",
)
@click.option(
    "--cooperative", is_flag=True, help="Let clients change how many CPUs of a node are used."
)
@click.option(
    "--ping-interval",
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="How often to look for nodes in the network; 0: only at start. Needs a secret.",
)
@click.option(
    "--ipv4-udp-multicast",
    "multicast",
    is_flag=True,
    help="Look for nodes by multicast, not by broadcast.",
)
@click.option("--clean", is_flag=True, help="Forget all that an earlier broker has kept here.")
@secret_options
@secret_options_of("cluster", "clients")
@secret_options_of("node", "nodes")
@config_options
@log_options
@click.option("--daemon", is_flag=True, hidden=True, help="For old command lines: it is one.")
@click.version_option(__version__, prog_name="dispy-broker")
@click.pass_context
def main(
    context: click.Context,
    hosts: tuple[str, ...],
    ext_hosts: tuple[str, ...],
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
    ping_interval: float,
    multicast: bool,
    clean: bool,
    secret: SecretOptions,
    cluster_secret: SecretOptions,
    node_secret: SecretOptions,
    save_config: str | None,
    log_as: LogOptions,
    daemon: bool,
) -> None:
    """Share nodes among the programs of many users: the scheduler behind SharedJobCluster."""
    if save_config is not None:
        configfile.save_options(context, save_config)
    log_as.configure()
    house = _protect(secret, cluster_secret, node_secret)
    entrance = _entrance(house, hosts, ext_hosts, port)
    search = Search(ping_interval, multicast)
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
        nodes=tuple(may_dial("--node", node, house.nodes) for node in nodes),
    )
    with ExitStack() as stack:
        if no_journal:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dispy-broker-")))
            journal = None
        else:
            folder = _folder(state or _default_folder(port), clean)
            journal = _open_journal(folder, durability, max_journal_size)
        synced = durability == "full"
        _serve(house, entrance, search, name or _title(), settings, folder, journal, synced)


def _protect(secret: SecretOptions, clients: SecretOptions, nodes: SecretOptions) -> House:
    """Find out how nodes and clients are kept from strangers; both are, or none is."""
    if secret.insecure and (clients.is_given or nodes.is_given):
        raise click.UsageError("--insecure means that there is no secret, but one is given")
    common = secret.find()
    house = House(clients.find(common), nodes.find(common))
    if (house.clients.secret is None) != (house.nodes.secret is None):
        raise click.UsageError("give both --cluster-secret and --node-secret, or just --secret")
    warnings = [*secret.warnings(), *clients.warnings(), *nodes.warnings()]
    for each in dict.fromkeys((*warnings, *house.clients.warnings(), *house.nodes.warnings())):
        log.warning("%s", each)
    return house


def _entrance(
    house: House, hosts: Sequence[str], ext_hosts: tuple[str, ...], port: int
) -> Entrance:
    """Say where nodes and clients get in."""
    own = listen_at(hosts, house.nodes)  # clients are protected as well, or as little
    return Entrance(
        tuple(joined(host, port) for host in own),
        tuple(joined(host, port and port + 2) for host in own),
        house.nodes.keys,
        house.clients.keys,
        ext_hosts,
    )


def _default_folder(port: int) -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("dispy")) / f"broker-{port}"


def _folder(folder: Path, clean: bool) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        refuse(
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
        refuse(error.code, str(error))


def _open_journal(folder: Path, durability: str, max_bytes: int) -> Journal:
    from .journal import Journal, JournalError

    try:
        return Journal(folder, durability, max_bytes)
    except JournalError as error:
        refuse(error.code, str(error))


def _serve(
    house: House,
    entrance: Entrance,
    search: Search,
    name: str,
    settings: Settings,
    folder: Path,
    journal: Journal | None,
    synced: bool,
) -> None:
    from dispy.protocol import guard
    from dispy.protocol.guard import CLIENTS, NODES
    from dispy.protocol.sockets import raise_limits
    from dispy.protocol.transport import Bus

    from .daemon import BrokerDaemon
    from .journal import JournalBroken

    raise_limits()
    bus = Bus(entrance.node_keys)
    try:
        told = _open(bus, entrance)
    except OSError as error:
        refuse(
            exitcodes.UNAVAILABLE,
            f"{error}. Does another broker run here? Choose another port with -p",
        )
    check_doors(bus, [*told[0], *told[1]], house.nodes)
    addresses = listening.addresses_of_doors(told[0], entrance.ext_hosts)
    doors = guard.doors((entrance.node_keys, NODES), (entrance.client_keys, CLIENTS))
    daemon = BrokerDaemon(
        bus,
        __version__,
        name,
        settings,
        journal,
        folder,
        synced,
        doors,
        addresses,
        house.nodes.reaches_out,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: daemon.stop())
    daemon.allow_discovery(entrance.node_keys, told[0], *search, port=_port_of(told[0]))
    daemon.restore()
    daemon.seek()
    gc.collect()
    gc.freeze()  # what was restored stays; it needn't be looked at again and again
    _say(daemon, *told, folder if journal is not None else None)
    try:
        while not daemon.stopping:
            daemon.step(STEP_S)
    except JournalBroken as error:
        log.critical("the journal can't be written any more, so the broker stops: %s", error)
        daemon.close(goodbye=False)
        sys.exit(exitcodes.BROKEN_DISK)
    log.info("stopped%s", "; jobs that run go on" if journal is not None else "")
    daemon.close(goodbye=journal is None)


def _open(bus: Bus, entrance: Entrance) -> tuple[list[str], list[str]]:
    """Listen for nodes, then for clients; return where."""
    bind = partial(bus.listen, keys=entrance.node_keys)
    nodes = listening.listen(bind, entrance.node_doors)
    bind = partial(bus.listen, keys=entrance.client_keys)
    return nodes, listening.listen(bind, entrance.client_doors)


def _say(
    daemon: BrokerDaemon, nodes: Sequence[str], clients: Sequence[str], folder: Path | None
) -> None:
    state = daemon.scheduler.state
    log.info(
        "broker %s: nodes dial %s, clients %s, %s, pid %d",
        daemon.exchange.identity.name,
        ", ".join(nodes),
        ", ".join(clients),
        f"journal in {folder}" if folder is not None else "no journal",
        os.getpid(),
    )
    if state.clusters:
        jobs = sum(len(cluster.jobs) for cluster in state.clusters.values())
        log.info("%d clusters with %d jobs go on", len(state.clusters), jobs)


def _port_of(doors: Sequence[str]) -> int:
    return int(doors[0].rpartition(":")[2])


def _title() -> str:
    user = ""
    with suppress(KeyError, OSError, ImportError):  # the user may have no name
        user = f"{getpass.getuser()}'s "
    return f"{user}broker at {socket.gethostname()}"


if __name__ == "__main__":
    main()
