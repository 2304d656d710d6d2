"""Label randomization: does a map change when the model has learned from labels that mean nothing?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, the data randomization test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..errors import InputError
from ..objectives import as_classes
from ..validation import check_seed
from .methods import Method, Target, drawn, fixed
from .similarity import Similarity, similarity


@dataclass(frozen=True, eq=False)
class Labels(Similarity):
    """How like (N,) the maps of a model that learned true labels are to those of one that learned shuffled ones."""

    true: Tensor  # (N, ...) the maps of the first
    random: Tensor  # (N, ...) of the second


def label_randomization(box: Box, random: Box, x: Any, method: Method, target: Target = None) -> Labels:
    """Compare a method's maps of x for a model (`box`) and for one alike that learned `shuffled` labels (`random`).

    The second must have learned them (Adebayo et al. train it to more than 95 % on its training data), or it is a
    randomized model and not a randomly taught one; `retrained` makes both. The target is the same for both: for None,
    the class that the first predicts. Raises InputError where the two take other inputs or have other classes.
    """
    if box.inputs.shape != random.inputs.shape or box.n_outputs != random.n_outputs:
        mine, its = ((b.inputs.shape, b.n_outputs) for b in (box, random))
        raise InputError(f"the models are not alike: inputs {mine[0]} and {its[0]}, {mine[1]} and {its[1]} outputs")
    x = box.accept(x)
    score = fixed(box, x, target)
    a = drawn(box, method, x, score, aloud=True)
    b = drawn(random, method, x.to(random.device, random.dtype), _moved(score, random)).to(a.device)
    return Labels(**vars(similarity(a, b)), true=a, random=b)


def _moved(target: Any, box: Box) -> Any:
    return target.to(box.device) if isinstance(target, Tensor) else target


def shuffled(labels: Any, seed: int = 0) -> Tensor:
    """The same labels (N,) in another order, on the CPU: each class as often as before. Raises InputError."""
    y = as_classes(labels)
    if y.ndim != 1 or len(y) < 2:
        raise InputError(f"wanted the labels (N,) of two examples or more; got shape {tuple(y.shape)}")
    y = y.detach().cpu()
    return y[torch.randperm(len(y), generator=rng.shared(check_seed(seed), 0, torch.device("cpu")))]


def retrained(fit: Callable[[Tensor], Box], labels: Any, *, seed: int = 0) -> tuple[Box, Box]:
    """Two models from the same training: `fit(labels)` and `fit(shuffled(labels))`, each a new box. Raises InputError.

    `fit` builds a model of the same start, trains it on its data with these labels (N,), and returns its box.
    """
    other = shuffled(labels, seed)
    true, random = fit(as_classes(labels)), fit(other)
    for found in (true, random):
        if not isinstance(found, Box):
            raise InputError(f"fit returns a Box around the trained model; got {type(found).__name__}")
    if true.model is random.model:
        raise InputError("fit gave the same model twice: it must build a new one at each call")
    return true, random
