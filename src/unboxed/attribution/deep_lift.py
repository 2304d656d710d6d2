"""DeepLIFT by the rescale rule: what each input's difference from a baseline adds to the score's difference.

Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences", arXiv:1704.02685.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution, target_or_predicted_classes
from ..engine.gradients.score import score_gradients
from ..engine.perturb.baselines import Baseline, score_difference, unit_of_contributions
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.read.edits import resolve_target
from ..errors import RuleError
from ..model.batching import map_in_batches
from ..model.deeplift import RULE_BY_OP_NAME, ReferenceTape, check_every_op_has_rule
from ..model.op_mode import OpReplacementMode
from ..objectives import Objective
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings


@card(
    name="DeepLIFT",
    source="Shrikumar et al. 2017, arXiv:1704.02685, the rescale rule",
    shows="How the difference between this score and the baseline's is made up of differences in the input.",
    does_not_show="What another baseline would show; and it depends on how the model is written, not on its function "
    "alone.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("contribution", "completeness", "dummy", "symmetry"),
    exempt={"one forward": "it runs the model on x and on the baseline"},
    runs=2,
    texts=True,
    order=7,
)
def deep_lift(
    box: Box, x: InputBatch, target: Target = None, *, baseline: Baseline = None, batch_size: BatchSize = "auto"
) -> Attribution:
    """Contributions of the input's differences from a baseline, which sum to score(x) - score(baseline).

    About as cheap as two gradients, and complete like `integrated_gradients`, which needs no rules and depends on the
    model's function alone but takes many gradients. Take `kernel_shap` for parts of the input that can be named.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        baseline: What x is compared with: a kind, a number, a tensor or an array; None is black for images, for
            features the mean, or zeros where it is not known.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        Contributions, signed, shaped like x, in units of the score; they sum to score(x) - score(baseline). `score` is
        that of x, `score_difference` (N,) the difference.

    Raises:
        RuleError: for ops without a rule, for checkpointed and scripted parts that have such ops, and where the
            contributions do not add up (a mask made of activations has no gradient).
        InputError: for a baseline that does not fit the inputs.
        NaNError: where a score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.deep_lift(box, x, y)
        >>> bool((a.flatten(1).sum(1) - a.score_difference).abs().max() < 1e-3)
        True

    Source:
        Shrikumar et al. 2017, arXiv:1704.02685, the rescale rule (section 3.5.1). The model runs on the baseline b and
        then on the input a, and each nonlinear op passes back (f(a) - f(b)) / (a - b) in place of its gradient (which
        it is where a and b are close). Beyond the paper: a product of two activations gives each factor the mean of
        the other's two values; softmax, attention and normalizations are decomposed into such ops; max pooling weights
        each input by the fraction of the straight path from b to a on which it is the largest.
    """
    check_settings(deep_lift, locals())
    x = box.validate_inputs(x)
    x0 = baseline_of(box, x, baseline)
    objective = resolve_target(box, target, x, batch_size)

    def contributions_of_batch(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return _batch_contributions_and_scores(box, objective.rows(rows), x[rows], x0[rows])

    parts = map_in_batches(
        contributions_of_batch, len(x), *box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)
    )
    contributions, score, reference = (torch.cat(h) for h in zip(*parts, strict=True))
    gap = score_difference(score, reference)
    _check_completeness(box, contributions, score, reference, box.batch_dependent or objective.batch_dependent)
    return make_attribution(
        box,
        contributions,
        x=x,
        method="DeepLIFT",
        unit=unit_of_contributions(box.inputs, baseline),
        target=target_or_predicted_classes(objective, target),
        score=score.to(box.dtype),
        score_difference=gap.to(box.dtype),
    )


def _batch_contributions_and_scores(
    box: Box, objective: Objective, x: Tensor, x0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions (n, ...) of one batch, and the scores (n,) of x and of the baseline."""
    tape = ReferenceTape(RULE_BY_OP_NAME)
    with box.isolated(grad=False), OpReplacementMode(tape.record):
        reference = objective(box.forward(x0, objective.layers))
    with box.isolated():
        leaf = x.detach().requires_grad_()
        with OpReplacementMode(tape.apply_rule):
            acts = box.forward(leaf, objective.layers)
            score = objective(acts)
        if score.requires_grad:
            check_every_op_has_rule(score, leaf)
        (multipliers,), _ = score_gradients(score, acts, objective, [leaf], relu_bypass="no")
        return multipliers.to(box.dtype) * (x - x0), score.detach(), reference


def _check_completeness(
    box: Box, contributions: Tensor, score: Tensor, reference: Tensor, batch_dependent: bool
) -> None:
    """Raise RuleError where contributions do not add up: something without a gradient depends on the input.

    The tolerance is relative to the contributions' size, but to no more than ten times that of the scores: where large
    contributions cancel, a small difference has no correct digits left.
    """
    is_low_precision = box.autocast is not None or box.model_dtype in (torch.bfloat16, torch.float16)
    tolerance = 0.2 if is_low_precision else 1e-6 if box.dtype == torch.float64 else 1e-2
    contributions, high, low = contributions.double().flatten(1), score.double(), reference.double()
    error, magnitude, scores = (
        (contributions.sum(1) - (high - low)),
        contributions.abs().sum(1) + (high - low).abs(),
        high.abs() + low.abs(),
    )
    if batch_dependent:
        error, magnitude, scores = error.sum(), magnitude.sum(), scores.sum()
    if not bool(torch.isfinite(error).all()):
        raise RuleError(
            "DeepLIFT's contributions are NaN or infinite, though the scores of x and the baseline are not (a division "
            "by a value that is 0 on the baseline?): take another baseline"
        )
    if not bool((error.abs() <= tolerance * torch.minimum(magnitude, 10 * scores) + tolerance * 1e-2).all()):
        raise RuleError(
            "DeepLIFT's contributions do not add up to the score's difference: the model depends on its input through "
            "something without a gradient (a mask, an index, detach) or an op that cannot be seen, or divides by a "
            "value that is almost 0 on the baseline (take another one); integrated gradients need no rule"
        )
