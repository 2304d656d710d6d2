"""A layer rebuilt from a few directions: how much of the model's own answers is left, against two controls.

The layer's activations are replaced, and the model runs on: reconstruction alone says little, as what a model answers
by may be in the small part that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..engine.intervals import Interval, bootstrap_mean_interval
from ..engine.output_change import output_change
from ..engine.read.edited_runs import run_variants
from ..engine.read.features import resolve_address
from ..engine.read.unit_rows import UnitRowLayout
from ..engine.results import ResultMixin
from ..errors import LayerError
from ..model.batching import BatchSize
from ..model.hooks import Edit
from ..objectives import INPUT_OUTPUT_ADDRESSES, logit, mean_over_positions

Rebuild = Callable[[Tensor], Tensor]
"""Rows (n, P, C) of examples to what they are replaced by."""


def resolve_inner_layer(box: Box, layer: str | None, default: Callable[[Box], str], caller: str) -> UnitRowLayout:
    """The layer that is named, or else the default one. Raises LayerError where it is the model's input or output."""
    address = default(box) if layer is None else resolve_address(box, layer)
    if address in INPUT_OUTPUT_ADDRESSES:
        what = "this model has no hidden layer" if layer is None else f"{address!r} is an end of the model"
        raise LayerError(f"{caller} rebuilds a layer inside the model, after which it runs on; {what}")
    return UnitRowLayout.of(box, address)


@dataclass(frozen=True, eq=False, repr=False)
class Rebuilt(ResultMixin):
    """What is left of the model's answers on M examples when a layer is replaced.

    Attributes:
        change: (M,) the change of each example's outputs in `output_change_unit_text`: nats of KL divergence.
        label_nats: (M,) the logarithm of the label's probability; None without labels.
        kept: Share of the predictions that stay; None for a regression model.
        accuracy: Share of the predictions that are the labels; None without labels.
    """

    change: Tensor
    label_nats: Tensor | None
    kept: float | None
    accuracy: float | None

    @property
    def mean_change(self) -> Interval:
        """The change with its interval over examples."""
        return bootstrap_mean_interval(self.change[:, None])


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(ResultMixin):
    """What of the model's own answers is left when the layer is rebuilt from its concepts.

    Attributes:
        explained_variance: Share of the activations' variance that the concepts rebuild.
        concepts: With the layer rebuilt from the concepts.
        ablated: With the mean activation everywhere.
        random: With as many random directions, one per draw.
        accuracy: The model's own accuracy; None without labels.
    """

    explained_variance: float
    concepts: Rebuilt
    ablated: Rebuilt
    random: tuple[Rebuilt, ...]
    accuracy: float | None

    @property
    def advantage(self) -> Interval | None:
        """Nats by which the labels are likelier with the concepts than with random directions; None where unknown.

        With its interval over examples and draws.
        """
        own = self.concepts.label_nats
        if own is None or not self.random:
            return None
        others = [r.label_nats for r in self.random if r.label_nats is not None]
        return bootstrap_mean_interval(own[:, None] - torch.stack(others, 1))


@dataclass(frozen=True, eq=False)
class EvaluatedExamples:
    """Examples with the model's own outputs (M, K), and labels where the data have them."""

    box: Box
    x: Tensor  # (M, ...)
    labels: Tensor | None  # (M,) classes
    batch_size: BatchSize

    def outputs(self) -> Tensor:
        return mean_over_positions(self.box(self.x, batch_size=self.batch_size)).detach()

    def accuracy(self) -> float | None:
        """The share of the model's own predictions that are the labels."""
        return None if self.labels is None else _agreement_fraction(self.outputs().argmax(1), self.labels)

    def rebuilt(self, layer: UnitRowLayout, rebuilds: Sequence[Rebuild]) -> list[Rebuilt]:
        """What is left with the layer replaced, for each of several ways to rebuild its rows."""

        def make_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
            return {layer.address: _RebuildByRow(layer, rebuilds, variants)}

        run = run_variants(self.box, self.x, logit(0), make_edits, len(rebuilds), batch_size=self.batch_size)
        before, after = self.outputs(), cast(Tensor, run.logits)  # (M, K), (M, P, K)
        change = output_change(self.box, before, after).to(self.box.dtype)  # (M, P)
        return [self._rebuilt(change[:, i], before, after[:, i]) for i in range(len(rebuilds))]

    def _rebuilt(self, change: Tensor, before: Tensor, after: Tensor) -> Rebuilt:
        if self.box.outputs == "regression":
            return Rebuilt(change, None, None, None)
        kept = _agreement_fraction(after.argmax(1), before.argmax(1))
        if self.labels is None:
            return Rebuilt(change, None, kept, None)
        labels = self.labels.to(after.device)
        nats = after.double().log_softmax(1).gather(1, labels[:, None])[:, 0]
        return Rebuilt(change, nats.to(self.box.dtype), kept, _agreement_fraction(after.argmax(1), labels))


def _agreement_fraction(a: Tensor, b: Tensor) -> float:
    return float((a == b.to(a.device)).double().mean())


@dataclass(frozen=True, eq=False)
class _RebuildByRow:
    """Each row's activations replaced in the way of its variant."""

    layer: UnitRowLayout
    rebuilds: Sequence[Rebuild]
    variants: Tensor  # (R,)

    def __call__(self, h: Tensor) -> Tensor:
        rows = self.layer.rows(h).double()
        rebuilt = torch.empty_like(rows)
        for variant in torch.unique(self.variants).tolist():
            chosen = (self.variants == variant).nonzero().flatten().to(h.device)
            rebuilt[chosen] = self.rebuilds[variant](rows[chosen])
        return self.layer.activations(rebuilt, h)


def mean_rebuild(mean: Tensor) -> Rebuild:
    """Rows replaced by a mean (C,): what is left when all that varies is taken out."""
    return lambda rows: mean.expand_as(rows)


def random_rebuilds(mean: Tensor, n_directions: int, n_draws: int, seed: int) -> list[Rebuild]:
    """Rows of which only so many random directions are left, beside the mean (C,): the control of chosen directions."""
    return [_random_projection_rebuild(mean, n_directions, rng.keyed_generator(rng.CPU, "random rebuild", seed, i))
            for i in range(n_draws)]  # fmt: skip


def _random_projection_rebuild(mean: Tensor, n_directions: int, generator: torch.Generator) -> Rebuild:
    noise = torch.randn(len(mean), min(n_directions, len(mean)), generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(noise).Q.to(mean)  # (C, K)
    return lambda rows: mean + ((rows - mean) @ axes) @ axes.T
