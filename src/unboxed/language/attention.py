"""Attention by layer and head, and what each head is worth: the score without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.attention_maps import (
    capturing_attention_of,
    recording_attention,
    require_attention_maps,
    rerun_after_finding_head_order,
)
from ..engine.read.edits import resolve_target
from ..engine.read.sizes import require_images_or_texts
from ..engine.results import MAX_SUMMARY_LINES, ResultMixin
from ..errors import LayerError
from ..inputs.tokens import Tokens
from ..model.batching import map_in_batches
from ..model.nan_checks import check_finite_scores, check_no_nan
from ..objectives import Objective
from ..parameters import BatchSize, InputBatch, Target
from ..settings import ValueRole, check_settings
from ..validation import nearest_names

AttendingLayers = Annotated[
    Sequence[str] | None,
    ValueRole("layers"),
    "Addresses of the layers that attend, or of blocks that hold one. None: all of them.",
]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionByHead(ResultMixin):
    """Attention of each layer and head, from each token (axis 2) to each token (axis 3); rows sum to one."""

    weights: Mapping[str, Tensor]  # {layer: (N, H, T, T)}, in the order in which they run
    tokens: tuple[tuple[str, ...], ...] = ()  # of texts
    special: Tensor | None = None  # (N, T) bool, of texts: tokens that the tokenizer added, and padding

    @property
    def layers(self) -> tuple[str, ...]:
        """The addresses of the layers."""
        return tuple(self.weights)

    @property
    def entropy(self) -> Tensor:
        """How widely each head looks, (N, L, H) in nats: 0 at one token; the mean over the tokens that look."""
        own = None if self.special is None else ~self.special
        return torch.stack([_mean_entropy(w, own) for w in self.weights.values()], 1)


def _mean_entropy(weights: Tensor, own: Tensor | None) -> Tensor:
    """(N, H) of (N, H, T, T), over the rows (N, T) that are the text's own."""
    rows: Tensor = torch.special.entr(weights).sum(-1)  # (N, H, T)
    if own is None or not bool(own.any(1).all()):
        return rows.mean(-1)
    return (rows * own[:, None]).sum(-1) / own[:, None].sum(-1)


@card(
    name="Attention by head",
    source="Vaswani et al. 2017, arXiv:1706.03762, equation 1",
    shows="Which tokens each head of each layer looks at.",
    does_not_show="What it does with them, and whether the answer depends on it: `head_ablation` measures that.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x),
    texts=True,
)
def attention(
    box: Box, x: InputBatch, *, layers: AttendingLayers = None, batch_size: BatchSize = "auto"
) -> AttentionByHead:
    """The attention weights of a transformer, by layer and head.

    For text models and vision transformers, through fused ops, too: their weights are computed beside them. What is
    needed is not always what is looked at: `head_ablation` takes heads away, `ub.attribution.attn_lrp` follows the
    score through them.

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layers: Addresses of the layers that attend, or of blocks that hold one. None: all of them.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `AttentionByHead`: `weights`, {layer: (N, H, T, T)}, from each token to each; rows sum to one. Of texts also
        `tokens`, and which are `special`.

    Raises:
        LayerError: for a model without attention of all tokens to all, one that attends by an op that shows no weights,
            and an address that is none of an attending layer.
        InputError: for a model of other inputs.
        NaNError: where the model attends by NaN; the error names the rows.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.language.attention(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, equation 1: softmax(Q K^T / sqrt(d)).
    """
    check_settings(attention, locals())
    require_images_or_texts(box, "attention")
    x = box.validate_inputs(x)
    names = None if layers is None else _resolve_attending_layers(box, x, layers)
    plan = box.batch_size_and_max_rows(len(x), batch_size)
    parts = map_in_batches(lambda rows: _attention_of_batch(box, x[rows], names), len(x), *plan)
    weights = {path: torch.cat([part[path] for part in parts]) for path in parts[0]}
    _check_no_nan_attention(box, x, weights.values())
    if not isinstance(box.inputs, Tokens):
        return AttentionByHead(weights)
    return AttentionByHead(weights, tuple(map(tuple, box.inputs.token_texts(x))), box.inputs.is_special(x))


def _check_no_nan_attention(box: Box, x: Tensor, weights: Iterable[Tensor]) -> None:
    """Raise NaNError where a token, and not padding, attends by NaN: weights (N, H, T, T) of each layer."""
    for w in weights:
        is_padding = None if not isinstance(box.inputs, Tokens) else ~box.inputs.mask(x)[:, None, :, None]
        check_no_nan(w if is_padding is None else w.masked_fill(is_padding, 0), what="the attention")


@rerun_after_finding_head_order
def _attention_of_batch(box: Box, x: Tensor, names: Sequence[str] | None) -> dict[str, Tensor]:
    with box.isolated(grad=False), recording_attention(box, x) as maps:
        box.forward(x, {"output"})
    paths = [m.path for m in require_attention_maps(maps)]
    addresses = [f"{p}#{paths[:i].count(p)}" if paths.count(p) > 1 else p for i, p in enumerate(paths)]
    found = zip(addresses, maps, strict=True)
    return {a: m.weights[: len(x)].to(box.dtype) for a, m in found if names is None or a in names}


def _resolve_attending_layers(box: Box, x: Tensor, layers: Sequence[str]) -> list[str]:
    """The attending layers of these addresses, in the order in which they run. Raises LayerError."""
    known = list(_attention_of_batch(box, x if box.batch_dependent else x[:1], None))
    wanted = [layers] if isinstance(layers, str) else list(layers)
    for name in wanted:
        if not any(f"{k}.".startswith(f"{name}.") for k in known):
            close = ", ".join(map(repr, nearest_names(name, known) or known))
            raise LayerError(f"{name!r} is no layer that attends, and holds none; did you mean {close}?")
    return [k for k in known if any(f"{k}.".startswith(f"{name}.") for name in wanted)]


# -- without a head ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation(ResultMixin):
    """The score without each head: how much it falls."""

    drop: Tensor  # (N, L, H): score - score without the head; NaN where a layer has fewer heads
    score: Tensor  # (N,)
    layers: tuple[str, ...]  # (L,) that attend

    def summary_lines(self) -> Iterator[str]:
        drop = self.drop.double().nanmean(0)  # (L, H)
        n_heads = int((~drop.isnan()).sum())
        yield f"score {float(self.score.double().mean()):.3g} on average; without each of {n_heads} heads:"
        order = drop.nan_to_num(-math.inf).flatten().argsort(descending=True)[:n_heads]
        for k in order[: MAX_SUMMARY_LINES - 1].tolist():
            layer, head = divmod(k, drop.shape[1])
            yield f"without head {head} of {self.layers[layer]} it falls by {float(drop[layer, head]):.3g}"


@card(
    name="Head ablation",
    source="Michel et al. 2019, arXiv:1905.10650, section 3",
    shows="How much the score falls without each attention head.",
    does_not_show="What heads do together: of two that carry the same, each alone looks dispensable.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x, y),
    texts=True,
    order=16,
)
def head_ablation(
    box: Box, x: InputBatch, target: Target = None, *, layers: AttendingLayers = None, batch_size: BatchSize = "auto"
) -> HeadAblation:
    """The score without each attention head in turn: its weights are zero, and so is what it passes on.

    Which heads is the answer made by? One forward pass per head. For neurons and whole layers take
    `ub.activations.ablation`.

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layers: Addresses of the layers that attend, or of blocks that hold one. None: all of them.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `HeadAblation`: `drop` (N, L, H), how much the score falls without the head, and the `score` (N,).

    Raises:
        LayerError: for a model without attention of all tokens to all, one that attends by an op that shows no weights,
            and an address that is none of an attending layer.
        InputError: for a model of other inputs.
        NaNError: where a score is NaN, or that of the whole model is infinite; the error names the rows.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.language.head_ablation(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Michel et al. 2019, arXiv:1905.10650, section 3: each head's mask set to zero, one at a time.
    """
    check_settings(head_ablation, locals())
    require_images_or_texts(box, "head ablation")
    x = box.validate_inputs(x)
    objective = resolve_target(box, target, x, batch_size)
    shown = _attention_of_batch(box, x if box.batch_dependent else x[:1], None)
    names = list(shown) if layers is None else _resolve_attending_layers(box, x, layers)
    n_heads = {name: shown[name].shape[1] for name in names}
    order = list(shown)
    plan = box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)

    def scores_of_rows(rows: slice) -> Tensor:
        """(n, 1 + L * H): with all heads, then without each."""
        off = [None, *((order.index(name), head) for name in names for head in range(n_heads[name]))]
        return torch.stack([_score(box, objective.rows(rows), x[rows], pair) for pair in off], 1)

    scores = torch.cat(map_in_batches(scores_of_rows, len(x), *plan))
    check_finite_scores(scores[:, 0])
    check_no_nan(scores, what="the score without a head")
    drops = torch.split(scores[:, :1] - scores[:, 1:], [n_heads[name] for name in names], 1)
    width = max(n_heads.values())
    padded = [torch.nn.functional.pad(d, (0, width - d.shape[1]), value=torch.nan) for d in drops]
    return HeadAblation(torch.stack(padded, 1), scores[:, 0], tuple(names))


@rerun_after_finding_head_order
def _score(box: Box, objective: Objective, x: Tensor, off: tuple[int, int] | None) -> Tensor:
    """The score (n,) without one head: the k-th attention that runs, and the number of its head."""
    n_calls = 0

    def without_head(path: str, weights: Tensor) -> Tensor | None:
        nonlocal n_calls
        n_calls += 1
        if off is None or n_calls - 1 != off[0]:
            return None
        keep = torch.ones(weights.shape[1], dtype=weights.dtype, device=weights.device)
        keep[off[1]] = 0
        return weights * keep[:, None, None]

    with box.isolated(grad=False), capturing_attention_of(box, x, without_head, differentiable=True):
        acts = box.forward(x, objective.layers)
        return objective(acts).to(box.dtype)
