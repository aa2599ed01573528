"""``dispyscheduler``: the shared broker under its old name, with its old options."""

from __future__ import annotations

import sys

from dispy.protocol import logs
from dispy.protocol.oldoptions import Old, translate

UNPROTECTED = "this release has no secrets and no encryption; a broker listens at this machine only"
OPTIONS = [
    Old("-d --debug", to="--debug", is_flag=True),
    Old("-n --node --nodes", to="--node", is_many=True),
    Old("-i --host --ip_addr --hosts", to="--host", is_many=True),
    Old("-p --port --dispy_port", to="--dispy-port"),
    Old("--pulse_interval", to="--pulse-interval"),
    Old("--zombie_interval", to="--zombie-interval"),
    Old("--dest_path_prefix", to="--state-dir"),
    Old("--max_file_size", to="--max-file-size"),
    Old("--clean", to="--clean", is_flag=True),
    Old("--cooperative", to="--cooperative", is_flag=True),
    Old("--early_cluster_scheduler", to="--policy=fifo", is_flag=True),
    Old("--fair_cluster_scheduler", to="--policy=fair", is_flag=True),
    Old("--daemon", to="--daemon", is_flag=True),
    Old(
        "--ext_host --ext_ip_addr --ext_hosts",
        gone="nobody is told an address to dial back",
        is_many=True,
    ),
    Old("--ipv4_udp_multicast", gone="nodes aren't found by UDP any more", is_flag=True),
    Old("--msg_timeout", gone="a broken connection is made anew, without time limits"),
    Old("--ping_interval", gone="nodes dial the broker, or are dialled until they answer"),
    Old("--httpd", gone='there is no web page; "dispy status" shows nodes and jobs', is_flag=True),
    Old("--cleanup_nodes", gone="it is an option of nodes now, --force-cleanup", is_flag=True),
    Old("--secret --cluster_secret", refused=UNPROTECTED),
    Old("--node_secret", refused=UNPROTECTED),
    Old("--cluster_certfile", refused=UNPROTECTED),
    Old("--cluster_keyfile", refused=UNPROTECTED),
    Old("--node_certfile", refused=UNPROTECTED),
    Old("--node_keyfile", refused=UNPROTECTED),
]


def main() -> None:
    """Be ``dispy-broker``."""
    now = translate("dispyscheduler", "dispy-broker", OPTIONS, sys.argv[1:])
    for note in now.notes:
        logs.later("dispy.broker", note)
    from .cli import main as broker

    broker.main(now.arguments, prog_name="dispy-broker")


if __name__ == "__main__":
    main()
