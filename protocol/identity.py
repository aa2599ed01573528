"""Who this process is, for the handshake."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import sys
import uuid
from pathlib import Path

from .messages import Identity

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def describe(
    role: str, software: str, *, name: str = "", cpus: int = 0, door: str = "", address: str = ""
) -> Identity:
    """Describe this process as a peer of the given role, with a new instance id.

    ``door`` is something that only one process of this machine can have at a time, such as a
    port that it listens at: whoever has it later proves that this instance is gone.
    """
    host = socket.gethostname()
    return Identity(
        role=role,
        instance=uuid.uuid4().hex,
        name=name or host,
        software=software,
        python="{}.{}.{}".format(*sys.version_info[:3]),
        platform=platform.platform(),
        cpus=cpus,
        place=f"{host}/{_boot()}/{door}" if door else "",
        address=address,
        user=f"{_login()}@{host}" if role == "client" else "",
    )


def _login() -> str:
    """Who runs this process; shares of a broker are counted by that."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # the user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _boot() -> str:
    """What tells this machine, since its last start, from others of the same name."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def random_name() -> str:
    """Return a name that nobody has had: for sessions."""
    return uuid.uuid4().hex
