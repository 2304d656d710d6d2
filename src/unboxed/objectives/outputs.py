"""Objectives at the model's outputs: classes, losses, margins."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .algebra import Constant, Objective, layer_objective
from .calls import remember_call

ClassScoreFn = Callable[[Any], Objective]  # `logit` or `binary_logit`

LABEL_ROWS_HINT = (
    "; of one-hot labels pass y.argmax(1); rows of yes and no are labels of a model opened with outputs='multilabel', "
    "in attacks and evaluations"
)
MAX_EXAMPLES_OF_CACHED_OBJECTIVE = 8  # examples: the objective of a larger batch of labels is not cached


@remember_call
def logit(k: int | Tensor | Constant | None = None) -> Objective:
    """The logit of a class: its pre-softmax value. The usual target of attribution and synthesis.

    Args:
        k: Class: an int, or one per example (N,). None is the class with the largest logit.

    Returns:
        An `Objective` on the logits; the mean over positions for a map of outputs (N, K, ...).

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.logit(3)({"logits": torch.arange(20.0).view(2, 10)})
        tensor([ 3., 13.])
        >>> ub.logit(3) - ub.logit(5)
        Objective(logit 3 - logit 5)
    """
    return _class_objective(logit, k, "logit", lambda z: z)


@remember_call
def logprob(k: int | Tensor | Constant | None = None) -> Objective:
    """The log-probability of a class: its log-softmax. Unlike `logit`, it also rises when other classes fall.

    Args:
        k: Class: an int, or one per example (N,). None is the class with the largest logit.

    Returns:
        An `Objective` on the logits; the mean over positions for a map of outputs (N, K, ...).

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.logprob(1)({"logits": torch.zeros(1, 2)})
        tensor([-0.6931])
    """
    return _class_objective(logprob, k, "logprob", lambda z: z.log_softmax(1))


@remember_call
def binary_logit(k: int | Tensor | Constant | None = None) -> Objective:
    """The logit of a class of a model of one yes/no logit z: z for class 1, -z for class 0. What ints mean there.

    A box reads z as two logits, (-z/2, z/2), whose softmax is the sigmoid of z; this undoes the half.

    Args:
        k: Class: 0 or 1, or one per example (N,). None is the predicted class.

    Returns:
        An `Objective` on the logits; the mean over positions for a map of outputs (N, 2, ...).

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch
        >>> from unboxed.objectives import binary_logit
        >>> binary_logit(0)({"logits": torch.tensor([[-1.5, 1.5]])})
        tensor([-3.])
    """
    return _class_objective(binary_logit, k, "logit", lambda z: 2 * z)


def _class_objective(
    rebuild: Callable[[Constant], Objective],
    k: int | Tensor | Constant | None,
    name: str,
    transform: Callable[[Tensor], Tensor],
) -> Objective:
    labels = k if k is None else _to_class_constant(k)

    def score(z: Tensor) -> Tensor:  # (N, K) or (N, K, ...)
        values = mean_over_positions(transform(z))
        if labels is None:
            return values.gather(1, values.detach().argmax(1, keepdim=True))[:, 0]
        n, n_classes = values.shape
        _check_class_range(labels, n, n_classes)
        lower, upper = labels.value_range() or (0, 1)
        if lower == upper:  # one class for all rows: a view, and a cheap backward
            return values[:, lower]
        return values.gather(1, labels.to_like(values).expand(n)[:, None])[:, 0]

    if labels is not None and labels.value.ndim:
        per_example_name = f"{name} of each example's class"
        return layer_objective("logits", score, per_example_name, lambda i: rebuild(labels[i]), len(labels))
    return layer_objective(
        "logits", score, f"{name} of the predicted class" if labels is None else f"{name} {int(labels.value)}"
    )


def mean_over_positions(z: Tensor) -> Tensor:
    """(N, K) of outputs (N, K, ...): the mean over the positions of an output map."""
    return z if z.ndim == 2 else z.flatten(2).mean(2)


def _to_class_constant(y: object) -> Constant:
    return y if isinstance(y, Constant) else Constant(to_class_tensor(y).long())


def _broadcast_labels(labels: Constant, z: Tensor) -> Tensor:
    """The class of each row (N,) of logits (N, K, ...). Raises InputError."""
    n, n_classes = z.shape[:2]
    _check_class_range(labels, n, n_classes)
    classes = labels.to_like(z)
    return classes if classes.ndim else classes.expand(n)


def to_class_tensor(y: object, what: str = "a class") -> Tensor:
    """Class numbers as a tensor. Raises InputError for anything but integers."""
    try:
        values = y if isinstance(y, Tensor) else torch.as_tensor(y.copy() if isinstance(y, np.ndarray) else y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be an int, or one int per example (N,); got {reprlib.repr(y)}") from error
    if not values.numel():
        raise InputError(f"{what} must be an int, or one int per example (N,); got none")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        got = str(values.dtype) if values.ndim else f"{reprlib.repr(y)} ({values.dtype})"
        raise InputError(f"{what} must be an int, or one int per example (N,); got {got}{_class_type_hint(values)}")
    return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def _class_type_hint(values: Tensor) -> str:
    if values.ndim == 2:
        return LABEL_ROWS_HINT
    if values.is_floating_point() and values.isnan().any():
        return "; leave examples without a class (NaN) out"
    return "; if these are whole numbers, pass them as ints" if values.is_floating_point() and values.ndim < 2 else ""


def check_classes(k: int | Tensor | Constant | None, n: int, n_classes: int) -> None:
    """Raise InputError unless k is a class, or one per example. Values on an accelerator are not checked."""
    if k is not None:
        _check_class_range(_to_class_constant(k), n, n_classes)


def _check_class_range(k: Constant, n: int, n_classes: int) -> None:
    shape = tuple(k.value.shape)
    if shape not in ((), (n,)):
        hint = LABEL_ROWS_HINT if shape == (n, n_classes) else ""
        raise InputError(f"a class must be one int, or one for each of {n} examples, shape ({n},); got {shape}{hint}")
    lower, upper = k.value_range() or (0, 0)
    if lower < 0 or upper >= n_classes:
        got = str(lower) if lower == upper else f"{lower} to {upper}"
        hint = "; leave examples without a class (-1) out" if lower == -1 and shape else ""
        if (lower, upper, n_classes) == (-1, 1, 2) and not bool((k.value == 0).any()):
            hint = "; use 0 and 1 for the two classes, (y + 1) / 2"
        raise InputError(f"{class_numbers_text(n_classes)}; got {got}{hint}")


def class_numbers_text(n_classes: int) -> str:
    """The class numbers of a model in words, for error texts."""
    return f"the model has classes 0 to {n_classes - 1}" if n_classes > 1 else "the model has one output, 0"


def class_logit(
    classes: Tensor, n: int, n_outputs: int, device: torch.device, score: ClassScoreFn = logit
) -> Objective:
    """The logit of a class, or of one class per example (n,), stored on a device. Raises InputError."""
    if classes.ndim == 1 and n <= MAX_EXAMPLES_OF_CACHED_OBJECTIVE and classes.is_cpu and device == classes.device:
        return _cached_class_logit(tuple(classes.tolist()), n, n_outputs, score)
    labels = Constant(classes)
    check_classes(labels, n, n_outputs)
    if not classes.ndim:
        return score(int(classes))
    with torch.inference_mode(False):
        return score(labels.copy_on_device(device, torch.long))


@lru_cache(maxsize=256)
def _cached_class_logit(classes: tuple[int, ...], n: int, n_outputs: int, score: ClassScoreFn) -> Objective:
    """Cached, as objectives are immutable: making one takes longer than the lookup."""
    with torch.inference_mode(False):
        labels = Constant(torch.tensor(classes, dtype=torch.long))
        check_classes(labels, n, n_outputs)
        return score(labels)


@remember_call
def loss(y: int | Tensor | Constant) -> Objective:
    """The cross-entropy loss of each example. Maximize it to attack; `-loss(y)` makes the class likelier.

    Args:
        y: Correct classes (N,), or one for all.

    Returns:
        An `Objective` on the logits.

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.loss(1)({"logits": torch.zeros(1, 2)})
        tensor([0.6931])
    """

    def score(z: Tensor, labels: Tensor) -> Tensor:  # (N, K), (N,)
        return F.cross_entropy(z, labels, reduction="none")

    return _label_objective(loss, y, score, "loss")


@remember_call
def margin(y: int | Tensor | Constant) -> Objective:
    """The largest other logit minus the logit of the correct class: above zero once an example is misclassified.

    Where both are equal, the prediction is the first of them, and the margin is the smallest positive or negative
    number accordingly, so that its sign always agrees with `box.predict`.

    Args:
        y: Correct classes (N,), or one for all.

    Returns:
        An `Objective` on the logits.

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch, unboxed as ub
        >>> ub.margin(0)({"logits": torch.tensor([[3.0, 1.0, 2.0]])})
        tensor([-1.])

    Source:
        Carlini & Wagner 2017, arXiv:1608.04644, f6 without its floor at -kappa.
    """

    def score(z: Tensor, labels: Tensor) -> Tensor:  # (N, K), (N,)
        index = labels[:, None]
        difference = z.scatter(1, index, -float("inf")).amax(1) - z.gather(1, index)[:, 0]
        if z.device.type == "cpu" and difference.all():  # no ties, as is usual; on an accelerator it would wait
            return difference
        equal = difference.detach() == 0
        tie_sign = (z.argmax(1) != labels).to(z) * 2 - 1
        return difference + equal * tie_sign * torch.finfo(z.dtype).tiny

    return _label_objective(margin, y, score, "margin")


@remember_call
def log_odds(y: int | Tensor | Constant) -> Objective:
    """The log-odds of a class against all others: its logit minus the log-sum-exp of the others.

    It grows with the probability and does not saturate as that does: 0 at a probability of one half.

    Args:
        y: Classes (N,), or one for all.

    Returns:
        An `Objective` on the logits, of their mean over positions for a map of outputs (N, K, ...).

    Raises:
        InputError: for what is no class number, and when scored, for a class that the model does not have.

    Example:
        >>> import torch
        >>> from unboxed.objectives import log_odds
        >>> log_odds(0)({"logits": torch.tensor([[1.0, 1.0], [3.0, 1.0]])})
        tensor([0., 2.])
    """

    def score(z: Tensor, labels: Tensor) -> Tensor:  # (N, K) or (N, K, ...), (N,)
        z, index = mean_over_positions(z), labels[:, None]
        return z.gather(1, index)[:, 0] - z.scatter(1, index, -float("inf")).logsumexp(1)

    return _label_objective(log_odds, y, score, "log-odds")


@remember_call
def dlr(y: int | Tensor | Constant) -> Objective:
    """The difference of logits ratio: the margin divided by the largest minus the third largest logit.

    Scaling the logits does not change it, so that its gradient does not vanish where a model is over-confident.

    Args:
        y: Correct classes (N,), or one for all.

    Returns:
        An `Objective` on the logits.

    Raises:
        InputError: when scored, for fewer than 3 classes.

    Example:
        >>> import torch
        >>> from unboxed.objectives import dlr
        >>> dlr(0)({"logits": torch.tensor([[3.0, 1.0, 2.0]])})
        tensor([-0.5000])

    Source:
        Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", arXiv:2003.01690, eq. 6.
    """

    def score(z: Tensor, labels: Tensor) -> Tensor:  # (N, K), (N,)
        index, top = labels[:, None], _top_logits(z, 3)
        return (z.scatter(1, index, -float("inf")).amax(1) - z.gather(1, index)[:, 0]) / _dlr_divisor(
            top[:, 0] - top[:, 2]
        )

    return _label_objective(dlr, y, score, "dlr")


@remember_call
def targeted_dlr(y: Tensor | Constant, target: Tensor | Constant) -> Objective:
    """The targeted difference of logits ratio, as `dlr` but towards one class.

    Args:
        y: Correct classes (N,).
        target: Class to become (N,).

    Returns:
        An `Objective` on the logits.

    Raises:
        InputError: when scored, for fewer than 4 classes.

    Example:
        >>> import torch
        >>> from unboxed.objectives import targeted_dlr
        >>> score = targeted_dlr(torch.tensor([0]), torch.tensor([2]))
        >>> score({"logits": torch.tensor([[3.0, 1.0, 2.0, 0.0]])})
        tensor([-0.4000])

    Source:
        Croce & Hein 2020, arXiv:2003.01690, eq. 7.
    """
    labels, targets = _to_class_constant(y), _to_class_constant(target)

    def score(z: Tensor) -> Tensor:  # (N, K)
        label_logits, target_logits = (z.gather(1, k.to_like(z)[:, None])[:, 0] for k in (labels, targets))
        top = _top_logits(z, 4)
        return (target_logits - label_logits) / _dlr_divisor(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)

    return layer_objective("logits", score, "targeted dlr", lambda i: targeted_dlr(labels[i], targets[i]), len(labels))


def _top_logits(z: Tensor, k: int) -> Tensor:
    """The k largest logits (N, k). Raises InputError where there are fewer."""
    if z.shape[1] < k:
        raise InputError(
            f"the difference of logits ratio needs {k} classes, the model has {z.shape[1]}: use margin or loss"
        )
    return z.topk(k).values


def _dlr_divisor(d: Tensor) -> Tensor:
    """The divisor of the margin; 1 where it contains masked classes, and so does not measure the logits' scale."""
    is_masked = d > torch.finfo(d.dtype).max ** 0.5  # logits of -inf, or of the dtype's minimum
    return torch.where(is_masked, 1.0, d.clamp_min(1e-12))


def _label_objective(
    rebuild: Callable[[Constant], Objective], y: object, score_fn: Callable[[Tensor, Tensor], Tensor], name: str
) -> Objective:
    labels = _to_class_constant(y)

    def score(z: Tensor) -> Tensor:
        return score_fn(z, _broadcast_labels(labels, z))

    if labels.value.ndim == 0:
        return layer_objective("logits", score, name)
    return layer_objective("logits", score, name, lambda i: rebuild(labels[i]), len(labels))
