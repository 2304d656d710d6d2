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
from .methods import Method, Target, compute_map, resolve_target
from .similarity import MapSimilarity, map_similarity


@dataclass(frozen=True, eq=False)
class LabelRandomization(MapSimilarity):
    """How like (N,) the maps of a model that learned true labels are to those of one that learned shuffled ones."""

    true_maps: Tensor  # (N, ...) the maps of the first
    random_maps: Tensor  # (N, ...) of the second


def label_randomization(box: Box, random_box: Box, x: Any, method: Method, target: Target = None) -> LabelRandomization:
    """Compare a method's maps of x for a model (`box`) and for one alike that learned `shuffled` labels (`random`).

    The second must have learned them (Adebayo et al. train it to more than 95 % on its training data), or it is a
    randomized model and not a randomly taught one; `retrained` makes both. The target is the same for both: for None,
    the class that the first predicts. Raises InputError where the two take other inputs or have other classes.
    """
    if box.inputs.shape != random_box.inputs.shape or box.n_outputs != random_box.n_outputs:
        shapes, random_shapes = ((random_maps.inputs.shape, random_maps.n_outputs) for random_maps in (box, random_box))
        raise InputError(
            f"the models are not alike: inputs {shapes[0]} and "
            f"{random_shapes[0]}, {shapes[1]} and {random_shapes[1]} outputs"
        )
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    true_maps = compute_map(box, method, x, score, show_warnings=True)
    b = compute_map(random_box, method, x.to(random_box.device, random_box.dtype), _to_device(score, random_box)).to(
        true_maps.device
    )
    return LabelRandomization(**vars(map_similarity(true_maps, b)), true_maps=true_maps, random_maps=b)


def _to_device(target: Any, box: Box) -> Any:
    return target.to(box.device) if isinstance(target, Tensor) else target


def shuffle_labels(labels: Any, seed: int = 0) -> Tensor:
    """The same labels (N,) in another order, on the CPU: each class as often as before. Raises InputError."""
    y = as_classes(labels)
    if y.ndim != 1 or len(y) < 2:
        raise InputError(f"wanted the labels (N,) of two examples or more; got shape {tuple(y.shape)}")
    y = y.detach().cpu()
    return y[torch.randperm(len(y), generator=rng.step_generator(check_seed(seed), 0, torch.device("cpu")))]


def train_twice(fit: Callable[[Tensor], Box], labels: Any, *, seed: int = 0) -> tuple[Box, Box]:
    """Two models from the same training: `fit(labels)` and `fit(shuffled(labels))`, each a new box. Raises InputError.

    `fit` builds a model of the same start, trains it on its data with these labels (N,), and returns its box.
    """
    shuffled_labels = shuffle_labels(labels, seed)
    true_box, random_box = fit(as_classes(labels)), fit(shuffled_labels)
    for box in (true_box, random_box):
        if not isinstance(box, Box):
            raise InputError(f"fit returns a Box around the trained model; got {type(box).__name__}")
    if true_box.model is random_box.model:
        raise InputError("fit gave the same model twice: it must build a new one at each call")
    return true_box, random_box
