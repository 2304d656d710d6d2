"""Gradient-weighted attention: what each layer's attention carries for one score, through the layers.

Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
arXiv:2103.15679, equations 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.score import classes_if_predicted_logit
from ..engine.read.attention_maps import (
    attribution_to_tokens,
    output_token_weights,
    recording_attention,
    require_attention_maps,
    require_token_grid,
    rerun_after_finding_head_order,
)
from ..engine.read.sizes import require_images_or_texts
from ..engine.results import warn_not_finite
from ..errors import OutputError
from ..inputs.tokens import Tokens
from ..model.batching import map_in_batches
from ..model.nan_checks import check_finite_scores
from ..objectives import Objective
from ..parameters import BatchSize, InputBatch, NExtraTokens, Target, Upsample
from ..settings import check_settings


@card(
    name="Gradient-weighted attention",
    source="Chefer et al. 2021, arXiv:2103.15679, equations 5 and 6 (self-attention)",
    shows="Which patches or words the attention that raises the score comes from.",
    does_not_show="What lowers the score, and what passes by other ways than attention.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x, y),
    texts=True,
    runs=2,
)
def gradient_attention(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    extra_tokens: NExtraTokens = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Each layer's attention weighted by its gradient, multiplied through the layers of a transformer.

    For images and texts; one forward and one backward pass. Unlike `rollout` it asks about one score. It has no sign:
    for what lowers the score take `attn_lrp`.

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        extra_tokens: Tokens before those of the patches: a class token, registers. None finds it. Of images alone.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The map (N, 1, H, W), or (N, 1, h, w) of the patches without `upsample`, or (N, T) of texts; 0 or more. It is
        the row of the token from which the score is read (a class token, a text's last one; the mean of all that are
        read) of R - I, R being the product over layers of I + E[max(0, A * dscore/dA)], A a layer's attention, E the
        mean over its heads. Besides: `relevance` (N, T, T), which is R; `n_layers`.

    Raises:
        LayerError: for a model without attention of all tokens to all, one whose tokens have no grid that can be
            determined, or one that attends by an op that shows no weights.
        InputError: for a model of other inputs, or `extra_tokens` that leave no grid.
        OutputError: where the score does not depend on attention.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.gradient_attention(box, x, y)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Chefer et al. 2021, arXiv:2103.15679, equations 5 (A weighted by its gradient, positive parts, mean over heads)
        and 6 (R <- R + A R from R = I), of self-attention. The paper takes the class token's row; here it is that of
        the tokens that the score is read from, and I, which is each token's own part, is left out.
    """
    check_settings(gradient_attention, locals())
    require_images_or_texts(box, "gradient-weighted attention")
    x = box.validate_inputs(x)
    objective = box.check_objective(box.objective(target, len(x)), len(x))
    plan = box.batch_size_and_max_rows(len(x), batch_size, objective.batch_dependent)
    parts = map_in_batches(lambda rows: _relevance_of_batch(box, objective.rows(rows), x[rows]), len(x), *plan)
    relevance, read, score = (torch.cat(values) for values in zip(*(p[:3] for p in parts), strict=True))
    check_finite_scores(score)
    if not isinstance(box.inputs, Tokens):
        require_token_grid(box, relevance.shape[-1], extra_tokens)
    own = torch.eye(relevance.shape[-1]).to(relevance)
    maps = (read[:, None] @ (relevance - own))[:, 0]  # (N, T)
    warn_not_finite(f"the attention for {objective.name}", maps)
    predicted = [p[3] for p in parts if p[3] is not None]
    explained = torch.cat(predicted) if target is None and predicted else target
    return attribution_to_tokens(
        box, x, maps, method="Gradient-weighted attention", target=explained, score=score,
        extra_tokens=extra_tokens, upsample=upsample, relevance=relevance, n_layers=parts[0][4],
    )  # fmt: skip


@rerun_after_finding_head_order
def _relevance_of_batch(box: Box, objective: Objective, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
    """R (n, T, T), the rows that are read (n, T), the scores, the predicted classes, and the number of layers."""
    with box.isolated(), recording_attention(box, x, differentiable=True) as maps:
        acts = box.forward(x.detach().clone().requires_grad_(), objective.layers)
        weights = [m.weights for m in require_attention_maps(maps)]
        score = objective(acts)
        if not score.requires_grad:
            raise OutputError(f"{objective.name} does not depend on attention")
        gradients = torch.autograd.grad(score.sum(), weights, allow_unused=True)
        if all(g is None for g in gradients):
            raise OutputError(f"{objective.name} does not depend on attention")
        relevance = torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(weights[0]), -1, -1)
        for a, g in zip(weights, gradients, strict=True):
            if g is not None:  # of layers after the score's
                relevance = relevance + (a.detach() * g).clamp(min=0).mean(1) @ relevance
        last = next(g for g in reversed(gradients) if g is not None)
        n = len(x)
        predicted = classes_if_predicted_logit(objective, acts)
        read, score = output_token_weights(last)[:n].to(box.dtype), score.detach().to(box.dtype)
        return relevance[:n].to(box.dtype), read, score, predicted, len(weights)
