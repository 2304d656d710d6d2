"""Ablation: the output of a model with each unit of a layer replaced by zero or its mean, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.channel_axes import unit_axis
from ..engine.read.edited_runs import ReplaceWhereEdit, run_variants
from ..engine.read.edits import check_units, require_unit_layer, resolve_target, unit_layer_addresses
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.examples import input_batches, open_data
from ..inputs.labeled_texts import drop_text_labels
from ..inputs.tokens import Tokens
from ..model.hooks import Edit
from ..model.layers import input_address
from ..parameters import BatchSize, Data, InputBatch, LayerAddress, Target, UnitIndices
from ..settings import check_settings

CHANNEL_MEAN_BATCH_EXAMPLES = 256  # of the data read at a time


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(ResultMixin):
    """Scores and logits of examples with each unit of a layer ablated, one at a time."""

    returns: ClassVar[str] = "table"

    layer: str  # its address
    units: Tensor  # (U,)
    original_score: Tensor  # (N,) of the target, nothing ablated
    original_logits: Tensor  # (N, K)
    ablated_scores: Tensor  # (N, U) with each unit ablated
    ablated_logits: Tensor  # (N, U, K) logits with each unit ablated
    classes: tuple[str, ...] = ()  # the names of the model's classes

    @property
    def score_change(self) -> Tensor:
        """The change of the score, (N, U): below zero where the unit raises the target."""
        return self.ablated_scores - self.original_score[:, None]

    @property
    def logits_change(self) -> Tensor:
        """The change of the logits, (N, U, K)."""
        return self.ablated_logits - self.original_logits[:, None]

    def accuracy(self, y: Tensor) -> tuple[float, Tensor]:
        """The accuracy on labels y (N,): of the original model, and with each unit ablated (U,)."""
        y = y.to(self.original_logits.device)
        accuracy_without_unit = (self.ablated_logits.argmax(2) == y[:, None]).double().mean(0)
        return float((self.original_logits.argmax(1) == y).double().mean()), accuracy_without_unit


def _run_card_example(method: Any, box: Box, x: Tensor, y: Tensor) -> Any:
    """Two units of the last layer, or its only one."""
    layer = unit_layer_addresses(box)[-1]
    return method(box, x, layer, [0, 1][: box.layers[layer].shape[0]], target=y)


@card(
    name="Ablation",
    source="Morcos et al. 2018, arXiv:1803.06959, section 2 (ablations: a unit clamped to zero, or to its mean)",
    shows="Which units this prediction, or the accuracy, depends on.",
    does_not_show="What units do together: a unit that another can replace seems to matter little.",
    example=lambda method, box, x, y: _run_card_example(method, box, x, y),
    exempt={"one forward": "it runs the model once for each unit"},
    texts=True,
    order=10,
)
def ablation(
    box: Box,
    x: InputBatch,
    layer: LayerAddress = None,
    units: UnitIndices = None,
    target: Target = None,
    *,
    replacement: Annotated[Literal["zero", "mean"], "Value that replaces the activations of a unit."] = "zero",
    data: Data = None,
    batch_size: BatchSize = "auto",
) -> Ablation:
    """The score and the logits of x with each unit (channel) of a layer ablated, one at a time.

    To see which units a prediction or the accuracy depends on. Of texts a unit is a value that each token has (a
    neuron), ablated at all tokens; for attention heads use `language.head_ablation`, for tokens
    `attribution.feature_ablation`. For several units at once, factors or values of your own use `rewrite`; for parts of
    a layer that carry a difference between two inputs `patching`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layer: Address of the layer, as `box.layers` lists them. None: the last hidden layer.
        units: Units (channels) of the layer; None takes all of them.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x as it is.
        replacement: Value that replaces the activations of a unit. "zero", or "mean": the unit's mean over `data` and
            positions, of texts without padding.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. Used, and needed, for replacement="mean" only.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory. Pairs of example and unit share
            batches.

    Returns:
        An `Ablation`: `score_change` (N, U), `logits_change` (N, U, K), `accuracy(y)`.

    Raises:
        LayerError: for an unknown layer, or one without units.
        InputError: for units that the layer does not have, or replacement="mean" without data.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> result = ub.activations.ablation(box, x, "relu3", [0, 1, 2], target=y)
        >>> tuple(result.score_change.shape), tuple(result.ablated_logits.shape)
        ((4, 3), (4, 3, 10))

    Source:
        Morcos et al. 2018, arXiv:1803.06959, section 2: a unit clamped to zero, or to its mean.
    """
    check_settings(ablation, locals())
    if replacement == "mean" and data is None:
        raise InputError('replacement="mean" needs data to compute the means of')
    x = box.validate_inputs(x)
    address = require_unit_layer(box, last_hidden_layer(box) if layer is None else layer)
    shape = box.read(x[:1] if not box.batch_dependent else x, [address])[address].shape[1:]
    axis = unit_axis(box, address, len(shape) + 1) if isinstance(box.inputs, Tokens) else 1
    n_units = shape[axis - 1]
    unit_index = torch.tensor(check_units(units, n_units, address), device=box.device)
    objective = resolve_target(box, target, x, batch_size)
    is_mean = replacement == "mean"
    value = (
        _mean_activation_per_unit(box, address, data, axis, batch_size)
        if is_mean
        else torch.zeros(n_units, device=box.device)
    )
    unit_shape = [n_units if i == axis else 1 for i in range(1, len(shape) + 1)]  # (C, 1, ...), of texts (1, D)
    replacement_values = value.view(1, *unit_shape)

    def make_unit_ablation_edits(examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        mask = torch.nn.functional.one_hot(unit_index[variants], n_units).bool().view(-1, *unit_shape)
        return {address: ReplaceWhereEdit(mask, replacement_values)}

    original = run_variants(box, x, objective, batch_size=batch_size)
    ablated = run_variants(box, x, objective, make_unit_ablation_edits, len(unit_index), batch_size=batch_size)
    if original.logits is None or ablated.logits is None:
        raise InputError("no logits were read")
    return Ablation(
        layer=address,
        units=unit_index,
        original_score=original.score[:, 0],
        original_logits=original.logits[:, 0],
        ablated_scores=ablated.score,
        ablated_logits=ablated.logits,
        classes=box.classes,
    )


PASSTHROUGH_LAYER_TYPES = ("Dropout", "Flatten", "Identity")


def last_hidden_layer(box: Box) -> str:
    """The layer before the last one with weights, or that one's input where it has several. Raises LayerError."""
    paths = unit_layer_addresses(box)
    weighted = [i for i, path in enumerate(paths) if box.layers[path].n_parameters]
    i = previous = weighted[-1] if weighted else len(paths) - 1
    while previous and (previous == i or box.layers[paths[previous]].type in PASSTHROUGH_LAYER_TYPES):
        previous -= 1
    input_name = input_address(paths[i])
    noise = box.inputs.random_inputs(2, torch.Generator(box.device).manual_seed(0)).to(box.dtype)
    acts = box.read(noise, [input_name, paths[previous]])
    a, b = acts[input_name].flatten(), acts[paths[previous]].flatten()
    return paths[previous] if previous < i and torch.equal(a, b) else input_name  # a branch may be as large


def _mean_activation_per_unit(box: Box, layer: str, data: Any, axis: int, batch_size: BatchSize) -> Tensor:
    """The mean of each unit (C,) over examples and positions, of texts without padding."""
    total, count = torch.zeros(()), 0
    for x in map(box.validate_inputs, _batches_of_data(box, data)):
        h = box.read(x, [layer], batch_size=batch_size)[layer]
        mask = box.inputs.mask(x) if isinstance(box.inputs, Tokens) else None
        rows = h.movedim(axis, -1)
        is_per_token = mask is not None and rows.ndim > 2 and rows.shape[:2] == mask.shape  # no (N, C) with C == T
        rows = (rows[mask] if is_per_token else rows).flatten(0, -2)  # (positions, C)
        total = total.to(h.device) + rows.double().sum(0)
        count += len(rows)
    return (total / count).to(box.dtype)


def _batches_of_data(box: Box, data: Any) -> Iterator[Any]:
    """Inputs in batches; a tokenizer's dict, or a tensor of ids, is one."""
    if not isinstance(box.inputs, Tokens):
        return input_batches(open_data(data, box.inputs), CHANNEL_MEAN_BATCH_EXAMPLES)
    texts = drop_text_labels(data)
    if not isinstance(texts, list):
        return iter([texts])
    size = CHANNEL_MEAN_BATCH_EXAMPLES
    return (texts[i : i + size] for i in range(0, len(texts), size))
