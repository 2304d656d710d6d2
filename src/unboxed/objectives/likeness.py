"""Objectives that compare activations: with a given one, by distance, product or texture, and with one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Acts, Held, Objective, of, wide
from .recorded import recorded

TINY = 1e-12


@recorded
def match(layer: str, h: Tensor | Held, *, relative: bool = False) -> Objective:
    """Minus the squared distance to an activation h, (N, ...) one an example or (1, ...) one for all.

    `relative`: divided by |h|^2 (Mahendran & Vedaldi 2015, eq. 2 with its normalization).
    """

    def score(now: Tensor, h: Tensor) -> Tensor:
        far = (now - h).flatten(1).pow(2).sum(1)
        return -far / h.flatten(1).pow(2).sum(1).clamp_min(TINY) if relative else -far

    return _beside(lambda h: match(layer, h, relative=relative), layer, h, score, f"{layer} matched")


@recorded
def dot(layer: str, h: Tensor | Held, *, power: float = 0.0) -> Objective:
    """<now, h>, summed over channels and positions; unbounded, so climb it inside a norm.

    `power` > 0 multiplies each position by max(.1, cosine) ** power, which keeps the direction (Olah et al. 2017's
    caricatures and activation grids).
    """

    def score(now: Tensor, h: Tensor) -> Tensor:
        product = (now * h).sum(1)  # (N, ...), a position each
        if power:
            sizes = now.norm(dim=1) * h.norm(dim=1)
            product = product * (product / sizes.clamp_min(TINY)).clamp_min(0.1) ** power
        return product.flatten(1).sum(1) if product.ndim > 1 else product

    return _beside(lambda h: dot(layer, h, power=power), layer, h, score, f"{layer} along an activation")


@recorded
def cosine(layer: str, h: Tensor | Held) -> Objective:
    """The cosine between the layer's whole activation and h."""

    def score(now: Tensor, h: Tensor) -> Tensor:
        return torch.cosine_similarity(now.flatten(1), h.flatten(1), dim=1, eps=TINY)

    return _beside(lambda h: cosine(layer, h), layer, h, score, f"{layer} in the direction of an activation")


def gram(h: Tensor) -> Tensor:
    """Which channels answer together, (N, C, C): the mean over positions of h h^T (Gatys et al. 2015, eq. 1)."""
    f = h.flatten(2) if h.ndim > 2 else h[:, :, None]  # (N, C, M)
    return f @ f.mT / f.shape[2]


@recorded
def style(layer: str, g: Tensor | Held) -> Objective:
    """Minus the texture's distance to that of Gram matrices g (N or 1, C, C): sum (G - g)^2 / (4 C^2).

    Gatys et al. 2015, arXiv:1505.07376, eq. 3; over positions as means, so that images of other sizes compare.
    """

    def score(now: Tensor, g: Tensor) -> Tensor:
        return -(now - g).flatten(1).pow(2).sum(1) / (4 * g.shape[1] ** 2)

    return _beside(lambda g: style(layer, g), layer, g, score, f"{layer} in texture", gram)


@recorded
def diversity(layer: str, groups: Tensor | None = None) -> Objective:
    """Minus the mean cosine of a row's Gram matrix to those of the other rows (of its group (N,), where given).

    Olah et al. 2017, appendix "Diversity". Couples rows.
    """

    kinds = None if groups is None else Held(groups)

    def score(acts: Acts) -> Tensor:
        flat = F.normalize(gram(wide(acts[layer], layer)).flatten(1), dim=1)
        alike = flat @ flat.T  # (N, N)
        other = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
        if kinds is not None:
            kind = kinds.beside(flat)
            other = other & (kind[:, None] == kind[None])
        return -(alike * other).sum(1) / other.sum(1).clamp_min(1)

    return Objective(
        score, frozenset({layer}), f"{layer} diverse", coupled=True, n=None if groups is None else len(groups)
    )


def _beside(
    remake: Callable[[Held], Objective],
    layer: str,
    h: Tensor | Held,
    score: Callable[[Tensor, Tensor], Tensor],
    name: str,
    made: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """The objective `score(made(now), h)`; h has a row an example, or one for all. `remake` is for other rows of h."""
    own = Held.of(h)
    shape = tuple(own.value.shape)

    def whole(now: Tensor) -> Tensor:
        now = now if made is None else made(now)
        if shape[1:] != now.shape[1:] or shape[0] not in (1, len(now)):
            raise InputError(f"{layer} gives {tuple(now.shape)}; the activation to match is {shape}")
        return score(now, own.beside(now))

    if len(own) == 1:
        return of(layer, whole, name)
    return of(layer, whole, name, lambda i: remake(own[i]), len(own))
