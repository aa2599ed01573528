"""Whether a peer may be who it says it is: what an exchange asks before all else.

Two proofs. The token: an instance is the hash of a token that only its process and its peers
know, so nobody who has merely seen an instance can take it over. The proof: whoever dials
signs the key of its connection, its role and its instance with the secret's key for that
role, so a proof is worth nothing on another connection. Pure.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple

from .keys import Keys
from .messages import DOCTOR, Hello

ROLES = frozenset({"broker", "client", "node", "relay"})
BROKERS = frozenset({"broker"})
CLIENTS = frozenset({"client"})
NODES = frozenset({"node", "relay"})


def instance_of(token: bytes) -> str:
    """Return the instance that a token proves."""
    return hashlib.sha256(b"dispy instance" + token).hexdigest()[:32]


class Door(NamedTuple):
    """Where a process listens: the keys that it asks for, and the roles they stand for.

    Without keys, a role needn't be proven, but another one is refused all the same.
    """

    keys: Keys | None
    roles: frozenset[str] = ROLES


def doors(*each: tuple[Keys | None, Iterable[str]]) -> tuple[Door, ...]:
    """Return the doors for keys and their roles; equal keys make one door with all the roles.

    `Bus.listen` numbers doors by the order in which their keys are first listened with: use
    the same order for both.
    """
    roles: dict[Keys | None, frozenset[str]] = {}
    for keys, names in each:
        roles[keys] = roles.get(keys, frozenset()) | frozenset(names)
    return tuple(Door(keys, names) for keys, names in roles.items())


class Guard:
    """Presents this process to those that it dials, and examines who dials in.

    ``keys`` are for dialling; ``doors`` what is asked for at each of ours, by number: by
    default there is one, with the same keys and for all roles.
    """

    def __init__(
        self, token: bytes, keys: Keys | None = None, doors: tuple[Door, ...] | None = None
    ) -> None:
        self.token = token
        self._keys = keys
        self._doors = (Door(keys),) if doors is None else doors

    @property
    def instance(self) -> str:
        """Who the process is to its peers."""
        return instance_of(self.token)

    def present(self, role: str, instance: str, key: bytes) -> tuple[bytes, bytes]:
        """Return the token, and the proof for a connection whose own public key is ``key``."""
        proof = b"" if self._keys is None else prove(self._keys, role, instance, key)
        return self.token, proof

    def refuse(self, hello: Hello, key: bytes, door: int) -> str:
        """Return why a peer can't be who it says, for people; empty: it is.

        ``key`` is the public key of its connection, ``door`` the number of the door it came to.
        """
        if door >= len(self._doors):
            return "nobody is let in at this port"
        asked = self._doors[door]
        role, instance = hello.identity.role, hello.identity.instance
        if role not in asked.roles and role != DOCTOR:
            wanted = " or ".join(sorted(asked.roles))
            return f"the secret at this port is for a {wanted}, not for a {role}"
        if asked.keys is not None:
            if not key:
                return "the connection isn't encrypted"
            proof = prove(asked.keys, role, instance, key)
            if not hmac.compare_digest(proof, hello.proof):
                return f"it doesn't prove that it has the secret of a {role}"
        return self.refuse_instance(instance, hello.token)

    def refuse_instance(self, instance: str, token: bytes) -> str:
        """Return why a peer's instance isn't its own, for people; empty: it is."""
        if hmac.compare_digest(instance_of(token).encode(), instance.encode()):
            return ""
        return "it says that it is another process than it is"


class Unguarded(Guard):
    """Believes everybody: for instances that are made by hand, within one process."""

    def refuse(self, hello: Hello, key: bytes, door: int) -> str:
        """Refuse nobody."""
        return ""

    def refuse_instance(self, instance: str, token: bytes) -> str:
        """Refuse nobody."""
        return ""


OPEN = Unguarded(b"")


def prove(keys: Keys, role: str, instance: str, key: bytes) -> bytes:
    """Return the proof that whoever owns the connection's key may be this instance of a role."""
    parts = (key, role.encode(), instance.encode())
    signed = b"dispy hello" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(keys.role(role), signed, hashlib.sha256)
