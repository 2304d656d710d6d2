"""Randomization: does a map change when what the model has learned is taken out of it, layer by layer?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292: cascading randomization from the top layer
down, and independent randomization of one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.randomized import WeightedLayer, layers_with_weights, own_parameters, randomize_layers
from ..errors import InputError, LayerError, warn
from ..validation import check_seed
from .methods import Method, Target, compute_map, is_blank, resolve_target
from .similarity import MapSimilarity, map_similarity

RandomizationMode = Literal["cascading", "independent"]


@dataclass(frozen=True, eq=False)
class Randomization(MapSimilarity):
    """How like the map of the model as it is each map (N) is at each step (L): four figures, (L, N).

    A map that follows what the model has learned has figures near 0 once the top layers are drawn anew. A figure is NaN
    where a map is the same everywhere: where it became so, `blank`, it has changed.
    """

    layers: tuple[str, ...]  # (L,) drawn anew at each step, from the top down; when cascading, all before it as well
    mode: RandomizationMode
    seed: int
    weight_change: Tensor  # (L,) how far each layer's weights moved, |new - old| / |old|; 0: its start is what it had
    same_class: Tensor  # (L, N) whether the model still gives x the class it gave before
    is_blank: Tensor  # (L, N) whether the map has become the same everywhere (or not finite)
    original: Tensor  # (N, ...) the map of the model as it is
    maps: Tensor | None = None  # (L, N, ...) if they were to be kept


def randomization(
    box: Box,
    x: Any,
    method: Method,
    target: Target = None,
    *,
    mode: RandomizationMode = "cascading",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    keep_maps: bool = False,
) -> Randomization:
    """Compare a method's maps of x with those of copies of the model whose layers have new weights.

    `mode="cascading"` draws the top layer anew, then the two topmost, and so on down to all; `"independent"` one layer
    at a time, the others as trained. `layers` are by default all that hold weights, in the order in which they run,
    from the last to the first; given, they are taken in the order given, and the name of a block stands for all layers
    in it. How weights are drawn: `engine.randomized.randomized`. The target stays what it was for the model as it is:
    for None, the class that it predicts. The model itself is not touched.

    Raises LayerError for layers without weights, ModelError where the model can't be copied; an UnboxedWarning names
    the layers that drawing anew left as they were.
    """
    if mode not in ("cascading", "independent"):
        raise InputError(f'mode is "cascading" or "independent"; got {mode!r}')
    seed, x = check_seed(seed), box.validate_inputs(x)
    steps = _randomization_steps(box, layers)
    score = resolve_target(box, x, target)
    original = compute_map(box, method, x, score, show_warnings=True)
    original_output = _predicted_output(box, x)
    per_step = [
        _randomize_step(box, method, x, score, original, original_output, step, seed)
        for step in _layers_per_step(steps, mode)
    ]
    similarities, same, blank, weight_change, maps = zip(*per_step, strict=True)
    names = tuple(name for name, _ in steps)
    _warn_unchanged(names, weight_change)
    figures = {f.name: torch.stack([getattr(s, f.name) for s in similarities]) for f in fields(MapSimilarity)}
    return Randomization(
        **figures,
        layers=names,
        mode=mode,
        seed=seed,
        weight_change=torch.tensor(weight_change),
        same_class=torch.stack(same),
        is_blank=torch.stack(blank),
        original=original,
        maps=torch.stack(maps) if keep_maps else None,
    )


RandomizationStep = tuple[str, tuple[WeightedLayer, ...]]
"""What a step is called, and the layers that are drawn anew at it."""


def _randomization_steps(box: Box, layers: Sequence[str] | None) -> list[RandomizationStep]:
    """Raises LayerError."""
    weighted_layers = layers_with_weights(box)
    if not weighted_layers:
        raise LayerError("no layer of this model holds weights, so there are none to draw anew")
    if layers is None:
        return [(layer.name, (layer,)) for layer in reversed(weighted_layers)]
    if isinstance(layers, str) or not layers:
        raise LayerError(f"layers is a list of names; got {layers!r}")
    return [(str(name), _layers_within(str(name), weighted_layers)) for name in layers]


def _layers_within(name: str, weighted_layers: Sequence[WeightedLayer]) -> tuple[WeightedLayer, ...]:
    """The layers with weights that are, or lie in, the one named. Raises LayerError."""
    layers = tuple(k for k in weighted_layers if k.name == name or k.name.startswith(f"{name}."))
    if not layers:
        raise LayerError(
            f"{name!r} holds no weights; the layers that do are {', '.join(k.name for k in weighted_layers)}"
        )
    return layers


@dataclass(frozen=True)
class _RandomizedLayers:
    """The layers that are drawn anew together, and those of them that this step adds."""

    randomized: tuple[WeightedLayer, ...]
    newly_randomized: tuple[WeightedLayer, ...]


def _layers_per_step(steps: Sequence[RandomizationStep], mode: RandomizationMode) -> list[_RandomizedLayers]:
    first = [0 if mode == "cascading" else i for i in range(len(steps))]
    return [
        _RandomizedLayers(tuple(layer for _, layers in steps[first[i] : i + 1] for layer in layers), newly_randomized)
        for i, (_, newly_randomized) in enumerate(steps)
    ]


def _randomize_step(
    box: Box,
    method: Method,
    x: Tensor,
    target: Any,
    original: Tensor,
    original_output: Tensor,
    step: _RandomizedLayers,
    seed: int,
) -> tuple[MapSimilarity, Tensor, Tensor, float, Tensor]:
    randomized_box = randomize_layers(box, step.randomized, seed)
    map_ = compute_map(randomized_box, method, x, target)
    same = (_predicted_output(randomized_box, x) == original_output).flatten(1).all(1)
    return (
        map_similarity(original, map_),
        same,
        is_blank(map_),
        _weight_change(box, randomized_box, step.newly_randomized),
        map_,
    )


def _predicted_output(box: Box, x: Tensor) -> Tensor:
    """What the model says of x, (N, 1, ...): its classes, or its very numbers where it has none."""
    z = box(x)
    return z if box.outputs == "regression" or z.shape[1] == 1 else z.argmax(1, keepdim=True)


def _weight_change(box: Box, randomized_box: Box, layers: Sequence[WeightedLayer]) -> float:
    """How far the weights and statistics of these layers moved, relative to what they were."""
    old, new = (_flat_weights(b, layers) for b in (box, randomized_box))
    return float((new - old).norm() / old.norm().clamp_min(torch.finfo(old.dtype).tiny))


def _flat_weights(box: Box, layers: Sequence[WeightedLayer]) -> Tensor:
    modules = [box.modules[path] for layer in layers for path in layer.paths]
    tensors = [h for m in modules for h in (*own_parameters(m), *m.buffers(recurse=False)) if h.is_floating_point()]
    return torch.cat([h.detach().double().flatten() for h in tensors])


def _warn_unchanged(names: Sequence[str], weight_change: Sequence[float]) -> None:
    same = [name for name, change in zip(names, weight_change, strict=True) if change == 0]
    if same:
        warn(f"drawn anew, these layers are what they were, so their steps say nothing: {', '.join(same)}")
