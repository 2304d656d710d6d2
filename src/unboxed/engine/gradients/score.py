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
from ...model import relu_rules
from ...model.answers import check_scores
from ...model.batching import BatchSize, in_batches
from ...model.hooks import Acts
from ...model.relu_rules import Rule
from ...objectives import Objective
from ..results import tell_not_finite, tell_rows

Unclamp = Literal["no", "last", "all"]
"""Which ReLUs let the signal through for rows whose gradient is exactly zero."""

REENTRANT = (
    "the model runs a reentrant checkpoint, through which torch gives no gradient of the input; "
    "call torch.utils.checkpoint with use_reentrant=False"
)


@dataclass(frozen=True, eq=False)
class Gradients:
    score: Tensor  # (N,)
    map: Tensor  # (N, ...), shaped like the input, or like the layer
    before_clamp: (
        Tensor  # (N,) bool: the score's last ReLU is shut, so its own gradient is zero: taken before that ReLU
    )


def gradients(
    box: Box,
    objective: Objective,
    x: Tensor,
    *,
    rule: Rule | None = None,
    at: str = "input",
    batch_size: BatchSize = "auto",
    unclamp: Unclamp = "last",
) -> Gradients:
    """d objective / d input of each example (or / d activation, `at` a layer).

    Where a final ReLU clamps the score at zero, and the gradient with it, the gradient before the clamp is given and
    marked (`unclamp="no"`: zeros are left; "all": every ReLU is opened). Raises OutputError where the objective does
    not depend on the input.
    """
    return gradients_in_batches(box, objective, box.accept(x), rule, at, batch_size, unclamp)


def gradients_in_batches(
    box: Box, objective: Objective, x: Tensor, rule: Rule | None, at: str, batch_size: BatchSize, unclamp: Unclamp,
    most: int | None = None,
) -> Gradients:  # fmt: skip
    """As `gradients`, of accepted inputs x (N, ...); `most` rows at a time where `batch_size` is "auto"."""
    box.checked(objective, len(x))

    def part(rows: slice) -> Gradients:
        if rows.stop - rows.start == len(x):
            return batch_gradients(box, objective, x, rule, at, unclamp)
        return batch_gradients(box, objective.rows(rows), x[rows], rule, at, unclamp)

    size, limit = box.splits(len(x), batch_size, objective.coupled)
    parts = in_batches(part, len(x), size, limit if most is None else min(limit, most))
    if len(parts) == 1:
        return parts[0]
    return Gradients(*(torch.cat([getattr(p, f) for p in parts]) for f in ("score", "map", "before_clamp")))


def batch_gradients(
    box: Box, objective: Objective, x: Tensor, rule: Rule | None, at: str, unclamp: Unclamp
) -> Gradients:
    """As `gradients`, of accepted inputs x (N, ...) as one batch."""
    with box.quiet(rule=rule):
        x = x.detach().requires_grad_()
        acts = box.forward(x, objective.layers | {at})
        score = objective(acts)
        leaf = acts[at] if at == "input" else acts.edges[at]
        if leaf is None:
            raise OutputError(f"nothing has a gradient at {at!r}")
        (grad,), clamped = pull(score, acts, objective, [leaf], rule=rule, unclamp=unclamp, like=[acts[at]])
        return Gradients(score.detach().to(box.dtype), grad.to(box.dtype), clamped)


def pull(
    score: Tensor,
    acts: Acts,
    objective: Objective,
    leaves: Sequence[Tensor | GradientEdge],
    *,
    rule: Rule | None = None,
    unclamp: Unclamp = "last",
    like: Sequence[Tensor] = (),
) -> tuple[list[Tensor], Tensor]:
    """Pull the score (N,) back to the leaves (N, ...): their gradients, and the rows (N,) taken before a clamp.

    `like` are tensors shaped like the leaves, where those are edges of the graph (which may have rows of padding).
    """
    grads, clamped = pull_stuck(score, acts, objective, leaves, rule=rule, unclamp=unclamp, like=like)
    return grads, torch.zeros(len(score), dtype=torch.bool, device=score.device) if clamped is None else clamped


def pull_stuck(
    score: Tensor,
    acts: Acts,
    objective: Objective,
    leaves: Sequence[Tensor | GradientEdge],
    *,
    rule: Rule | None = None,
    unclamp: Unclamp = "last",
    like: Sequence[Tensor] = (),
    among: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """As `pull`; None where no row was zero. To see that is to wait for an accelerator.

    So `among` (N,) names the rows that may be taken before a clamp, and it is not looked whether any is.
    """
    if not score.requires_grad:
        raise OutputError(f"{objective.name} does not depend on the input by any path with a gradient (detached?)")
    shut = _gates(acts, objective, score, unclamp)
    with relu_rules.ruled(rule, score):
        grads = _grad(score, leaves, like or leaves, keep=bool(shut))
        if not shut:
            return grads, None
        zero = _zero_rows(grads) if among is None else _zero_rows(grads) & among
        if among is None and not zero.any():
            return grads, None
        with relu_rules.opened(shut):
            through = _grad(score, leaves, like or leaves, keep=False)
    return [torch.where(_like(zero, g), o, g) for g, o in zip(grads, through, strict=True)], zero & ~_zero_rows(through)


def _gates(acts: Acts, objective: Objective, score: Tensor, unclamp: Unclamp) -> list[object]:
    """The ReLUs to open where the gradient is zero: that which the objective's only layer comes out of, or all."""
    if unclamp == "all":
        return [node for node in relu_rules.graph(score) if relu_rules.is_relu(node)]
    ends = [acts[a] for a in objective.layers if a != "input"] if unclamp == "last" else []
    last = relu_rules.final_relu(ends[0]) if len(ends) == 1 else None
    return [] if last is None else [last]


def _zero_rows(grads: Sequence[Tensor]) -> Tensor:
    return torch.stack([(g == 0).flatten(1).all(1) for g in grads]).all(0)


def _grad(score: Tensor, leaves: Sequence[Any], like: Sequence[Any], keep: bool) -> list[Tensor]:
    try:
        each = torch.ones_like(score)
        found = torch.autograd.grad(score, leaves, each, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise OutputError(REENTRANT) from error
        raise
    if all(g is None for g in found):
        raise OutputError("the score does not depend on the input by any path with a gradient (detached, or no_grad?)")
    return [torch.zeros_like(t) if g is None else g[: len(t)] for g, t in zip(found, like, strict=True)]


def _like(mask: Tensor, g: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (g.ndim - 1))


def attribute(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None,
    *,
    rule: Rule | None = None,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The map (N, ...) of a gradient method; an UnboxedWarning says where it is zero, not finite or before a clamp.

    Raises NaNError where the score is NaN or infinite.
    """
    x = box.accept(x)
    objective = box.objective(target, len(x))
    found = gradients_in_batches(box, objective, x, rule, "input", batch_size, "last")
    check_scores(found.score)
    tell(objective, found.map, found.before_clamp)
    return box.shaped(found.map)  # type: ignore[no-any-return]


def tell(objective: Objective, gradient: Tensor, before_clamp: Tensor) -> None:
    """Warn of gradients (N, ...) that are zero, infinite or before a clamp (N,)."""
    peak = torch.linalg.vector_norm(gradient.flatten(1), torch.inf, dim=1)  # (N,), NaN where a value is
    if all(0 < p < math.inf for p in peak.tolist()) and not any(before_clamp.tolist()):
        return
    clamped = f"{objective.name} is clamped at 0 by a final ReLU for"
    tell_rows(clamped, before_clamp, ": maps taken before the clamp")
    tell_not_finite(f"the gradient of {objective.name}", gradient)
    tell_rows(f"the gradient of {objective.name} is exactly zero for", peak == 0)
