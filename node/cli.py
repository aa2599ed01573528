"""The command line of a node: ``dispy-node``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from dispy._version import __version__

if TYPE_CHECKING:
    from .daemon import NodeDaemon, Settings

PORT = 9700  # the base: the node's own door is the next one
LOOPBACK = ("127.", "localhost", "::1")
UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two
EPILOG = """\b
Examples:
  dispy-node                       all CPUs, waiting at 127.0.0.1:9701
  dispy-node -c 2 -p 9710          two CPUs, waiting at 127.0.0.1:9711
  dispy-node -c -1                 leave one CPU unused
  dispy-node --broker 127.0.0.1:9700   dial a broker instead of waiting
\b
Exit codes: 0 stopped as asked; 1 can't run here; 2 wrong options.
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


def _cpus(context: click.Context, parameter: click.Parameter, value: int) -> int:
    """How many CPUs are meant: 0 all, negative all but so many."""
    available = _available_cpus()
    if value > available:
        raise click.BadParameter(f"this machine has {available} CPUs, not {value}")
    cpus = value if value > 0 else available + value
    if cpus < 1:
        raise click.BadParameter(f"of {available} CPUs none would be left")
    return cpus


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


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c", "--cpus", default=0, callback=_cpus, help="CPUs to use; negative: all but so many."
)
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
    "--dispy_port",
    "port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65534),
    help="Base port; the node listens at the next one. 0: any free port.",
)
@click.option("--name", default="", help="Name of the node  [default: host name]")
@click.option(
    "--dest-path-prefix",
    "--dest_path_prefix",
    "prefix",
    default=None,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files of computations  [default: a new temporary one]",
)
@click.option(
    "--max-file-size",
    "--max_file_size",
    "max_file_bytes",
    default="0",
    show_default=True,
    metavar="N[kmgt]",
    callback=_size,
    help="Refuse larger files, in bytes, KiB, MiB, GiB or TiB; 0: no limit.",
)
@click.option(
    "--client-shutdown",
    "--client_shutdown",
    "client_shutdown",
    is_flag=True,
    help="Let a computation's cleanup stop the node, by dispynode_shutdown().",
)
@click.option(
    "--broker", default="", metavar="HOST[:PORT]", callback=_broker, help="Dial this broker."
)
@click.option("--private", is_flag=True, hidden=True, help="End when stdin does; open no door.")
@click.option("-d", "--debug", is_flag=True, help="Log more.")
@click.version_option(__version__, prog_name="dispy-node")
def main(
    cpus: int,
    host: str,
    port: int,
    name: str,
    prefix: Path | None,
    max_file_bytes: int,
    client_shutdown: bool,
    broker: str,
    private: bool,
    debug: bool,
) -> None:
    """Run jobs on this machine for dispy clients."""
    if sys.platform == "win32":
        raise click.ClickException(
            "a node needs fork(), which Windows doesn't have. Run the node under WSL; "
            "clients work on Windows."
        )
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING if private else logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s: %(message)s",
    )
    door = "" if private else f"[{host}]:{port and port + 1}" if ":" in host else ""
    if not private and not door:
        door = f"{host}:{port and port + 1}"
    try:
        with tempfile.TemporaryDirectory(prefix="dispy-node-", dir=_made(prefix)) as folder:
            blobs, files = Path(folder, "blobs"), prefix or Path(folder, "files")
            for made in (blobs, files):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = name or socket.gethostname()
            offer = Offer(name, cpus, door, broker, blobs, files, max_file_bytes)
            _serve(Path(folder), offer, client_shutdown, private)
    except OSError as error:
        raise click.ClickException(str(error)) from None


def _made(prefix: Path | None) -> Path | None:
    if prefix is not None:
        prefix.mkdir(parents=True, exist_ok=True)
    return prefix


def _serve(folder: Path, offer: Offer, client_shutdown: bool, private: bool) -> None:
    """Start the zygote first, then all that it must not inherit."""
    from .launcher import Launcher

    address = offer.door.rpartition(":")[0].strip("[]") or "127.0.0.1"
    names = {"dispy_node_name": offer.name, "dispy_node_ip_addr": address}
    launcher = Launcher(
        folder, names, offer.blobs, offer.files, client_shutdown, offer.max_file_bytes
    )
    launcher.start()
    from dispy.protocol.transport import Bus

    from .daemon import NodeDaemon, Settings
    from .memory import keep_freed

    keep_freed()
    bus = Bus()
    launcher.attach(bus)
    try:
        settings = Settings(__version__, *offer)
        daemon = NodeDaemon(settings, launcher, bus)
    except OSError as error:
        launcher.close(1.0)
        raise OSError(_taken(offer.door, error)) from None
    _stop_on_signals(daemon)
    if private:
        _stop_with_stdin(daemon)
    _say(daemon, settings)
    daemon.run()


def _taken(door: str, error: OSError) -> str:
    return f"{error}. Does another node run here? Choose another port with -p (door: {door})"


def _say(daemon: NodeDaemon, settings: Settings) -> None:
    log = logging.getLogger("dispy.node")
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
