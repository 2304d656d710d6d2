"""The relevance of inputs for a score, by backward rules, and an account of what reaches no input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...box import Box
from ...errors import OutputError, warn
from ...inputs.base import Inputs
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...model.batching import BatchSize, map_in_batches
from ...model.hooks import Acts
from ...model.lrp import (
    KINDS,
    LayerRules,
    LRPMode,
    RelevanceAudit,
    RelevanceLedger,
    annotate_activation,
    check_every_node_has_rule,
    edges_on_every_path,
    frozen_parameters,
    relevance_of,
)
from ...model.nan_checks import check_finite_scores
from ...objectives import Objective
from ..conservation import Conservation
from ..read.chain import chain_addresses
from ..results import warn_not_finite, warn_with_row_count
from .score import classes_if_predicted_logit

MAX_CONSERVATION_ERROR, MAX_CONSERVATION_ERROR_IN_EPS = 1e-3, 30
"""Share of the score that a layer may lose without a warning (sums in single precision leave about 1e-6), or so many
times the rounding error of the model's precision."""


LRP_PATENT_NOTICE = (
    "LRP's authors state that it is a patented technology, free of charge for personal and scientific purposes only "
    "(README of their package LXT); ask them before commercial use."
)


@dataclass(eq=False)
class Relevance:
    map: Tensor  # (N, ...), shaped like the input
    score: Tensor  # (N,)
    predicted: Tensor | None  # (N,) classes, where the objective is the predicted class's logit
    conservation: Conservation | None = None
    layer_orders: dict[str, int] = field(default_factory=dict)  # when each layer of the account ended


def relevance(
    box: Box,
    objective: Objective,
    x: Tensor,
    layer_rules: LayerRules,
    *,
    batch_size: BatchSize = "auto",
    check: bool = False,
) -> Relevance:
    """The relevance of checked inputs x (N, ...); `check` counts, layer by layer, what becomes of it.

    Raises RuleError at an op without a rule, OutputError where the score does not depend on the input, and NaNError
    where it is NaN or infinite.
    """

    def run_batch(rows: slice) -> list[Relevance]:
        return _checked_relevance(box, objective.rows(rows), x[rows], layer_rules, check)

    plan = box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)
    parts = [part for batch in map_in_batches(run_batch, len(x), *plan) for part in batch]
    out = _joined(parts)
    check_finite_scores(out.score)
    warn_not_finite(f"the relevance of {objective.name}", out.map)
    warn_with_row_count(f"the relevance of {objective.name} is exactly zero for", (out.map == 0).flatten(1).all(1))
    if out.conservation is not None:
        _warn_of_lost_relevance(out.conservation, _max_conservation_error(box))
    return out


def _max_conservation_error(box: Box) -> float:
    """The share of the score that rounding may lose in a layer."""
    return max(MAX_CONSERVATION_ERROR, MAX_CONSERVATION_ERROR_IN_EPS * torch.finfo(box.model_dtype).eps)


def _joined(parts: Sequence[Relevance]) -> Relevance:
    predicted = [p.predicted for p in parts if p.predicted is not None]
    counts = [p.conservation for p in parts if p.conservation is not None]
    return Relevance(
        torch.cat([p.map for p in parts]),
        torch.cat([p.score for p in parts]),
        torch.cat(predicted) if predicted else None,
        Conservation.joined(counts) if counts else None,
    )


def _warn_of_lost_relevance(conservation: Conservation, max_error: float) -> None:
    if conservation.max_error > max_error:
        worst = conservation.layers[int(conservation.relative_error.amax(0).argmax())]
        ops = f" (by {', '.join(conservation.unruled)})" if conservation.unruled else ""
        warn(
            f"relevance is not conserved: {worst!r} loses up to {conservation.max_error:.1%} of the score that nothing "
            f"accounts for{ops}; print the attribution's `conservation`"
        )


def _checked_relevance(
    box: Box, objective: Objective, x: Tensor, layer_rules: LayerRules, check: bool
) -> list[Relevance]:
    """One batch; its examples one by one where the account of the batch cannot tell them apart."""
    if not check:
        return [_relevance_of_batch(box, objective, x, layer_rules, None)]
    ledger = RelevanceLedger(max(len(x), box.min_rows), _n_ledger_reports_of_encoding(box, x, layer_rules))
    out = _relevance_of_batch(box, objective, x, layer_rules, ledger)
    error = 0.0 if out.conservation is None else out.conservation.max_error
    can_split = len(x) > 1 and box.min_rows == 1 and not (box.batch_dependent or objective.batch_dependent)
    if can_split and (ledger.is_mixed or error > MAX_CONSERVATION_ERROR_IN_EPS * torch.finfo(box.model_dtype).eps):
        rows = [slice(i, i + 1) for i in range(len(x))]
        return [p for r in rows for p in _checked_relevance(box, objective.rows(r), x[r], layer_rules, check)]
    if out.conservation is not None and error > _max_conservation_error(box):
        audit = RelevanceAudit(ledger.n, ledger.n_before)
        again = _relevance_of_batch(box, objective, x, layer_rules, audit)
        out.conservation = out.conservation.with_unruled_ops(audit.relevance_losing_ops(again.layer_orders))
    return [out]


def _n_ledger_reports_of_encoding(box: Box, x: Tensor, layer_rules: LayerRules) -> int:
    """How many ops of normalization report what they hold back, before the model runs."""
    ledger = RelevanceLedger(1)
    with box.isolated(), LRPMode(layer_rules, ledger):  # whatever the caller's grad mode is
        box.inputs.encode(x.detach().clone().requires_grad_())
    return ledger.n_reports


def _relevance_of_batch(
    box: Box, objective: Objective, x: Tensor, layer_rules: LayerRules, ledger: RelevanceLedger | None
) -> Relevance:
    """Relevance (n, ...) of one batch: (x - x0) c, x0 being zero after normalization."""
    cuts = chain_addresses(box) if ledger is not None else []
    with box.isolated(), frozen_parameters(box.model):
        x, *bounds = leaves = _input_and_pixel_bound_leaves(box.inputs, x, layer_rules)
        annotate_activation(x, bounds=tuple(bounds) or None)
        with LRPMode(layer_rules, ledger):
            acts = box.forward(x, objective.layers | {"input", *cuts})
        score = objective(acts)
        error = OutputError(f"{objective.name} does not depend on the input by any path that carries relevance")
        cut_edges = edges_on_every_path(score, x, {a: acts.edges[a] for a in cuts}) if score.requires_grad else {}
        orders = {a: edge.node._sequence_nr() for a, edge in cut_edges.items()}
        for a in objective.layers:
            check_every_node_has_rule(acts[a], orders)
        if not score.requires_grad:
            raise error
        receivers: list[Any] = [*leaves, *cut_edges.values()]
        grads = torch.autograd.grad(score.sum(), receivers, allow_unused=True)
        leaf_grads, cut_grads = grads[: len(leaves)], grads[len(leaves) :]
        if all(c is None for c in leaf_grads):
            raise error
        reference = box.inputs.decode(torch.zeros_like(x))
        shares = [
            torch.where(at.isnan(), 0, (at - reference) * c)
            for at, c in zip(leaves, leaf_grads, strict=True)
            if c is not None
        ]
        total = torch.stack(shares).sum(0).detach()
        predicted = classes_if_predicted_logit(objective, acts)
        out = Relevance(total.to(box.dtype), score.detach(), predicted)
        if ledger is not None and leaf_grads[0] is not None:
            by_layer = {
                a: relevance_of(acts[a].detach(), c[: len(acts[a])]) for a, c in zip(cut_edges, cut_grads, strict=True)
            }
            ledger.is_mixed |= not all(box.has_batch_axis(a) for a in by_layer)
            ends = _EndRelevance(total, _initial_relevance(objective, acts))
            out.conservation = _make_conservation(ledger, by_layer, [*orders.values()], ends).to(box.dtype)
            out.layer_orders = orders
        return out


@dataclass(eq=False)
class _EndRelevance:
    """Relevance at both ends of the model."""

    input: Tensor  # (n, ...)
    score: Tensor  # (n,)


def _initial_relevance(objective: Objective, acts: Acts) -> Tensor:
    """The relevance (n,) with which the backward pass begins: activations times the objective's own gradient."""
    tops = {a: acts[a].detach().requires_grad_() for a in objective.layers}
    grads = torch.autograd.grad(objective(tops).sum(), [*tops.values()], allow_unused=True)
    parts = [
        relevance_of(h.detach(), g).double().flatten(1).sum(1)
        for h, g in zip(tops.values(), grads, strict=True)
        if g is not None
    ]
    return torch.stack(parts).sum(0)


def _make_conservation(
    ledger: RelevanceLedger, by_layer: Mapping[str, Tensor], orders: Sequence[int], ends: _EndRelevance
) -> Conservation:
    """What lies between the model's ends and its layers, which ran at these orders."""
    layers, n = [*by_layer, "score"], len(ends.input)
    sums = [_sum_per_example(r, n) for r in (ends.input, *by_layer.values())]
    limits = [-math.inf, *orders, math.inf]
    held_back: dict[str, Tensor] = {}
    for kind in KINDS:
        spans = [ledger.between(low, high, kind) for low, high in pairwise(limits)]
        held_back[kind] = torch.stack([s[:n] if isinstance(s, Tensor) else torch.zeros_like(sums[0]) for s in spans], 1)
    received = torch.stack([*sums[1:], ends.score], 1)
    out = Conservation(tuple(layers), received, torch.stack(sums, 1), held_back)
    return out.without_unchanged_last_layer()


def _sum_per_example(r: Tensor, n: int) -> Tensor:
    """The sum (n,) of each example; of one example whatever its axes."""
    return r.double().reshape(n, -1).sum(1) if (r.ndim and len(r) == n) or n == 1 else r.double().sum().expand(n) / n


def _input_and_pixel_bound_leaves(inputs: Inputs, x: Tensor, layer_rules: LayerRules) -> list[Tensor]:
    """x, and its lower and upper bounds where a rule of the first layer needs them."""
    bounds = (_pixel_bound(inputs, x, 0.0), _pixel_bound(inputs, x, 1.0)) if layer_rules.first_layer else ()
    return [h.detach().clone().requires_grad_() for h in (x, *bounds)]


def _pixel_bound(inputs: Inputs, x: Tensor, value: float) -> Tensor:
    """A bound of x, shaped like it: that of pixels; NaN for columns, which have none."""
    if isinstance(inputs, MultiInput):
        parts: Any = inputs.parts.values() if isinstance(inputs.parts, Mapping) else inputs.parts
        parts_and_values = zip(parts, inputs.split(x), strict=True)
        return torch.cat([_pixel_bound(part, v, value).flatten(1) for part, v in parts_and_values], 1)
    return torch.full_like(x, value if isinstance(inputs, Pixels) else torch.nan)
