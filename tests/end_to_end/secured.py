"""The secret of all tests from the outside, if they are played with one."""

from __future__ import annotations

from dispy.protocol import protection
from dispy.protocol.keys import Keys

KEYS: Keys | None = protection.find().keys  # for connections that tests make by hand
