"""The command line of a relay: ``dispy-relay``."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

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
)
from dispy.protocol.listening import joined

if TYPE_CHECKING:
    from dispy.protocol.protection import Protection

    from .daemon import RelayDaemon, Settings

PORT = 9700  # where nodes dial in; brokers at the next one
log = logging.getLogger("dispy.relay")
EPILOG = """\b
Examples:
  dispy-relay --broker 10.0.0.5          bring the nodes that dial port 9700 to this broker
  dispy-relay                            wait: nodes dial 9700, a broker or client dials 9701
  dispy-relay -n 10.1.0.7 -n 10.1.0.8    dial these nodes for it
  dispy-relay --broker 10.0.0.9:9700     behind another relay: its port for nodes
  dispy-relay -p 9710                    beside a node on the same machine
\b
A client that dials a relay names it like a node, and its nodes by a pattern:
  JobCluster(compute, nodes=["10.1.0.1:9701", "*"])
\b
A relay works for one broker at a time, and keeps nothing: when it is killed and started
again, all goes on.
\b
Exit codes: 0 stopped as asked; 1 unexpected error; 2 wrong options; 69 port taken;
  73 log file can't be made; 77 not permitted.
"""


@click.command(epilog=EPILOG, context_settings=SETTINGS)
@host_options
@click.option(
    "-p",
    "--dispy-port",
    "port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65534),
    help="Where nodes dial in; brokers at the next one. 0: any free ports.",
)
@click.option("--name", default="", help="Name of the relay  [default: relay at HOST]")
@click.option(
    "--broker",
    default="",
    metavar="HOST[:PORT]",
    callback=addresses(PORT),
    help="Dial this broker, or a relay nearer to it  [default: wait to be dialled]",
)
@click.option(
    "-n",
    "--node",
    "nodes",
    multiple=True,
    metavar="HOST[:PORT]",
    callback=addresses(PORT + 1),
    help="Dial this node, or a relay farther from the broker; may be repeated.",
)
@secret_options
@config_options
@log_options
@click.option("--daemon", is_flag=True, hidden=True, help="For old command lines: it is one.")
@click.version_option(__version__, prog_name="dispy-relay")
@click.pass_context
def main(
    context: click.Context,
    hosts: tuple[str, ...],
    ext_hosts: tuple[str, ...],
    port: int,
    name: str,
    broker: str,
    nodes: tuple[str, ...],
    secret: SecretOptions,
    save_config: str | None,
    log_as: LogOptions,
    daemon: bool,
) -> None:
    """Bring nodes to a broker or client that they can't reach, or that can't reach them."""
    if save_config is not None:
        configfile.save_options(context, save_config)
    log_as.configure()
    protected = secret.find()
    for line in (*secret.warnings(), *protected.warnings()):
        log.warning("%s", line)
    listened = listen_at(hosts, protected)
    from .daemon import Settings

    settings = Settings(
        __version__,
        name or f"relay at {socket.gethostname()}",
        tuple(joined(host, port) for host in listened),
        tuple(joined(host, port and port + 1) for host in listened),
        broker and may_dial("--broker", broker, protected),
        tuple(may_dial("--node", node, protected) for node in nodes),
        ext_hosts,
    )
    _serve(settings, protected)


def _serve(settings: Settings, protection: Protection) -> None:
    from dispy.protocol.sockets import raise_limits
    from dispy.protocol.transport import Bus

    from .daemon import AHEAD, RelayDaemon

    raise_limits()
    try:
        daemon = RelayDaemon(settings, Bus(protection.keys, AHEAD))
    except OSError as error:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        refuse(
            exitcodes.NOT_PERMITTED if denied else exitcodes.UNAVAILABLE,
            f"{error}. Does a broker, a node or another relay run here? Choose other ports with -p",
        )
    check_doors(daemon.bus, [*daemon.lower, *daemon.upper], protection)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: daemon.stop())
    _say(daemon)
    try:
        daemon.run()
    except Exception:
        log.critical("the relay failed", exc_info=True)
        sys.exit(exitcodes.UNEXPECTED)
    log.info("%s has stopped", settings.name)


def _say(daemon: RelayDaemon) -> None:
    broker = daemon.settings.broker
    log.info(
        "%s: nodes dial %s, brokers %s%s, pid %d",
        daemon.settings.name,
        ", ".join(daemon.lower),
        ", ".join(daemon.upper),
        f", dials {broker}" if broker else "",
        os.getpid(),
    )


if __name__ == "__main__":
    main()
