"""Objectives at the model's outputs: classes, losses, margins."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Held, Objective, of
from .recorded import recorded

FEW = 8  # examples whose objectives are kept


@recorded
def logit(k: int | Tensor | Held | None = None) -> Objective:
    """The pre-softmax value of class k: an int, one class an example (N,), or None for the predicted class."""
    return _class(logit, k, "logit", lambda z: z)


@recorded
def logprob(k: int | Tensor | Held | None = None) -> Objective:
    """The log-probability of class k (as for `logit`)."""
    return _class(logprob, k, "logprob", lambda z: z.log_softmax(1))


def _class(
    remake: Callable[[Held], Objective], k: int | Tensor | Held | None, name: str, of_logits: Callable[[Tensor], Tensor]
) -> Objective:
    own = k if k is None else _labels(k)

    def score(z: Tensor) -> Tensor:  # (N, K) or (N, K, ...): a map of outputs counts by its mean
        values = pooled(of_logits(z))
        if own is None:
            return values.gather(1, values.detach().argmax(1, keepdim=True))[:, 0]
        _check(own, len(values), values.shape[1])
        least, most = own.span() or (0, 1)
        if least == most:  # one class for all rows: a view, and a cheap backward
            return values[:, least]
        return values.gather(1, own.beside(values).expand(len(values))[:, None])[:, 0]

    if own is not None and own.value.ndim:
        many = f"{name} of each example's class"
        return of("logits", score, many, lambda i: remake(own[i]), len(own))
    return of("logits", score, f"{name} of the predicted class" if own is None else f"{name} {int(own.value)}")


def pooled(z: Tensor) -> Tensor:
    """(N, K) of outputs (N, K, ...): a map of outputs counts by its mean."""
    return z if z.ndim == 2 else z.flatten(2).mean(2)


def _labels(y: object) -> Held:
    return y if isinstance(y, Held) else Held(as_classes(y).long())


def _right(labels: Held, z: Tensor) -> Tensor:
    """The class of each row (N,) of logits (N, K, ...). Raises InputError."""
    _check(labels, len(z), z.shape[1])
    return labels.beside(z).expand(len(z))


def as_classes(y: object, what: str = "a class") -> Tensor:
    """Class numbers as a tensor. Raises InputError for what is no number, or numbers that are not whole."""
    try:
        values = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is an int, or (N,) ints one an example; got {type(y).__name__}") from error
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{what} is an int, or (N,) ints one an example; got {values.dtype}")
    return values


def check_classes(k: int | Tensor | Held | None, n: int, classes: int) -> None:
    """Raise InputError unless k is a class, or one an example. Values on an accelerator are not waited for."""
    if k is not None:
        _check(_labels(k), n, classes)


def _check(k: Held, n: int, classes: int) -> None:
    shape = tuple(k.value.shape)
    if shape not in ((), (n,)):
        raise InputError(f"wanted one class, or one for each of {n} examples, shape ({n},); got {shape}")
    least, most = k.span() or (0, 0)
    if least < 0 or most >= classes:
        got = str(least) if least == most else f"{least} to {most}"
        raise InputError(f"the model has classes 0 to {classes - 1}; got {got}")


def class_logit(classes: Tensor, n: int, n_outputs: int, device: torch.device) -> Objective:
    """The logit of a class, or of one class an example (n,), held on a device. Raises InputError."""
    if classes.ndim == 1 and n <= FEW and classes.device.type == device.type == "cpu":
        return _few_logits(tuple(classes.tolist()), n, n_outputs)
    held = Held(classes)
    check_classes(held, n, n_outputs)
    if not classes.ndim:
        return logit(int(classes))
    with torch.inference_mode(False):
        return logit(held.moved(device, torch.long))


@lru_cache(maxsize=256)
def _few_logits(classes: tuple[int, ...], n: int, n_outputs: int) -> Objective:
    """Made once, as objectives never change: to make one takes longer than to look it up."""
    with torch.inference_mode(False):
        held = Held(torch.tensor(classes, dtype=torch.long))
        check_classes(held, n, n_outputs)
        return logit(held)


@recorded
def loss(y: int | Tensor | Held) -> Objective:
    """The cross-entropy of each example under its label y: (N,), or one for all."""

    def score(z: Tensor, right: Tensor) -> Tensor:  # (N, K), (N,)
        return F.cross_entropy(z, right, reduction="none")

    return _of_labels(loss, y, score, "loss")


@recorded
def margin(y: int | Tensor | Held) -> Objective:
    """The best wrong logit minus the right one: above zero once the example is taken for another class.

    Where both are exactly equal the answer is the first of them, and the margin the least number on its side of zero.
    """

    def score(z: Tensor, right: Tensor) -> Tensor:  # (N, K), (N,)
        own = right[:, None]
        ahead = z.scatter(1, own, -float("inf")).amax(1) - z.gather(1, own)[:, 0]
        equal = ahead.detach() == 0
        if z.device.type == "cpu" and not equal.any():  # as nearly always; an accelerator would wait
            return ahead
        side = (z.argmax(1) != right).to(z) * 2 - 1
        return ahead + equal * side * torch.finfo(z.dtype).tiny

    return _of_labels(margin, y, score, "margin")


@recorded
def dlr(y: int | Tensor | Held) -> Objective:
    """The difference of logits ratio: the margin over the gap between the largest and the third largest logit.

    It does not change when the logits are scaled. Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness
    with an Ensemble of Diverse Parameter-free Attacks", arXiv:2003.01690, eq. 6.
    """

    def score(z: Tensor, right: Tensor) -> Tensor:  # (N, K), (N,)
        own, top = right[:, None], _most(z, 3)
        return (z.scatter(1, own, -float("inf")).amax(1) - z.gather(1, own)[:, 0]) / _gap(top[:, 0] - top[:, 2])

    return _of_labels(dlr, y, score, "dlr")


@recorded
def targeted_dlr(y: Tensor | Held, target: Tensor | Held) -> Objective:
    """As `dlr`, from each class y (N,) to a target (N,): arXiv:2003.01690, eq. 7."""
    right, wanted = _labels(y), _labels(target)

    def score(z: Tensor) -> Tensor:  # (N, K)
        own, goal = (z.gather(1, k.beside(z)[:, None])[:, 0] for k in (right, wanted))
        top = _most(z, 4)
        return (goal - own) / _gap(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)

    return of("logits", score, "targeted dlr", lambda i: targeted_dlr(right[i], wanted[i]), len(right))


def _most(z: Tensor, k: int) -> Tensor:
    """The k largest logits (N, k). Raises InputError where there are fewer."""
    if z.shape[1] < k:
        raise InputError(
            f"the difference of logits ratio needs {k} classes, the model has {z.shape[1]}: use margin or ce"
        )
    return z.topk(k).values


def _gap(d: Tensor) -> Tensor:
    """What the margin is divided by; one, where the gap reaches down to masked classes and so says nothing of scale."""
    masked = d > torch.finfo(d.dtype).max ** 0.5  # logits of -inf, or of the type's least number
    return torch.where(masked, 1.0, d.clamp_min(1e-12))


def _of_labels(
    remake: Callable[[Held], Objective], y: object, of_both: Callable[[Tensor, Tensor], Tensor], name: str
) -> Objective:
    labels = _labels(y)

    def score(z: Tensor) -> Tensor:
        return of_both(z, _right(labels, z))

    if labels.value.ndim == 0:
        return of("logits", score, name)
    return of("logits", score, name, lambda i: remake(labels[i]), len(labels))
