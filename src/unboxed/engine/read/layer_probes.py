"""The result of probes: what is read of an attribute from each layer, whether the model uses it, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..linear.probing import FeatureProbe, ProbeKind
from ..results import ResultMixin
from .attribute_erasure import MAX_REMAINING_INFORMATION_SHARE, ErasureTest


@dataclass(frozen=True, eq=False, repr=False)
class LayerProbe(ResultMixin):
    """What is read from one layer, and whether the model uses it.

    Attributes:
        layer: Its address.
        probe: Accuracy with its controls, in intervals at 90 % over the tested examples.
        erasure: What erasing the attribute does to the outputs; None where that was not tested.
        are_means: Whether the features are the units' means over positions.
    """

    layer: str
    probe: FeatureProbe
    erasure: ErasureTest | None
    are_means: bool = False

    def summary_lines(self) -> Iterator[str]:
        yield f"{self.layer}: {self.probe.accuracy.mean:.1%} right; {self.verdict}: {self.reason}"

    @property
    def verdict(self) -> str:
        """One of "used", "not used", "not decodable" and "not tested"."""
        if not self.probe.is_decodable:
            return "not decodable"
        if self.erasure is None:
            return "not tested"
        if self.erasure.is_used:
            return "used"
        return (
            "not used" if self.erasure.has_statistical_power and not self._is_attribute_still_readable else "not tested"
        )

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence, from its controls."""
        p, e = self.probe, self.erasure
        if not p.is_decodable:
            read = f"{p.accuracy.mean:.0%} right, {p.majority_text}"
            return f"The probe predicts no better than the classes' frequencies: {read}."
        return (
            "No directions were erased here: only that it can be read is known."
            if e is None
            else self._erasure_effect_text(e)
        )

    def _erasure_effect_text(self, e: ErasureTest) -> str:
        change, random_change = (float(c.double().mean()) for c in (e.change, e.random_change))
        costs = f"Erasing its {n_directions_text(e.rank)} changes the outputs by {change:.2g}, random ones by "
        costs += f"{random_change:.2g} on average (p = {e.p_value:.2g})"
        if self.verdict != "not tested":
            small = f"; that is {e.share:.1g} of what erasing its own outputs costs" * (e.is_significant != e.is_used)
            return f"{costs}{small}."
        if not e.has_enough_draws:
            return f"{costs}; {e.random_change.shape[1]} random draws are too few for a level of 5 %."
        if not e.has_statistical_power:
            return f"{costs}; erasing what the outputs are read from costs no more, so that this layer cannot tell."
        left, read = e.remaining.mean, self.probe.information.mean
        return f"{costs}; a new probe still reads {left:.2g} of {read:.2g} bits, so that it was not erased."

    @property
    def _is_attribute_still_readable(self) -> bool:
        left = 0.0 if self.erasure is None else self.erasure.remaining.low
        return left > MAX_REMAINING_INFORMATION_SHARE * self.probe.information.mean


def n_directions_text(n: int) -> str:
    """Like "1 direction" or "9 directions"."""
    return f"{n} direction{'s' if n > 1 else ''}"


@dataclass(frozen=True, eq=False, repr=False)
class Probing(ResultMixin):
    """What can be read of an attribute from each layer, and whether the model uses it.

    Attributes:
        layers: A `LayerProbe` per layer, in the order asked for.
        names: The names of the attribute's classes.
        counts: (K,) examples of each class.
        n_examples: Number of examples N.
        kind: "linear" or "mlp".
        unit: Of the outputs' change: "nats", or "share of the outputs' variance".
        types: What has one class in the control task: "clusters of similar inputs", or "given types".
    """

    returns: ClassVar[str] = "curve"

    layers: tuple[LayerProbe, ...]
    names: tuple[str, ...]
    counts: Tensor
    n_examples: int
    kind: ProbeKind
    unit: str
    types: str

    def summary_lines(self) -> Iterator[str]:
        yield from super().summary_lines()
        for p in self.layers:
            read, control = p.probe.accuracy.mean, p.probe.control.mean
            yield f"{p.layer}: {read:.1%} right (control task {control:.1%}, {p.probe.majority_text}): {p.verdict}"

    @property
    def best(self) -> LayerProbe:
        """The layer from which the attribute is read best; of equal ones the first whose use was tested."""
        return max(self.layers, key=lambda p: (p.probe.information.mean, p.erasure is not None))

    @property
    def verdict(self) -> str:
        """The verdict of the tested layer from which the attribute is read best.

        One layer decides, so that many layers are not many chances. The others' are in `layers`.
        """
        return self._most_informative_tested_layer.verdict

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence, with the layer."""
        return f"{self._most_informative_tested_layer.layer}: {self._most_informative_tested_layer.reason}"

    @property
    def _most_informative_tested_layer(self) -> LayerProbe:
        tested = [p for p in self.layers if p.erasure is not None and p.probe.is_decodable]
        return max(tested, key=lambda p: p.probe.information.mean) if tested else self.best
