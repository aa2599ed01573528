"""What can go wrong in the client, as exceptions that say what to do.

Each is also of the builtin type that a caller would expect.
"""

from __future__ import annotations

from dispy.protocol.errors import DispyError


class ClusterClosedError(DispyError, RuntimeError):
    """A job was submitted to a cluster that is closed."""


class NotSupportedError(DispyError, ValueError):
    """A documented parameter that this release can't honour; it is never ignored."""
