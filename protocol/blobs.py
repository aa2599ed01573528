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
