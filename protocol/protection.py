"""What keeps strangers away from a process: a secret, or that only this machine can reach it.

Programs and command lines ask here which secret is used, and whether an address may be used with
it. The way out of both, ``insecure``, is one that the user has to ask for.
"""

from __future__ import annotations

from typing import NamedTuple

from . import secret as secrets
from .errors import SecretNeededError
from .keys import Keys
from .secret import Secret, SecretError


class Protection(NamedTuple):
    """How a process, or one of its doors, is protected."""

    secret: Secret | None = None
    insecure: bool = False  # no secret, and everybody may come

    @property
    def keys(self) -> Keys | None:
        """What connections are encrypted with; None: they aren't."""
        return None if self.secret is None else self.secret.keys

    @property
    def reaches_out(self) -> bool:
        """Whether other machines may be talked to."""
        return self.insecure or self.secret is not None

    def allow(self, what: str, host: str, is_loopback: bool) -> None:
        """Raise `SecretNeededError` if an address can't be used; ``what`` says whose it is."""
        if not (is_loopback or self.reaches_out):
            raise needs_secret(what, host)

    def warnings(self) -> list[str]:
        """What the user should know, a line each."""
        found = []
        if self.secret is not None and self.secret.warning:
            found.append(self.secret.warning)
        if self.insecure:
            found.append(
                "INSECURE: there is no secret and no encryption: whoever can connect to this "
                "process can run programs as this user"
            )
        return found


NOTHING = Protection()


def find(
    text: str = "", file: str = "", keyfile: str = "", certfile: str = "", insecure: bool = False
) -> Protection:
    """Return the protection by what is given, or else by the environment and the default file.

    Raises `SecretError` for a secret that can't be read, or that is given though it isn't wanted.
    """
    if not insecure:
        return Protection(secrets.find(text, file, keyfile, certfile))
    if text or file or keyfile or certfile:
        raise SecretError("insecure means that there is no secret, but one is given: choose")
    return Protection(None, True)


def needs_secret(what: str, host: str) -> SecretNeededError:
    """Make the error for an address that isn't on this machine; it says both ways out."""
    return SecretNeededError(
        f"{what}: {host!r} is not on this machine's loopback, and other machines need a secret: "
        "make one with 'dispy secret new' and copy it to all of them; or, where everybody in the "
        "network may run programs as you, say insecure=True (--insecure). Without either, use "
        "127.0.0.1; an ssh tunnel to it works"
    )
