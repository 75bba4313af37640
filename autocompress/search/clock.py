"""How a search's time is divided among its stages."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

Now = Callable[[], float]
STAGES = ("setup", "trials", "fine_tuning", "measuring")


class Clock:
    """Deadlines of stages. A stage gets its share of the time that is left when it begins, so that one that ran over or
    ended early shortens or lengthens all later ones alike. Without a limit every deadline is infinite.
    """

    def __init__(self, limit_s: float | None, shares: Mapping[str, float], now: Now = time.monotonic) -> None:
        self._now = now
        self._shares = dict(shares)
        self._begun = now()
        self._end = math.inf if limit_s is None else self._begun + limit_s
        self.stage_seconds: dict[str, float] = {}
        self._stage = ("", self._begun)

    @property
    def elapsed(self) -> float:
        return self._now() - self._begun

    @property
    def left(self) -> float:
        """Seconds until the search ends, infinite without a limit; 0 when it is over."""
        return max(0.0, self._end - self._now())

    @property
    def limited(self) -> bool:
        return math.isfinite(self._end)

    @property
    def spare(self) -> bool:
        """Whether so much is left that, beside the last stage, another round of the others is worth while."""
        return self.limited and self.left > 2 * self._shares[STAGES[-1]] * (self._end - self._begun)

    def enter(self, stage: str) -> float:
        """Ends the stage before, and returns the moment at which this one must end."""
        self.leave()
        self._stage = (stage, self._now())
        later: Sequence[str] = STAGES[STAGES.index(stage) :]
        whole = sum(self._shares[name] for name in later)
        return self._now() + self.left * (self._shares[stage] / whole if whole else 0.0)

    def skip(self, stage: str) -> None:
        """The stage takes no time: its share goes to the others."""
        self._shares[stage] = 0.0

    def leave(self) -> None:
        """Books the time of the stage that ran."""
        stage, begun = self._stage
        if stage:
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + self._now() - begun
        self._stage = ("", self._now())

    def until(self, deadline: float) -> float:
        """Seconds left until a moment, infinite or at least 0."""
        return max(0.0, deadline - self._now())

    def after(self, seconds: float) -> float:
        """The moment in so many seconds."""
        return self._now() + seconds
