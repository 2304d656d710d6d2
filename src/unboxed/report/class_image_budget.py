"""How many class images a model affords: fewer classes, starts and steps where each step costs much."""

from __future__ import annotations

from dataclasses import dataclass

from ..synthesis.class_image import CLASS_IMAGE_RECIPE_BY_NAME, RecipeName
from .blocks import Block, Caution
from .context import ReportContext

MAX_CLASS_IMAGE_FLOPS = 1.2e12  # of all images; a step takes three forward passes
N_STARTS_PER_CLASS = 3


@dataclass(frozen=True)
class ClassImagePlan:
    """Classes with images, starts of each, and the share of the usual steps of the images and of their controls."""

    n_classes: int
    n_starts: int
    step_share: float
    control_step_share: float

    def steps(self, recipe: RecipeName) -> int:
        share = self.step_share if recipe == "robust" else self.control_step_share
        return max(1, round(share * CLASS_IMAGE_RECIPE_BY_NAME[recipe].steps))

    @property
    def n_image_steps(self) -> int:
        """Steps of all images together."""
        starts = {recipe: self.n_starts if recipe == "robust" else 1 for recipe in CLASS_IMAGE_RECIPE_BY_NAME}
        return self.n_classes * sum(n * self.steps(recipe) for recipe, n in starts.items())

    @property
    def is_full(self) -> bool:
        return self == PLANS[0]


PLANS = (  # the fullest first
    ClassImagePlan(10, N_STARTS_PER_CLASS, 1.0, 1.0),
    ClassImagePlan(10, 2, 0.5, 0.5),
    ClassImagePlan(6, 2, 0.5, 0.5),
    ClassImagePlan(4, 2, 0.5, 0.5),
    ClassImagePlan(4, 2, 0.375, 0.375),
    ClassImagePlan(2, 1, 1.0, 0.25),  # few that show something: with a quarter of the steps none does
)


def affordable_class_image_plan(context: ReportContext) -> ClassImagePlan:
    """The fullest plan within MAX_CLASS_IMAGE_FLOPS, and the least where none is."""
    flops_per_image_step = 3 * context.forward_flops(1)
    fitting = (plan for plan in PLANS if plan.n_image_steps * flops_per_image_step <= MAX_CLASS_IMAGE_FLOPS)
    return next(fitting, PLANS[-1])


def reduced_plan_cautions(plan: ClassImagePlan) -> list[Block]:
    """What is left out on a large model, and the command that makes it."""
    if plan.is_full:
        return []
    share = plan.control_step_share
    text = f"To save time: fewer classes and starts, and {share:.0%} of the usual steps of the controls"
    of_images = f" ({plan.step_share:.0%} of the images)" if plan.step_share != share else " and of the images"
    return [Caution(f"{text}{of_images}. unboxed run class_image makes images of any class in full.")]
