"""Objectives that compare activations: with a given one by distance, product or Gram matrix, and with each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Acts, Constant, Objective, as_float_activation, layer_objective
from .calls import remember_call

EPSILON = 1e-12


@remember_call
def match(layer: str, h: Tensor | Constant, *, relative: bool = False) -> Objective:
    """Minus the squared distance between an activation and a given one: feature inversion maximizes it.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        h: Activation to compare with, (N, ...) one per example or (1, ...) one for all.
        relative: Whether to divide by |h|^2, so that layers compare.

    Returns:
        An `Objective` on the layer, 0 where both are equal.

    Raises:
        InputError: when scored, for activations of another shape.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.match("fc1", torch.zeros(1, 4))({"fc1": torch.ones(2, 4)})
        tensor([-4., -4.])

    Source:
        Mahendran & Vedaldi 2015, "Understanding Deep Image Representations by Inverting Them", eq. 2; `relative` is its
        normalization.
    """

    def score(current: Tensor, h: Tensor) -> Tensor:
        distance = (current - h).flatten(1).pow(2).sum(1)
        return -distance / h.flatten(1).pow(2).sum(1).clamp_min(EPSILON) if relative else -distance

    return _objective_against_reference(
        lambda h: match(layer, h, relative=relative), layer, h, score, f"{layer} matched"
    )


@remember_call
def dot(layer: str, h: Tensor | Constant, *, power: float = 0.0) -> Objective:
    """The dot product of an activation and a given one, summed over channels and positions.

    It is unbounded: maximize it inside a norm ball, or with `power`. `cosine` is bounded.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        h: Activation to compare with, (N, ...) one per example or (1, ...) one for all.
        power: Exponent p of a factor max(0.1, cosine) ** p per position, which keeps the direction; 0 has none.

    Returns:
        An `Objective` on the layer.

    Raises:
        InputError: when scored, for activations of another shape.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.dot("fc1", torch.ones(1, 4))({"fc1": torch.ones(2, 4)})
        tensor([4., 4.])

    Source:
        Olah et al. 2017, "Feature Visualization", caricatures and activation grids (with `power`).
    """

    def score(current: Tensor, h: Tensor) -> Tensor:
        product = (current * h).sum(1)  # (N, ...), one per position
        if power:
            norms = current.norm(dim=1) * h.norm(dim=1)
            product = product * (product / norms.clamp_min(EPSILON)).clamp_min(0.1) ** power
        return product.flatten(1).sum(1) if product.ndim > 1 else product

    return _objective_against_reference(
        lambda h: dot(layer, h, power=power), layer, h, score, f"{layer} along an activation"
    )


@remember_call
def cosine(layer: str, h: Tensor | Constant) -> Objective:
    """The cosine between an activation and a given one, all channels and positions taken as one vector.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        h: Activation to compare with, (N, ...) one per example or (1, ...) one for all.

    Returns:
        An `Objective` on the layer, from -1 to 1.

    Raises:
        InputError: when scored, for activations of another shape.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.cosine("fc1", torch.ones(1, 4))({"fc1": -torch.ones(2, 4)})
        tensor([-1., -1.])
    """

    def score(current: Tensor, h: Tensor) -> Tensor:
        return torch.cosine_similarity(current.flatten(1), h.flatten(1), dim=1, eps=EPSILON)

    return _objective_against_reference(
        lambda h: cosine(layer, h), layer, h, score, f"{layer} in the direction of an activation"
    )


def gram_matrix(h: Tensor) -> Tensor:
    """The Gram matrix of an activation: for each two channels, the mean over positions of their product.

    Args:
        h: Activation (N, C, ...).

    Returns:
        Gram matrices (N, C, C).

    Example:
        >>> import torch
        >>> from unboxed.objectives import gram_matrix
        >>> gram_matrix(torch.ones(1, 2, 3, 3)).tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]

    Source:
        Gatys et al. 2015, "Texture Synthesis Using Convolutional Neural Networks", arXiv:1505.07376, eq. 1, as a mean.
    """
    f = h.flatten(2) if h.ndim > 2 else h[:, :, None]  # (N, C, M)
    return f @ f.mT / f.shape[2]


@remember_call
def style(layer: str, g: Tensor | Constant) -> Objective:
    """Minus the squared distance between Gram matrices, sum (G - g)^2 / (4 C^2): texture and style transfer.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        g: Gram matrices to match, from `gram_matrix`: (N, C, C) one per example or (1, C, C) one for all.

    Returns:
        An `Objective` on the layer, 0 where the textures are equal.

    Raises:
        InputError: when scored, for activations of another number of channels.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.style("conv1", torch.zeros(1, 2, 2))({"conv1": torch.ones(1, 2, 3, 3)})
        tensor([-0.2500])

    Source:
        Gatys et al. 2015, arXiv:1505.07376, eq. 3; Gram matrices are means over positions, so that images of different
        sizes compare.
    """

    def score(current: Tensor, g: Tensor) -> Tensor:
        return -(current - g).flatten(1).pow(2).sum(1) / (4 * g.shape[1] ** 2)

    return _objective_against_reference(lambda g: style(layer, g), layer, g, score, f"{layer} in texture", gram_matrix)


@remember_call
def diversity(layer: str, groups: Tensor | None = None) -> Objective:
    """Minus the mean cosine between the Gram matrices of an example and of the others: makes images differ.

    Its scores depend on one another, so that the batch is never split.

    Args:
        layer: Address of the layer, as `box.layers` lists them.
        groups: Group of each example (N,); only examples of one group are compared. None compares all.

    Returns:
        An `Objective` on the layer, from -1 to 1.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.diversity("conv1")({"conv1": torch.ones(2, 3, 4, 4)}).round(decimals=4)
        tensor([-1., -1.])

    Source:
        Olah et al. 2017, "Feature Visualization", appendix "Diversity".
    """

    group_labels = None if groups is None else Constant(groups)

    def score(acts: Acts) -> Tensor:
        flat = F.normalize(gram_matrix(as_float_activation(acts[layer], layer)).flatten(1), dim=1)
        cosines = flat @ flat.T  # (N, N)
        is_other = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
        if group_labels is not None:
            labels = group_labels.to_like(flat)
            is_other = is_other & (labels[:, None] == labels[None])
        return -(cosines * is_other).sum(1) / is_other.sum(1).clamp_min(1)

    return Objective(
        score, frozenset({layer}), f"{layer} diverse", batch_dependent=True, n=None if groups is None else len(groups)
    )


def _objective_against_reference(
    rebuild: Callable[[Constant], Objective],
    layer: str,
    h: Tensor | Constant,
    score: Callable[[Tensor, Tensor], Tensor],
    name: str,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """The objective `score(transform(current), h)`; `rebuild` makes it for other rows of h."""
    reference = Constant.wrap(h)
    shape = tuple(reference.value.shape)

    def score_against_reference(current: Tensor) -> Tensor:
        current = current if transform is None else transform(current)
        if shape[1:] != current.shape[1:] or shape[0] not in (1, len(current)):
            raise InputError(f"{layer} has shape {tuple(current.shape)}; the activation to match has {shape}")
        return score(current, reference.to_like(current))

    if len(reference) == 1:
        return layer_objective(layer, score_against_reference, name)
    return layer_objective(layer, score_against_reference, name, lambda i: rebuild(reference[i]), len(reference))
