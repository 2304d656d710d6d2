"""Objectives that compare activations: with a given one, by distance, product or texture, and with one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Acts, Constant, Objective, as_float, layer_objective
from .calls import remember_call

EPSILON = 1e-12


@remember_call
def match(layer: str, h: Tensor | Constant, *, relative: bool = False) -> Objective:
    """Minus the squared distance to an activation h, (N, ...) one an example or (1, ...) one for all.

    `relative`: divided by |h|^2 (Mahendran & Vedaldi 2015, eq. 2 with its normalization).
    """

    def score(current: Tensor, h: Tensor) -> Tensor:
        distance = (current - h).flatten(1).pow(2).sum(1)
        return -distance / h.flatten(1).pow(2).sum(1).clamp_min(EPSILON) if relative else -distance

    return _reference_objective(lambda h: match(layer, h, relative=relative), layer, h, score, f"{layer} matched")


@remember_call
def dot(layer: str, h: Tensor | Constant, *, power: float = 0.0) -> Objective:
    """<now, h>, summed over channels and positions; unbounded, so climb it inside a norm.

    `power` > 0 multiplies each position by max(.1, cosine) ** power, which keeps the direction (Olah et al. 2017's
    caricatures and activation grids).
    """

    def score(current: Tensor, h: Tensor) -> Tensor:
        product = (current * h).sum(1)  # (N, ...), a position each
        if power:
            norms = current.norm(dim=1) * h.norm(dim=1)
            product = product * (product / norms.clamp_min(EPSILON)).clamp_min(0.1) ** power
        return product.flatten(1).sum(1) if product.ndim > 1 else product

    return _reference_objective(lambda h: dot(layer, h, power=power), layer, h, score, f"{layer} along an activation")


@remember_call
def cosine(layer: str, h: Tensor | Constant) -> Objective:
    """The cosine between the layer's whole activation and h."""

    def score(current: Tensor, h: Tensor) -> Tensor:
        return torch.cosine_similarity(current.flatten(1), h.flatten(1), dim=1, eps=EPSILON)

    return _reference_objective(
        lambda h: cosine(layer, h), layer, h, score, f"{layer} in the direction of an activation"
    )


def gram(h: Tensor) -> Tensor:
    """Which channels answer together, (N, C, C): the mean over positions of h h^T (Gatys et al. 2015, eq. 1)."""
    f = h.flatten(2) if h.ndim > 2 else h[:, :, None]  # (N, C, M)
    return f @ f.mT / f.shape[2]


@remember_call
def style(layer: str, g: Tensor | Constant) -> Objective:
    """Minus the texture's distance to that of Gram matrices g (N or 1, C, C): sum (G - g)^2 / (4 C^2).

    Gatys et al. 2015, arXiv:1505.07376, eq. 3; over positions as means, so that images of other sizes compare.
    """

    def score(current: Tensor, g: Tensor) -> Tensor:
        return -(current - g).flatten(1).pow(2).sum(1) / (4 * g.shape[1] ** 2)

    return _reference_objective(lambda g: style(layer, g), layer, g, score, f"{layer} in texture", gram)


@remember_call
def diversity(layer: str, groups: Tensor | None = None) -> Objective:
    """Minus the mean cosine of a row's Gram matrix to those of the other rows (of its group (N,), where given).

    Olah et al. 2017, appendix "Diversity". Couples rows.
    """

    group_labels = None if groups is None else Constant(groups)

    def score(acts: Acts) -> Tensor:
        flat = F.normalize(gram(as_float(acts[layer], layer)).flatten(1), dim=1)
        cosines = flat @ flat.T  # (N, N)
        is_other = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
        if group_labels is not None:
            labels = group_labels.to_like(flat)
            is_other = is_other & (labels[:, None] == labels[None])
        return -(cosines * is_other).sum(1) / is_other.sum(1).clamp_min(1)

    return Objective(
        score, frozenset({layer}), f"{layer} diverse", batch_dependent=True, n=None if groups is None else len(groups)
    )


def _reference_objective(
    rebuild: Callable[[Constant], Objective],
    layer: str,
    h: Tensor | Constant,
    score: Callable[[Tensor, Tensor], Tensor],
    name: str,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """The objective `score(made(now), h)`; h has a row an example, or one for all. `remake` is for other rows of h."""
    reference = Constant.wrap(h)
    shape = tuple(reference.value.shape)

    def checked_score(current: Tensor) -> Tensor:
        current = current if transform is None else transform(current)
        if shape[1:] != current.shape[1:] or shape[0] not in (1, len(current)):
            raise InputError(f"{layer} gives {tuple(current.shape)}; the activation to match is {shape}")
        return score(current, reference.to_like(current))

    if len(reference) == 1:
        return layer_objective(layer, checked_score, name)
    return layer_objective(layer, checked_score, name, lambda i: rebuild(reference[i]), len(reference))
