"""A broker that several programs use: where it is, and the connection to it.

To a session it is what the broker in this process is to others: a transport, and a thing to wait
on. What happens at the broker happens without us, so that is all there is to it here.
"""

from __future__ import annotations

import ipaddress

from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus

from .allocate import PORT_MAX, beyond_loopback, look_up

HERE = "127.0.0.1"


class Broker(Bus):
    """The way to a broker at ``address``, "host:port". All but `wake` is for one thread."""

    def __init__(self, address: str, keys: Keys | None = None) -> None:
        super().__init__(keys)
        self.address = address


def read_address(parameter: str, value: object, port: int) -> str:
    """Return the address of a broker, as "host:port" with a numeric host.

    ``value`` is None (this machine), "host", "host:port" or "[v6]:port"; ``port`` is used
    unless it names one. Raises `TypeError` or `ValueError` for what is none of these, `OSError`
    for a host that isn't known, `SecretNeededError` for one that isn't on loopback.
    """
    if value is None or value == "":
        return f"{HERE}:{port}"
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a host name or 'host:port', not {value!r}")
    host, number = split(parameter, value)
    found = look_up(host)
    if found is None:
        raise OSError(f"{parameter}: the host {host!r} can't be found")
    if not ipaddress.ip_address(found.partition("%")[0]).is_loopback:
        raise beyond_loopback(parameter, host)
    return f"[{found}]:{number or port}" if ":" in found else f"{found}:{number or port}"


def split(parameter: str, text: str) -> tuple[str, int]:
    """Split "host", "host:port", "[v6]:port" or a bare IPv6 address; port 0: there is none."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.startswith("[")):
        return text.strip().strip("[]"), 0
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX) or not host:
        raise ValueError(f"{parameter}: {text!r} is not 'host' or 'host:port'")
    return host.strip("[]"), int(port)
