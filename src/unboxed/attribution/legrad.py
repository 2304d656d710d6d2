"""LeGrad: how the attention of each layer moves the score that its own tokens would give.

Bousselham et al. 2024, "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
arXiv:2404.03214, equations 4 to 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, target_or_predicted_classes
from ..engine.read.attention_maps import (
    attending_blocks,
    attribution_to_tokens,
    recording_attention,
    require_attention_maps,
    rerun_after_finding_head_order,
)
from ..engine.read.edits import resolve_target
from ..engine.read.sizes import require_images_or_texts
from ..engine.results import warn_not_finite
from ..errors import OutputError
from ..inputs.tokens import Tokens
from ..model.batching import map_in_batches
from ..model.hooks import Acts
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..parameters import BatchSize, InputBatch, NExtraTokens, Target, Upsample
from ..settings import check_settings


@card(
    name="LeGrad",
    source="Bousselham et al. 2024, arXiv:2404.03214, equations 4 to 8",
    shows="Which patches or words would raise the score if they were attended to more, over all layers.",
    does_not_show="What lowers the score, and what layers do together: each is asked as if it were the last.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x, y),
    exempt={"one forward": "it runs the end of the model once for each layer"},
    texts=True,
    runs=8,
)
def legrad(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    extra_tokens: NExtraTokens = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The gradient of the score in each layer's attention, the score being what the layer's own tokens give.

    For images and texts. The tokens that leave a layer skip the layers after it: the model's last norm and classifier
    score them, and the gradient of that score in the layer's attention says attention to which tokens would raise it.
    Takes a forward pass for each layer.

    Args:
        box: The opened model; its inputs must be images or texts, and its attention must be in blocks of a list.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        extra_tokens: Tokens before those of the patches: a class token, registers. None finds it. Of images alone.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map (N, 1, H, W), or (N, 1, h, w) of the patches without `upsample`, or (N, T) of texts; 0 or more: the mean
        over layers, heads and attending tokens of max(0, ds/dA), s being the score of the layer's own tokens, A its
        attention. Besides: `layer_maps` (N, L, T), each layer's; `layer_scores` (N, L); `layers`, their addresses.

    Raises:
        LayerError: for a model without attention of all tokens to all, one whose attention is not in blocks that all of
            the answer goes through, one whose tokens have no grid that can be determined, or one that attends by an op
            that shows no weights.
        InputError: for a model of other inputs, or `extra_tokens` that leave no grid.
        OutputError: where the score does not depend on the last block.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.legrad(box, x, y)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Bousselham et al. 2024, arXiv:2404.03214, equations 4 (score of a layer's tokens) to 8 (mean over layers). The
        end of the model, with its own pooling and norm, takes the place of the paper's classifier on the pooled
        tokens; tokens that cannot be attended to (padding, later ones of a causal model) have no part in it; the map is
        not scaled to 0 to 1, so that it can be compared between inputs.
    """
    check_settings(legrad, locals())
    require_images_or_texts(box, "LeGrad")
    x = box.validate_inputs(x)
    objective = resolve_target(box, target, x, batch_size)
    plan = box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)
    blocks = attending_blocks(box, x)
    parts = map_in_batches(lambda rows: _layer_maps_of_batch(box, objective.rows(rows), x[rows], blocks), len(x), *plan)
    layer_maps, layer_scores = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    check_finite_scores(layer_scores[:, -1])
    maps = layer_maps.mean(1)  # (N, T)
    warn_not_finite(f"the attention for {objective.name}", maps)
    explained = target_or_predicted_classes(objective, target)
    return attribution_to_tokens(
        box, x, maps, method="LeGrad", target=explained, score=layer_scores[:, -1], extra_tokens=extra_tokens,
        upsample=upsample, layer_maps=layer_maps, layer_scores=layer_scores, layers=tuple(blocks),
    )  # fmt: skip


@rerun_after_finding_head_order
def _layer_maps_of_batch(box: Box, objective: Objective, x: Tensor, blocks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Each layer's map (n, L, T), and the scores of each layer's tokens (n, L)."""
    leaf = x.detach().clone().requires_grad_()
    with box.isolated():
        with recording_attention(box, x, differentiable=True) as maps:
            acts = box.forward(leaf, {*blocks, *objective.layers})
        layer_maps, scores = [], []
        for attention, block in zip(require_attention_maps(maps), blocks, strict=True):
            is_last = block == blocks[-1]
            score = objective(
                acts if is_last else _acts_from_last_block_tokens(box, objective, leaf, blocks[-1], acts[block])
            )
            layer_maps.append(_map_of_layer(score, attention.weights, f"{objective.name}: {blocks[-1]!r}"))
            scores.append(score.detach())
    sums = torch.stack(layer_maps, 1)[: len(x)].to(box.dtype)  # (n, L, T)
    n_attending = box.inputs.mask(x).sum(1) if isinstance(box.inputs, Tokens) else torch.tensor(sums.shape[2])
    return sums / n_attending.to(sums).view(-1, 1, 1), torch.stack(scores, 1).to(box.dtype)


def _map_of_layer(score: Tensor, weights: Tensor, what: str) -> Tensor:
    """max(0, dscore/dA) where there is attention (n, heads, T, T): mean over heads, sum over attending tokens."""
    gradient: Tensor | None = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), weights, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise OutputError(f"{what} does not act on this score")
    return torch.where(weights > 0, gradient.clamp(min=0), 0).mean(1).sum(1)


def _acts_from_last_block_tokens(box: Box, objective: Objective, x: Tensor, last_block: str, tokens: Tensor) -> Acts:
    """What the objective reads where these tokens (n, T, D) come out of the last block."""
    return box.forward(x.detach(), objective.layers, {last_block: lambda h: tokens})
