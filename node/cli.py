"""The command line of a node: ``dispy-node``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

from dispy._version import __version__
from dispy.protocol import configfile, exitcodes, logs
from dispy.protocol.commandline import SETTINGS

from .service import Hours, hours_of, seconds_of

if TYPE_CHECKING:
    from .daemon import NodeDaemon, Settings

PORT = 9700  # the base: the node's own door is the next one
LOOPBACK = ("127.", "localhost", "::1")
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
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
    door: str
    broker: str
    blobs: Path
    files: Path
    max_file_bytes: int
    hours: Hours | None
    serves: int
    keep_s: float


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


def _host(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Without a shared secret nobody but this machine may reach a node."""
    if not value.startswith(LOOPBACK):
        raise click.BadParameter(
            f"{value} can be reached from other machines, and this release can't protect that "
            "yet: use 127.0.0.1"
        )
    return "127.0.0.1" if value == "localhost" else value


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """How many bytes are meant by "10m" and the like."""
    number, unit = (value[:-1], value[-1:].lower()) if value[-1:].isalpha() else (value, "")
    if not number.isdecimal() or unit not in UNITS:
        raise click.BadParameter(f"{value!r} is not a number, or one with k, m, g or t")
    return int(number) << UNITS[unit]


def _broker(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value:
        return ""
    host, _, port = value.rpartition(":") if ":" in value else (value, "", str(PORT))
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{value!r} is not HOST or HOST:PORT")
    return f"{_host(context, parameter, host)}:{port}"


@click.command(epilog=EPILOG, context_settings=SETTINGS)
@click.option("-c", "--cpus", default=0, callback=_cpus, help="CPUs; negative: all but so many.")
@click.option(
    "-i",
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=_host,
    help="Address to listen at.",
)
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
    "--broker", default="", metavar="HOST[:PORT]", callback=_broker, help="Dial this broker."
)
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
    help="Accepted; a broker that doesn't answer is dialled every few seconds anyway.",
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
    callback=_size,
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
@click.option("--private", is_flag=True, hidden=True, help="End when stdin does; open no door.")
@click.option("--daemon", is_flag=True, hidden=True, help="For old command lines: it is one.")
@click.option("-d", "--debug", is_flag=True, help="Log more.")
@click.option("--log-format", default=logs.TEXT, show_default=True, type=click.Choice(logs.FORMATS))
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Log to this file  [default: standard error]",
)
@click.version_option(__version__, prog_name="dispy-node")
@click.pass_context
def main(
    context: click.Context,
    cpus: int,
    host: str,
    port: int,
    name: str,
    broker: str,
    service_start: str,
    service_stop: str,
    service_end: str,
    serve: int,
    zombie_min: float,
    ping_interval: float,
    prefix: Path | None,
    max_file_bytes: int,
    client_shutdown: bool,
    force_cleanup: bool,
    clean: bool,
    save_config: str | None,
    private: bool,
    daemon: bool,
    debug: bool,
    log_format: str,
    log_file: Path | None,
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
    level = logging.DEBUG if debug else logging.WARNING if private else logging.INFO
    _configure_logs(level, log_format, log_file)
    if clean or serve == 0:
        _clean(prefix)
    if serve == 0:
        return
    door = "" if private else f"[{host}]:{port and port + 1}" if ":" in host else ""
    if not private and not door:
        door = f"{host}:{port and port + 1}"
    name = name or socket.gethostname()
    keep_s = zombie_min * 60 or float("inf")
    limits = (max_file_bytes, hours, serve, keep_s)
    with _folder(prefix) as folder:
        blobs, files = Path(folder, "blobs"), prefix or Path(folder, "files")
        _make(blobs, files)
        offer = Offer(name, _meant_cpus(cpus), door, broker, blobs, files, *limits)
        _serve(Path(folder), offer, client_shutdown, force_cleanup, private)


def _configure_logs(level: int, log_format: str, file: Path | None) -> None:
    try:
        logs.configure(level, log_format, file)
    except OSError as error:
        _refuse(exitcodes.CANNOT_CREATE, f"can't log to {file}: {error.strerror}")


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
    _refuse(
        exitcodes.CANNOT_CREATE,
        f"{error}. The node needs a folder for files: name another one with --dest-path-prefix",
    )


def _refuse(code: int, message: str) -> NoReturn:
    """End with a message for the user, and a code for scripts."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _serve(
    folder: Path, offer: Offer, client_shutdown: bool, force_cleanup: bool, private: bool
) -> None:
    """Start the zygote first, then all that it must not inherit."""
    from .launcher import Launcher

    address = offer.door.rpartition(":")[0].strip("[]") or "127.0.0.1"
    names = {"dispy_node_name": offer.name, "dispy_node_ip_addr": address}
    options = (client_shutdown, offer.max_file_bytes, force_cleanup)
    launcher = Launcher(folder, names, offer.blobs, offer.files, *options)
    launcher.start()
    from dispy.protocol.transport import Bus

    from .daemon import NodeDaemon, Settings
    from .memory import keep_freed

    keep_freed()
    bus = Bus()
    launcher.attach(bus)
    settings = Settings(__version__, *offer)
    try:
        daemon = NodeDaemon(settings, launcher, bus)
    except OSError as error:
        launcher.close(1.0)
        denied = error.errno in (errno.EACCES, errno.EPERM)
        code = exitcodes.NOT_PERMITTED if denied else exitcodes.UNAVAILABLE
        _refuse(code, _taken(offer.door, error))
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


def _taken(door: str, error: OSError) -> str:
    return f"{error}. Does another node run here? Choose another port with -p (door: {door})"


def _say(daemon: NodeDaemon, settings: Settings) -> None:
    where = f"at {daemon.address}" if daemon.address else f"for broker {settings.broker}"
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
