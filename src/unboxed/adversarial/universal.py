"""Universal perturbations: one small change that fools the model on most images.

Found by Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations", arXiv:1610.08401; made by ascent on many
images at once, as in Shafahi et al. 2020, "Universal Adversarial Training", arXiv:1811.11304.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.optimize.constraints import NormBall, resolve_ball
from ..model.batching import BatchSize
from ..objectives import Objective
from ..validation import check_float
from .attack_state import check_eps_range
from .universal_objective import UniversalAttack, check_settings, fooling_rate, start_universal_attack


@dataclass(frozen=True, eq=False)
class Universal:
    perturbation: Any  # (1, ...), within eps; a dict or tuple for models of several inputs
    target: int | None  # the class that images with it become; None: any but their own
    eps: float
    norm: str
    fooling_rates: Tensor  # (T,) the share of each step's images that it fooled
    objective: Objective | None = None
    interrupted: bool = False

    def apply_to(self, box: Box, x: Any) -> Any:
        """Inputs x (N, ...) with the perturbation, inside the valid range."""
        return box.restore_structure(self._apply_packed(box, box.validate_inputs(x)))

    def _apply_packed(self, box: Box, x: Tensor) -> Tensor:
        return box.inputs.clip(x + _pack_perturbation(box, self.perturbation).to(x))

    def success(
        self, box: Box, x: Any, y: Tensor | int | None = None, *, batch_size: BatchSize = "auto"
    ) -> float:  # fmt: skip
        """The fooling rate: the share of inputs x whose answer leaves y (by default the model's own) for another.

        Those that the model gets wrong without it do not count, nor, targeted, those of the target's class. Raises
        InputError where none counts.
        """
        x = box.validate_inputs(x)
        return fooling_rate(self, box, x, y, lambda sample_index: self._apply_packed(box, x), 1, batch_size)


@card(
    name="Universal perturbation",
    source="Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; by ascent, Shafahi et al. 2020, arXiv:1811.11304, "
    "section 4; the score's root in place of its clipping is ours",
    shows="One change, hardly visible, that the model's answers to most inputs do not survive.",
    does_not_show="That it works on inputs of another kind, or that there is none where this one fails.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=3),
    exempt={
        "row seeds": "one change serves all images: the start is no row's",
        "partial results": "one step is one look, so what is kept is a step further; see the method's own test",
    },
)
def universal(
    box: Box,
    x: Tensor,
    y: Tensor | int | None = None,
    *,
    eps: float | None = None,
    norm: str = "linf",
    ball: NormBall | None = None,
    target: int | None = None,
    objective: Objective | None = None,
    steps: int = 300,
    step: float | None = None,
    images_per_step: int = 64,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Universal:
    """One change within `eps` that makes the model leave y (by default its own answers) for most of the images x.

    `target` is the class that all are to become. Each of the `steps` sees `sample` images; `step` is eps / 5 at first
    and falls to zero. Ctrl-C keeps what was reached. How good it is, other images say: `Universal.success`. Raises
    InputError, OutputError.
    """
    ball = check_eps_range(box, resolve_ball(eps, norm, ball))
    first_step_size = ball.eps / 5 if step is None else check_float("step", step, above=0)
    seed = check_settings(steps, first_step_size, images_per_step, seed)

    def apply_perturbation(delta: Tensor, images: Tensor, rows: Tensor, step_index: int) -> Tensor:
        return box.inputs.clip(images + delta)

    def ascend_step(delta: Tensor, grad: Tensor, step_factor: float) -> Tensor:
        return ball.project(
            delta + step_factor * first_step_size * ball.steepest_direction(grad), torch.zeros_like(delta)
        )

    with torch.inference_mode(False):  # the caller may be in it
        state, has_target_label = start_universal_attack(box, x, y, target, objective, ball, batch_size)
        initial_delta = ball.sample(torch.zeros_like(state.x[:1]), seed)
        delta, history = UniversalAttack(state, apply_perturbation, ascend_step, steps, images_per_step, seed).optimize(
            initial_delta, has_target_label
        )
    target_label = None if state.goal.target_labels is None else int(state.goal.target_labels[0])
    norm_name = type(ball).__name__.lower()
    return Universal(
        box.restore_structure(delta), target_label, ball.eps, norm_name, history, objective, state.interrupted
    )


def _pack_perturbation(box: Box, perturbation: Any) -> Tensor:
    return perturbation if isinstance(perturbation, Tensor) else box.inputs.pack(perturbation)  # type: ignore[attr-defined]
