"""Blobs: contents of files, named by their hash, so that each is sent to a node only once.

Pure, and small: the job process places files too, and pays for what is imported.
"""

from __future__ import annotations

import hashlib
from typing import Any

DIGEST_BYTES = 32


def new_hash() -> Any:
    """Return an object to `update` with a content; its `digest` is the name of the blob."""
    return hashlib.sha256()


def digest_of(content: bytes) -> bytes:
    """Return the name of a blob."""
    return hashlib.sha256(content).digest()


def file_name(digest: bytes) -> str:
    """Return the name of the file that keeps a blob."""
    return digest.hex()


def digest_in(name: str) -> bytes | None:
    """Return the name of the blob that a file of this name keeps; None: it keeps none."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES and file_name(digest) == name else None
