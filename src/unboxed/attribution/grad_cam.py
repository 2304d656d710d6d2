"""Grad-CAM and Grad-CAM++: where a layer's activations raise a score.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
arXiv:1610.02391, equations 1 and 2. Chattopadhyay et al. 2018, "Grad-CAM++", arXiv:1710.11063.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.cams import cam
from ..objectives import logit
from ..parameters import BatchSize, InputBatch, LayerAddress, Target, Upsample
from ..settings import check_settings


def combine_by_mean_gradient(h: Tensor, g: Tensor) -> Tensor:
    """sum_k alpha_k A_k, where alpha_k is the mean gradient of channel k."""
    return weighted_channel_sum(h, g.mean((2, 3)))


def combine_by_higher_order_gradients(h: Tensor, g: Tensor) -> Tensor:
    """sum_k w_k A_k, w_k = sum_ij alpha_kij relu(g_kij), alpha = g^2 / (2 g^2 + g^3 sum_ab A_kab)."""
    denominator = 2 * g**2 + g**3 * h.sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, g**2 / torch.where(denominator != 0, denominator, 1), 0)
    return weighted_channel_sum(h, (alpha * g.clamp(min=0)).sum((2, 3)))


def weighted_channel_sum(h: Tensor, w: Tensor) -> Tensor:
    """sum_k w_k A_k, (N, h, w), of activations (N, C, h, w) and weights (N, C); bmm takes a third of einsum's time."""
    n, _, height, width = h.shape
    return torch.bmm(w[:, None], h.flatten(2)).view(n, height, width)


@card(
    name="Grad-CAM",
    source="Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2",
    shows="Where in the image the activations of the last layer with positions raise this score.",
    does_not_show="Details finer than a position of the layer, and what lowers the score: that is cut off.",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, -logit(y)),  # evidence against y: section 3.3
    order=2,
    first_choice=True,
)
def grad_cam(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    layer: LayerAddress = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """A coarse map of where the image raises the score, from a late layer's activations and their mean gradients.

    The usual first choice for image classifiers: cheap, and specific to the class. Take `layer_cam` for finer maps from
    earlier layers, `hires_cam` to keep what lowers the score, and `guided_grad_cam` for pixel detail.

    Args:
        box: The opened model; one of its inputs must be an image.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layer: Address of the layer, as `box.layers` lists them. None is the last one that all of the score
            passes through and that has more than one position, before pooling: after the last ReLU, residual sum or
            gate, whether a module or not. Tokens of a ViT are laid on their grid; of these it is the last layer in
            which other tokens than the class token influence the score.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        relu(sum_k alpha_k A_k) over the layer's channels A_k, where alpha_k is the mean of d score / d A_k over
        positions: (N, 1, H, W), or (N, 1, h, w) without `upsample`; 0 or more. `layer` is the address that was read.

    Raises:
        LayerError: where the layer has no positions, and where the last such layer is ambiguous: name one then.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.grad_cam(box, x, y)
        >>> tuple(a.shape), bool((a >= 0).all())
        ((2, 1, 28, 28), True)

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2.
    """
    check_settings(grad_cam, locals())
    return cam(
        box, x, target, layer, combine_by_mean_gradient, name="Grad-CAM", upsample=upsample, batch_size=batch_size
    )


@card(
    name="Grad-CAM++",
    source="Chattopadhyay et al. 2018, arXiv:1710.11063",
    shows="Where in the image the activations of the last layer with positions raise this score, also where several "
    "objects do.",
    does_not_show="What lowers the score; and its weights assume a ReLU model whose output is exp(score).",
    needs=("images",),
    example=lambda method, box, x, y: method(box, x, y),
)
def grad_cam_plus_plus(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    layer: LayerAddress = None,
    upsample: Upsample = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """Grad-CAM with weights from higher-order gradients, for images that show an object several times.

    Take `grad_cam` otherwise: its weights need no assumption about the model's output.

    Args:
        box: The opened model; one of its inputs must be an image.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        layer: Address of the layer, as `box.layers` lists them. None is the last one with positions, as in
            `grad_cam`.
        upsample: Enlarge the map to the size of the image (bilinear).
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        relu(sum_k w_k A_k) with w_k = sum_ij alpha_kij relu(d score / d A_kij): (N, 1, H, W), or (N, 1, h, w) without
        `upsample`; 0 or more.

    Raises:
        LayerError: as `grad_cam` does.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.grad_cam_plus_plus(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Chattopadhyay et al. 2018, arXiv:1710.11063. The paper takes Y = exp(score), so that
        the second and third derivatives of Y in A are exp(score) times powers of the score's gradient g, and
        alpha = g^2 / (2 g^2 + g^3 sum_ab A_ab), in which exp(score) cancels. Deviation: the factor exp(score) of the
        weights, which scales an example's map as one (and overflows), is left out: weights are of g itself. alpha is 0
        where g is 0.
    """
    check_settings(grad_cam_plus_plus, locals())
    return cam(
        box,
        x,
        target,
        layer,
        combine_by_higher_order_gradients,
        name="Grad-CAM++",
        upsample=upsample,
        batch_size=batch_size,
    )
