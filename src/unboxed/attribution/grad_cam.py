"""Grad-CAM and Grad-CAM++: where a layer's maps speak for a score.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
arXiv:1610.02391, equations 1 and 2. Chattopadhyay et al. 2018, "Grad-CAM++", arXiv:1710.11063.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.cams import cam
from ..model.batching import BatchSize
from ..objectives import Objective, logit


def weigh_by_mean_gradient(h: Tensor, g: Tensor) -> Tensor:
    """sum_k alpha_k A_k, where alpha_k is the mean gradient of map k."""
    return weighted(h, g.mean((2, 3)))


def weigh_by_higher_orders(h: Tensor, g: Tensor) -> Tensor:
    """sum_k w_k A_k, w_k = sum_ij alpha_kij relu(g_kij), alpha = g^2 / (2 g^2 + g^3 sum_ab A_kab)."""
    denominator = 2 * g**2 + g**3 * h.sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)
    return weighted(h, (alpha * g.clamp(min=0)).sum((2, 3)))


def weighted(h: Tensor, w: Tensor) -> Tensor:
    """sum_k w_k A_k, (N, h, w), of maps (N, C, h, w) and weights (N, C): what einsum does, in a third of its time."""
    return torch.bmm(h.flatten(2).mT, w[:, :, None]).view(len(h), *h.shape[2:])


@card(
    name="Grad-CAM",
    source="Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2",
    shows="Where in the image the last maps of the model speak for this score.",
    does_not_show="Details smaller than a position of the layer, and what speaks against the score: that is cut off.",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, -logit(y)),  # what speaks against y: section 3.3
)
def grad_cam(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    layer: str | None = None,
    upsample: bool = True,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """relu(sum_k alpha_k A_k) over a layer's maps A_k, (N, 1, H, W), or (N, 1, h, w) without `upsample`; >= 0.

    alpha_k is the mean of d score / d A_k over its positions. `layer` is by default the last maps that all of the score
    passes through, of more than one position and not pooled ones: after the last ReLU, residual sum or gate, module or
    not. Tokens of a ViT are laid on their grid, the last of them that other tokens than the class's have a say in.
    Raises LayerError where a layer has no positions, and where the last maps can't be told: name one then.
    """
    return cam(box, x, target, layer, weigh_by_mean_gradient, name="Grad-CAM", upsample=upsample, batch_size=batch_size)


@card(
    name="Grad-CAM++",
    source="Chattopadhyay et al. 2018, arXiv:1710.11063",
    shows="Where the last maps of the model speak for this score, also where several places do.",
    does_not_show="What speaks against the score; and its weights hold for a ReLU model whose output is exp(score).",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, y),
)
def grad_cam_plus_plus(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    layer: str | None = None,
    upsample: bool = True,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """As `grad_cam`, with weights w_k = sum_ij alpha_kij relu(d score / d A_kij); (N, 1, H, W), >= 0.

    The paper takes Y = exp(score), so that the second and third derivatives of Y in A are exp(score) times powers of
    the score's own gradient g, and alpha = g^2 / (2 g^2 + sum_ab A_ab g^3), in which exp(score) cancels. The factor
    exp(score) that is left scales an example's whole map (and overflows): it is left out, so weights are of g itself.
    alpha is 0 where g is. Raises LayerError as `grad_cam` does.
    """
    return cam(
        box, x, target, layer, weigh_by_higher_orders, name="Grad-CAM++", upsample=upsample, batch_size=batch_size
    )
