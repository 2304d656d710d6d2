"""What a verdict is about: a method's maps of one model, with what the tests share, each computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.randomized import layers_with_weights
from ..objectives import Objective, log_odds, logit, mean_over_positions
from ..parameters import BatchSize
from .methods import AttributionMethodFn, compute_map
from .perturbing import removable_tokens
from .relevance_gain import FillFn, RemovalCurves, fill_fn_by_name, removal_curves


@dataclass(eq=False)
class VerdictSubject:
    """A method's maps of one model for inputs x and a fixed target, and what its tests share."""

    box: Box
    x: Tensor
    method: AttributionMethodFn
    target: Any  # classes (N,) or an objective
    map_: Tensor
    seed: int
    batch_size: BatchSize = "auto"
    baseline: Any = None  # what removed columns become; None is their mean
    n_maps: int = 0  # maps computed so far, one per example
    shuffled_box: Box | None = None  # the same architecture trained on shuffled labels
    control_maps: dict[str, Tensor] = field(default_factory=dict)  # {control: its maps (N, ...)}, of the first draw

    def map_for_box_and_target(self, box: Box, target: Any) -> Tensor:
        self.n_maps += len(self.x)
        return compute_map(box, self.method, self.x, target)

    @property
    def has_class_target(self) -> bool:
        return not isinstance(self.target, Objective) and self.box.outputs != "regression"

    @cached_property
    def score(self) -> Objective:
        """What removal lowers: the log-odds of the class, or nearly so, which do not saturate as probabilities do."""
        if isinstance(self.target, Objective):
            return self.target
        has_rivals = self.box.outputs not in ("multilabel", "regression") and self.logits.shape[1] > 1
        return log_odds(self.target) if has_rivals else logit(self.target)

    @cached_property
    def logits(self) -> Tensor:
        return mean_over_positions(self.box(self.x, batch_size=self.batch_size))

    @cached_property
    def removable(self) -> Tensor | None:
        """Of texts, the tokens that count (N, T)."""
        return removable_tokens(self.box, self.x)

    @cached_property
    def layers(self) -> Any:
        return layers_with_weights(self.box)

    @cached_property
    def fill_by_name(self) -> dict[str, FillFn]:
        return fill_fn_by_name(self.box, self.x, self.seed, self.baseline)

    @cached_property
    def removal(self) -> RemovalCurves:
        """The curves of the map, ranked by its sign or by its magnitude: some maps say how much a pixel adds, others
        how much it matters."""
        if self.is_ranked_by_sign_alone:
            return self.removal_curves_of(self.map_, self.fill_by_name)
        by_sign, by_magnitude = self.curves_of_first_fill
        first, others = by_sign.where(self.is_ranked_by_sign, by_magnitude), dict([*self.fill_by_name.items()][1:])
        return first.followed_by(self.removal_curves_of(self.map_, others)) if others else first

    @cached_property
    def is_ranked_by_sign_alone(self) -> bool:
        """Whether magnitudes would rank alike, or there is no other example to say which ranks better."""
        return len(self.x) == 1 or bool((self.map_ >= 0).all())

    @cached_property
    def curves_of_first_fill(self) -> tuple[RemovalCurves, RemovalCurves]:
        """The curves of the map by its sign and by its magnitude, with the first fill."""
        first_fill = dict([*self.fill_by_name.items()][:1])
        by_sign, by_magnitude = (self._compute_removal_curves(self.map_, s, first_fill) for s in (True, False))
        return by_sign, by_magnitude

    @cached_property
    def is_ranked_by_sign(self) -> Tensor:
        """(N,) bool: whether sign ranks better with the first fill, as the other examples say: the better of two is
        biased otherwise."""
        if self.is_ranked_by_sign_alone:
            return torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        by_sign, by_magnitude = (curves.gain for curves in self.curves_of_first_fill)
        better = (by_sign - by_magnitude).nanmean(1).nan_to_num()
        return better.sum() - better >= 0

    def removal_curves_of(self, maps: Tensor, fill_by_name: Mapping[str, FillFn]) -> RemovalCurves:
        """The removal curves of maps by each fill and grid, ranked as the subject's map is."""
        return self._compute_removal_curves(maps, self.is_ranked_by_sign, fill_by_name)

    def _compute_removal_curves(
        self, maps: Tensor, signed: bool | Tensor, fill_by_name: Mapping[str, FillFn]
    ) -> RemovalCurves:
        return removal_curves(
            self.box, self.x, maps, self.score, fill_by_name,
            signed=signed, seed=self.seed, batch_size=self.batch_size,
        )  # fmt: skip
