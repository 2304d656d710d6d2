"""Label randomization: does a map change when the model was trained on shuffled labels?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, the data randomization test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..errors import InputError
from ..objectives import to_class_tensor
from ..parameters import InputBatch, Seed, Target
from ..validation import valid_seed
from .methods import TestedMethod, compute_map, resolve_target
from .similarity import MapSimilarity, map_similarity

TrainingLabelsSetting = Annotated[Any, "Class labels (N,) of the training data."]


@dataclass(frozen=True, repr=False, eq=False)
class LabelRandomization(MapSimilarity):
    """How similar (N,) the maps of a model trained on true labels are to those of one trained on shuffled labels."""

    true_maps: Tensor  # (N, ...) of the model trained on true labels
    random_maps: Tensor  # (N, ...) of the model trained on shuffled labels


def label_randomization(
    box: Box, random_box: Box, x: InputBatch, method: TestedMethod, target: Target = None
) -> LabelRandomization:
    """Compare a method's maps of x for a model with those for one of the same architecture trained on shuffled labels.

    The data randomization test: a method whose maps are the same explains the data, not what was learned from it.
    `randomization` needs no second training. The second model must fit its training data (Adebayo et al. train it to
    more than 95 % accuracy); `train_twice` makes both.

    Args:
        box: The opened model, trained on true labels.
        random_box: The model of the same architecture trained on shuffled labels.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the class that the first model
            predicts; it is the same for both.

    Returns:
        A `LabelRandomization`: the four figures of `MapSimilarity` (N,), `true_maps` and `random_maps`.

    Raises:
        InputError: where the models have different inputs or numbers of outputs.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> other = ub.Box(*ub.zoo.load("digits-cnn", weights=None))  # for brevity not trained at all
        >>> x, y = ub.data.digits("test").first(4)
        >>> s = ub.checks.label_randomization(box, other, x, ub.attribution.gradient)
        >>> bool((s.signed.abs() < 0.5).all())
        True

    Source:
        Adebayo et al. 2018, arXiv:1810.03292, section 4.
    """
    check_same_inputs_and_outputs(box, random_box)
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    true_maps = compute_map(box, method, x, score, show_warnings=True)
    random_score = score.to(random_box.device) if isinstance(score, Tensor) else score
    random_maps = compute_map(random_box, method, x.to(random_box.device, random_box.dtype), random_score)
    random_maps = random_maps.to(true_maps.device)
    similarity = map_similarity(true_maps, random_maps)
    return LabelRandomization(**vars(similarity), true_maps=true_maps, random_maps=random_maps)


def check_same_inputs_and_outputs(box: Box, other: Box) -> None:
    """Raises InputError where the models have different inputs or numbers of outputs."""
    if box.inputs.shape != other.inputs.shape or box.n_outputs != other.n_outputs:
        raise InputError(
            f"the models must have the same inputs and outputs; got inputs {box.inputs.shape} and "
            f"{other.inputs.shape}, {box.n_outputs} and {other.n_outputs} outputs"
        )


def shuffle_labels(labels: TrainingLabelsSetting, seed: Seed = 0) -> Tensor:
    """The same labels in random order: each class is as frequent as before.

    Args:
        labels: Class labels (N,) of the training data.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Labels (N,) on the CPU.

    Raises:
        InputError: for fewer than two labels, or another shape.

    Example:
        >>> import unboxed as ub
        >>> sorted(ub.checks.shuffle_labels([0, 1, 1, 2, 2, 2]).tolist())
        [0, 1, 1, 2, 2, 2]
    """
    y = to_class_tensor(labels)
    if y.ndim != 1 or len(y) < 2:
        raise InputError(f"wanted the labels (N,) of two examples or more; got shape {tuple(y.shape)}")
    y = y.detach().cpu()
    return y[torch.randperm(len(y), generator=rng.step_generator(valid_seed(seed), 0, torch.device("cpu")))]


def train_twice(
    fit: Annotated[Callable[[Tensor], Box], "Function that builds a model, trains it on labels (N,), and opens it."],
    labels: TrainingLabelsSetting,
    *,
    seed: Seed = 0,
) -> tuple[Box, Box]:
    """Train two models in the same way, on true labels and on shuffled ones, for `label_randomization`.

    Args:
        fit: Function that builds a model, trains it on labels (N,), and opens it. Each call starts from a new model
            with the same initialization.
        labels: Class labels (N,) of the training data.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        The two boxes: `fit(labels)` and `fit(shuffle_labels(labels, seed))`.

    Raises:
        InputError: where `fit` does not return a new box each time.

    Example:
        >>> import torch, unboxed as ub
        >>> def fit(y):
        ...     model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        ...     return ub.Box(model, ub.Pixels((1, 28, 28)))  # a real one would train on its data and y
        >>> box, random_box = ub.checks.train_twice(fit, torch.tensor([3, 1, 4]))
        >>> box.model is random_box.model
        False
    """
    shuffled_labels = shuffle_labels(labels, seed)
    true_box, random_box = fit(to_class_tensor(labels)), fit(shuffled_labels)
    for box in (true_box, random_box):
        if not isinstance(box, Box):
            raise InputError(f"fit must return a Box of the trained model; got {type(box).__name__}")
    if true_box.model is random_box.model:
        raise InputError("fit returned the same model twice: it must build a new one at each call")
    return true_box, random_box
