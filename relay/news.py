"""What a relay has for its log."""

from __future__ import annotations

from typing import NamedTuple


class News(NamedTuple):
    """Something to be logged once, by the shell."""

    text: str
    is_warning: bool = False
