"""What all our commands have in common: how options are spelled.

Give `SETTINGS` as ``context_settings`` to a click command or to the group it belongs to. There
is no click in here, so every folder may use it.
"""

from __future__ import annotations

from typing import Any


def with_dashes(name: str) -> str:
    """Take ``--dispy_port`` for ``--dispy-port``: dispy's options had underscores."""
    return name.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": with_dashes,
}
