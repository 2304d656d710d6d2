"""Representer points: a logit as a sum over the training examples, each with its weight and similarity.

Yeh et al. 2018, "Representer point selection for explaining deep neural networks", arXiv:1811.09720.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.features import read_features
from ..errors import InputError, LayerError
from ..model.layers import input_address
from ..parameters import BatchSize, InputBatch, Labels
from ..settings import Above, check_settings
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from ._scores import make_one_run_influence
from .result import Influence

LOGIT_PART_UNIT_TEXT = "part of the label's logit"
MAX_NEWTON_STEPS, NEWTON_GRADIENT_TOLERANCE = 100, 1e-12  # of the gradient, per unit of l2
CG_TOLERANCE, MIN_NEWTON_STEP_LENGTH, LINE_SEARCH_ROUNDING_TOLERANCE = 1e-3, 1e-4, 1e-14
MAX_LOGIT_REMAINDER_FRACTION = 1e-6  # of a logit, that the parts may not add up to


@card(
    name="Representer points",
    source="Yeh et al. 2018, arXiv:1811.09720, theorem 3.1",
    shows="How the label's logit is made up of the training examples: those that raise it, and those that lower it.",
    does_not_show="How the layers below came to their features: only the last layer is taken to be learned.",
    needs=("linear end",),
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box)),
    exempt={"one forward": "it runs the training examples, too"},
    order=60,
)
def representer_points(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    l2: Annotated[float, Above(0), "Weight of the squared norm of the last layer in its training."] = 0.003,
    fit_to: Annotated[Literal["model", "labels"], "What the last layer is fitted to again."] = "model",
    batch_size: BatchSize = "auto",
) -> Influence:  # fmt: skip
    """The label's logit of each query as a sum over the training examples, of the last layer fitted again with L2.

    At the optimum of an L2-regularized last layer its weights are a sum over the training examples, and so is every
    logit: alpha_i <f_i, f_q>, where f are the features below the layer and alpha_i is minus the gradient of the
    example's loss with respect to its logits. Fast where features are few: one pass over the training examples, then a
    convex problem.

    Args:
        box: The opened model, trained; its logits come from a linear layer.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their logit is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        l2: Weight of the squared norm of the last layer in its training. Small values change the logits least; the
            paper's is 0.003.
        fit_to: What the last layer is fitted to again. "model": the probabilities that the model gives, so that it
            answers as it did; "labels": the training labels.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        Scores (Q, N), positive where the example raises the label's logit. They sum to that logit, of the layer fitted
        again with its bias as one more feature; of a model of one yes/no logit z to z for class 1, and to -z for class
        0. They estimate one run, with all features as they are.

    Raises:
        LayerError: where no linear layer gives the logits.
        OutputError: for a model whose outputs are no classes that exclude one another.
        InputError: where the problem is not solved to its optimum, by an `l2` that is too small.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(50), ub.data.digits("test").first(2)
        >>> result = ub.influence.representer_points(box, x, y, train, l2=.1)
        >>> tuple(result.scores.shape), result.unit
        ((2, 50), "part of the label's logit")

    Source:
        Yeh et al. 2018, theorem 3.1 and section 3.1. The problem is solved by Newton's method in double precision
        instead of gradient descent with line search; the bias is regularized as one more weight.
    """
    check_settings(representer_points, locals())
    box.require_class_scores("representer_points", exclusive=True)
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    address = _last_linear_input_address(box)
    queries, _ = _bias_augmented_features_and_logits(box, x, address, batch_size)  # (Q, D)
    features, logits = _bias_augmented_features_and_logits(box, train_x, address, batch_size)  # (N, D), (N, K)
    targets = logits.softmax(1) if fit_to == "model" else F.one_hot(train_y, logits.shape[1]).to(logits)
    n_rows_per_logit = 2 if box.outputs == "binary" else 1  # one logit z is read as -z/2 and z/2, which share its norm
    weights = _fit_last_layer_by_newton(features, targets, n_rows_per_logit * l2)  # (K, D)
    alpha = (targets - (features @ weights.T).softmax(1)) / (2 * l2 * len(features))  # (N, K)
    scores = alpha.T[y] * (queries @ features.T)
    remainder = scores.sum(1) - n_rows_per_logit * (queries * weights[y]).sum(1)
    if float(remainder.abs().max()) > MAX_LOGIT_REMAINDER_FRACTION * (1 + float(scores.abs().max())):
        raise InputError(f"with l2={l2:g} the last layer is not at its optimum to double precision; give a larger l2")
    return make_one_run_influence(box, "Representer points", scores, x, y, train_y, LOGIT_PART_UNIT_TEXT)


def _last_linear_input_address(box: Box) -> str:
    """The address of what the linear layer that gives the logits receives. Raises LayerError."""
    row = next((row for row in reversed(box.layers.leaves) if row.n_parameters), None)
    module = box.modules.get(row.path) if row else None
    weight = getattr(module, "weight", None)
    if row is None or not isinstance(weight, Tensor) or weight.ndim != 2 or not _is_logit_layer(box, row.addresses[-1]):
        last = (
            "no layer has parameters" if row is None else f"the last layer with parameters is {row.path} ({row.type})"
        )
        raise LayerError(f"representer points need a linear layer that gives the logits; {last}")
    return input_address(row.addresses[-1])


def _is_logit_layer(box: Box, address: str) -> bool:
    """Whether the logits are a layer's output (of a binary model, half of it with either sign), linear in its input."""
    with box.isolated(grad=False):
        acts = box.forward(box.noise(1), [address, input_address(address), "logits"])
    z, h, logits = acts[address], acts[input_address(address)], acts["logits"]
    module: torch.nn.Linear = box.modules[box.layers[address].path]  # type: ignore[assignment]
    expected = torch.cat([-z / 2, z / 2], 1) if box.outputs == "binary" else z
    is_linear = h.ndim == 2 and torch.allclose(F.linear(h, module.weight, module.bias), z, rtol=1e-3, atol=1e-4)
    return is_linear and expected.shape == logits.shape and torch.allclose(expected, logits, rtol=1e-3, atol=1e-4)


def _bias_augmented_features_and_logits(
    box: Box, x: Tensor, address: str, batch_size: BatchSize
) -> tuple[Tensor, Tensor]:
    """Features (N, D + 1), the last of them 1, and logits (N, K), in double precision."""
    acts = read_features(box, x, [address, "logits"], batch_size=batch_size)
    return F.pad(acts[address].double(), (0, 1), value=1.0), acts["logits"].double()


def _fit_last_layer_by_newton(f: Tensor, targets: Tensor, l2: float) -> Tensor:
    """The weights (K, D) at which mean cross-entropy + l2 |weights|^2 is least, by Newton's method."""
    weights = f.new_zeros(targets.shape[1], f.shape[1])
    for _ in range(MAX_NEWTON_STEPS):
        p = (f @ weights.T).softmax(1)
        gradient = (p - targets).T @ f / len(f) + 2 * l2 * weights
        if float(gradient.abs().max()) <= NEWTON_GRADIENT_TOLERANCE * l2:
            break
        step = _newton_step(f, p, gradient, l2)
        weights = weights - _armijo_step_length(f, targets, l2, weights, step, gradient) * step
    return weights


def _newton_step(f: Tensor, p: Tensor, gradient: Tensor, l2: float) -> Tensor:
    """The inverse of the second derivatives times the gradient (K, D), by conjugate gradients."""

    def hessian_vector_product(v: Tensor) -> Tensor:
        z = p * (f @ v.T)
        return (z - p * z.sum(1, keepdim=True)).T @ f / len(f) + 2 * l2 * v

    step, residual = torch.zeros_like(gradient), gradient.clone()
    direction, square = residual, residual.square().sum()
    tolerance = square * CG_TOLERANCE**2
    for _ in range(gradient.numel()):
        if square <= tolerance:
            break
        product = hessian_vector_product(direction)
        alpha = square / (direction * product).sum()
        step, residual = step + alpha * direction, residual - alpha * product
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
    return step


def _armijo_step_length(
    f: Tensor, targets: Tensor, l2: float, weights: Tensor, step: Tensor, gradient: Tensor
) -> float:
    """1, or the first half of it at which the loss falls as its slope says (Armijo)."""

    def loss(w: Tensor) -> float:
        return float(-(targets * (f @ w.T).log_softmax(1)).sum(1).mean() + l2 * w.square().sum())

    start, slope, length = loss(weights), float((gradient * step).sum()), 1.0
    while length > MIN_NEWTON_STEP_LENGTH and loss(
        weights - length * step
    ) > start - 1e-4 * length * slope + LINE_SEARCH_ROUNDING_TOLERANCE * abs(start):
        length /= 2
    return length
