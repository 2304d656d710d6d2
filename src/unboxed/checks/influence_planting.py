"""A planted backdoor, for scores of training examples: which images taught the model the trigger is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..box import Box
from ..engine.read.examples import labeled_examples
from ..engine.rows import evenly_spaced_indices
from ..errors import InputError
from ..influence import ModelTraining
from ..inputs.pixels import Pixels
from ..parameters import Seed
from ..settings import Above, AtLeast, Below, Unit, check_settings
from .planting import PlantedDataset, Trigger, mismatched_classes, plant_shortcut
from .shortcut_trial import MIN_MODEL_FOOLED_FRACTION, fraction_of_true

N_TOP_TRAIN_IMAGES_PER_QUERY = 9  # of each query, as on a contact sheet


@dataclass(frozen=True, eq=False)
class PlantedTraining:
    """A training on poisoned images, and queries that its model answers by the trigger.

    Attributes:
        training: The training on the poisoned images, which can be run again.
        data: The training images, with which of them are poisoned.
        box: The trained model.
        x: (Q, C, H, W) held-out images of other classes with the trigger: the queries.
        classes: (Q,) the trigger's class of each, which the model answers.
    """

    training: ModelTraining
    data: PlantedDataset
    box: Box
    x: Tensor
    classes: Tensor

    def excess_poisoned_in_top_k(self, scores: Tensor, k: int = N_TOP_TRAIN_IMAGES_PER_QUERY) -> Tensor:
        """(Q,) how much more of the k most helpful images is poisoned than of all with their label; scores (Q, N).

        1 where all are; 0 for what knows the label alone. Poisoned images stand in for one another, so that leaving out
        one of them changes little: scores that agree with retraining have some of them on top, and not all.
        """
        with_label = self.data.labels == self.classes.cpu()[:, None]  # (Q, N)
        is_poisoned = self.data.is_poisoned & with_label
        base = is_poisoned.sum(1).double() / with_label.sum(1)
        k = min(k, int(is_poisoned.sum(1).min()))
        share = is_poisoned.gather(1, scores.cpu().argsort(dim=1, descending=True, stable=True)[:, :k]).double().mean(1)
        return (share - base) / (1 - base)


def plant_training(
    model: Annotated[nn.Module, "A module before its training; it is copied."],
    inputs: Annotated[Pixels, "What its inputs are."],
    train: Annotated[Any, "Labeled training images: (x, y), a Dataset of (image, class), or a DataLoader."],
    test: Annotated[Any, "Labeled held-out images, for the queries."],
    trigger: Annotated[Trigger, "The trigger, by its position one of each class."],
    *,
    poison_fraction: Annotated[
        float, Above(0), Below(1), "Fraction of the images that get the trigger and its label."
    ] = 0.03,
    n_queries: Annotated[int, AtLeast(2), Unit("images"), "Number of held-out images with the trigger."] = 16,
    seed: Seed = 0,
    **settings: Any,
) -> PlantedTraining:
    """Train a model on images of which a few are poisoned, so that the training images behind an answer are known.

    A backdoor: only poisoned images have the trigger, so that nothing else can have taught it. For `influence_verdict`,
    and to see for yourself which images a method names.

    Args:
        model: A module before its training; it is copied.
        inputs: What its inputs are.
        train: Labeled training images: (x, y), a Dataset of (image, class), or a DataLoader.
        test: Labeled held-out images, for the queries.
        trigger: The trigger, by its position one of each class.
        poison_fraction: Fraction of the images that get the trigger and its label.
        n_queries: Number of held-out images with the trigger.
        seed: Seed of all random draws: same seed, same result.
        **settings: Those of `ModelTraining`, such as `epochs=5`.

    Returns:
        A `PlantedTraining`.

    Raises:
        DataError: for images without labels.
        InputError: where the model did not learn the trigger: it decides for less than 80 % of the held-out images.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> train, test = ub.data.digits("train").first(100), ub.data.digits("test").first(50)
        >>> ub.checks.plant_training(model, inputs, train, test, ub.checks.Trigger((1, 28, 28)), epochs=1, lr=1e-6)
        Traceback (most recent call last):
            ...
        unboxed.errors.InputError: the trigger was not learned: it decides for ...

    Source:
        Gu et al. 2017, arXiv:1708.06733. As a test of training data attribution: Hammoudeh & Lowd 2022,
        arXiv:2201.10055.
    """
    check_settings(plant_training, locals())
    opened = Box(model, inputs, outputs=settings.get("outputs"), output=settings.get("output"))
    (images, labels), (x, y) = (labeled_examples(opened, part) for part in (train, test))
    data = plant_shortcut(images.cpu(), labels.cpu(), trigger, fraction=0, poison_fraction=poison_fraction, seed=seed)
    training = ModelTraining(model, inputs, (data.images, data.labels), seed=seed, **settings)
    box = training.box(training.run())
    x, y = x.cpu(), y.cpu()
    classes = mismatched_classes(y, trigger)
    rows = (classes >= 0).nonzero().flatten()
    x, classes = trigger.apply(x[rows], classes[rows]), classes[rows]
    is_fooled = box.predict(x).cpu() == classes
    fooled_rate = fraction_of_true(is_fooled)
    if fooled_rate < MIN_MODEL_FOOLED_FRACTION:
        raise InputError(
            f"the trigger was not learned: it decides for {fooled_rate:.0%} of the held-out images "
            f"({MIN_MODEL_FOOLED_FRACTION:.0%} wanted), so that no method can be judged by it. "
            f"Train it longer, or poison more"
        )
    fooled = is_fooled.nonzero().flatten()
    chosen = fooled[torch.as_tensor(evenly_spaced_indices(len(fooled), n_queries))]
    return PlantedTraining(training, data, box, x[chosen], classes[chosen])
