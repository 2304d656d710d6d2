"""Gradient dot product and cosine: what one gradient step on a training example does to the loss of a query."""

from __future__ import annotations

from typing import Annotated, Literal

from ..box import Box
from ..cards import card
from ..engine.example_gradients.gradients import ExampleGradients
from ..parameters import InputBatch, Labels, LayerAddresses
from ..settings import Above, check_settings
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from ._scores import LossFunction, loss_change_unit_text, make_one_run_influence, products_to_cosines
from .result import SIMILARITY_UNIT_TEXT, Influence

LearningRate = Annotated[float | None, Above(0), "Learning rate of the step."]


@card(
    name="Gradient dot",
    source="Charpiat et al. 2019, arXiv:2103.15531; TracIn at the last checkpoint, Pruthi et al. 2020",
    shows="Which training examples pull the final weights the way in which the query's loss falls.",
    does_not_show="What they did earlier in the training, when their gradients were large and most of it was learned.",
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box)),
    exempt={"one forward": "it runs the training examples, too"},
    order=20,
)
def gradient_dot(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    metric: Annotated[Literal["dot", "cosine"], "How gradients are compared."] = "dot",
    lr: LearningRate = None, layers: LayerAddresses = None, loss: LossFunction = None,
) -> Influence:  # fmt: skip
    """Inner products of the query's and the training examples' loss gradients: the cheapest baseline of influence.

    One pass over the training examples. Use `tracin` where checkpoints of the training exist, and `influence_functions`
    or `unrolled` where scores should agree with a training without the example.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        metric: How gradients are compared. "cosine" leaves out their lengths: outliers with a high loss are then not
            on top for every query.
        lr: Learning rate of the step. With it, scores of "dot" are nats: what leaving the example out of one step of
            gradient descent on the mean loss does. None gives the plain inner products.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters count; None is all that
            require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None is the one that fits the
            model's outputs: cross-entropy in nats, or half the squared error of a regression model.

    Returns:
        Scores (Q, N), positive where the example helped: lr / n <g_q, g_i> in nats of the query's loss per example
        left out, or a similarity without `lr` and for "cosine". They estimate one run.

    Raises:
        NaNError: where the loss of a training example or a query is NaN; the error names it.
        OutputError: where the examples of a batch depend on one another.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(50), ub.data.digits("test").first(2)
        >>> result = ub.influence.gradient_dot(box, x, y, train, lr=.1, layers="fc2")
        >>> tuple(result.scores.shape), result.unit
        ((2, 50), 'nats per example left out')

    Source:
        Charpiat et al. 2019, "Input similarity from the neural network perspective", equations 4 and 5 ("cosine"), of
        the loss in place of the output.
    """
    check_settings(gradient_dot, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    gradients = ExampleGradients(box, layers, loss)
    scores = gradients.dot(x, y, train_x, train_y)
    if metric == "cosine":
        scores = products_to_cosines(scores, gradients.norms(x, y), gradients.norms(train_x, train_y))
    is_nats = metric == "dot" and lr is not None
    scores = scores * (lr / len(train_x)) if is_nats and lr else scores
    unit = loss_change_unit_text(box, loss) if is_nats else SIMILARITY_UNIT_TEXT
    return make_one_run_influence(box, "Gradient dot", scores, x, y, train_y, unit)
