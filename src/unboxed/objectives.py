"""Objectives: functions of activations that give one score an example, (N,).

Higher is better, always: the engine climbs, and `-objective` descends, so no objective carries a sign of its own.
`input`, `output` and `logits` name the two ends of the net. What an objective holds for each example (labels, a target
activation) follows `.rows(index)` when a batch is split or examples that are done leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

Acts = Mapping[str, Tensor]
Index = slice | Tensor
ENDS = frozenset({"input", "output", "logits"})


@dataclass(frozen=True)
class Objective:
    """An immutable score of activations; combine with + - * (numbers, (N,) tensors or objectives)."""

    score: Callable[[Acts], Tensor]
    layers: frozenset[str]
    name: str
    select: Callable[[Index], Objective] | None = None
    coupled: bool = False  # rows depend on one another: never split
    n: int | None = None  # how many examples it holds a row for; None: it is the same for all

    def __call__(self, acts: Acts) -> Tensor:
        return self.score(acts)

    def rows(self, index: Index) -> Objective:
        """The same objective for some of the examples."""
        return self if self.select is None else self.select(index)

    def fits(self, n: int) -> Objective:
        """This objective, if it goes with n examples. Raises InputError."""
        if self.n not in (None, n):
            raise InputError(f"{self.name} holds rows for {self.n} examples; there are {n}")
        return self

    def __add__(self, other: Objective | float) -> Objective:
        if not isinstance(other, Objective):
            return _shifted(self, other)
        return _both(self, other, lambda a, b: a + b, "+", lambda a, b: a + b)

    __radd__ = __add__

    def __sub__(self, other: Objective | float) -> Objective:
        return self + -other

    def __mul__(self, k: float | Tensor | Objective) -> Objective:
        if isinstance(k, Objective):
            return _both(self, k, lambda a, b: a * b, "*", lambda a, b: a * b)
        if isinstance(k, Tensor) and k.ndim == 1:
            return _weighted(self, k)
        label = f"{float(k):g} * ({self.name})" if float(k) != -1 else f"-({self.name})"
        select = None if self.select is None else (lambda i: self.rows(i) * k)
        return Objective(lambda acts: k * self(acts), self.layers, label, select, self.coupled, self.n)

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __repr__(self) -> str:
        return f"Objective({self.name})"


def _both(
    a: Objective, b: Objective, join: Callable[[Tensor, Tensor], Tensor], sign: str,
    again: Callable[[Objective, Objective], Objective],
) -> Objective:  # fmt: skip
    def select(i: Index) -> Objective:
        return again(a.rows(i), b.rows(i))

    per_row = None if a.select is None and b.select is None else select
    name = f"{a.name} {sign} {b.name}"
    n = a.n if b.n is None else b.fits(b.n if a.n is None else a.n).n
    return Objective(lambda acts: join(a(acts), b(acts)), a.layers | b.layers, name, per_row, a.coupled or b.coupled, n)


def _shifted(a: Objective, k: float) -> Objective:
    select = None if a.select is None else (lambda i: a.rows(i) + k)
    return Objective(lambda acts: a(acts) + k, a.layers, f"{a.name} {k:+g}", select, a.coupled, a.n)


def _weighted(a: Objective, k: Tensor) -> Objective:
    def score(acts: Acts) -> Tensor:
        h = a(acts)
        return held(k, h).to(h) * h

    n = a.fits(len(k)).n or len(k)
    return Objective(score, a.layers, f"k * ({a.name})", lambda i: _weighted(a.rows(i), k[i]), a.coupled, n)


def held(value: Tensor, like: Tensor) -> Tensor:
    """What an objective holds, beside an activation: on its device, and fit for a graph wherever it was made."""
    value = value.to(like.device)
    return value.clone() if value.is_inference() else value


def of(
    layer: str,
    score: Callable[[Tensor], Tensor],
    name: str,
    select: Callable[[Index], Objective] | None = None,
    n: int | None = None,
) -> Objective:
    """The objective that applies `score: (N, ...) -> (N,)` to one layer, in at least single precision."""

    def widened(acts: Acts) -> Tensor:
        h = acts[layer]
        return score(h.float() if h.dtype in (torch.bfloat16, torch.float16) else h)

    return Objective(widened, frozenset({layer}), name, select, n=n)


def logit(k: int | Tensor | None = None) -> Objective:
    """The pre-softmax value of class k: an int, one class an example (N,), or None for the predicted class."""
    return _class(k, "logit", lambda z: z)


def logprob(k: int | Tensor | None = None) -> Objective:
    """The log-probability of class k (as for `logit`)."""
    return _class(k, "logprob", lambda z: z.log_softmax(1))


def _class(k: int | Tensor | None, name: str, of_logits: Callable[[Tensor], Tensor]) -> Objective:
    def score(z: Tensor) -> Tensor:  # (N, K) or (N, K, ...): a map of outputs counts by its mean
        check_classes(k, len(z), z.shape[1])
        values = of_logits(z) if z.ndim == 2 else of_logits(z).flatten(2).mean(2)
        chosen = values.detach().argmax(1) if k is None else held(torch.as_tensor(k), z)
        picked = chosen.expand(len(z))
        return values.gather(1, picked[:, None])[:, 0]

    if isinstance(k, Tensor) and k.ndim:
        return of("logits", score, f"{name} of each example's class", lambda i: _class(k[i], name, of_logits), len(k))
    return of("logits", score, f"{name} of the predicted class" if k is None else f"{name} {int(k)}")


def as_classes(y: object) -> Tensor:
    """Class numbers as a tensor. Raises InputError for what is no number, or numbers that are not whole."""
    try:
        values = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"a class is an int, or (N,) ints one an example; got {type(y).__name__}") from error
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"a class is an int, or (N,) ints one an example; got {values.dtype}")
    return values


def check_classes(k: int | Tensor | None, n: int, classes: int) -> None:
    """Raise InputError unless k is a class, or one an example. Values on an accelerator are not waited for."""
    if k is None:
        return
    values = as_classes(k)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n):
        raise InputError(f"wanted one class, or one for each of {n} examples, shape ({n},); got {tuple(values.shape)}")
    if values.device.type == "cpu" and values.numel() and (int(values.min()) < 0 or int(values.max()) >= classes):
        least, most = int(values.min()), int(values.max())
        got = str(least) if least == most else f"{least} to {most}"
        raise InputError(f"the net has classes 0 to {classes - 1}; got {got}")


def channel(layer: str, k: int) -> Objective:
    """The mean of channel k of a layer over its positions (of unit k, for a layer without positions)."""
    return of(layer, lambda h: _unit(h, k, layer).flatten(1).mean(1), f"{layer} channel {k}")


def neuron(layer: str, k: int, *position: int) -> Objective:
    """One neuron: channel k at a position, by default the central one."""

    def score(h: Tensor) -> Tensor:
        at = position or tuple(s // 2 for s in h.shape[2:])
        if len(at) != h.ndim - 2 or any(not -s <= i < s for i, s in zip(at, h.shape[2:], strict=False)):
            raise InputError(f"{layer} has positions {tuple(h.shape[2:])}; {at} is none of them")
        h = _unit(h, k, layer)
        for i in at:
            h = h[:, i]
        return h

    return of(layer, score, f"{layer} channel {k} at {position or 'the center'}")


def _unit(h: Tensor, k: int, layer: str) -> Tensor:
    if h.ndim < 2 or not -h.shape[1] <= k < h.shape[1]:
        raise InputError(f"{layer} has {h.shape[1] if h.ndim > 1 else 0} channels; there is no number {k}")
    return h[:, k]


def direction(layer: str, v: Tensor) -> Objective:
    """The mean over positions of <h, v>: v has one value a channel (C,), or the layer's whole shape."""

    def score(h: Tensor) -> Tensor:
        w = held(v, h).to(h)
        if w.shape == h.shape[1:]:
            return (h * w).flatten(1).sum(1)
        if w.ndim != 1 or len(w) != h.shape[1]:
            raise InputError(
                f"{layer} gives {tuple(h.shape[1:])}; a direction has {h.shape[1]} values; got {tuple(v.shape)}"
            )
        return torch.einsum("nc...,c->n...", h, w).flatten(1).mean(1)

    return of(layer, score, f"{layer} along a direction")


def match(layer: str, h: Tensor) -> Objective:
    """Minus the squared distance to an activation h, (N, ...) one an example or (1, ...) one for all."""

    many = len(h) > 1

    def score(now: Tensor) -> Tensor:
        if h.shape[1:] != now.shape[1:] or len(h) not in (1, len(now)):
            raise InputError(f"{layer} gives {tuple(now.shape)}; the activation to match is {tuple(h.shape)}")
        return -(now - held(h, now).to(now)).flatten(1).pow(2).sum(1)

    return of(
        layer, score, f"{layer} matched", (lambda i: match(layer, h[i])) if many else None, len(h) if many else None
    )


def loss(y: int | Tensor) -> Objective:
    """The cross-entropy of each example under its label y: (N,), or one for all."""

    def score(z: Tensor, right: Tensor) -> Tensor:  # (N, K), (N,)
        return F.cross_entropy(z, right, reduction="none")

    return _of_labels(y, score, "loss")


def margin(y: int | Tensor) -> Objective:
    """The best wrong logit minus the right one: above zero once the example is taken for another class."""

    def score(z: Tensor, right: Tensor) -> Tensor:  # (N, K), (N,)
        own = right[:, None]
        return z.scatter(1, own, -float("inf")).amax(1) - z.gather(1, own)[:, 0]

    return _of_labels(y, score, "margin")


def _of_labels(y: int | Tensor, of_both: Callable[[Tensor, Tensor], Tensor], name: str) -> Objective:
    labels = as_classes(y)

    def score(z: Tensor) -> Tensor:
        check_classes(labels, len(z), z.shape[1])
        return of_both(z, held(labels, z).long().expand(len(z)))

    if labels.ndim == 0:
        return of("logits", score, name)
    return of("logits", score, name, lambda i: _of_labels(labels[i], of_both, name), len(labels))


def far_from_mean(mean: Tensor) -> Objective:
    """The squared distance of an image's mean color from a given one (C,), summed over channels."""
    return of("input", lambda x: (x.mean((2, 3)) - mean.to(x)).pow(2).sum(1), "distance from the mean color")


def roughness() -> Objective:
    """The total variation of an image, a channel's mean difference between neighbors; subtract it for smoothness."""

    def score(x: Tensor) -> Tensor:  # (N, C, H, W)
        across, down = x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
        return across.flatten(1).mean(1) + down.flatten(1).mean(1)

    return of("input", score, "roughness")
