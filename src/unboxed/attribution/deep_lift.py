"""DeepLIFT by the rescale rule: what each input's difference from a baseline adds to the score's difference.

Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences", arXiv:1704.02685.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import score_gradients
from ..engine.perturb.baselines import Baseline, score_difference
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.read.edits import resolve_target
from ..errors import RuleError
from ..model.batching import BatchSize, in_batches
from ..model.deeplift import RULES, ReferenceTape, check_all_ruled
from ..model.op_mode import OpMode
from ..objectives import Objective


@card(
    name="DeepLIFT",
    source="Shrikumar et al. 2017, arXiv:1704.02685, the rescale rule",
    shows="How the difference between this score and the baseline's is made up of differences in the input.",
    does_not_show="What another baseline would say; and it depends on how the model is written, not on its function alone.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("contribution", "completeness", "dummy", "symmetry"),
    exempt={"one forward": "it runs the model on x and on the baseline"},
)
def deep_lift(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """Contributions, signed, shaped like x: they sum to score(x) - score(baseline), exactly.

    The model runs on the baseline and then on x; each nonlinear op hands down (f(a) - f(b)) / (a - b) in place of its
    gradient (which it is where a and b are close). A product of two activations gives each factor the mean of the
    other's two values; softmax, attention and normalizations are taken apart into such ops; max pooling weighs each
    input by the share of the straight way from b to a on which it is the largest.

    Raises RuleError for ops without a rule, for checkpointed and scripted parts that have such ops, and where the
    contributions do not add up (a mask made of activations has no gradient); InputError for a baseline that can't be.
    """
    x = box.validate_inputs(x)
    x0 = baseline_of(box, x, baseline)
    objective = resolve_target(box, target, x, batch_size)

    def run_batch(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return _contributions(box, objective.rows(rows), x[rows], x0[rows])

    parts = in_batches(run_batch, len(x), *box.batch_plan(len(x), batch_size, objective.batch_dependent))
    contributions, score, reference = (torch.cat(h) for h in zip(*parts, strict=True))
    score_difference(score, reference)
    _check_completeness(box, contributions, score, reference, box.batch_dependent or objective.batch_dependent)
    return box.restore_structure(contributions)  # type: ignore[no-any-return]


def _contributions(box: Box, objective: Objective, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions (n, ...) of one batch, and the scores (n,) of x and of the baseline."""
    tape = ReferenceTape(RULES)
    with box.isolated(grad=False), OpMode(tape.record):
        reference = objective(box.forward(x0, objective.layers))
    with box.isolated():
        leaf = x.detach().requires_grad_()
        with OpMode(tape.replay):
            acts = box.forward(leaf, objective.layers)
            score = objective(acts)
        if score.requires_grad:
            check_all_ruled(score, leaf)
        (multipliers,), _ = score_gradients(score, acts, objective, [leaf], relu_bypass="no")
        return multipliers.to(box.dtype) * (x - x0), score.detach(), reference


def _check_completeness(
    box: Box, contributions: Tensor, score: Tensor, reference: Tensor, batch_dependent: bool
) -> None:
    """Raise RuleError where contributions don't add up: something without a gradient depends on the input.

    How far they may be off is measured by their own size, but by no more than ten times that of the scores: large
    contributions that cancel leave nothing of the digits of a small difference.
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
            "by what is 0 on the baseline?): take another baseline"
        )
    if not bool((error.abs() <= tolerance * torch.minimum(magnitude, 10 * scores) + tolerance * 1e-2).all()):
        raise RuleError(
            "DeepLIFT's contributions do not add up to the score's difference: the model depends on its input by a way "
            "without a gradient (a mask, an index, detach), by an op out of sight, or divides by what is almost 0 on "
            "the baseline (take another one); integrated gradients need no rule"
        )
