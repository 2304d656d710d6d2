"""Attention maps of a model, with the gradient of a score in them; and maps over its tokens as maps over its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...box import Box
from ...errors import HeadOrderUnknownError, InputError, LayerError
from ...inputs.tokens import N_TOKEN_META_COLUMNS, Tokens
from ...model.attention import OnAttentionFn, capturing_attention, finding_head_orders
from ..attribution_result import Attribution, make_attribution, resolve_result_target
from .chain import MODULE_CONTAINER_TYPES
from .position_grids import PositionGrid, image_size, layers_with_grids, token_grid, upsample_bilinear

P = ParamSpec("P")
R = TypeVar("R")
MAX_CHANGE_IN_EPS = 64
"""Of the largest value of an answer: less is rounding."""


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The attention of one layer."""

    path: str  # of the module that attends
    weights: Tensor  # (n, heads, T, T), rows summing to one


@contextmanager
def capturing_attention_of(
    box: Box, x: Tensor, on_attention: OnAttentionFn, *, differentiable: bool = False
) -> Iterator[None]:
    """As `capturing_attention`, of inputs x (n, ...), inside `box.isolated` and `rerun_after_finding_head_order`."""
    n_tokens = x.shape[1] if isinstance(box.inputs, Tokens) else None
    with capturing_attention(
        box.modules, max(len(x), box.min_rows), on_attention, n_tokens=n_tokens, differentiable=differentiable,
        heads_first=_HEADS_FIRST_BY_MODEL.get(box.model),
    ):  # fmt: skip
        yield


@contextmanager
def recording_attention(box: Box, x: Tensor, *, differentiable: bool = False) -> Iterator[list[AttentionMap]]:
    """While open, collect the attention of each layer for inputs x, as `capturing_attention_of`."""
    maps: list[AttentionMap] = []
    with capturing_attention_of(
        box, x, lambda path, w: maps.append(AttentionMap(path, w)), differentiable=differentiable
    ):
        yield maps


_HEADS_FIRST_BY_MODEL: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
"""By model and path: whether heads come before examples. Found where it is asked for, once."""
N_HEAD_ORDER_PROBE_COPIES = 3  # of an example, by which the order is found


def rerun_after_finding_head_order(run: Callable[Concatenate[Box, P], R]) -> Callable[Concatenate[Box, P], R]:
    """`run`, which captures attention, made to run again where the order of heads and examples had to be found."""

    @wraps(run)
    def run_with_known_head_order(box: Box, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(box, *args, **kwargs)
        except HeadOrderUnknownError:
            _find_head_orders(box)
            return run(box, *args, **kwargs)

    return run_with_known_head_order


def _find_head_orders(box: Box) -> None:
    n = max(box.min_rows, min(N_HEAD_ORDER_PROBE_COPIES, box.max_rows or N_HEAD_ORDER_PROBE_COPIES))
    one = box.noise(1)
    x = one.expand(n, *one.shape[1:]).clone()
    n_tokens = x.shape[1] if isinstance(box.inputs, Tokens) else None
    with box.isolated(grad=False), finding_head_orders(box.modules, n, n_tokens) as heads_first:
        box.forward(x, {"output"})
    _HEADS_FIRST_BY_MODEL[box.model] = heads_first


def require_attention_maps(maps: list[AttentionMap]) -> list[AttentionMap]:
    """These maps, if there are any and all are of the same tokens. Raises LayerError."""
    if not maps:
        raise LayerError("no layer of this model attends from all tokens to all, so there is no attention to read")
    if len(sizes := {m.weights.shape[-1] for m in maps}) > 1:
        listed = " and ".join(map(str, sorted(sizes)))
        raise LayerError(f"the model attends among {listed} tokens in turn; wanted the same in all layers")
    return maps


@rerun_after_finding_head_order
def attending_blocks(box: Box, x: Tensor) -> list[str]:
    """The addresses of the blocks that attend, one for each attention map, in the order in which they run.

    All that the model answers goes through the last one's output: held as it is, no other input changes the answer.
    Raises LayerError where that is not so, or where a map is in no block of its own.
    """
    x = x if box.batch_dependent else x[:1]
    asked = "logits" if box.predicts_tokens else "output"
    with box.isolated(grad=False):
        with recording_attention(box, x) as maps:
            box.forward(x, {"output"})
        blocks = blocks_around_attention(box, require_attention_maps(maps))
        acts = box.forward(x, {blocks[-1], asked})
        held = box.forward(_different_random_inputs(box, x), {asked}, {blocks[-1]: lambda h: acts[blocks[-1]]})[asked]
    scale = acts[asked].abs().amax() * MAX_CHANGE_IN_EPS * torch.finfo(held.dtype).eps
    if bool(((held - acts[asked]).abs() > scale).any()):
        raise LayerError(
            f"what {blocks[-1]!r} gives is not all that the rest of the model reads: where it is held, the answer "
            "still changes with the input, as where the residual connection is outside of the module. A model is "
            "wanted whose blocks are modules that take the tokens and give them on, residual connections included"
        )
    return blocks


def _different_random_inputs(box: Box, x: Tensor) -> Tensor:
    """Inputs unlike x (n, ...) in every value; of texts with other embeddings of the same tokens."""
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    if not isinstance(box.inputs, Tokens):
        return drawn
    h = x[..., :-N_TOKEN_META_COLUMNS]
    return torch.cat([h + h.std() * (drawn[..., :-N_TOKEN_META_COLUMNS] + 0.5), x[..., -N_TOKEN_META_COLUMNS:]], -1)


def blocks_around_attention(box: Box, maps: Sequence[AttentionMap]) -> list[str]:
    """The addresses of the blocks that these maps, one of each, are inside: the outermost that hold one, of one shape.

    Raises LayerError where there are none.
    """
    shape_by_path = {
        row.path: row.shape
        for row in sorted(box.layers, key=lambda row: row.path.count("."))
        if row.path and row.n_calls == 1 and len(row.shape) == 2 and row.runs_per_example
    }
    holding = {a: [m for m in maps if f"{m.path}.".startswith(f"{a}.")] for a in shape_by_path}
    inside = [[a for a, held in holding.items() if held == [m]] for m in maps]
    if len(maps) == 1:  # everything around it holds one map, too
        inside = [
            [a for a in inside[0] if isinstance(box.modules[a.rpartition(".")[0]], MODULE_CONTAINER_TYPES)] or inside[0]
        ]
    for shape in [shape_by_path[a] for a in inside[-1]]:
        blocks = [next((a for a in found if shape_by_path[a] == shape), "") for found in inside]
        if all(blocks):
            return blocks
    raise LayerError(
        "the layers that attend are not each in a block of their own with the same tokens in and out, as those of "
        "a ModuleList"
    )


# -- which tokens are read ---------------------------------------------------------------------------------------------


def output_token_weights(gradient: Tensor) -> Tensor:
    """How much of the answer each token of the last layer is, (n, T): equal parts of those that it depends on.

    `gradient` is that of a score in the last layer's attention, (n, heads, T, T): a class token's row alone has one, or
    that of a text's last token, or all rows where their mean is taken.
    """
    is_read = gradient.abs().amax((1, 3)) > 0  # (n, T)
    is_read = torch.where(is_read.any(1, keepdim=True), is_read, True).to(gradient.dtype)
    return is_read / is_read.sum(1, keepdim=True)


@rerun_after_finding_head_order
def output_token_weights_of_model(box: Box, x: Tensor) -> Tensor:
    """`output_token_weights` of all that the model gives for x (n, ...), by one backward pass."""
    with box.isolated(), recording_attention(box, x, differentiable=True) as maps:
        asked = "logits" if box.predicts_tokens else "output"
        acts = box.forward(x.detach().clone().requires_grad_(), {asked})
        weights = require_attention_maps(maps)[-1].weights
        output = acts[asked].flatten(1)
        mixed = output @ torch.linspace(1, 2, output.shape[1]).to(output)  # so that no two outputs cancel
        (gradient,) = torch.autograd.grad(mixed.sum(), weights)
    return output_token_weights(gradient)[: len(x)].to(box.dtype)


# -- maps over tokens --------------------------------------------------------------------------------------------------


def attribution_to_tokens(
    box: Box,
    x: Tensor,
    maps: Tensor,
    *,
    method: str,
    target: Any,
    score: Tensor | None,
    extra_tokens: int | None,
    upsample: bool,
    **extras: Any,
) -> Attribution:
    """The result for maps (N, T) over the tokens of inputs x: (N, T) of texts, (N, 1, H, W) of images."""
    if isinstance(box.inputs, Tokens):
        return make_attribution(
            box, maps[..., None], x=x, method=method, target=target, score=score, over_embedding="same", **extras
        )
    grid = require_token_grid(box, maps.shape[1], extra_tokens)
    patches = maps[:, grid.n_extra_tokens :].reshape(-1, 1, *grid.size)
    return Attribution(
        upsample_bilinear(patches, image_size(box)) if upsample else patches,
        input=box.restore_structure(x),
        method=method,
        target=resolve_result_target(box, target, len(maps)),
        score=score,
        classes=box.classes,
        **extras,
    )


def require_token_grid(box: Box, n_tokens: int, extra_tokens: int | None = None) -> PositionGrid:
    """The grid of the tokens of a vision transformer. Raises LayerError where it cannot be determined."""
    if extra_tokens is not None:
        return _grid_after_extra_tokens(box, n_tokens, extra_tokens)
    maps: list[Any] = [grid.size for _, grid in layers_with_grids(box) if not grid.is_tokens]
    grid = token_grid(box, n_tokens, maps[-1] if maps else None) or (token_grid(box, n_tokens) if maps else None)
    if grid is None:
        raise LayerError(
            f"the model attends among {n_tokens} tokens, which have no grid over the image that can be determined; say "
            "how many tokens come before those of the patches: extra_tokens=1 for a class token"
        )
    return grid


def _grid_after_extra_tokens(box: Box, n_tokens: int, n_extra_tokens: int) -> PositionGrid:
    """The grid, with the image's aspect, of the tokens after the first ones."""
    height, width = image_size(box)
    n_patches = n_tokens - n_extra_tokens
    rows = round(math.sqrt(max(0, n_patches) * height / width))
    columns = n_patches // max(1, rows)
    if n_patches < 1 or rows * columns != n_patches or rows * width != columns * height:
        raise InputError(
            f"{n_tokens} tokens without {n_extra_tokens} are {n_patches}, which are no grid of an image of "
            f"{height}x{width}"
        )
    return PositionGrid((rows, columns), is_tokens=True, n_extra_tokens=n_extra_tokens)
