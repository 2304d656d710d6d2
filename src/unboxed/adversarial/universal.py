"""Universal perturbations: one small change that fools the model on most images.

Discovered by Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations", arXiv:1610.08401; made by ascent on
many images at once, as in Shafahi et al. 2020, "Universal Adversarial Training", arXiv:1811.11304.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.column_units import categorical_mask, column_scales
from ..engine.optimize.constraints import Ball
from ..engine.read.examples import inputs_and_labels
from ..engine.results import ResultMixin
from ..inputs.base import constant_tensor
from ..inputs.labels import ClassLabels
from ..objectives import Objective
from ..parameters import BatchSize, CustomAttackObjective, Eps, InputBatch, Labels, Norm, Seed, Steps, StepSize
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import valid_seed
from .attack_ball import resolve_attack_ball
from .universal_objective import UniversalAttack, fooling_rate, make_attack_state_and_target_mask


@dataclass(frozen=True, repr=False, eq=False)
class Universal(ResultMixin):
    """One perturbation for many images."""

    returns: ClassVar[str] = "images"

    perturbation: Any  # (1, ...), within eps; a dict or tuple for models of several inputs
    target: int | None  # the class that images with it become; None: any but their own
    eps: float
    norm: str
    fooling_rates: Tensor  # (T,) fraction of the images of each step that it fooled
    objective: Objective | None = None
    interrupted: bool = False

    def summary_lines(self) -> Iterator[str]:
        rate = float(self.fooling_rates[-1])
        yield f"fools {rate:.1%} of the examples of its last step, {self.norm} distance {self.eps:.3g}"

    def apply_to(self, box: Box, x: Any) -> Any:
        """Inputs x (N, ...) plus the perturbation, clipped to the valid range."""
        return box.restore_structure(self._apply_to_packed(box, box.validate_inputs(x)))

    def _apply_to_packed(self, box: Box, x: Tensor) -> Tensor:
        changed = box.inputs.clip(x + box.inputs.pack(self.perturbation).to(x))
        categorical = categorical_mask(box.inputs)
        return changed if categorical is None else torch.where(categorical.to(x.device), x, changed)

    def fooling_rate(
        self, box: Box, x: Any, y: ClassLabels | None = None, *, batch_size: BatchSize = "auto"
    ) -> float:  # fmt: skip
        """The fooling rate: the fraction of inputs x (N, ...) that the perturbation makes the model misclassify.

        Not counted are inputs that are misclassified without it or, targeted, that are of the target's class. Measure
        it on inputs that the perturbation was not made from.

        Args:
            box: The model.
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
            y: Correct classes (N,), or one for all. None: those that come with x, else the model's own predictions.
            batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

        Raises:
            InputError: where no input counts.
        """
        x, y = inputs_and_labels(box, x, y)
        return fooling_rate(self, box, x, y, lambda sample_index: self._apply_to_packed(box, x), 1, batch_size)


@card(
    name="Universal perturbation",
    aliases=("universal_perturbation", "uap"),
    source="Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; by ascent, Shafahi et al. 2020, arXiv:1811.11304, "
    "section 4; the score's root in place of its clipping is ours",
    shows="One small change that changes the model's predictions of most inputs.",
    does_not_show="That it works on other kinds of inputs, or that there is none where this one fails.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=3),
    runs=lambda s: s["steps"],
    order=40,
    exempt={
        "row seeds": "one change is made for all images: its start belongs to no row",
        "partial results": "a step is one forward pass, so an interrupted run is a step further; see its own test",
    },
)
def universal(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: Norm = "linf",
    ball: Ball = None,
    target: Annotated[int | None, ValueRole("labels"), "Class that all images are to become."] = None,
    objective: CustomAttackObjective = None,
    steps: Steps = 300,
    step: StepSize = None,
    images_per_step: Annotated[int, AtLeast(1), Unit("images"), "Images that a step sees, drawn at random."] = 64,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Universal:
    """One perturbation within `eps` that fools the model on most of the images x.

    To show that a change need not fit the image. `Universal.fooling_rate` evaluates it on other images. Ctrl-C keeps
    what was reached. For a change of a small part of the image without a bound use `patch`; for one image use `pgd`.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None: those that come with x, else the model's own predictions.
        eps: Largest distance from x. In pixel range, 8/255 is eight gray levels; of a table, in standard deviations of
            its columns (see `Features`). Give this or `ball`.
        norm: Norm in which the distance from x is measured.
        ball: Norm ball to stay in, in place of eps and norm.
        target: Class that all images are to become. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        steps: Number of iterations.
        step: Length of a step, in the norm. Of the first step; it falls to zero along a cosine. None: eps / 5.
        images_per_step: Images that a step sees, drawn at random.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Universal`: `perturbation` (1, ...), and `fooling_rates` (T,) over the steps.

    Raises:
        InputError: for settings out of their range.
        OutputError: for a model without classes or without a gradient.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(64)
        >>> result = ub.adversarial.universal(box, x, y, eps=0.3, steps=20)
        >>> result.perturbation.shape
        torch.Size([1, 1, 28, 28])

    Source:
        Discovered by Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; by gradient ascent as in Shafahi et al. 2020,
        arXiv:1811.11304, section 4. Deviation: the fourth root of the loss is maximized in place of the clipped loss,
        so that few images that cannot be fooled weigh less than many that nearly are.
    """
    check_settings(universal, locals())
    ball = resolve_attack_ball(box, eps, norm, ball)
    first_step_size = ball.eps / 5 if step is None else step
    seed = valid_seed(seed)

    def apply_perturbation(delta: Tensor, images: Tensor, rows: Tensor, step_index: int) -> Tensor:
        return state.restore_categorical_values(state.box.inputs.clip(images + delta), rows)

    def ascend_step(delta: Tensor, grad: Tensor, step_factor: float) -> Tensor:
        return ball.project(
            delta + step_factor * first_step_size * ball.steepest_direction(grad), torch.zeros_like(delta)
        )

    with torch.inference_mode(False):  # the caller may be in it
        state, has_target_label = make_attack_state_and_target_mask(box, x, y, target, objective, ball, batch_size)
        initial_delta = ball.sample(torch.zeros_like(state.x[:1]), seed)
        delta, history = UniversalAttack(state, apply_perturbation, ascend_step, steps, images_per_step, seed).optimize(
            initial_delta, has_target_label
        )
    target_label = None if state.goal.target_labels is None else int(state.goal.target_labels[0])
    norm_name = type(ball).__name__.lower()
    if state.box is not box:
        delta = delta * constant_tensor(column_scales(box.inputs), delta)
    return Universal(
        box.restore_structure(delta), target_label, ball.eps, norm_name, history, objective, state.interrupted
    )
