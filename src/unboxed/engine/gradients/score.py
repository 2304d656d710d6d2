"""The gradient of an objective in the input (or in a layer), by the model's own rules or by others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ...box import Box
from ...errors import OutputError
from ...inputs.batches import min_and_max
from ...inputs.labels import ClassLabels
from ...model import relu_rules
from ...model.batching import BatchSize, map_in_batches
from ...model.hooks import Acts
from ...model.nan_checks import check_finite_scores
from ...model.relu_rules import ReluRule
from ...objectives import Objective, binary_logit, logit, mean_over_positions
from ..attribution_result import Attribution, make_attribution
from ..results import warn_not_finite, warn_with_row_count
from ..rows import broadcast_rows

ReluBypass = Literal["no", "last", "all"]
"""Which inactive ReLUs are bypassed for rows whose gradient is exactly zero."""

REENTRANT_CHECKPOINT_MESSAGE = (
    "the model runs a reentrant checkpoint, through which torch gives no gradient of the input; "
    "call torch.utils.checkpoint with use_reentrant=False"
)


@dataclass(eq=False)  # not frozen: each call makes one, which then takes a third of the time
class Gradients:
    score: Tensor  # (N,)
    map: Tensor  # (N, ...), shaped like the input, or like the layer
    clamped: Tensor | None  # as `before_clamp`; None where no row is
    predicted: Tensor | None = None  # (N,) classes, where the objective is the predicted class's logit

    @property
    def before_clamp(self) -> Tensor:
        """(N,) bool: the score's last ReLU is inactive, so the gradient is zero: it was taken before that ReLU."""
        return all_false_mask(self.score) if self.clamped is None else self.clamped


def gradients(
    box: Box,
    objective: Objective,
    x: Tensor,
    *,
    rule: ReluRule | None = None,
    wrt: str = "input",
    batch_size: BatchSize = "auto",
    relu_bypass: ReluBypass = "last",
) -> Gradients:
    """d objective / d input of each example (or / d activation, for `wrt` a layer).

    Where a final ReLU clamps the score at zero, and the gradient with it, the gradient before the clamp is given and
    marked (`relu_bypass="no"`: zeros are left; "all": every ReLU is bypassed). Raises OutputError where the objective
    does not depend on the input.
    """
    return gradients_in_batches(box, objective, box.validate_inputs(x), rule, wrt, batch_size, relu_bypass)


def gradients_in_batches(
    box: Box,
    objective: Objective,
    x: Tensor,
    rule: ReluRule | None,
    wrt: str,
    batch_size: BatchSize,
    relu_bypass: ReluBypass,
    max_rows: int | None = None,
) -> Gradients:
    """As `gradients`, of validated inputs x (N, ...); at most `max_rows` at a time where `batch_size` is "auto"."""
    n = x.shape[0]  # len(x) takes twice as long
    box.check_objective(objective, n)
    if n == 1 and batch_size == "auto":
        return gradients_of_batch(box, objective, x, rule, wrt, relu_bypass)

    def run_batch(rows: slice) -> Gradients:
        if rows.stop - rows.start == n:
            return gradients_of_batch(box, objective, x, rule, wrt, relu_bypass)
        return gradients_of_batch(box, objective.rows(rows), x[rows], rule, wrt, relu_bypass)

    size, limit = box.batch_size_and_max_rows(n, batch_size, objective.batch_dependent)
    parts = map_in_batches(run_batch, n, size, limit if max_rows is None else min(limit, max_rows))
    if len(parts) == 1:
        return parts[0]
    predicted = [p.predicted for p in parts if p.predicted is not None]
    score, map_, clamped = (torch.cat([getattr(p, f) for p in parts]) for f in ("score", "map", "before_clamp"))
    return Gradients(score, map_, clamped, torch.cat(predicted) if predicted else None)


def cast_to_dtype(h: Tensor, dtype: torch.dtype) -> Tensor:
    """As `h.to(dtype)`, but fast where there is nothing to do."""
    return h if h.dtype == dtype else h.to(dtype)


def all_false_mask(score: Tensor) -> Tensor:
    """A mask (N,) without any rows."""
    return torch.zeros(len(score), dtype=torch.bool, device=score.device)


def gradients_of_batch(
    box: Box, objective: Objective, x: Tensor, rule: ReluRule | None, wrt: str, relu_bypass: ReluBypass
) -> Gradients:
    with box.isolated(rule=rule):
        x = x.detach().requires_grad_()
        acts = box.forward(x, objective.layers | {wrt})
        score = objective(acts)
        leaf = acts[wrt] if wrt == "input" else acts.edges[wrt]
        if leaf is None:
            raise OutputError(f"nothing has a gradient at {wrt!r}")
        (grad,), clamped = score_gradients_with_bypass(
            score, acts, objective, [leaf], rule=rule, relu_bypass=relu_bypass, like=[acts[wrt]]
        )
        predicted = classes_if_predicted_logit(objective, acts)
        return Gradients(cast_to_dtype(score.detach(), box.dtype), cast_to_dtype(grad, box.dtype), clamped, predicted)


def classes_if_predicted_logit(objective: Objective, acts: Acts) -> Tensor | None:
    """The classes (N,) that `logit()` scores, or `binary_logit()`; None for another objective."""
    call = objective.call
    if call is None or call[0] not in (logit, binary_logit):
        return None
    if any(k is not None for k in (*call[1], *call[2].values())):
        return None
    return mean_over_positions(acts["logits"].detach()).argmax(1)


def score_gradients(
    score: Tensor,
    acts: Acts,
    objective: Objective,
    leaves: Sequence[Tensor | GradientEdge],
    *,
    rule: ReluRule | None = None,
    relu_bypass: ReluBypass = "last",
    like: Sequence[Tensor] = (),
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the score (N,) in the leaves (N, ...), and the rows (N,) where they were taken before a clamp.

    `like` are tensors shaped like the leaves, where those are edges of the graph (which may have rows of padding).
    """
    grads, clamped = score_gradients_with_bypass(
        score, acts, objective, leaves, rule=rule, relu_bypass=relu_bypass, like=like
    )
    return grads, all_false_mask(score) if clamped is None else clamped


def score_gradients_with_bypass(
    score: Tensor,
    acts: Acts,
    objective: Objective,
    leaves: Sequence[Tensor | GradientEdge],
    *,
    rule: ReluRule | None = None,
    relu_bypass: ReluBypass = "last",
    like: Sequence[Tensor] = (),
    may_bypass: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """As `score_gradients`; None where no row was zero, which takes a sync with an accelerator to find out.

    `may_bypass` (N,) names the rows that may be taken before a clamp; then there is no sync.
    """
    if not score.requires_grad:
        raise OutputError(f"{objective.name} does not depend on the input by any path with a gradient (detached?)")
    closed_relus = _relus_to_bypass(acts, objective, score, relu_bypass)
    with relu_rules.applying_rule(rule, score):
        grads = _autograd_grad_unpadded(score, leaves, like or leaves, retain_graph=bool(closed_relus))
        if not closed_relus:
            return grads, None
        zero_rows = (
            _all_zero_gradient_mask(grads) if may_bypass is None else _all_zero_gradient_mask(grads) & may_bypass
        )
        if may_bypass is None and not zero_rows.any():
            return grads, None
        with relu_rules.straight_through_relus(closed_relus):
            bypassed = _autograd_grad_unpadded(score, leaves, like or leaves, retain_graph=False)
    return [
        torch.where(broadcast_rows(zero_rows, g), o, g) for g, o in zip(grads, bypassed, strict=True)
    ], zero_rows & ~_all_zero_gradient_mask(bypassed)


def _relus_to_bypass(acts: Acts, objective: Objective, score: Tensor, relu_bypass: ReluBypass) -> list[object]:
    """The ReLUs to bypass where the gradient is zero: the one whose output is the objective's only layer, or all."""
    if relu_bypass == "all":
        return [node for node in relu_rules.graph_nodes(score) if relu_rules.is_relu_node(node)]
    end_acts = [acts[a] for a in objective.layers if a != "input"] if relu_bypass == "last" else []
    last_relu = relu_rules.relu_node_producing(end_acts[0]) if len(end_acts) == 1 else None
    return [] if last_relu is None else [last_relu]


def _all_zero_gradient_mask(grads: Sequence[Tensor]) -> Tensor:
    return torch.stack([(g == 0).flatten(1).all(1) for g in grads]).all(0)


def _autograd_grad_unpadded(
    score: Tensor, leaves: Sequence[Any], like: Sequence[Any], retain_graph: bool
) -> list[Tensor]:
    try:
        # of a single number torch needs no cotangent, for which it checks more, and imports sympy
        total = score if score.numel() == 1 else score.sum()
        grads = torch.autograd.grad(total, leaves, retain_graph=retain_graph, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise OutputError(REENTRANT_CHECKPOINT_MESSAGE) from error
        raise
    if all(g is None for g in grads):
        raise OutputError("the score does not depend on the input by any path with a gradient (detached, or no_grad?)")
    return [_unpadded_or_zeros(g, t) for g, t in zip(grads, like, strict=True)]


def _unpadded_or_zeros(g: Tensor | None, like: Tensor) -> Tensor:
    """A gradient without rows of padding; zeros where there is no gradient."""
    if g is None:
        return torch.zeros_like(like)
    return g if g.shape[0] == like.shape[0] else g[: like.shape[0]]


def attribute_by_gradient(
    box: Box,
    x: Tensor,
    target: ClassLabels | Objective | None,
    *,
    method: str,
    rule: ReluRule | None = None,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The map (N, ...) of a gradient method; an UnboxedWarning says where it is zero, not finite or before a clamp.

    Raises NaNError where the score is NaN or infinite.
    """
    x = box.validate_inputs(x)
    objective = box.objective(target, x.shape[0])
    result = gradients_in_batches(box, objective, x, rule, "input", batch_size, "last")
    check_finite_scores(result.score)
    warn_of_zero_or_nonfinite_gradients(objective, result.map, result.clamped)
    target = result.predicted if target is None else target
    return make_attribution(
        box, result.map, x=x, method=method, target=target, score=result.score, over_embedding="length",
        slope="modified gradient of the score" if rule else "slope: change of the score",
    )  # fmt: skip


def warn_of_zero_or_nonfinite_gradients(objective: Objective, gradient: Tensor, before_clamp: Tensor | None) -> None:
    """Warn of gradients (N, ...) that are zero, infinite or before a clamp (N,): None where none is."""
    if before_clamp is None and all_finite_and_no_zero_row(gradient):
        return
    before_clamp = all_false_mask(gradient) if before_clamp is None else before_clamp
    clamped = f"{objective.name} is clamped at 0 by a final ReLU for"
    warn_with_row_count(clamped, before_clamp, ": maps taken before the clamp")
    warn_not_finite(f"the gradient of {objective.name}", gradient)
    warn_with_row_count(f"the gradient of {objective.name} is exactly zero for", _all_zero_gradient_mask([gradient]))


def all_finite_and_no_zero_row(h: Tensor) -> bool:
    """Whether every row of h (N, ...) is finite and not all zero, in few operations."""
    if h.shape[0] == 1:  # a single image, where each op counts
        low, high = min_and_max(h)  # NaN where a value is
        return -math.inf < low and high < math.inf and (low < 0 or high > 0)
    peak = torch.linalg.vector_norm(h.flatten(1), torch.inf, dim=1)  # (N,), NaN where a value is
    return all(0 < p < math.inf for p in peak.tolist())
