"""Can scores of training examples be believed? The verdict, real against predicted changes, and the pixels that act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import influence
from ..box import Box
from ..checks.influence_evidence import InfluenceEvidence
from ..checks.influence_verdict import influence_verdict
from ..checks.verdict import Verdict
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.read.examples import LabeledExamples
from ..engine.unroll.model_training import ModelTraining
from ..errors import UnboxedError
from ..influence import Influence
from ..influence.influence_functions import without_large_score_warning
from ..influence.solvers import DEFAULT_SOLVER_NAME, Solver, find_solver
from ..influence.validate import LinearDatamodelingScore
from ..plots import colors, draw
from ..plots.results.influence import loss_change_scatter
from .blocks import Block, Figure, FigureGrid, Heading, Paragraph
from .context import ReportContext
from .pictures import PageImage
from .words import count_noun

N_RETRAININGS = 20  # retrainings that scores are compared with
MAX_RETRAINING_FLOPS = 5e10  # of one run of a training that is run some 20 times more
TILE_SIDE_PIXELS = 84

ScoringMethod = Callable[[Box, Tensor, Any, Any], Influence]


def scoring_method_and_train_input(
    context: ReportContext, train: LabeledExamples, solver: Solver
) -> tuple[ScoringMethod, Any]:
    """The method that scores training examples, and what it takes: a training that can be run again, else data."""
    if isinstance(context.training, ModelTraining):
        return partial(influence.unrolled, seed=context.seed), context.training
    return partial(influence.influence_functions, solver=solver, seed=context.seed), (train.x, train.y)


def default_solver(box: Box) -> Solver:
    """The one that influence functions take by default; what shares it shares the fitted curvature."""
    return find_solver(DEFAULT_SOLVER_NAME, ExampleGradients(box).n_parameters)


def can_afford_retrainings(context: ReportContext) -> bool:
    """Whether the training can be run again some 20 times at a low cost."""
    training = context.training
    return isinstance(training, ModelTraining) and _training_flops(context, training) <= MAX_RETRAINING_FLOPS


def _training_flops(context: ReportContext, training: ModelTraining) -> float:
    """FLOPs of one run of the training: forward and backward."""
    return 3 * sum(context.forward_flops(len(batch)) for batch in training.batches)


def influence_verdict_or_none(context: ReportContext, method: ScoringMethod, train: Any) -> Verdict | None:
    """The verdict on the scores; None where it would take retrainings that cost too much."""
    if isinstance(train, ModelTraining) and not can_afford_retrainings(context):
        return None
    with without_large_score_warning():
        return influence_verdict(
            context.box, context.verdict_inputs, method, None, train, n_subsets=N_RETRAININGS, seed=context.seed
        )


def loss_slopes_in_pixels_or_none(
    context: ReportContext, rows: Sequence[int], train: LabeledExamples, index: Sequence[int], solver: Solver
) -> Tensor | None:
    """(Q, C, H, W) slope of each answer's loss in the pixels of one training image; None where that is refused."""
    try:
        data = context.box.restore_structure(train.x), train.y
        found = influence.perturb(
            context.box, context.inputs(rows), None, data, list(index), solver=solver, seed=context.seed
        )
    except UnboxedError:
        return None
    return torch.as_tensor(found.detach()).cpu() if found.ndim == 4 else None


# -- show --------------------------------------------------------------------------------------------------------------


def pixel_slope_figure(slopes: Tensor, index: int) -> Figure:
    """The map (C, H, W) of one training image."""
    scale = colors.max_magnitude(slopes.sum(0))
    alt = f"pixels of training example {index} that act on the answer, scale ±{scale:.2g} per pixel range"
    rgb = draw.signed_map_to_rgb(slopes, scale)
    return Figure(PageImage(rgb, alt, TILE_SIDE_PIXELS), "its pixels", (f"example {index}", f"scale ±{scale:.2g}"))


def lds_result_of_verdict(verdict: Verdict | None) -> LinearDatamodelingScore | None:
    """What the verdict compared the scores with; None where nothing was retrained."""
    evidence = None if verdict is None else verdict.evidence
    return evidence.retraining if isinstance(evidence, InfluenceEvidence) else None


def lds_scatter_blocks(verdict: Verdict | None) -> list[Block]:
    """Real against predicted changes of the losses."""
    score = lds_result_of_verdict(verdict)
    if score is None or score.real is None:
        return []
    n_subsets, n_queries = score.real.shape[1:]
    text = (
        f"{count_noun(n_subsets, 'retraining')}, each without another random {score.fractions[0]:.0%} of the training "
        f"examples, against what the scores foretold: a dot per retraining and answer ({n_queries} answers)."
    )
    chart = loss_change_scatter(score, 0)
    alt = f"real against predicted change of the loss: rank correlation {float(score.means[0]):.2f}"
    return [
        Heading("Do the scores come true?"),
        Paragraph(text),
        FigureGrid([Figure(PageImage.of_chart(chart, alt))]),
    ]
