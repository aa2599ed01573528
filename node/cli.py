"""The command line of a node: ``dispy-node``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

from dispy._version import __version__
from dispy.protocol import configfile, exitcodes
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
    size,
)
from dispy.protocol.listening import HERE, addresses_of_doors, joined
from dispy.protocol.protection import Protection

from .service import Hours, hours_of, seconds_of

if TYPE_CHECKING:
    from .daemon import NodeDaemon, Settings

KEPT_BYTES = 64 << 20  # of freed memory: payloads of all job processes go through the node
PORT = 9700  # the base: the node's own door is the next one
log = logging.getLogger("dispy.node")
EPILOG = """\b
Examples:
  dispy-node                       all CPUs, waiting at 127.0.0.1:9701
  dispy-node -c 2 -p 9710          two CPUs, waiting at 127.0.0.1:9711
  dispy-node -c -1                 leave one CPU unused
  dispy-node --broker 127.0.0.1:9700   dial a broker instead of waiting
  dispy-node --service-start 18:00 --service-stop 06:00 --service-end 07:00
                                   at night; what runs at 7 is ended
  dispy-node --clean --serve 0     remove what a killed node has left
\b
Exit codes: 0 stopped as asked, or all clusters served; 1 unexpected error;
  2 wrong options; 69 port taken; 73 a folder or file can't be made; 77 not permitted.
"""


class Offer(NamedTuple):
    """What the daemon's settings will be, before the daemon may be imported."""

    name: str
    cpus: int
    doors: tuple[str, ...]
    broker: str
    blobs: Path
    files: Path
    max_file_bytes: int
    hours: Hours | None
    serves: int
    keep_s: float
    ext_hosts: tuple[str, ...]
    ping_interval_s: float
    multicast: bool


def _cpus(context: click.Context, parameter: click.Parameter, value: int) -> int:
    """Check the number, and leave it as it is: it may be saved for another machine."""
    available = _available_cpus()
    if value > available:
        raise click.BadParameter(f"this machine has {available} CPUs, not {value}")
    if _meant_cpus(value) < 1:
        raise click.BadParameter(f"of {available} CPUs none would be left")
    return value


def _meant_cpus(value: int) -> int:
    """How many CPUs are meant: 0 all, negative all but so many."""
    return value if value > 0 else _available_cpus() + value


def _time(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        if value:
            seconds_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _interval(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """Minutes; less than one would be too short for a network that is away."""
    if 0 < value < 1 or not 0 <= value < float("inf"):
        raise click.BadParameter(f"it is 1 or more, or 0: not {value:g}")
    return value


@click.command(epilog=EPILOG, context_settings=SETTINGS)
@click.option(
    "-c",
    "--cpus",
    default=0,
    callback=_cpus,
    help="CPUs; 0: all (default); negative: all but so many.",
)
@host_options
@click.option(
    "-p",
    "--dispy-port",
    "port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65534),
    help="Base port; the node listens at the next one. 0: any free port.",
)
@click.option("--name", default="", help="Name of the node  [default: host name]")
@click.option(
    "--broker",
    default="",
    metavar="HOST[:PORT]",
    callback=addresses(PORT),
    help="Dial this broker.",
)
@secret_options
@click.option(
    "--service-start",
    default="",
    metavar="HH:MM",
    callback=_time,
    help="Take jobs from this time of day on  [default: always]",
)
@click.option(
    "--service-stop",
    default="",
    metavar="HH:MM",
    callback=_time,
    help="... until then; what has begun goes on  [default: --service-end]",
)
@click.option(
    "--service-end",
    default="",
    metavar="HH:MM",
    callback=_time,
    help="... and what still runs is ended then  [default: never]",
)
@click.option(
    "--serve",
    default=-1,
    type=click.IntRange(min=-1),
    metavar="N",
    help="Serve so many clusters, then stop; 0: only clean up  [default: any number]",
)
@click.option(
    "--zombie-interval",
    "zombie_min",
    default=60.0,
    show_default=True,
    metavar="MINUTES",
    callback=_interval,
    help="Give up a broker that is away for so long; 0: never.",
)
@click.option(
    "--ping-interval",
    default=0.0,
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="How often to look for a broker in the network, while there is none and none is named; "
    "0: only at start, and when one has let the node go.",
)
@click.option(
    "--ipv4-udp-multicast",
    "multicast",
    is_flag=True,
    help="Look for brokers by multicast, not by broadcast.",
)
@click.option(
    "--dest-path-prefix",
    "prefix",
    default=None,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files of computations  [default: a new temporary one]",
)
@click.option(
    "--max-file-size",
    "max_file_bytes",
    default="0",
    show_default=True,
    metavar="N[kmgt]",
    callback=size,
    help="Refuse larger files, in bytes, KiB, MiB, GiB or TiB; 0: no limit.",
)
@click.option(
    "--client-shutdown",
    is_flag=True,
    help="Let a computation's cleanup stop the node, by dispynode_shutdown().",
)
@click.option(
    "--force-cleanup", is_flag=True, help="Remove files also when a cluster wants them to stay."
)
@click.option(
    "--clean",
    is_flag=True,
    help="First remove what nodes that were killed have left, files and processes.",
)
@config_options
@click.option("--private", is_flag=True, hidden=True, help="End when stdin does; open no door.")
@click.option("--daemon", is_flag=True, hidden=True, help="For old command lines: it is one.")
@log_options
@click.version_option(__version__, prog_name="dispy-node")
@click.pass_context
def main(
    context: click.Context,
    cpus: int,
    hosts: tuple[str, ...],
    ext_hosts: tuple[str, ...],
    port: int,
    name: str,
    broker: str,
    secret: SecretOptions,
    service_start: str,
    service_stop: str,
    service_end: str,
    serve: int,
    zombie_min: float,
    ping_interval: float,
    multicast: bool,
    prefix: Path | None,
    max_file_bytes: int,
    client_shutdown: bool,
    force_cleanup: bool,
    clean: bool,
    save_config: str | None,
    private: bool,
    daemon: bool,
    log_as: LogOptions,
) -> None:
    """Run jobs on this machine for dispy clients."""
    if sys.platform == "win32":
        raise click.ClickException(
            "a node needs fork(), which Windows doesn't have. Run the node under WSL; "
            "clients work on Windows."
        )
    try:
        hours = hours_of(service_start, service_stop, service_end)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if save_config is not None:
        configfile.save_options(context, save_config)
    log_as.configure(logging.WARNING if private else logging.INFO)
    if clean or serve == 0:
        _clean(prefix)
    if serve == 0:
        return
    protected = secret.find()
    for line in (*secret.warnings(), *protected.warnings()):
        log.warning("%s", line)
    own = port and port + 1
    doors = () if private else tuple(joined(host, own) for host in listen_at(hosts, protected))
    broker = broker and may_dial("--broker", broker, protected)
    name = name or socket.gethostname()
    keep_s = zombie_min * 60 or float("inf")
    limits = (max_file_bytes, hours, serve, keep_s)
    more = (ext_hosts, ping_interval, multicast)
    with _folder(prefix) as folder:
        blobs, files = Path(folder, "blobs"), prefix or Path(folder, "files")
        _make(blobs, files)
        offer = Offer(name, _meant_cpus(cpus), doors, broker, blobs, files, *limits, *more)
        _serve(Path(folder), offer, protected, client_shutdown, force_cleanup, private)


def _clean(prefix: Path | None) -> None:
    """Remove what is nobody's, where this node's own folder would be."""
    from . import leftovers

    for line in leftovers.clean(prefix or Path(tempfile.gettempdir())):
        log.info("%s", line)


@contextmanager
def _folder(prefix: Path | None) -> Iterator[Path]:
    """Have a folder of the node's own, and hold its lock."""
    from . import leftovers

    try:
        if prefix is not None:
            prefix.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=leftovers.FOLDER, dir=prefix)
    except OSError as error:
        _cannot_make(error)
    with made as folder:
        try:
            lock = leftovers.lock(Path(folder))
        except OSError as error:
            _cannot_make(error)
        try:
            yield Path(folder)
        finally:
            os.close(lock)


def _make(*folders: Path) -> None:
    try:
        for each in folders:
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _cannot_make(error)


def _cannot_make(error: OSError) -> NoReturn:
    refuse(
        exitcodes.CANNOT_CREATE,
        f"{error}. The node needs a folder for files: name another one with --dest-path-prefix",
    )


def _serve(
    folder: Path,
    offer: Offer,
    protection: Protection,
    client_shutdown: bool,
    force_cleanup: bool,
    private: bool,
) -> None:
    """Start the zygote first, then all that it must not inherit."""
    from .launcher import Launcher

    names = {"dispy_node_name": offer.name, "dispy_node_ip_addr": _address(offer)}
    options = (client_shutdown, offer.max_file_bytes, force_cleanup)
    launcher = Launcher(folder, names, offer.blobs, offer.files, *options)
    launcher.start()
    from dispy.protocol.memory import keep_freed
    from dispy.protocol.transport import Bus

    from .daemon import NodeDaemon, Settings

    keep_freed(KEPT_BYTES)
    bus = Bus(protection.keys)
    launcher.attach(bus)
    settings = Settings(__version__, *offer)
    try:
        daemon = NodeDaemon(settings, launcher, bus)
    except OSError as error:
        launcher.close(1.0)
        denied = error.errno in (errno.EACCES, errno.EPERM)
        code = exitcodes.NOT_PERMITTED if denied else exitcodes.UNAVAILABLE
        refuse(code, _taken(offer.doors, error))
    check_doors(bus, daemon.doors, protection)
    _stop_on_signals(daemon)
    if private:
        _stop_with_stdin(daemon)
    _say(daemon, settings)
    try:
        daemon.run()
    except Exception:
        log.critical("the node failed", exc_info=True)
        sys.exit(exitcodes.UNEXPECTED)
    log.info("node %s has stopped", settings.name)


def _address(offer: Offer) -> str:
    """Return the address that jobs are told, by which others may know the node."""
    told = addresses_of_doors(offer.doors, offer.ext_hosts)
    return told[0].rpartition(":")[0].strip("[]") if told else HERE


def _taken(doors: Sequence[str], error: OSError) -> str:
    where = ", ".join(doors)
    return f"{error}. Does another node run here? Choose another port with -p (door: {where})"


def _say(daemon: NodeDaemon, settings: Settings) -> None:
    where = f"at {', '.join(daemon.doors)}" if daemon.doors else f"for broker {settings.broker}"
    log.info("node %s with %d CPUs %s, pid %d", settings.name, settings.cpus, where, os.getpid())


def _stop_on_signals(daemon: NodeDaemon) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: daemon.stop())


def _stop_with_stdin(daemon: NodeDaemon) -> None:
    """The client that started a private node holds the other end of its stdin."""
    fd = sys.stdin.fileno()

    def on_readable() -> None:
        if not os.read(fd, 4096):
            daemon.bus.unwatch(fd)
            daemon.stop()

    daemon.bus.watch(fd, on_readable)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
