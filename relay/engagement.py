"""Which broker the relay works for, whether that is away, and where one is to be looked for.

Pure state: whoever changes it also sees to the connections.
"""

from __future__ import annotations

from dispy.protocol.messages import Identity

KEEP_S = 5.0  # an up-link that is away for so long may be replaced by another


class Engagement:
    """Of one relay, for one broker at a time."""

    def __init__(self) -> None:
        self.broker = ""  # the instance at the other end of the trunk, also while it's away
        self.broker_name = ""
        self.home = ""  # the address at which to look for a broker; empty: wait to be dialled
        self._is_home = False  # the broker was found at that address
        self._away_since: float | None = None

    @property
    def is_away(self) -> bool:
        """Whether the broker can't be reached, and is waited for."""
        return self._away_since is not None

    @property
    def dials_home(self) -> bool:
        """Whether that address is to be dialled; else somebody else is the broker."""
        return not self.broker or self._is_home

    def takes(self, broker: str) -> bool:
        """Whether the relay may work for this broker."""
        return self.broker in ("", broker)

    def begin(self, broker: Identity, is_home: bool) -> None:
        """Work for this broker from now on; ``is_home``: it was found at the home address."""
        self.broker, self.broker_name = broker.instance, broker.name
        self._is_home = is_home
        self._away_since = None

    def away(self, now: float) -> None:
        """The broker can't be reached from now on."""
        self._away_since = now

    def back(self) -> None:
        """The broker can be reached again."""
        self._away_since = None

    def let_go(self) -> None:
        """Work for nobody: any broker may come."""
        self.broker = self.broker_name = ""
        self._away_since = None

    def is_over(self, now: float) -> bool:
        """Whether the broker has been away for so long that it is to be let go."""
        return self._away_since is not None and now > self._away_since + KEEP_S

    def explain(self, now: float) -> str:
        """Say to others whom the relay works for, and for how long if that is away."""
        if self._away_since is None:
            return f"this relay works for {self.broker_name}"
        left_s = max(0.0, self._away_since + KEEP_S - now)
        return f"this relay waits {left_s:.0f} s more for {self.broker_name} to come back"

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert self.broker or not self.is_away
