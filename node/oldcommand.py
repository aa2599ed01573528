"""``dispynode``: the node under its old name, with its old options."""

from __future__ import annotations

import sys

from dispy.protocol import logs
from dispy.protocol.oldoptions import Old, translate

UNPROTECTED = "this release has no secrets and no encryption; nodes listen at this machine only"
DIALS = "a node that can't be reached dials its broker, with --broker"
OPTIONS = [
    Old("-c --cpus", to="--cpus"),
    Old("-d --debug", to="--debug", is_flag=True),
    Old("-i --host --ip_addr --hosts", to="--host"),
    Old("-p --dispy_port", to="--dispy-port"),
    Old("--name", to="--name"),
    Old("--dest_path_prefix", to="--dest-path-prefix"),
    Old("--scheduler_host --scheduler_node", to="--broker"),
    Old("--max_file_size", to="--max-file-size"),
    Old("--zombie_interval", to="--zombie-interval"),
    Old("--ping_interval", to="--ping-interval"),
    Old("--service_start", to="--service-start"),
    Old("--service_stop", to="--service-stop"),
    Old("--service_end", to="--service-end"),
    Old("--serve", to="--serve"),
    Old("--client_shutdown", to="--client-shutdown", is_flag=True),
    Old("--force_cleanup", to="--force-cleanup", is_flag=True),
    Old("--clean", to="--clean", is_flag=True),
    Old("--daemon", to="--daemon", is_flag=True),
    Old("--ext_host --ext_ip_addr --ext_hosts", gone=DIALS, is_many=True),
    Old("--ipv4_udp_multicast", gone="nodes aren't found by UDP any more", is_flag=True),
    Old("--msg_timeout", gone="a broken connection is made anew, without time limits"),
    Old("--unsafe_setup", gone="setup runs once, and each job sees what it has made", is_flag=True),
    Old("--init", refused="this release can't run a file when the node starts; use setup="),
    Old("-s --secret", refused=UNPROTECTED),
    Old("--admin_secret", refused=UNPROTECTED),
    Old("--certfile", refused=UNPROTECTED),
    Old("--keyfile", refused=UNPROTECTED),
]


def main() -> None:
    """Be ``dispy-node``."""
    now = translate("dispynode", "dispy-node", OPTIONS, sys.argv[1:])
    for note in now.notes:
        logs.later("dispy.node", note)
    from .cli import main as node

    node.main(now.arguments, prog_name="dispy-node")


if __name__ == "__main__":
    main()
