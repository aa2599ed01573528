"""Why a journal can't be used, each with a message for the user and a code to exit with."""

from __future__ import annotations

from dispy.protocol import exitcodes
from dispy.protocol.errors import DispyError


class JournalError(DispyError):
    """The journal can't be used; the message says why, and what to do."""

    code = exitcodes.CANNOT_CREATE


class JournalLocked(JournalError):
    """Another process is using it."""

    code = exitcodes.LOCKED


class JournalForbidden(JournalError):
    """The system doesn't allow to write it."""

    code = exitcodes.NOT_PERMITTED


class JournalUnreadable(JournalError):
    """It is damaged, of a newer version, or no journal at all."""

    code = exitcodes.CORRUPT


class JournalBroken(JournalError):
    """It can't be written any more, and must not be tried again."""

    code = exitcodes.BROKEN_DISK


class JournalFull(JournalBroken):
    """There is no room for it, nor in the ballast; nothing was written."""
