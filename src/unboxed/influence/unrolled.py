"""Unrolled differentiation: the exact derivative of a query's loss by the weight of each training example."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..box import Box
from ..cards import card
from ..checkpointing import CheckpointFile
from ..engine.unroll.checks import (
    check_differentiable,
    check_finite_scores,
    check_steps_are_repeatable,
    nonfinite_query_loss_error,
)
from ..engine.unroll.fingerprint import training_fingerprint
from ..engine.unroll.model_training import ModelTraining
from ..engine.unroll.reverse import Trajectory, UnrollPlan, example_weight_gradients, plan_unroll
from ..engine.unroll.smoothness import measure_smoothness, warn_if_not_smooth
from ..engine.unroll.training import Training, TrainingState, check_is_training
from ..errors import ModelError
from ..model.state import outside_callers_modes
from ..parameters import CheckpointPath, InputBatch, Labels, Seed
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._data import make_card_box_inputs_and_training, resolve_query_labels
from ._scores import class_names_of, loss_change_unit_text
from .result import Influence

LOG = logging.getLogger("unboxed")
DEFAULT_MAX_UNROLL_STATE_BYTES = 2 * 2**30
MAX_WEIGHT_DIFFERENCE_FRACTION = 1e-3  # of weights, above which a box is not the model that its training gives


@card(
    name="Unrolled differentiation",
    source="Ilyas & Engstrom 2025, arXiv:2503.13751; Maclaurin et al. 2015, arXiv:1502.03492",
    shows="Which training examples made this answer likelier or less likely, in this very training.",
    does_not_show="What removing many examples at once does where the training is not smooth: it is a derivative.",
    example=lambda method, box, x, y: method(*make_card_box_inputs_and_training(box, x, y), check_smoothness=False),
    exempt={
        "awkward": "the model is trained in train mode, where dropout, batch norm and a train() of its own take effect",
        "one forward": "it runs the training again",
        "another seed": "its seed is of the check of smoothness alone",
        "row seeds": "its seed is of the check of smoothness alone",
    },
    order=1,
)
@outside_callers_modes
def unrolled(
    box: Box,
    x: InputBatch,
    labels: Labels,
    training: Annotated[
        Training, ValueRole("object"), "The training that made the model: a `ModelTraining`, or a `Training`."
    ],
    *,
    weights: Annotated[
        Tensor | Sequence[float] | None,
        ValueRole("tensor"),
        "Weights (N,) of the training examples at which the derivative is taken.",
    ] = None,
    max_bytes: Annotated[
        int, AtLeast(1), Unit("bytes"), "Memory that states and adjoints may take."
    ] = DEFAULT_MAX_UNROLL_STATE_BYTES,
    store_states: Annotated[
        bool | None, "Keep the state of every step; False recomputes them in segments. None: where memory allows it."
    ] = None,
    check_smoothness: Annotated[
        bool, "Run the training 9 times more, all at once, to see whether it is smooth."
    ] = True,
    checkpoint: CheckpointPath = None,
    seed: Seed = 0,
    quiet: Annotated[bool, "No progress bar."] = True,
) -> Influence:
    """Differentiate the queries' losses through the whole training, by the weight of each training example.

    The method to prefer wherever the training can be run again: of all methods here it agrees best with what leaving
    examples out really does, in the same run. It takes about 15 times as long as the training for 20 queries, 4 times
    for one, and 6 for the check of smoothness. For a model whose training is lost use `influence_functions`.

    Args:
        box: The opened model, as `training.box(training.run())` gives it.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        labels: Correct classes (N,), or one for all. The loss of these is explained; None: of the predicted classes.
        training: The training that made the model: a `ModelTraining`, or a `Training`.
        weights: Weights (N,) of the training examples at which the derivative is taken. None: 1 each, the training as
            it was; the box is `training.box(training.run(weights))`. To predict what leaving out half of the examples
            does, give 0 to a random half of them and average the scores over several halves and seeds: after SGD such
            scores agree better with retraining. After Adam they do not, and each batch must keep some examples: Adam's
            step has no derivative at a gradient of zero.
        max_bytes: Memory that states and adjoints may take. What is planned is logged (logger "unboxed") before it
            starts; more queries than fit are taken in several passes.
        store_states: Keep the state of every step; False recomputes them in segments. None: where memory allows it. The
            scores are the same, bit for bit.
        check_smoothness: Run the training 9 times more, all at once, to see whether it is smooth. A training whose
            noise is above .15 of its signal is warned of.
        checkpoint: File from which a call that was stopped goes on. It is written after each pass over the queries.
        seed: Seed of all random draws: same seed, same result. Of the check alone.
        quiet: No progress bar.

    Returns:
        An `Influence`: `scores` (Q, N) of truth "one run", in nats per example left out. An example that is left out
        has weight 0: the loss is still divided by the same batch size, and it still counts in batch norm's statistics.

    Raises:
        InputError: where the memory does not suffice, a loss is not a finite number, or a step is not the same when it
            is repeated, or has no derivative.
        NaNError: where the loss of a training example is NaN; the error names it.
        ModelError: for a box that is not the model that the training gives.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("train").first(32)
        >>> training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=2, batch_size=16)
        >>> box = training.box(training.run())
        >>> result = ub.influence.unrolled(box, x[:2], y[:2], training)
        >>> result.scores.shape, result.top(8).shape, result.smoothness.is_smooth
        (torch.Size([2, 32]), torch.Size([2, 8]), True)

    Source:
        Ilyas & Engstrom 2025, arXiv:2503.13751, section 3; Maclaurin et al. 2015, arXiv:1502.03492. States are kept
        or recomputed in segments, in place of their tree of checkpoints.
    """
    check_settings(unrolled, locals())
    check_is_training(training)
    seed = valid_seed(seed)
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    check_steps_are_repeatable(training)
    if not isinstance(training, ModelTraining):
        check_differentiable(training)
    plan = plan_unroll(training, len(x), max_bytes, store=store_states)
    LOG.info("unrolled differentiation of %d steps: %s", training.n_steps, plan)
    trajectory = Trajectory(
        training, plan.segment_steps, None if weights is None else training.validate_example_weights(weights)
    )
    check_box_matches_training(box, training, trajectory.final)
    _check_finite_query_losses(training, trajectory.final, x, y)
    file = _checkpoint_file(checkpoint, training, trajectory.final, x, y)
    scores = _negative_example_weight_gradients(training, trajectory, x, y, plan, file, quiet)
    check_finite_scores(scores)
    compared = scores if weights is None else None  # with leaving out of all examples
    smoothness = measure_smoothness(training, x, y, compared, seed) if check_smoothness else None
    if smoothness is not None:
        ratio = float(smoothness.noise_to_signal.median())
        warn_if_not_smooth(ratio, "1 % of the examples", "scores of single examples are uncertain")
    unit = loss_change_unit_text(box, training.loss if isinstance(training, ModelTraining) else _unknown_loss)
    return Influence(
        scores.to(box.dtype),
        "one run", unit, "Unrolled differentiation", box.restore_structure(x), y,
        train_labels=training.y if isinstance(training, ModelTraining) else None,
        classes=class_names_of(box), smoothness=smoothness, settings={"plan": str(plan)},
    )  # fmt: skip


def _negative_example_weight_gradients(
    training: Training, trajectory: Trajectory, x: Tensor, y: Tensor, plan: UnrollPlan, file: CheckpointFile | None,
    quiet: bool,
) -> Tensor:  # fmt: skip
    """Minus the derivatives (Q, N) by the examples' weights: what a weight that goes from 1 to 0 changes."""
    saved = file.read() if file is not None else None
    done = [saved["scores"]] if saved is not None else []
    n_done = sum(map(len, done))
    n_passes = -(-(len(x) - n_done) // plan.queries_per_pass)
    with tqdm(total=n_passes * training.n_steps, desc="unrolling", unit="step", disable=quiet) as bar:
        for i in range(n_done, len(x), plan.queries_per_pass):
            rows = slice(i, i + plan.queries_per_pass)
            done.append(-example_weight_gradients(training, trajectory, x[rows], y[rows], lambda t: bar.update()))
            if file is not None:
                file.write({"scores": torch.cat(done)})
    return torch.cat(done)


def _checkpoint_file(
    path: str | Path | Any | None, training: Training, final: TrainingState, x: Tensor, y: Tensor
) -> CheckpointFile | None:
    if path is None:
        return None
    return CheckpointFile(Path(path), "unrolled differentiation", training_fingerprint(training, final, x, y))


def check_box_matches_training(box: Box, training: Training, final: TrainingState) -> None:
    """Raise ModelError unless the box holds the weights that the training gives."""
    if not isinstance(training, ModelTraining):
        return
    trained, given = training.model(final).state_dict(), box.model.state_dict()
    if {k: v.shape for k, v in trained.items()} != {k: v.shape for k, v in given.items()}:
        raise ModelError(
            "the box's model is not of the training's architecture: their parameters have other names or shapes"
        )
    for name, h in trained.items():
        difference = float((given[name].to(h) - h).double().norm() / h.double().norm().clamp_min(1e-12))
        if difference > MAX_WEIGHT_DIFFERENCE_FRACTION:
            raise ModelError(
                f"the box's model is not what this training gives: {name!r} differs by {difference:.2g} of its norm. "
                "Give the settings, data and initial weights of its training, or use training.box(training.run())"
            )


def _unknown_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Stands for the loss of a training that is given as functions."""
    raise NotImplementedError


def _check_finite_query_losses(training: Training, final: TrainingState, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        bad = (~training.query_loss(final, x, y).isfinite()).nonzero().flatten().tolist()
    if bad:
        raise nonfinite_query_loss_error(training, bad[0])
