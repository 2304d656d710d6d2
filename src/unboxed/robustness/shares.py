"""A share of examples, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Share:
    """`count` of `n` examples. The interval is Wilson's (1927), at 95 %."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.n:
            return 0.0, 1.0
        found = binomtest(self.count, self.n).proportion_ci(0.95, "wilson")
        return float(found.low), float(found.high)

    def plain(self) -> dict[str, float | int]:
        """For JSON."""
        low, high = self.interval
        return {"share": self.value, "low": low, "high": high, "count": self.count, "n": self.n}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.1%} to {high:.1%})"
