"""What is made of a secret: one key for each purpose, none of which tells anything of another.

Pure. HKDF with SHA-256 (RFC 5869); the labels are part of the protocol. Keys show and pickle
nothing of themselves.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

SALT = b"dispy-v1"
KEY_BYTES = 32


class Keys:
    """The keys that a secret stands for. Equal secrets have equal keys."""

    __slots__ = ("_roles", "_root", "beacon", "server")

    def __init__(self, material: bytes) -> None:
        """Derive them from the bytes of a secret, as hard to guess as that is."""
        self._root = hmac.digest(SALT, material, hashlib.sha256)
        self._roles: dict[str, bytes] = {}
        self.server = self._derive(b"server")  # who listens proves that it has it
        self.beacon = self._derive(b"beacon")  # authenticates the datagrams of discovery

    def role(self, name: str) -> bytes:
        """Return the key that proves the right to be a "client", a "node" and so on."""
        if name not in self._roles:
            self._roles[name] = self._derive(b"role/" + name.encode())
        return self._roles[name]

    def _derive(self, label: bytes) -> bytes:
        """Expand by one block, which is as long as a key."""
        return hmac.digest(self._root, label + b"\x01", hashlib.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and hmac.compare_digest(self._root, other._root)

    def __hash__(self) -> int:
        return hash(self.beacon)

    def __repr__(self) -> str:
        return "<Keys>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are never pickled: they would leave the process")
