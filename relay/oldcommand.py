"""``dispynetrelay``: the relay under its old name, with its old options."""

from __future__ import annotations

import sys

from dispy.protocol import logs
from dispy.protocol.oldoptions import Old, translate

OPTIONS = [
    Old("-d --debug", to="--debug", is_flag=True),
    Old("-i --host --ip_addr --hosts", to="--host", is_many=True),
    Old("--scheduler_node", to="--broker", is_many=True),
    Old("-p --dispy_port", to="--dispy-port"),
    Old("-s --secret", to="--secret"),
    Old("--certfile", to="--certfile"),
    Old("--keyfile", to="--keyfile"),
    Old("--daemon", to="--daemon", is_flag=True),
    Old("--relay_port", gone="brokers dial the port after the one of -p"),
    Old("--scheduler_port", gone="the port of a broker is said with its address, HOST:PORT"),
    Old("--ipv4_udp_multicast", gone="data passes through the relay now", is_flag=True),
]


def main() -> None:
    """Be ``dispy-relay``."""
    now = translate("dispynetrelay", "dispy-relay", OPTIONS, sys.argv[1:])
    for note in now.notes:
        logs.later("dispy.relay", note)
    from .cli import main as relay

    relay.main(now.arguments, prog_name="dispy-relay")


if __name__ == "__main__":
    main()
