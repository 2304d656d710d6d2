"""Influence functions: what leaving a training example out does to a loss, by the inverse curvature at the optimum.

Koh & Liang 2017, "Understanding black-box predictions via influence functions", arXiv:1703.04730.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import UnboxedWarning, warn
from ..model.state import outside_callers_modes
from ..parameters import BatchSize, InputBatch, Labels, LayerAddresses, Seed
from ..settings import check_settings
from ._data import TrainingData, random_card_training_data, resolve_query_labels
from ._inverse import L2, CurvatureChoice, CurvatureSettings, Damping, InverseCurvature, LossFunction, SolverChoice
from ._scores import class_names_of, loss_change_unit_text
from .result import RANKING_UNIT_TEXT, Influence

LARGE_SCORES_WARNING_PREFIX = "scores of up to"  # with which the warning of them begins
MAX_PLAUSIBLE_SCORE_NATS = 1.0  # nats that leaving out one example of many may change a loss by


@card(
    name="Influence functions",
    source="Koh & Liang 2017, arXiv:1703.04730, equation 2",
    shows="How much each training example lowered the loss of a query, if the training was converged.",
    does_not_show="What a training that is not at its optimum, or long and not convex, would do without the example.",
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box), damping=1e5),
    exempt={
        "one forward": "it runs the training examples many times",
        "another seed": "conjugate gradients, its default for few parameters, draw nothing",
        "row seeds": "conjugate gradients, its default for few parameters, draw nothing",
    },
    runs=100,
)
@outside_callers_modes
def influence_functions(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    solver: SolverChoice = "auto", curvature: CurvatureChoice = "gauss_newton", damping: Damping = None, l2: L2 = 0.0,
    layers: LayerAddresses = None, loss: LossFunction = None, batch_size: BatchSize = "auto", seed: Seed = 0,
) -> Influence:  # fmt: skip
    """What leaving each training example out does to the loss of each query: g_query^T (H + damping)^-1 g_train / n.

    Exact to first order for a convex model at its optimum, such as logistic regression with weight decay; leaving out
    is then predicted with a correlation above .99. For deep models it is the change of the optimum near the final
    weights, with a damped curvature: a ranking more than a figure. `unrolled` differentiates through the training
    itself, where that can be run again.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader. All that the model was
            trained on, without augmentation; (x, y) with numbers y for a regression model.
        solver: How the inverse is applied: "auto", or a solver or its name. The names are "cg", "exact", "lissa",
            "arnoldi", "ekfac", "kfac" and "diagonal"; `ub.influence.ConjugateGradient(tolerance=1e-3)` is a solver.
            "auto" is "cg" for up to 10,000 parameters and for a Hessian, else "ekfac"; the result's `settings` name
            it. "ekfac", "kfac" and "diagonal" approximate H layer by layer, for large models and many queries
            (`ub.influence.Kronecker`), and "arnoldi" keeps its leading eigenvectors: their scores are a ranking, no
            figures.
        curvature: Which curvature H of the training loss is inverted. "gauss_newton" has no negative eigenvalues, and
            is the Hessian of a model that is linear in its parameters; "hessian" is the paper's.
        damping: What is added to every eigenvalue of H before it is inverted. None is 0 where l2 makes H positive
            definite with room to spare: no eigenvalue, l2 included, is below l2 / 2. Else it is a tenth of the mean
            eigenvalue (Grosse et al. 2023), and for a Hessian with negative eigenvalues what makes it positive definite
            besides; "ekfac", "kfac" and "diagonal" take a tenth of the mean eigenvalue of each layer. The result's
            `settings` state it.
        l2: Weight decay of the training: its loss has l2 / 2 times the squared parameters.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters are taken to change; None is
            all parameters that require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None is the one that fits the
            model's outputs: cross-entropy in nats, or half the squared error of a regression model.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Scores (Q, N), positive where the example helped: in nats of the query's loss per example left out, while all
        others keep their weight 1/n; `unit` says where they are a ranking alone. They estimate one run: this training,
        continued from its optimum without the example. For a strictly convex loss, whose optimum no seed changes, that
        is also the mean over seeds.

    Raises:
        InputError: where H + damping is not positive definite; the error proposes a damping that works.
        NaNError: where the loss of a training example or a query is NaN; the error names it.
        OutputError: where the examples of a batch depend on one another, or the model has no second derivatives.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(10), ub.data.digits("test").first(2)
        >>> result = ub.influence.influence_functions(box, x, y, train, layers="fc2")
        >>> tuple(result.scores.shape), result.truth, result.settings["damping"] > 0
        ((2, 10), 'one run', True)

    Source:
        Koh & Liang 2017, equation 2 with the sign of leaving out. LiSSA and conjugate gradients as there (section 3);
        Schioppa et al. 2022, arXiv:2112.03052, for "arnoldi"; Grosse et al. 2023, arXiv:2308.03296, for the
        Gauss-Newton matrix and the default damping.
    """
    check_settings(influence_functions, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    settings = CurvatureSettings(solver, curvature, damping, l2, layers, loss, batch_size, seed)
    inverse = settings.inverse(box, train)
    scores = inverse.project(inverse.solve_for_loss_gradients(x, y)) / inverse.curvature.n_examples
    return Influence(
        scores.to(box.dtype), "one run", _unit_of_scores(box, inverse, scores), "Influence functions",
        box.restore_structure(x), y, train_labels=inverse.curvature.y, classes=class_names_of(box),
        settings=inverse.settings,
    )  # fmt: skip


def _unit_of_scores(box: Box, inverse: InverseCurvature, scores: Tensor) -> str:
    """That of a change of the loss, where scores can be one; what can't be one is warned of, unless it never is."""
    if inverse.is_approximate:
        return RANKING_UNIT_TEXT
    limit, loss_unit = _plausible_change_and_unit(box, inverse.curvature.y)
    _warn_of_implausible_scores(scores, limit, loss_unit)
    unit = loss_change_unit_text(box, inverse.gradients.loss)
    return unit if float(scores.abs().max()) <= limit else RANKING_UNIT_TEXT


@contextmanager
def without_large_score_warning() -> Iterator[None]:
    """While open, scores that are no figures are not warned of: where their order alone is shown."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", LARGE_SCORES_WARNING_PREFIX, UnboxedWarning)
        yield


def _plausible_change_and_unit(box: Box, train_labels: Tensor) -> tuple[float, str]:
    """The largest change that leaving out one example may make; of numbers, the loss of predicting their mean."""
    if box.outputs != "regression":
        return MAX_PLAUSIBLE_SCORE_NATS, "nats"
    values = train_labels.double().reshape(len(train_labels), -1)
    return float((values - values.mean(0)).square().sum(1).mean()) / 2, "of the loss"


def _warn_of_implausible_scores(scores: Tensor, limit: float = MAX_PLAUSIBLE_SCORE_NATS, unit: str = "nats") -> None:
    """Warn of changes that no first-order estimate can mean."""
    if (largest := float(scores.abs().max())) > limit:
        warn(
            f"{LARGE_SCORES_WARNING_PREFIX} {largest:.2g} {unit} for leaving out one example "
            f"are no figures: the curvature is "
            "nearly singular at these weights. Read them as a ranking, or give a larger damping"
        )
