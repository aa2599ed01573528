"""A broker that several programs use: where it is, and the connection to it.

To a session it is what the broker in this process is to others: a transport, and a thing to wait
on. What happens at the broker happens without us, so that is all there is to it here.
"""

from __future__ import annotations

from dispy.protocol.keys import Keys
from dispy.protocol.listening import HERE, is_loopback, joined, numerics, split
from dispy.protocol.lookup import SEPARATOR
from dispy.protocol.protection import NOTHING, Protection
from dispy.protocol.transport import Bus


class Broker(Bus):
    """The way to a broker at ``address``, "host:port". All but `wake` is for one thread."""

    def __init__(self, address: str, keys: Keys | None = None) -> None:
        super().__init__(keys)
        self.address = address


def read_address(parameter: str, value: object, port: int, protection: Protection = NOTHING) -> str:
    """Return the address of a broker, as "host:port"; a host of several addresses has its name.

    ``value`` is None (this machine), "host", "host:port" or "[v6]:port"; ``port`` is used
    unless it names one. Raises `TypeError` or `ValueError` for what is none of these, `OSError`
    for a host that isn't known, `SecretNeededError` for one that the protection isn't enough for.
    """
    if value is None or value == "":
        return f"{HERE}:{port}"
    if not isinstance(value, str):
        raise TypeError(f"{parameter} must be a host name or 'host:port', not {value!r}")
    try:
        host, number = split(value)
    except ValueError:
        raise ValueError(f"{parameter}: {value!r} is not 'host' or 'host:port'") from None
    found = numerics(parameter, host)
    for address in found:
        protection.allow(parameter, host, is_loopback(parameter, address))
    # A name that is looked up again may lead to another machine by then: a secret proves which.
    is_kept = protection.reaches_out and len(found) > 1
    return joined(host if is_kept else SEPARATOR.join(found), number or port)
