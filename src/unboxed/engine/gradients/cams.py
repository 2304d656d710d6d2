"""Class activation maps: a layer's activations, weighted by the score's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...box import Box
from ...errors import LayerError, OutputError
from ...inputs.labels import ClassLabels
from ...model.batching import BatchSize, map_in_batches
from ...model.hooks import Acts
from ...model.layers import Layer
from ...model.nan_checks import check_finite_scores
from ...model.state import leaving_inference_mode
from ...objectives import Objective
from ..attribution_result import Attribution, resolve_result_target
from ..read.position_grids import PositionGrid, grid_of_layer, image_size, layers_with_grids, resize_maps_to_input
from ..results import warn_not_finite, warn_with_row_count
from .cam_layers import MapRecorder
from .score import (
    all_false_mask,
    all_finite_and_no_zero_row,
    cast_to_dtype,
    classes_if_predicted_logit,
    score_gradients_with_bypass,
)

CombineMapsFn = Callable[[Tensor, Tensor], Tensor]
"""Activations and gradients, (n, C, h, w) both -> the map (n, h, w) before its ReLU."""


@dataclass(eq=False)
class CamResult:
    """Class activation maps of a batch of n examples."""

    maps: Tensor  # (n, 1, h, w)
    clamped: Tensor | None  # (n,) bool: taken before a ReLU that clamps the score; None where no row is
    score: Tensor  # (n,)
    predicted: Tensor | None  # (n,) classes, where the objective is the predicted class's logit
    layer: str  # the address of the layer that was read
    layer_shape: tuple[int, ...] = ()  # of its activations, without N


MAX_CANDIDATE_TOKEN_LAYERS = 6  # token layers among which the last that patches influence is searched


def cam(
    box: Box,
    x: Tensor,
    target: ClassLabels | Objective | None,
    layer: str | None,
    combine: CombineMapsFn,
    *,
    name: str,
    upsample: bool = True,
    batch_size: BatchSize = "auto",
    clamp: bool = True,
    warn_clamped: bool = True,
) -> Attribution:
    """The class activation map (N, 1, H, W) of a method, or on the layer's own grid (N, 1, h, w).

    `combine` makes the map of activations and gradients; what is negative in it is set to zero, unless `clamp` is
    False. Raises LayerError for a layer without positions. `warn_clamped` warns of scores that a final ReLU clamps.
    """
    x = box.validate_inputs(x)
    image_size(box)  # raises where there is no image to lay a map on
    n = x.shape[0]
    objective = box.check_objective(box.objective(target, n), n)
    cam_layers = None if layer is None else CamLayerCandidates((_require_batch_axis(box, layer),))

    def run_batch(rows: slice) -> CamResult:
        if rows.stop - rows.start == n:
            return _compute_cam(box, objective, x, cam_layers, combine)
        return _compute_cam(box, objective.rows(rows), x[rows], cam_layers, combine)

    if n == 1 and batch_size == "auto":
        parts = [run_batch(slice(0, 1))]
    else:
        parts = map_in_batches(run_batch, n, *box.batch_size_and_max_rows(n, batch_size, objective.batch_dependent))
    result = parts[0] if len(parts) == 1 else _concatenate_cams(parts)
    check_finite_scores(result.score)
    maps = result.maps.clamp(min=0) if clamp else result.maps
    _warn_of_zero_or_nonfinite_maps(name, objective, maps, result.clamped if warn_clamped else None)
    return Attribution(
        resize_maps_to_input(box, maps, result.layer_shape, upsample),
        input=box.restore_structure(x),
        target=resolve_result_target(box, result.predicted if target is None else target, n),
        score=cast_to_dtype(result.score, box.dtype),
        method=name,
        layer=result.layer,
        classes=box.classes,
    )


def last_map_address(box: Box) -> str:
    """The last maps, or tokens of an image, that the predicted class's logit passes through.

    Raises LayerError where there are none, and OutputError where no gradient reaches them.
    """
    with leaving_inference_mode():
        x = box.noise(2 if box.batch_dependent else 1)
    return _compute_cam(box, box.objective(None, len(x)), x, None, lambda h, g: (h * g).sum(1)).layer


def _concatenate_cams(parts: Sequence[CamResult]) -> CamResult:
    predicted = [p.predicted for p in parts if p.predicted is not None]
    return CamResult(
        torch.cat([p.maps for p in parts]),
        torch.cat([all_false_mask(p.score) if p.clamped is None else p.clamped for p in parts]),
        torch.cat([p.score for p in parts]),
        torch.cat(predicted) if predicted else None,
        parts[0].layer,
        parts[0].layer_shape,
    )


def _warn_of_zero_or_nonfinite_maps(name: str, objective: Objective, maps: Tensor, clamped: Tensor | None) -> None:
    """Warn of maps (N, 1, h, w) that are zero, not finite or before a clamp (N,)."""
    if clamped is None:
        if all_finite_and_no_zero_row(maps):
            return
        clamped = all_false_mask(maps)
    warn_with_row_count(
        f"{objective.name} is clamped at 0 by a final ReLU for", clamped, ": maps taken before the clamp"
    )
    warn_not_finite(name, maps)
    warn_with_row_count(
        f"{name} is zero everywhere for", ~maps.flatten(1).any(1), ": nothing at the layer raises the score"
    )


def _require_batch_axis(box: Box, layer: str) -> str:
    address = box.layers.resolve(layer)
    if not box.has_batch_axis(address):
        raise LayerError(f"{layer!r} mixes examples: its first axis is not the batch")
    return address


class CamLayerCandidates(NamedTuple):
    """Candidate layers, the best first; for token layers, their gradients decide."""

    addresses: tuple[str, ...]
    grid: PositionGrid | None = None  # known beforehand, where no layer was named

    def first_index_with_patch_gradient(self, grads: Sequence[Tensor]) -> int:
        """The first that other tokens than the class token influence: after the last mixing, none does."""
        if self.grid is None or len(self.addresses) == 1:
            return 0
        return next((i for i, g in enumerate(grads) if self.grid.to_maps(g).any()), 0)


def _compute_cam(
    box: Box, objective: Objective, x: Tensor, cam_layers: CamLayerCandidates | None, combine: CombineMapsFn
) -> CamResult:
    """One forward, one backward down to the layer."""
    with box.isolated():
        x = x.detach().requires_grad_()
        if cam_layers is None:
            cam_layers, acts, score = _forward_and_find_layers(box, objective, x)
        else:
            acts = box.forward(x, {*objective.layers, *cam_layers.addresses})
            score = objective(acts)
        if acts.keys() >= {*cam_layers.addresses}:
            return _cam_from_layer_gradients(box, objective, score, acts, cam_layers, combine)
    return _compute_cam(box, objective, x, cam_layers, combine)  # its values were freed, or written over: run again


def _cam_from_layer_gradients(
    box: Box, objective: Objective, score: Tensor, acts: Acts, cam_layers: CamLayerCandidates, combine: CombineMapsFn
) -> CamResult:
    edges = [acts.edges[a] for a in cam_layers.addresses]
    if (detached_index := edges.index(None) if None in edges else -1) >= 0:
        raise OutputError(f"nothing has a gradient at {cam_layers.addresses[detached_index]!r}")
    leaves: list[Any] = edges
    like = [acts[a] for a in cam_layers.addresses]
    grid = cam_layers.grid or grid_of_layer(box, cam_layers.addresses[0], tuple(like[0].shape[1:]))
    grads, clamped = score_gradients_with_bypass(score, acts, objective, leaves, like=like)
    i = cam_layers.first_index_with_patch_gradient(grads)
    h, g = (grid.to_maps(cast_to_dtype(t.detach(), box.dtype)) for t in (like[i], grads[i]))
    predicted, address = classes_if_predicted_logit(objective, acts), cam_layers.addresses[i]
    return CamResult(combine(h, g)[:, None], clamped, score.detach(), predicted, address, tuple(like[i].shape[1:]))


# -- the layer, where none is named ------------------------------------------------------------------------------------


def _forward_and_find_layers(box: Box, objective: Objective, x: Tensor) -> tuple[CamLayerCandidates, Acts, Tensor]:
    """The last maps that all of the score passes through, or the last tokens of a ViT; found while the model runs.

    Raises LayerError where there is none, and OutputError where the score does not depend on the input.
    """
    trace = MapRecorder(box, max(len(x), box.min_rows))
    guessed = _guess_token_layers(box) if objective.layers & {"logits", "output"} else ()
    with trace.recording_maps():
        acts = box.forward(x, {*objective.layers, *guessed})
    score = objective(acts)
    if not score.requires_grad:
        raise OutputError(f"{objective.name} does not depend on the input by any path with a gradient (detached?)")
    objective_nodes = {edge.node for a in objective.layers if (edge := acts.edges.get(a)) is not None}
    if (tokens := trace.last_token_layers_and_grid(score, objective_nodes)) is not None:
        layers, grid = tokens
        return CamLayerCandidates(_last_token_layers(layers), grid), acts, score
    last_map_on_all_paths = trace.last_map_on_all_paths(score, objective_nodes)
    if last_map_on_all_paths.value._version == last_map_on_all_paths.version and last_map_on_all_paths.value.numel():
        acts[last_map_on_all_paths.address], acts.edges[last_map_on_all_paths.address] = (
            last_map_on_all_paths.value[: len(x)],
            last_map_on_all_paths.edge,
        )
    return CamLayerCandidates((last_map_on_all_paths.address,), last_map_on_all_paths.grid), acts, score


def _guess_token_layers(box: Box) -> tuple[str, ...]:
    """The layers of the last tokens, judging by the order of layers: read in the run that decides."""
    layer_grids = list(layers_with_grids(box))
    if not layer_grids or not layer_grids[-1][1].is_tokens:
        return ()
    row, grid = layer_grids[-1]
    return _last_token_layers([r for r, g in reversed(layer_grids) if g == grid and r.shape == row.shape])


def _last_token_layers(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The latest of these layers of tokens, the last first; normalized ones if there are any."""
    normalized = [r for r in layers if "Norm" in r.type] or layers
    return tuple(r.addresses[-1] for r in normalized[:MAX_CANDIDATE_TOKEN_LAYERS])
