"""Who this process is, for the handshake."""

from __future__ import annotations

import getpass
import os
import platform
import secrets
import socket
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from .guard import Guard, instance_of
from .keys import Keys
from .messages import Identity

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/self/ns/net")
TOKEN_BYTES = 32


def new_token() -> bytes:
    """Return what proves an instance; a process makes one for each peer that it is."""
    return secrets.token_bytes(TOKEN_BYTES)


def new_guard(keys: Keys | None = None) -> Guard:
    """Return the guard of a new instance, with one secret or none for all that it does."""
    return Guard(new_token(), keys)


def describe(
    role: str,
    software: str,
    *,
    name: str = "",
    cpus: int = 0,
    door: str = "",
    addresses: Sequence[str] = (),
    token: bytes = b"",
) -> Identity:
    """Describe this process as a peer of the given role, with a new instance id.

    ``token`` is that of its `Guard`, which proves the instance; without one nobody believes it.
    ``door`` is something that only one process of this machine can have at a time, such as a
    port that it listens at: whoever has it later proves that this instance is gone.
    ``addresses`` are where others may dial it, "host:port", the best one first.
    """
    host = socket.gethostname()
    return Identity(
        role=role,
        instance=instance_of(token or new_token()),
        name=name or host,
        software=software,
        python="{}.{}.{}".format(*sys.version_info[:3]),
        platform=_platform(),
        cpus=cpus,
        place=f"{host}/{_boot()}/{_network()}{door}" if door else "",
        address=addresses[0] if addresses else "",
        addresses=list(addresses),
        user=f"{_login()}@{host}" if role == "client" else "",
    )


def _platform() -> str:
    """Return what `platform.platform` says.

    It would start a process that it needs on other systems only: ``uname -p``.
    """
    told = vars(platform.uname())
    if sys.platform != "linux" or "processor" in told:
        return platform.platform()
    told["processor"] = ""
    try:
        return platform.platform()
    finally:
        del told["processor"]  # the program may want to know it


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


def _network() -> str:
    """What tells this container, to which its ports belong, from others of this machine."""
    try:
        return f"{os.stat(NETWORK).st_ino}/"
    except OSError:  # not Linux
        return ""


def random_name() -> str:
    """Return a name that nobody has had: for sessions."""
    return uuid.uuid4().hex
