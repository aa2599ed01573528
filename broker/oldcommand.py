"""``dispyscheduler``: the shared broker under its old name, with its old options."""

from __future__ import annotations

from dispy.protocol.oldoptions import COMMON, Old, become

OPTIONS = [
    *COMMON,
    Old("-n --node --nodes", to="--node", is_many=True),
    Old("-p --port --dispy_port", to="--dispy-port"),
    Old("--pulse_interval", to="--pulse-interval"),
    Old("--dest_path_prefix", to="--state-dir"),
    Old("--cooperative", to="--cooperative", is_flag=True),
    Old("--early_cluster_scheduler", to="--policy=fifo", is_flag=True),
    Old("--fair_cluster_scheduler", to="--policy=fair", is_flag=True),
    Old("--secret", to="--secret"),
    Old("--cluster_secret", to="--cluster-secret"),
    Old("--cluster_certfile", to="--cluster-certfile"),
    Old("--cluster_keyfile", to="--cluster-keyfile"),
    Old("--node_secret", to="--node-secret"),
    Old("--node_certfile", to="--node-certfile"),
    Old("--node_keyfile", to="--node-keyfile"),
    Old("--httpd", gone='there is no web page; "dispy status" shows nodes and jobs', is_flag=True),
    Old("--cleanup_nodes", gone="it is an option of nodes now, --force-cleanup", is_flag=True),
]


def main() -> None:
    """Be ``dispy-broker``."""
    from .cli import main as broker

    become("dispyscheduler", "dispy-broker", OPTIONS, "dispy.broker", broker.main)


if __name__ == "__main__":
    main()
