"""The option ``--node``, the same for all examples.

Without it an example uses the node of this machine or, if none runs, a private one that ends
with the example.
"""

from __future__ import annotations

import argparse


def command_line(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of an example's options; ``about`` is the example's docstring."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(
        "--node",
        metavar="HOST:PORT",
        dest="nodes",
        action="append",
        help="use this node and no other; may be given several times",
    )
    return parser


def hosts_and_ports(nodes: list[str] | None) -> list[tuple[str, int | None]]:
    """Split the chosen nodes for `dispy.NodeAllocate`; when none was chosen, any will do."""
    if nodes is None:
        return [("*", None)]
    return [_split(node) for node in nodes]


def _split(node: str) -> tuple[str, int | None]:
    host, colon, port = node.rpartition(":")
    return (host, int(port)) if colon else (node, None)
