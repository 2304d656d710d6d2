"""Nearest training examples in feature space: the baseline that a method of influence must beat."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.features import hidden_layer_input_addresses, read_features, resolve_address
from ..errors import InputError, LayerError
from ..parameters import BatchSize, InputBatch, Labels, LayerAddress
from ..settings import check_settings
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from ._scores import make_one_run_influence, products_to_cosines
from .result import SIMILARITY_UNIT_TEXT, Influence


@card(
    name="Nearest training examples",
    source="Hanawa et al. 2021, arXiv:2006.04528",
    shows="Which training examples the model sees as similar to the query.",
    does_not_show="Whether they taught it the answer: nothing of the training enters.",
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box)),
    exempt={"one forward": "it runs the training examples, too"},
    order=90,
)
def nearest_training_examples(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    layer: LayerAddress = None,
    metric: Annotated[Literal["cosine", "dot", "euclidean"], "How activations are compared."] = "cosine",
    signed: Annotated[bool, "Count examples of another class than the query's as harmful."] = False,
    batch_size: BatchSize = "auto",
) -> Influence:  # fmt: skip
    """Similarities of the queries' and the training examples' activations in a layer.

    The baseline: whatever claims to be an influence should predict the effect of leaving examples out better than it.
    `ub.activations.nearest_neighbors` searches data of any size.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. They matter for `signed`; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        layer: Address of the layer, as `box.layers` lists them. None: the input of the last layer with parameters.
        metric: How activations are compared. "euclidean" is 1 / (1 + distance).
        signed: Count examples of another class than the query's as harmful. Their similarity then counts negatively.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        Scores (Q, N), the most similar highest: a similarity, no nats.

    Raises:
        LayerError: for an unknown layer.
        InputError: for `signed` of a model without classes.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(50), ub.data.digits("test").first(2)
        >>> result = ub.influence.nearest_training_examples(box, x, y, train)
        >>> tuple(result.scores.shape), result.unit
        ((2, 50), 'similarity')

    Source:
        Hanawa et al. 2021, "Evaluation of similarity-based explanations", section 2; `signed` is ours.
    """
    check_settings(nearest_training_examples, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    address = _default_feature_address(box) if layer is None else resolve_address(box, layer)
    q, f = (read_features(box, h, [address], batch_size=batch_size)[address].double() for h in (x, train_x))
    scores = _similarities(q, f, metric)
    if signed:
        if y.ndim > 1 or y.is_floating_point():
            raise InputError("signed compares classes; this model's labels are values. Give signed=False")
        scores = torch.where(y[:, None] == train_y, scores, -scores)
    return make_one_run_influence(box, "Nearest training examples", scores, x, y, train_y, SIMILARITY_UNIT_TEXT)


def _default_feature_address(box: Box) -> str:
    if not any(row.n_parameters for row in box.layers.leaves):
        raise LayerError("no module of this model has parameters; name the layer, such as layer='output'")
    hidden = hidden_layer_input_addresses(box)
    return hidden[-1] if hidden else "output"


def _similarities(q: Tensor, f: Tensor, metric: str) -> Tensor:
    if metric == "euclidean":
        return 1 / (1 + torch.cdist(q, f))
    products = q @ f.T
    return products if metric == "dot" else products_to_cosines(products, q.norm(dim=1), f.norm(dim=1))
