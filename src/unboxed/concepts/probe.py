"""Probes: what can be read from each layer, and whether the model uses it.

Alain & Bengio 2017, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.linear.clusters import cluster_rows
from ..engine.linear.probing import ProbeKind, probe_features
from ..engine.output_change import output_change_unit_text
from ..engine.read.attribute_erasure import LayerFeatureView, erased_example_indices, erasure_test
from ..engine.read.channel_axes import unit_axis
from ..engine.read.edits import unit_layer_addresses
from ..engine.read.features import SKETCH_SIZE, input_and_hidden_layer_addresses, read_features, resolve_layers
from ..engine.read.layer_probes import LayerProbe, Probing
from ..errors import InputError
from ..model.nan_checks import check_no_nan
from ..objectives import INPUT_OUTPUT_ADDRESSES, mean_over_positions
from ..parameters import BatchSize, Data, LayerAddresses, MaxExamples, Seed
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._attribute import ExamplesWithAttribute, read_examples_with_attribute

Attribute = Annotated[
    Sequence[Any] | Tensor | None, ValueRole("object"), "The attribute's class of each example (N,): numbers or names."
]
InputTypes = Annotated[
    Sequence[Any] | Tensor | None,
    ValueRole("object"),
    "Type of each example (N,), which has one class in a control task.",
]
N_DEFAULT_PROBED_LAYERS = 6  # hidden layers, evenly spaced in depth
MAX_UNPOOLED_FEATURES = 8192  # of a layer; of more the means over positions are read
MAX_INPUT_CLUSTERS, MEAN_EXAMPLES_PER_INPUT_CLUSTER = 100, 5  # clusters of inputs
MAX_ERASED_EXAMPLES = 200  # that the model is run on with each set of directions erased


def _run_card_example_on_last_layer(method: Any, box: Box) -> Any:
    """The last layer, on copies of two random inputs, which can be told apart there."""
    x = box.inputs.random_inputs(2, torch.Generator(box.device).manual_seed(3)).to(box.dtype)
    layers = unit_layer_addresses(box)[-1:]
    return method(box, torch.cat([x] * 4), torch.arange(8) % 2, layers, n_folds=2, n_controls=1, n_random=2)


@card(
    name="Probes",
    source="Alain & Bengio 2017, arXiv:1610.01644; Hewitt & Liang 2019, arXiv:1909.03368; Voita & Titov 2020, "
    "arXiv:2003.12298; erased by Belrose et al. 2023, arXiv:2306.03819",
    shows="From which layers an attribute can be read, and whether the outputs change when it is erased there.",
    does_not_show="Which of two attributes that go together in the data is used: they share their directions.",
    example=lambda method, box, x, y: _run_card_example_on_last_layer(method, box),
    exempt={
        "one forward": "it runs the model with and without the attribute, and with random directions erased",
        "rows": "its probes are fitted to all examples together",
        "another seed": "its example has too few examples for other folds to matter",
    },
    runs=lambda s: 3 + s["n_random"],
    order=2,
)
def probe(
    box: Box,
    data: Data,
    attribute: Attribute = None,
    layers: LayerAddresses = None,
    *,
    kind: Annotated[ProbeKind, "Classifier that reads the attribute."] = "linear",
    types: InputTypes = None,
    n_folds: Annotated[int, AtLeast(2), Unit("folds"), "Stratified folds of the cross-validation."] = 5,
    n_controls: Annotated[int, AtLeast(1), Unit("draws"), "Control tasks drawn."] = 5,
    n_random: Annotated[
        int, AtLeast(0), Unit("draws"), "Sets of random directions that are erased in place of the attribute's."
    ] = 39,
    description_length: Annotated[bool, "Compute the description length, too."] = True,
    max_examples: MaxExamples = None,
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
) -> Probing:
    """Read an attribute from each layer by probes, and erase it to see whether the model uses it.

    To see where in a model something is known (the class, a position, a property that it was not trained on), and
    whether that matters to its answers: what can be read need not be used. For a concept given by examples of it use
    `tcav`; for plain features of any encoder `engine.linear.probing.probe_features`.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. 200 or more, that the model was not trained
            on.
        attribute: The attribute's class of each example (N,): numbers or names. None: the labels of the data.
        layers: Addresses of the layers, as `box.layers` lists them. None: "input", which is what a probe reads without
            a model, and what up to 6 layers with weights receive. Of a layer with more than 8,192 values the units'
            means over positions are read.
        kind: Classifier that reads the attribute. "linear" is multinomial logistic regression, "mlp" has a hidden layer
            of 64 units.
        types: Type of each example (N,), which has one class in a control task. None: clusters of similar inputs
            (k-means), of 5 examples on average, at most 100.
        n_folds: Stratified folds of the cross-validation.
        n_controls: Control tasks drawn.
        n_random: Sets of random directions that are erased in place of the attribute's. 39 allow a level of 5 %; 0
            leaves out whether the model uses it.
        description_length: Compute the description length, too. It takes about as long as the cross-validation.
        max_examples: Use only the first of the examples; None uses all.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `Probing`: of each layer the `accuracy` beside the majority class, the `selectivity` against the control task,
        the `information` in bits and the description length; and the `verdict`. "not decodable": no more than the
        classes' frequencies. "used": with the attribute erased the outputs of 200 held-out examples change more than by
        as many random directions, at 5 %. "not used": they do not, though they do where the model's own outputs are
        erased, and the attribute is gone. "not tested": anything else.

    Raises:
        DataError: for an attribute of one value, of too many, or missing values; for data without labels or examples.
        InputError: for an attribute or types that do not fit the data, or numbers that are no classes.
        LayerError: for an unknown layer, or one whose first axis is not the batch.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(100)
        >>> result = ub.concepts.probe(box, x, y >= 5, "fc2:input", description_length=False)
        >>> result.names, result.verdict
        (('False', 'True'), 'used')

    Source:
        The penalty is chosen on a quarter of each fold's training examples. Hewitt & Liang give each word type a random
        class; images and rows have no types, so that clusters of similar inputs take their place: the control says how
        well any other function of what the input looks like is read. Voita & Titov's online code, mixed with Laplace's
        rule. The erasure is LEACE (Belrose et al., theorem 4.3) with a shrunk covariance; random directions are drawn
        with the features' covariance, so that they take the same share of the whitened variance.
    """
    check_settings(probe, locals())
    seed = valid_seed(seed)
    examples = read_examples_with_attribute(box, data, attribute, max_examples)
    addresses = (
        input_and_hidden_layer_addresses(box, N_DEFAULT_PROBED_LAYERS)
        if layers is None
        else resolve_layers(box, layers)
    )
    type_index = (
        _cluster_inputs_as_types(box, examples.x, seed, batch_size)
        if types is None
        else _check_input_types(types, examples)
    )
    outputs = check_no_nan(mean_over_positions(box(examples.x, batch_size=batch_size))).detach().double().cpu()
    rows, found = erased_example_indices(box, len(examples.x), MAX_ERASED_EXAMPLES), []
    for address in addresses:
        h, view = _read_layer_features_and_view(box, examples.x, address, batch_size)
        read = probe_features(
            h, examples.y, kind=kind, n_folds=n_folds, types=type_index, n_controls=n_controls,
            description_length=description_length, seed=seed,
        )  # fmt: skip
        erasure = None
        if n_random and read.is_decodable and address not in INPUT_OUTPUT_ADDRESSES:
            erasure = erasure_test(
                box, examples.x[rows.to(examples.x.device)], rows, examples.y, h, view, examples.labels,
                outputs=outputs, before=outputs[rows], n_random=n_random, n_folds=n_folds, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
        found.append(LayerProbe(address, read, erasure, view.unit_axis is not None))
    return Probing(
        tuple(found), examples.names, examples.y.bincount(), len(examples.y), kind, output_change_unit_text(box),
        "clusters of similar inputs" if types is None else "given types",
    )  # fmt: skip


def _read_layer_features_and_view(
    box: Box, x: Tensor, address: str, batch_size: BatchSize
) -> tuple[Tensor, LayerFeatureView]:
    """The features (N, D) of a layer in float64 on the CPU, and how they lie in its activations."""
    some = x if box.batch_dependent else x[:1]
    h = box.read(some, [address], batch_size=batch_size)[address]
    axis = unit_axis(box, address, h.ndim) if h.ndim > 2 and h[0].numel() > MAX_UNPOOLED_FEATURES else None
    unit_axes = {} if axis is None else {address: axis}
    features = read_features(box, x, [address], batch_size=batch_size, unit_axes=unit_axes)[address]
    return features.detach().double().cpu(), LayerFeatureView(address, axis)


def _cluster_inputs_as_types(box: Box, x: Tensor, seed: int, batch_size: BatchSize) -> Tensor:
    """The cluster (N,) of each input among similar ones."""
    h = read_features(box, x, ["input"], batch_size=batch_size, max_features=SKETCH_SIZE)["input"].double().cpu()
    return cluster_rows(h, min(MAX_INPUT_CLUSTERS, max(2, len(h) // MEAN_EXAMPLES_PER_INPUT_CLUSTER)), seed)


def _check_input_types(types: Any, examples: ExamplesWithAttribute) -> Tensor:
    """Types as numbers (N,). Raises InputError."""
    values = np.asarray(types.cpu() if isinstance(types, Tensor) else types)
    if values.shape != (len(examples.y),):
        raise InputError(f"types must be one per example ({len(examples.y)},); got shape {values.shape}")
    return torch.from_numpy(np.unique(values, return_inverse=True)[1]).long()
