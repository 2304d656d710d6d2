"""How `feature`, `channels` and `caricature` optimize: canvas, transforms, and priors that serve every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..engine.optimize.colors import (
    Palette,
    is_data_mean_and_std_known,
    natural_palette,
    palette_from_images,
    pixel_mean_and_std,
)
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.loop import OptimizationConfig, optimize, retry_on_interrupt
from ..engine.optimize.parameterizations import (
    Canvas,
    FourierCanvas,
    PhaseCanvas,
    RawCanvas,
    mean_magnitude_spectrum,
    spectrum_frequencies,
)
from ..engine.optimize.transforms import Transform, random_affine, random_crop
from ..engine.read.sizes import require_images
from ..inputs.examples import input_batches, open_data
from ..model.batching import BatchSize
from ..objectives import Acts, Objective, color_distance, layer_objective, total_variation
from ..rng import normal
from ..validation import valid_seed
from .generated import GeneratedImages, single_layer_of_objective

MAX_STATISTICS_IMAGES = 1024  # images of `data` from which colors, spectrum and total variation are estimated
N_NOISE_IMAGES = 16  # random images from which the standard deviation of a score is estimated
DEFAULT_OPTIMIZATION_STEPS = 256
MAX_NATURAL_TOTAL_VARIATION = 0.22  # of natural images, at most: MNIST's and CIFAR's have .13 and .12
MAX_TOTAL_VARIATION_RATIO = 1.82  # times that of the data, where there are data
EXCESS_TOTAL_VARIATION_WEIGHT = 400.0  # of what exceeds it: so large that it is a bound
PALETTE_OVERSHOOT_FRACTION = 0.02  # of the range, so that units that respond to plain black or white get it
MEAN_COLOR_WEIGHT = 10.0  # weight of the squared distance from the data's mean color


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Statistics of natural images, or of the data, that optimized images are to have."""

    palette: Palette
    has_mean_color: bool  # whether the data's mean color is known
    max_total_variation: float  # what exceeds it is penalized
    data: Tensor | None  # (M, C, H, W)


def image_statistics(box: Box, data: Any) -> ImageStatistics:
    """Of `data` where given, else from the normalization. Raises InputError without pixels."""
    inputs = require_images(box, "feature visualization")
    if data is None:
        mean = pixel_mean_and_std(inputs)[0].to(box.device, box.dtype)
        return ImageStatistics(
            replace(natural_palette(mean), overshoot=PALETTE_OVERSHOOT_FRACTION),
            is_data_mean_and_std_known(inputs),
            MAX_NATURAL_TOTAL_VARIATION,
            None,
        )
    x = box.validate_inputs(next(input_batches(open_data(data, box.inputs), MAX_STATISTICS_IMAGES)))
    return ImageStatistics(
        replace(palette_from_images(x), overshoot=PALETTE_OVERSHOOT_FRACTION),
        True,
        MAX_TOTAL_VARIATION_RATIO * float(total_variation(kind="anisotropic")({"input": x}).mean()),
        x,
    )


@dataclass(frozen=True, eq=False)
class CanvasRecipe:
    """A canvas with its optimizer and transforms."""

    make_canvas: Callable[[Tensor, int, ImageStatistics], Canvas]  # (images of the wanted shape, seed, statistics)
    optimizer: Callable[..., torch.optim.Optimizer]
    transform: Transform
    uses_prior: bool = True
    constraint: Constraint = field(default_factory=Constraint)
    keeps_transparency: bool = False


def fourier_canvas(like: Tensor, seed: int, stats: ImageStatistics) -> Canvas:
    return FourierCanvas.noise(like, seed, stats.palette, sd=0.1)


def pixel_canvas(like: Tensor, seed: int, stats: ImageStatistics) -> Canvas:
    mean = stats.palette.mean.to(like).view(-1, 1, 1)
    return RawCanvas((mean + 0.05 * normal(like, seed)).clamp(0, 1))


def maco_phase_canvas(like: Tensor, seed: int, stats: ImageStatistics) -> Canvas:
    magnitude = (
        natural_magnitude_spectrum(like) if stats.data is None else mean_magnitude_spectrum(stats.data, stats.palette)
    )
    return PhaseCanvas.noise(like, seed, stats.palette, magnitude)


def natural_magnitude_spectrum(like: Tensor) -> Tensor:
    """The mean spectrum of natural images, (C, H, W // 2 + 1), with a standard deviation of 1 before the colors."""
    h, w = like.shape[-2:]
    magnitude = 1 / spectrum_frequencies(like)
    magnitude[0, 0] = 0  # the mean color is the palette's
    multiplicity = torch.full_like(magnitude, 2.0)  # half a spectrum is stored; some columns have no mirror image
    multiplicity[:, 0] = 1
    if w % 2 == 0:
        multiplicity[:, -1] = 1
    std: Tensor = (multiplicity * magnitude.pow(2)).sum().sqrt() / (h * w)  # Parseval
    return (magnitude / std).expand(like.shape[1], -1, -1)


CANVAS_RECIPE_BY_NAME = {
    "fourier": CanvasRecipe(fourier_canvas, partial(Adam, lr=0.2, eps=0.1), random_affine()),
    "pixels": CanvasRecipe(
        pixel_canvas, partial(Adam, lr=0.02), random_affine(), constraint=Constraint(project=lambda x, _: x.clamp(0, 1))
    ),
    "maco": CanvasRecipe(
        maco_phase_canvas,
        partial(Adam, lr=0.3, eps=0.01),
        random_crop(0.8, 1.0),
        uses_prior=False,
        keeps_transparency=True,
    ),
}
"""Adam's eps is a fraction of the score's standard deviation: coefficients with hardly any gradient hardly move.
MACO's crops are larger than the paper's .2 to .5, for images are as small as the model's inputs."""


@dataclass(frozen=True, eq=False)
class NoiseScoreStatistics:
    """The distribution of each row's score on random images."""

    scale: Tensor  # (N,) about its standard deviation; 1 where it is constant
    mean: Tensor  # (N,)
    is_constant: Tensor  # (N,) bool: all random images have the same score


def noise_score_statistics(
    box: Box, objective: Objective, n_rows: int, stats: ImageStatistics, batch_size: BatchSize
) -> NoiseScoreStatistics:
    """The scores of N_NOISE_IMAGES images of strong contrast, the same for all rows, so that the model runs once."""
    like = torch.zeros(N_NOISE_IMAGES, *box.inputs.shape, device=box.device, dtype=box.dtype)
    images = FourierCanvas.noise(like, -1, stats.palette, sd=1.0)().detach()
    acts = box.read(images, sorted(objective.layers), batch_size=batch_size)
    scores = torch.stack([_noise_scores_of_row_objective(objective, i, acts) for i in range(n_rows)], 1).to(
        box.dtype
    )  # (N_NOISE_IMAGES, N)
    mean = scores.mean(0)
    scale = torch.maximum(scores.std(0), (scores.amax(0) - mean) / 2)  # the latter where noise seldom excites a unit
    return NoiseScoreStatistics(torch.where(scale > 0, scale, 1.0), mean, scale <= 0)


def _noise_scores_of_row_objective(objective: Objective, row: int, acts: Acts) -> Tensor:
    any_activation = next(iter(acts.values()))
    return objective.rows(torch.full((N_NOISE_IMAGES,), row, device=any_activation.device))(acts)


@dataclass(frozen=True)
class SynthesisRunSettings:
    """The settings of a run that `feature`, `channels` and `caricature` share."""

    steps: int
    frame_every: int | None
    seed: int
    batch_size: BatchSize


def generate_images_and_find_dead_units(
    box: Box, objective: Objective, names: tuple[str, ...], stats: ImageStatistics, recipe: CanvasRecipe,
    run: SynthesisRunSettings, *, method: str, diversity_term: Objective | None = None,
) -> tuple[GeneratedImages, Tensor]:  # fmt: skip
    """The images, and which units (N,) are dead: their score is the same for random images and for the optimized one.

    The diversity term is weighted by the rise of the score above random images', so that one weight serves every unit.
    """
    n, seed = len(names), valid_seed(run.seed)
    with torch.inference_mode(False):  # what is made here takes part in gradients
        box.check_objective(objective, n)
        noise, interrupted = retry_on_interrupt(
            lambda: noise_score_statistics(box, objective, n, stats, run.batch_size)
        )
        maximized = _add_diversity_term(objective * (1 / noise.scale), diversity_term, noise.mean / noise.scale)
        config = _optimization_config(stats, recipe, 0 if interrupted else run.steps, run.frame_every, seed)
        like = torch.zeros(n, *box.inputs.shape, device=box.device, dtype=box.dtype)
        result = optimize(box, maximized, recipe.make_canvas(like, seed, stats), config, batch_size=run.batch_size)
    scores = result.score * noise.scale
    if diversity_term is not None:
        scores, again = retry_on_interrupt(lambda: _read_objective_score(box, objective, result.input, run.batch_size))
        interrupted |= again
    generated = GeneratedImages.from_result(
        result,
        box,
        scores=scores,
        history=result.history * noise.scale,
        interrupted=interrupted or result.interrupted,
        method=method,
        names=names,
        layer=single_layer_of_objective(objective),
    )
    return generated, noise.is_constant & (scores <= noise.mean)


def _optimization_config(
    stats: ImageStatistics, recipe: CanvasRecipe, steps: int, frame_every: int | None, seed: int
) -> OptimizationConfig:
    return OptimizationConfig(
        steps,
        recipe.optimizer,
        recipe.constraint,
        recipe.transform,
        anneal_lr=True,
        relu_bypass="all",
        frame_every=frame_every,
        seed=seed,
        prior=_natural_image_prior(stats) if recipe.uses_prior else None,
        sum_abs_grads=recipe.keeps_transparency,
    )


def _add_diversity_term(scaled_objective: Objective, diversity_term: Objective | None, noise_mean: Tensor) -> Objective:
    if diversity_term is None:
        return scaled_objective

    def score(acts: Acts) -> Tensor:
        base_score = scaled_objective(acts)
        return base_score + (base_score.detach() - noise_mean).clamp_min(0) * diversity_term(acts)

    name = f"{scaled_objective.name} and {diversity_term.name}"
    return Objective(
        score, scaled_objective.layers | diversity_term.layers, name, batch_dependent=True, n=scaled_objective.n
    )


def _natural_image_prior(stats: ImageStatistics) -> Objective:
    """A total variation as that of natural images at most, and the mean color of the data."""
    variation = total_variation(kind="anisotropic")

    def excess_total_variation(x: Tensor) -> Tensor:
        return (variation({"input": x}) - stats.max_total_variation).clamp_min(0)

    prior = -EXCESS_TOTAL_VARIATION_WEIGHT * layer_objective(
        "input", excess_total_variation, "total variation beyond that of natural images"
    )
    return prior - MEAN_COLOR_WEIGHT * color_distance(stats.palette.mean) if stats.has_mean_color else prior


def _read_objective_score(box: Box, objective: Objective, x: Tensor, batch_size: BatchSize) -> Tensor:
    return objective(box.read(x, sorted(objective.layers), batch_size=batch_size)).to(box.dtype)
