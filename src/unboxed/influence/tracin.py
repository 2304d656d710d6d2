"""TracIn: what the gradient steps on a training example did to the loss of a query, at checkpoints of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch

from ..box import Box
from ..cards import card
from ..engine.example_gradients.gradients import ExampleGradients
from ..errors import InputError
from ..parameters import InputBatch, Labels, LayerAddresses
from ..settings import Unit, check_settings
from ..validation import check_float, check_int
from ._checkpoints import Checkpoints, CheckpointStates
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from ._scores import LossFunction, loss_change_unit_text, make_one_run_influence
from .result import SIMILARITY_UNIT_TEXT, Influence

LearningRates = Annotated[float | Sequence[float], "Learning rate at the checkpoints: one for all, or one for each."]
StepsPerCheckpoint = Annotated[
    int | Sequence[int] | None, Unit("steps"), "Optimizer steps that a checkpoint stands for: one for all, or for each."
]


@card(
    name="TracIn",
    source="Pruthi et al. 2020, arXiv:2002.08484, section 3.2 (TracInCP)",
    shows="Which training examples' gradient steps lowered the query's loss, summed over checkpoints of the training.",
    does_not_show="What the steps on other examples would have been without it; it takes each step to be plain SGD's.",
    example=lambda method, box, x, y: method(
        box, x, y, random_card_training_data(box), checkpoints=[box.model.state_dict()]
    ),
    exempt={"one forward": "it runs the training examples, too, at each checkpoint"},
    order=10,
)
def tracin(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    checkpoints: Checkpoints, lr: LearningRates = 1.0, steps_per_checkpoint: StepsPerCheckpoint = None,
    layers: LayerAddresses = None, loss: LossFunction = None,
) -> Influence:  # fmt: skip
    """Inner products of loss gradients at checkpoints, weighted by learning rate: TracInCP.

    One pass over the training examples per checkpoint. Checkpoints from the time when the loss falls tell most. The
    variant of the last layer alone, TracInCPFast, is `layers` set to that layer: much cheaper, and often as good.

    Args:
        box: The opened model, trained. It gives the architecture; it counts itself only as one of `checkpoints`.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        checkpoints: Checkpoints of the training: state dicts, or paths of files that hold them. A file is read when its
            turn comes; nothing in it is executed. Boxes and modules count by their weights.
        lr: Learning rate at the checkpoints: one for all, or one for each.
        steps_per_checkpoint: Optimizer steps that a checkpoint stands for: one for all, or for each. In an epoch they
            are the number of examples divided by the batch size. With them, scores are nats; None is the paper's sum,
            a similarity.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters count; None is all that
            require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None is the one that fits the
            model's outputs: cross-entropy in nats, or half the squared error of a regression model.

    Returns:
        Scores (Q, N), positive where the example helped: the sum over checkpoints of lr * steps / n <g_q, g_i> in nats
        of the query's loss per example left out; of lr <g_q, g_i> without `steps_per_checkpoint`. They estimate one
        run: the training that the checkpoints are of.

    Raises:
        ModelError: for a checkpoint of another architecture, which it names, or a file that can't be read.
        InputError: without a checkpoint, or for learning rates or steps of another number of checkpoints.
        NaNError: where the loss of a training example or a query is NaN; the error names it.
        OutputError: where the examples of a batch depend on one another.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(50), ub.data.digits("test").first(2)
        >>> settings = {"lr": .1, "steps_per_checkpoint": 10, "layers": "fc2"}
        >>> result = ub.influence.tracin(box, x, y, train, checkpoints=[box.model.state_dict()], **settings)
        >>> tuple(result.scores.shape), result.unit
        ((2, 50), 'nats per example left out')

    Source:
        Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent", the definition of TracInCP
        in section 3.2, where a checkpoint stands for one visit of each example; the steps and 1/n are ours, so that a
        batch's mean loss is what a step descends.
    """
    check_settings(tracin, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    states = CheckpointStates(box, checkpoints)
    weights = _expand_to_value_per_checkpoint("lr", lr, len(states), check_float)
    if steps_per_checkpoint is not None:
        counts = _expand_to_value_per_checkpoint("steps_per_checkpoint", steps_per_checkpoint, len(states), check_int)
        weights = [w * k / len(train_x) for w, k in zip(weights, counts, strict=True)]
    scores = torch.zeros(len(x), len(train_x), dtype=box.dtype, device=box.device)
    for k, weight in enumerate(weights):
        scores.add_(ExampleGradients(box, layers, loss, states[k]).dot(x, y, train_x, train_y), alpha=weight)
    return make_one_run_influence(
        box,
        "TracIn",
        scores,
        x,
        y,
        train_y,
        SIMILARITY_UNIT_TEXT if steps_per_checkpoint is None else loss_change_unit_text(box, loss),
    )


def _expand_to_value_per_checkpoint(name: str, value: Any, n: int, check: Any) -> list[float]:
    values = list(value) if isinstance(value, Sequence) else [value] * n
    if len(values) != n:
        raise InputError(f"{name} must be one number, or one for each of the {n} checkpoints; got {len(values)}")
    return [check(name, v, minimum=0) for v in values]
