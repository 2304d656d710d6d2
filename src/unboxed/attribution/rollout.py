"""Attention rollout: attention multiplied through the layers of a transformer.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv:2005.00928, section 3 (attention rollout).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.read.attention_maps import (
    attribution_to_tokens,
    capturing_attention_of,
    output_token_weights_of_model,
    require_token_grid,
    rerun_after_finding_head_order,
)
from ..engine.read.sizes import require_images_or_texts
from ..engine.results import warn_not_finite
from ..errors import LayerError
from ..inputs.tokens import Tokens
from ..model.batching import map_in_batches
from ..parameters import BatchSize, InputBatch, NExtraTokens, Upsample
from ..settings import check_settings

HeadFusion = Literal["mean", "max", "min"]
HEAD_FUSION_FN_BY_NAME: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean(1),
    "max": lambda a: a.amax(1),
    "min": lambda a: a.amin(1),
}


@card(
    name="Attention rollout",
    aliases=("attention_rollout",),
    source="Abnar & Zuidema 2020, arXiv:2005.00928, section 3",
    shows="From which patches or words attention can have carried information to the end of the model.",
    does_not_show="Why this class and not another: no score is involved, so the map is the same for every target.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x),
    texts=True,
)
def rollout(
    box: Box,
    x: InputBatch,
    *,
    heads: Annotated[HeadFusion, "How a layer's heads are combined."] = "mean",
    extra_tokens: NExtraTokens = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The attention of a transformer multiplied through its layers: where information can have come from.

    For images and texts. Takes one forward pass and no target. For a map of a class take `gradient_attention` or
    `legrad`, which read attention too, or `attn_lrp`.

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        heads: How a layer's heads are combined.
        extra_tokens: Tokens before those of the patches: a class token, registers. None finds it. Of images alone.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map (N, 1, H, W), or (N, 1, h, w) of the patches without `upsample`, or (N, T) of texts; 0 or more. It is
        the class token's row of the product over layers of 0.5 A + 0.5 I, A being a layer's attention, or the mean of
        all rows where there is no class token; of texts the row of the token from which the answer is read (or the mean
        of those). Besides: `attention` (N, T, T), from each token of the last layer (rows, which sum to one) to each
        input token; `n_layers`, how many layers were multiplied.

    Raises:
        LayerError: for a model without attention of all tokens to all, one whose tokens have no grid that can be
            determined, or one that attends by an op that shows no weights.
        InputError: for a model of other inputs, or `extra_tokens` that leave no grid.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.rollout(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Abnar & Zuidema 2020, arXiv:2005.00928, section 3 (attention rollout).
    """
    check_settings(rollout, locals())
    require_images_or_texts(box, "attention rollout")
    x = box.validate_inputs(x)
    plan = box.batch_size_and_max_rows(len(x), batch_size)
    parts = map_in_batches(lambda rows: _rollout_of_batch(box, x[rows], HEAD_FUSION_FN_BY_NAME[heads]), len(x), *plan)
    attention = torch.cat([a for a, _ in parts])
    if isinstance(box.inputs, Tokens):
        read = torch.cat(
            map_in_batches(lambda rows: output_token_weights_of_model(box, x[rows]), len(x), *plan)
        )  # (N, T)
        maps = (read[:, None] @ attention)[:, 0]
    else:
        has_class_token = require_token_grid(box, attention.shape[-1], extra_tokens).n_extra_tokens > 0
        maps = attention[:, 0] if has_class_token else attention.mean(1)
    warn_not_finite("attention rollout", maps)
    return attribution_to_tokens(
        box, x, maps, method="Attention rollout", target=None, score=None, extra_tokens=extra_tokens,
        upsample=upsample, attention=attention, n_layers=parts[0][1],
    )  # fmt: skip


@rerun_after_finding_head_order
def _rollout_of_batch(box: Box, x: Tensor, fuse_heads: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """The rollout (n, T, T), and the number of layers; one matrix is held at a time."""
    total: list[Tensor] = []
    count = 0

    def multiply_attention_into_rollout(path: str, weights: Tensor) -> None:  # (n, heads, T, T)
        nonlocal count
        a = fuse_heads(weights.to(box.dtype))
        a = 0.5 * a / a.sum(-1, keepdim=True) + 0.5 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        if total and total[0].shape != a.shape:
            sizes = f"{total[0].shape[-1]} and {a.shape[-1]}"
            raise LayerError(f"the model attends among {sizes} tokens in turn; rollout is for the same in all layers")
        total[:] = [a @ total[0]] if total else [a]
        count += 1

    with box.isolated(grad=False), capturing_attention_of(box, x, multiply_attention_into_rollout):
        box.forward(x, {"output"})
    if not total:
        raise LayerError("no layer of this model attends from all tokens to all, so there is nothing to roll out")
    return total[0][: len(x)], count
