"""A fraction of examples, with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import scipy

CONFIDENCE_LEVEL = 0.95  # of intervals of figures that are read by themselves


@dataclass(frozen=True)
class Proportion:
    """`count` of `n` examples, with Wilson's interval (1927) at 95 %."""

    count: int
    n: int

    @property
    def value(self) -> float:
        return self.count / self.n if self.n else float("nan")

    @property
    def wilson_interval(self) -> tuple[float, float]:
        if not self.n:
            return 0.0, 1.0
        bounds = scipy.stats.binomtest(self.count, self.n).proportion_ci(CONFIDENCE_LEVEL, "wilson")
        return float(bounds.low), float(bounds.high)

    @property
    def clopper_pearson_interval(self) -> tuple[float, float]:
        """The interval of Clopper and Pearson (1934) at 95 %, which covers the truth at least that often."""
        if not self.n:
            return 0.0, 1.0
        bounds = scipy.stats.binomtest(self.count, self.n).proportion_ci(CONFIDENCE_LEVEL, "exact")
        return float(bounds.low), float(bounds.high)

    def to_dict(self) -> dict[str, float | int]:
        """For JSON."""
        lower, upper = self.wilson_interval
        return {"share": self.value, "low": lower, "high": upper, "count": self.count, "n": self.n}

    def __str__(self) -> str:
        lower, upper = self.wilson_interval
        return f"{self.value:.1%} ({lower:.1%} to {upper:.1%})"


def below_chance_text(accuracy: Proportion, n_classes: int) -> str:
    """What an accuracy says that is below that of guessing, its interval included; "" for another."""
    if n_classes < 2 or not accuracy.n or accuracy.wilson_interval[1] >= 1 / n_classes:
        return ""
    return (
        f"an accuracy of {accuracy.value:.1%} is below the {1 / n_classes:.1%} of guessing: the labels or classes "
        "may be in another order than the model's outputs. Give the names in the order of the outputs: --classes "
        "(classes= in Python)"
    )
