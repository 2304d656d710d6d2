"""Randomization: does a map change as the model's weights are randomized, layer by layer?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292: cascading randomization from the top layer
down, and independent randomization of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.randomized import LayerWithWeights, layers_with_weights, own_parameters, randomize_layers
from ..errors import LayerError, warn
from ..parameters import InputBatch, Seed, Target
from ..settings import ValueRole, check_settings, takes_texts
from ..validation import valid_seed
from .methods import AttributionMethodFn, TestedMethod, compute_map, resolve_target
from .perturbing import apply_to_removable_tokens, removable_tokens
from .similarity import MapSimilarity, is_constant, map_similarity

RandomizationMode = Literal["cascading", "independent"]


@dataclass(frozen=True, repr=False, eq=False)
class Randomization(MapSimilarity):
    """How similar each map (N) is to the original map after each randomization step (L): four figures, (L, N).

    A map that depends on what the model has learned has figures near 0 once the top layers are randomized. A figure is
    NaN where a map is the same everywhere: where it became so, `is_constant`, it has changed.
    """

    layers: tuple[str, ...]  # (L,) randomized at each step, from the top down; when cascading with all before it
    mode: RandomizationMode
    seed: int
    weight_change: Tensor  # (L,) |new - old| / |old| of each layer's weights; 0: its initialization is what it had
    same_class: Tensor  # (L, N) whether the prediction for x is unchanged
    is_constant: Tensor  # (L, N) whether the map has become the same everywhere (or not finite)
    original: Tensor  # (N, ...) the map of the model itself
    maps: Tensor | None = None  # (L, N, ...) with `keep_maps`


@takes_texts
def randomization(
    box: Box,
    x: InputBatch,
    method: TestedMethod,
    target: Target = None,
    *,
    mode: Annotated[
        RandomizationMode, "Randomize the layers above as well (cascading), or one at a time."
    ] = "cascading",
    layers: Annotated[
        Sequence[str] | None, ValueRole("layers"), "Layers with weights, in the order of the steps."
    ] = None,
    seed: Seed = 0,
    keep_maps: Annotated[bool, "Return the maps of all steps."] = False,
) -> Randomization:
    """Compare a method's maps of x with those of copies of the model whose layers are re-initialized.

    The model parameter randomization test: a map that stays the same shows the input, not what the model learned.
    `verdict` runs it on the upper half of the layers alone.

    Args:
        box: The opened model; it is not changed.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the class that the original model
            predicts.
        mode: Randomize the layers above as well (cascading), or one at a time. "independent" leaves the others as
            trained.
        layers: Layers with weights, in the order of the steps. The name of a block takes all layers in it; None is all
            layers with weights, from the last that runs to the first.
        seed: Seed of all random draws: same seed, same result.
        keep_maps: Return the maps of all steps.

    Returns:
        A `Randomization`: the four figures of `MapSimilarity`, (L, N) each, with the layers, how far their weights
        moved and whether predictions changed. An UnboxedWarning lists the layers whose weights did not change.

    Raises:
        LayerError: for layers without weights.
        ModelError: where the model cannot be copied.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> r = ub.checks.randomization(box, x, ub.attribution.gradient)
        >>> r.layers, r.signed.shape
        (('fc2', 'fc1', 'conv2', 'conv1'), torch.Size([4, 4]))

    Source:
        Adebayo et al. 2018, arXiv:1810.03292, section 3. Weights are drawn by each layer's own `reset_parameters`
        where it has one (`engine.randomized`).
    """
    check_settings(randomization, locals())
    seed, x = valid_seed(seed), box.validate_inputs(x)
    steps = _layer_groups_to_randomize(box, layers)
    score = resolve_target(box, x, target)
    original = compute_map(box, method, x, score, show_warnings=True)
    original_output = _classes_or_outputs(box, x)
    per_step = [
        _compare_after_randomization_step(box, method, x, score, original, original_output, step, seed)
        for step in _make_randomization_steps(steps, mode)
    ]
    similarities, same, constant, weight_change, maps = zip(*per_step, strict=True)
    names = tuple(name for name, _ in steps)
    _warn_unchanged_layers(names, weight_change)
    figures = {f.name: torch.stack([getattr(s, f.name) for s in similarities]) for f in fields(MapSimilarity)}
    return Randomization(
        **figures,
        layers=names,
        mode=mode,
        seed=seed,
        weight_change=torch.tensor(weight_change),
        same_class=torch.stack(same),
        is_constant=torch.stack(constant),
        original=original,
        maps=torch.stack(maps) if keep_maps else None,
    )


NamedLayerGroup = tuple[str, tuple[LayerWithWeights, ...]]
"""The name of a step, and the layers that it randomizes."""


def _layer_groups_to_randomize(box: Box, layers: Sequence[str] | None) -> list[NamedLayerGroup]:
    """Raises LayerError."""
    weighted_layers = layers_with_weights(box)
    if not weighted_layers:
        raise LayerError("no layer of this model has weights, so there are none to randomize")
    if layers is None:
        return [(layer.name, (layer,)) for layer in reversed(weighted_layers)]
    if isinstance(layers, str):
        raise LayerError(f"layers must be a list of names; got {layers!r}")
    return [(str(name), _weighted_layers_within(str(name), weighted_layers)) for name in layers]


def _weighted_layers_within(name: str, weighted_layers: Sequence[LayerWithWeights]) -> tuple[LayerWithWeights, ...]:
    """The layer of this name, or the layers inside it, with weights. Raises LayerError."""
    layers = tuple(k for k in weighted_layers if k.name == name or k.name.startswith(f"{name}."))
    if not layers:
        raise LayerError(
            f"{name!r} has no weights; the layers that do are {', '.join(k.name for k in weighted_layers)}"
        )
    return layers


@dataclass(frozen=True)
class _RandomizationStep:
    """The layers that are randomized together, and those of them that this step adds."""

    randomized: tuple[LayerWithWeights, ...]
    newly_randomized: tuple[LayerWithWeights, ...]


def _make_randomization_steps(steps: Sequence[NamedLayerGroup], mode: RandomizationMode) -> list[_RandomizationStep]:
    first = [0 if mode == "cascading" else i for i in range(len(steps))]
    return [
        _RandomizationStep(tuple(layer for _, layers in steps[first[i] : i + 1] for layer in layers), newly_randomized)
        for i, (_, newly_randomized) in enumerate(steps)
    ]


def _compare_after_randomization_step(
    box: Box,
    method: AttributionMethodFn,
    x: Tensor,
    target: Any,
    original: Tensor,
    original_output: Tensor,
    step: _RandomizationStep,
    seed: int,
) -> tuple[MapSimilarity, Tensor, Tensor, float, Tensor]:
    randomized_box = randomize_layers(box, step.randomized, seed)
    map_ = compute_map(randomized_box, method, x, target)
    same = (_classes_or_outputs(randomized_box, x) == original_output).flatten(1).all(1)
    return (
        _similarity(removable_tokens(box, x), original, map_),
        same,
        is_constant(map_),
        _relative_weight_change(box, randomized_box, step.newly_randomized),
        map_,
    )


def _similarity(removable: Tensor | None, original: Tensor, map_: Tensor) -> MapSimilarity:
    """How similar maps (N, ...) are; of texts by the tokens that are their own."""
    if removable is None:
        return map_similarity(original, map_)
    figures = [f.name for f in fields(MapSimilarity)]
    return MapSimilarity(
        *(
            apply_to_removable_tokens(
                lambda a, b, name=name: getattr(map_similarity(a, b), name), removable, original, map_
            )
            for name in figures
        )
    )


def _classes_or_outputs(box: Box, x: Tensor) -> Tensor:
    """The predictions for x, (N, 1, ...): classes, or the outputs where there are none."""
    z = box(x)
    return z if box.outputs == "regression" or z.shape[1] == 1 else z.argmax(1, keepdim=True)


def _relative_weight_change(box: Box, randomized_box: Box, layers: Sequence[LayerWithWeights]) -> float:
    """How far the weights and statistics of these layers moved, relative to what they were."""
    old, new = (_concatenated_weights_and_statistics(b, layers) for b in (box, randomized_box))
    return float((new - old).norm() / old.norm().clamp_min(torch.finfo(old.dtype).tiny))


def _concatenated_weights_and_statistics(box: Box, layers: Sequence[LayerWithWeights]) -> Tensor:
    modules = [box.modules[path] for layer in layers for path in layer.paths]
    tensors = [h for m in modules for h in (*own_parameters(m), *m.buffers(recurse=False)) if h.is_floating_point()]
    return torch.cat([h.detach().double().flatten() for h in tensors])


def _warn_unchanged_layers(names: Sequence[str], weight_change: Sequence[float]) -> None:
    same = [name for name, change in zip(names, weight_change, strict=True) if change == 0]
    if same:
        warn(f"re-initialized, these layers have the weights they had, so their steps say nothing: {', '.join(same)}")
