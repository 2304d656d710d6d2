"""How this family draws an objective: canvas, transforms and priors in one recipe whose weights serve every model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from ..box import Box
from ..engine.optimize.ascent import Ascent, ascend, finished
from ..engine.optimize.colors import Palette, known, learned, natural, statistics
from ..engine.optimize.constraints import Constraint
from ..engine.optimize.parameterizations import Canvas, Fourier, Phase, Raw, frequencies, spectrum
from ..engine.optimize.transforms import Transform, crops, wobble
from ..engine.read.examples import batches
from ..engine.read.sizes import images_only
from ..errors import InputError
from ..model.batching import BatchSize
from ..objectives import Acts, Objective, color_distance, layer_objective, roughness
from ..rng import normal
from ..validation import check_seed
from .drawn import Drawn

SAMPLE = 1024  # images of `data` that colors, spectrum and roughness are learned from
RANDOM = 16  # random images that say how far a score spreads
STEPS = 256
ROUGHNESS = 0.22  # MNIST's and CIFAR's images have .13 and .12, a mean difference between neighbors
ROUGHER = 1.82  # times the data's roughness, where there are data
WEIGHT = 400.0  # of what exceeds it: so large that it is a bound
BEYOND = 0.02  # of the range, so that units that answer to plain black or white get it
COLOR = 10.0  # weight of the squared distance from the data's mean color


@dataclass(frozen=True, eq=False)
class Look:
    """What the drawings of one model should look like."""

    palette: Palette
    colored: bool  # whether the data's mean color is known
    roughest: float  # from where on roughness costs
    data: Tensor | None  # (M, C, H, W)


def look(box: Box, data: Any) -> Look:
    """From images of the model's kind where given, else from the normalization. Raises InputError without pixels."""
    inputs = images_only(box, "a drawing")
    if data is None:
        mean = statistics(inputs)[0].to(box.device, box.dtype)
        return Look(replace(natural(mean), beyond=BEYOND), known(inputs), ROUGHNESS, None)
    x = box.validate_inputs(next(batches(data, SAMPLE)))
    return Look(replace(learned(x), beyond=BEYOND), True, ROUGHER * float(roughness()({"input": x}).mean()), x)


@dataclass(frozen=True, eq=False)
class Way:
    """A canvas with what goes with it."""

    start: Callable[[Tensor, int, Look], Canvas]  # (images to be shaped like, seed, look)
    optimizer: Callable[..., torch.optim.Optimizer]
    transform: Transform
    priors: bool = True
    constraint: Constraint = field(default_factory=Constraint)
    transparent: bool = False


def fourier(like: Tensor, seed: int, look: Look) -> Canvas:
    return Fourier.noise(like, seed, look.palette, sd=0.1)


def pixels(like: Tensor, seed: int, look: Look) -> Canvas:
    mean = look.palette.mean.to(like).view(-1, 1, 1)
    return Raw((mean + 0.05 * normal(like, seed)).clamp(0, 1))


def maco(like: Tensor, seed: int, look: Look) -> Canvas:
    magnitude = one_over_f(like) if look.data is None else spectrum(look.data, look.palette)
    return Phase.noise(like, seed, look.palette, magnitude)


def one_over_f(like: Tensor) -> Tensor:
    """The mean spectrum of natural images, (C, H, W // 2 + 1), for a spread of 1 before the colors."""
    h, w = like.shape[-2:]
    magnitude = 1 / frequencies(like)
    magnitude[0, 0] = 0  # the mean color is the palette's
    both = torch.full_like(magnitude, 2.0)  # half a spectrum is stored, but for what is its own mirror image
    both[:, 0] = 1
    if w % 2 == 0:
        both[:, -1] = 1
    size: Tensor = (both * magnitude.pow(2)).sum().sqrt() / (h * w)  # Parseval
    return (magnitude / size).expand(like.shape[1], -1, -1)


WAYS = {
    "fourier": Way(fourier, partial(Adam, lr=0.2, eps=0.1), wobble()),
    "pixels": Way(pixels, partial(Adam, lr=0.02), wobble(), constraint=Constraint(project=lambda x, _: x.clamp(0, 1))),
    "maco": Way(maco, partial(Adam, lr=0.3, eps=0.01), crops(0.8, 1.0), priors=False, transparent=True),
}
"""Adam's eps is a part of the score's spread, so what has hardly any gradient hardly moves. MACO's crops are larger
than the paper's .2 to .5, for drawings are as small as the model's inputs."""


def way(canvas: str) -> Way:
    if not isinstance(canvas, str) or canvas not in WAYS:
        raise InputError(f"canvas is one of {', '.join(WAYS)}; got {canvas!r}")
    return WAYS[canvas]


@dataclass(frozen=True, eq=False)
class Spread:
    """How each row's score lies on random images."""

    unit: Tensor  # (N,) about its standard deviation; 1 where they all score the same
    mean: Tensor  # (N,)
    still: Tensor  # (N,) bool: they all score the same


def spread(box: Box, objective: Objective, n: int, look: Look, batch_size: BatchSize) -> Spread:
    """Of RANDOM images of strong contrast, the same for all rows, so the model runs on them once."""
    like = torch.zeros(RANDOM, *box.inputs.shape, device=box.device, dtype=box.dtype)
    images = Fourier.noise(like, -1, look.palette, sd=1.0)().detach()
    acts = box.read(images, sorted(objective.layers), batch_size=batch_size)
    scores = torch.stack([_row(objective, i, acts) for i in range(n)], 1).to(box.dtype)  # (RANDOM, N)
    mean = scores.mean(0)
    unit = torch.maximum(scores.std(0), (scores.amax(0) - mean) / 2)  # a unit that noise hardly excites spreads by that
    return Spread(torch.where(unit > 0, unit, 1.0), mean, unit <= 0)


def _row(objective: Objective, i: int, acts: Acts) -> Tensor:
    some = next(iter(acts.values()))
    return objective.rows(torch.full((RANDOM,), i, device=some.device))(acts)


def draw(
    box: Box, objective: Objective, n: int, look: Look, way: Way, *,
    steps: int, every: int | None, seed: int, batch_size: BatchSize, diverse: Objective | None = None,
) -> tuple[Drawn, Tensor]:  # fmt: skip
    """The drawings, and whose unit (N,) is dead: it gives the same for random images and for what was drawn."""
    seed = check_seed(seed)
    with torch.inference_mode(False):  # what is made here takes part in gradients
        box.check_objective(objective, n)
        found, stopped = finished(lambda: spread(box, objective, n, look, batch_size))
        goal = objective * (1 / found.unit)
        plan = Ascent(
            steps=0 if stopped else steps,
            optimizer=way.optimizer,
            constraint=way.constraint,
            transform=way.transform,
            anneal=True,
            unclamp="all",
            every=every,
            seed=seed,
            prior=_prior(look) if way.priors else None,
            sum_pulls=way.transparent,
        )
        like = torch.zeros(n, *box.inputs.shape, device=box.device, dtype=box.dtype)
        canvas = way.start(like, seed, look)
        climb = ascend(
            box,
            goal if diverse is None else _with(goal, diverse, found.mean / found.unit),
            canvas,
            plan,
            batch_size=batch_size,
        )
    score, history = climb.score * found.unit, climb.history * found.unit
    if diverse is not None:
        score, cut = finished(lambda: _score(box, objective, climb.input, batch_size))
        stopped |= cut
    interrupted = climb.interrupted or stopped
    drawn = replace(Drawn.of(climb), scores=score, history=history, interrupted=interrupted)
    return drawn, found.still & (score <= found.mean)


def _with(goal: Objective, diverse: Objective, mean: Tensor) -> Objective:
    """A term that weighs as much as the score has risen above random images', so that one weight serves every unit."""

    def score(acts: Acts) -> Tensor:
        own = goal(acts)
        return own + (own.detach() - mean).clamp_min(0) * diverse(acts)

    name = f"{goal.name} and {diverse.name}"
    return Objective(score, goal.layers | diverse.layers, name, batch_dependent=True, n=goal.n)


def _prior(look: Look) -> Objective:
    """Smooth as images are, and about as light."""
    rough = roughness()

    def excess(x: Tensor) -> Tensor:
        return (rough({"input": x}) - look.roughest).clamp_min(0)

    prior = -WEIGHT * layer_objective("input", excess, "rougher than images are")
    return prior - COLOR * color_distance(look.palette.mean) if look.colored else prior


def _score(box: Box, objective: Objective, x: Tensor, batch_size: BatchSize) -> Tensor:
    return objective(box.read(x, sorted(objective.layers), batch_size=batch_size)).to(box.dtype)
