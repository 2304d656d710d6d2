"""Layer-wise relevance propagation: the score, handed down layer by layer until it lies on the pixels.

Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
PLOS ONE 10(7); Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition",
arXiv:1512.02479; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", LNCS 11700; Kohlbrenner et al.
2020, "Towards Best Practice in Explaining Neural Network Decisions with LRP", arXiv:1910.09840; Ali et al. 2022, "XAI
for Transformers: Better Explanations through Conservative Propagation", arXiv:2202.07304.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.results import warn_not_finite, warn_rows
from ..errors import InputError, OutputError
from ..inputs.base import Inputs
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize, in_batches
from ..model.lrp import LayerRules, LRPMode, annotate, check_all_ruled, frozen_parameters, linear_rules
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..validation import check_float

LAYER_RULES: Mapping[str, Callable[[float, float], LayerRules]] = {
    "composite": lambda e, g: LayerRules(
        linear_rules.epsilon_rule(e), linear_rules.gamma_rule(g, e), linear_rules.z_box_rule(e)
    ),
    "composite-plus": lambda e, g: LayerRules(
        linear_rules.epsilon_rule(e), linear_rules.z_plus_rule(e), linear_rules.flat_rule()
    ),
    "epsilon": lambda e, g: LayerRules(linear_rules.epsilon_rule(e), linear_rules.epsilon_rule(e)),
    "gamma": lambda e, g: LayerRules(linear_rules.gamma_rule(g, e), linear_rules.gamma_rule(g, e)),
    "z-plus": lambda e, g: LayerRules(linear_rules.z_plus_rule(e), linear_rules.z_plus_rule(e)),
    "alpha-beta": lambda e, g: LayerRules(linear_rules.alpha_beta_rule(2, e), linear_rules.alpha_beta_rule(2, e)),
}


@card(
    name="LRP",
    source="Bach et al. 2015; Montavon et al. 2019, LNCS 11700; Kohlbrenner et al. 2020, arXiv:1910.09840",
    shows="How the score is made up of the inputs, if each layer shares out what it got among what it was made of.",
    does_not_show="What would happen if a value changed; and other rules, all of them sums to the same score, share it "
    "out otherwise.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("dummy", "symmetry"),
)
def lrp(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    rule: str = "composite",
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    batch_size: BatchSize = "auto",
) -> Any:
    """The relevance of each pixel, signed, shaped like x and in units of the score; it sums to the score but for what
    biases and epsilon keep.

    `rule` is one for all layers, or one by the kind of layer:
    "composite": epsilon in dense layers, gamma in convolutions, z-B in layers that see pixels (Montavon et al. 2019);
    "composite-plus": epsilon, z-plus, flat (Kohlbrenner et al. 2020); "epsilon" (with 0: LRP-0), "gamma", "z-plus",
    "alpha-beta" (alpha = 2, beta = 1).
    Relevance of an input is what its distance from zero after normalization bears: a pixel at the mean has none but by
    z-B and flat, which go by the range of pixels.

    Elsewhere: activations pass on what they get (f(0), where it is not zero, keeps its part as a bias does); sums share
    in proportion, maxima give all to the winner; batch norm is one with the convolution or linear layer before it, or
    else a scale with a bias; what layer norm and the like divide by is held constant, and so are gates and attention's
    weights in products (Ali et al. 2022), of which other factors bear half each.

    Raises RuleError at an op that no rule is for, or that is hidden from view (scripted code).
    """
    layer_rules = _layer_rules(rule, epsilon, gamma)
    x = box.validate_inputs(x)
    objective = box.check_objective(box.objective(target, len(x)), len(x))

    def run_batch(rows: slice) -> tuple[Tensor, Tensor]:
        return _relevance(box, objective.rows(rows), x[rows], layer_rules)

    parts = in_batches(run_batch, len(x), *box.batch_plan(len(x), batch_size, objective.batch_dependent))
    relevance, score = (torch.cat(h) for h in zip(*parts, strict=True))
    check_finite_scores(score)
    warn_not_finite(f"the relevance of {objective.name}", relevance)
    warn_rows(f"the relevance of {objective.name} is exactly zero for", (relevance == 0).flatten(1).all(1))
    return box.restore_structure(relevance)


def _layer_rules(rule: str, epsilon: float, gamma: float) -> LayerRules:
    if not isinstance(rule, str) or rule not in LAYER_RULES:
        raise InputError(f"rule is one of {', '.join(map(repr, LAYER_RULES))}; got {rule!r}")
    return LAYER_RULES[rule](check_float("epsilon", epsilon, minimum=0), check_float("gamma", gamma, minimum=0))


def _relevance(box: Box, objective: Objective, x: Tensor, layer_rules: LayerRules) -> tuple[Tensor, Tensor]:
    """Relevance (n, ...) of one batch, (x - x0) c, with x0 what the normalization makes zero; and the score (n,)."""
    with box.isolated(), frozen_parameters(box.model):
        x, *bounds = leaves = _leaves(box.inputs, x, layer_rules)
        annotate(x, bounds=tuple(bounds) or None)
        with LRPMode(layer_rules):
            acts = box.forward(x, objective.layers | {"input"})
        for a in objective.layers:
            check_all_ruled(acts[a])
        score = objective(acts)
        if not score.requires_grad:
            raise OutputError(f"{objective.name} does not depend on the input by any path that bears relevance")
        grads = torch.autograd.grad(score.sum(), leaves, allow_unused=True)
        if all(c is None for c in grads):
            raise OutputError(f"{objective.name} does not depend on the input by any path that bears relevance")
        reference = box.inputs.decode(torch.zeros_like(x))
        shares = [
            torch.where(at.isnan(), 0, (at - reference) * c)
            for at, c in zip(leaves, grads, strict=True)
            if c is not None
        ]
        return torch.stack(shares).sum(0).detach().to(box.dtype), score.detach()


def _leaves(inputs: Inputs, x: Tensor, layer_rules: LayerRules) -> list[Tensor]:
    """x, and the least and the most that it can be where the recipe asks for them."""
    bounds = (_input_bound(inputs, x, 0.0), _input_bound(inputs, x, 1.0)) if layer_rules.first_layer else ()
    return [h.detach().clone().requires_grad_() for h in (x, *bounds)]


def _input_bound(inputs: Inputs, x: Tensor, value: float) -> Tensor:
    """An end of the range of x: a pixel's is known, a column's is none (NaN)."""
    if isinstance(inputs, MultiInput):
        parts = inputs.parts.values() if isinstance(inputs.parts, Mapping) else inputs.parts
        parts_and_values = zip(parts, inputs.split(x), strict=True)
        return torch.cat([_input_bound(part, v, value).flatten(1) for part, v in parts_and_values], 1)
    return torch.full_like(x, value if isinstance(inputs, Pixels) else torch.nan)
