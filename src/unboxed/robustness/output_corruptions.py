"""The result of corruptions on models of numbers, several labels or label maps: their metrics in each cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..engine.results import ResultMixin
from .output_metrics import ERROR_METRICS

MOVING_KINDS = ("rotation",)  # after which a label map is no longer that of its image


@dataclass(frozen=True, repr=False, eq=False)
class OutputCorruptions(ResultMixin):
    """Metrics under K kinds of corruption in S severities."""

    returns: ClassVar[str] = "table"

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    metrics: Mapping[str, Tensor]  # {metric: (K, S)}
    clean: Mapping[str, float]  # without corruption
    n_examples: int  # that were used
    interrupted: bool = False  # by Ctrl-C

    def by_kind(self, metric: str) -> dict[str, float]:
        """The mean of a metric over the severities of each kind, the worst kind first."""
        means = self.metrics[metric].double().mean(1).tolist()
        is_error = metric in ERROR_METRICS
        return dict(sorted(zip(self.kinds, means, strict=True), key=lambda item: -item[1] if is_error else item[1]))

    def __str__(self) -> str:
        return "; ".join(map(self._metric_text, self.metrics)) + f" ({self.n_examples} examples)"

    def _metric_text(self, metric: str) -> str:
        worst, value = next(iter(self.by_kind(metric).items()))
        mean = float(self.metrics[metric].double().mean())
        return (
            f"{metric} {self.clean[metric]:.3g}, {mean:.3g} when corrupted, worst {worst.replace('_', ' ')} {value:.3g}"
        )
