"""``dispynode``: the node under its old name, with its old options."""

from __future__ import annotations

from dispy.protocol.oldoptions import COMMON, Old, become

OPTIONS = [
    *COMMON,
    Old("-c --cpus", to="--cpus"),
    Old("-p --dispy_port", to="--dispy-port"),
    Old("--name", to="--name"),
    Old("--dest_path_prefix", to="--dest-path-prefix"),
    Old("--scheduler_host --scheduler_node", to="--broker"),
    Old("--service_start", to="--service-start"),
    Old("--service_stop", to="--service-stop"),
    Old("--service_end", to="--service-end"),
    Old("--serve", to="--serve"),
    Old("--client_shutdown", to="--client-shutdown", is_flag=True),
    Old("--force_cleanup", to="--force-cleanup", is_flag=True),
    Old("-s --secret", to="--secret"),
    Old("--certfile", to="--certfile"),
    Old("--keyfile", to="--keyfile"),
    Old("--unsafe_setup", gone="setup runs once, and each job sees what it has made", is_flag=True),
    Old("--init", refused="this release can't run a file when the node starts; use setup="),
    Old("--admin_secret", refused="this release has no administration of nodes from elsewhere"),
]


def main() -> None:
    """Be ``dispy-node``."""
    from .cli import main as node

    become("dispynode", "dispy-node", OPTIONS, "dispy.node", node.main)


if __name__ == "__main__":
    main()
