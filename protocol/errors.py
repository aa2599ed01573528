"""What can go wrong between two peers, as exceptions with a message for the user."""

from __future__ import annotations


class DispyError(Exception):
    """Base of every error that this project raises on purpose."""


class ProtocolError(DispyError):
    """A peer sent what this version of the protocol does not allow."""


class Gap(ProtocolError):
    """Something was lost on the way; a new connection will bring it again."""


class SecretNeededError(DispyError, ConnectionError):
    """An address beyond this machine, for which peers have to prove who they are."""
