"""MAP-Elites: one archive with the best image of each class, bred by mutation alone.

Mouret & Clune 2015, arXiv:1504.04909, as Nguyen et al. 2015, arXiv:1412.1897, section 2.2, use it: an image made from
one class's elite takes the place of any class's elite that the model is less sure of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..engine.optimize.colors import Palette
from ..engine.optimize.generators import CPPN
from ..model.batching import BatchSize
from ..rng import step_generator

Shape = tuple[int, ...]


class Encoding(ABC):
    """How a genome (N, D) becomes images, and how it mutates."""

    @abstractmethod
    def first(self, n: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """Genomes (n, D) to begin with."""

    @abstractmethod
    def images(self, genomes: Tensor, shape: Shape) -> Tensor:
        """(N, C, H, W) in [0, 1]."""

    @abstractmethod
    def mutated(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor: ...


class Direct(Encoding):
    """A gene a pixel: each is mutated with a chance of 10 %, halved every 1,000 generations, by polynomial mutation."""

    chance, half_life, eta = 0.1, 1000, 15.0

    def first(self, n: int, shape: Shape, generator: torch.Generator) -> Tensor:
        return _uniform((n, torch.Size(shape).numel()), generator)

    def images(self, genomes: Tensor, shape: Shape) -> Tensor:
        return genomes.view(-1, *shape)

    def mutated(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        chance = self.chance * 0.5 ** (generation // self.half_life)
        hit, u = (_uniform(tuple(genomes.shape), generator) for _ in range(2))
        return torch.where(hit < chance, (genomes + polynomial(u, self.eta)).clamp(0, 1), genomes)


class Painted(Encoding):
    """A gene a weight of a small model from a pixel's place to its color: each moves a little, with a chance of 10
    %."""

    chance, width, depth, spread, move = 0.1, 8, 4, 1.0, 0.5

    def first(self, n: int, shape: Shape, generator: torch.Generator) -> Tensor:
        sizes = self._sizes(shape)
        scale = torch.cat([torch.full((a * b,), self.spread / a**0.5) for a, b in sizes]).to(generator.device).double()
        scale = torch.cat([scale, torch.full_like(scale[: sum(b for _, b in sizes)], self.spread)])
        return _normal((n, len(scale)), generator) * scale

    def images(self, genomes: Tensor, shape: Shape) -> Tensor:
        sizes = self._sizes(shape)
        weights, biases = [a * b for a, b in sizes], [b for _, b in sizes]
        genes = torch.split_with_sizes(genomes, weights + biases, 1)
        w = [g.view(-1, a, b) for g, (a, b) in zip(genes, sizes, strict=False)]
        b = [g[:, None] for g in genes[len(sizes) :]]
        palette = Palette(genomes.new_full((shape[0],), 0.5), overshoot=0.02)
        painted: Tensor = CPPN(w, b, (shape[1], shape[2]), palette)()
        return painted.detach()

    def mutated(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        hit = _uniform(tuple(genomes.shape), generator) < self.chance
        return genomes + hit * self.move * _normal(tuple(genomes.shape), generator)

    def _sizes(self, shape: Shape) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer; a layer's bends are odd and even, so the next has twice as many inputs."""
        return [(2, self.width), *[(2 * self.width, self.width)] * (self.depth - 1), (2 * self.width, shape[0])]


ENCODINGS: dict[str, Encoding] = {"evolution": Direct(), "cppn": Painted()}


def polynomial(u: Tensor, eta: float) -> Tensor:
    """The polynomial mutation of Deb & Agrawal 1999, from u in [0, 1): between -1 and 1, small where eta is large."""
    low = (2 * u) ** (1 / (eta + 1)) - 1
    high = 1 - (2 * (1 - u)) ** (1 / (eta + 1))
    return torch.where(u < 0.5, low, high)


@dataclass(frozen=True, eq=False)
class Evolved:
    images: Tensor  # (K, C, H, W)
    fitness: Tensor  # (K,) log-probability of each one's class
    history: Tensor  # (T, K)
    evaluated: int
    interrupted: bool


@dataclass
class _Archive:
    """The best genome (K, D) of each class and what the model says of it."""

    genomes: Tensor
    fitness: Tensor  # (K,)

    def challenge(self, genomes: Tensor, fitness: Tensor) -> None:
        """Each child (n,) stands against the elite of every class, fitness (n, K)."""
        best = fitness.max(0)
        better = best.values > self.fitness
        self.genomes = torch.where(better[:, None], genomes[best.indices], self.genomes)
        self.fitness = torch.where(better, best.values, self.fitness)


def evolve(
    box: Box, goal: Tensor, encoding: Encoding, sure: float, generations: int, children: int, seed: int,
    batch_size: BatchSize,
) -> Evolved:  # fmt: skip
    """Elites of the classes `goal` (K,), until the model is `sure` of all of them. On Ctrl-C, those found so far."""
    shape, enough = box.inputs.shape, torch.tensor(sure).log().item()

    def scores(genomes: Tensor) -> Tensor:  # (n, K)
        logits = box(encoding.images(genomes, shape).to(box.dtype), batch_size=batch_size)
        return (F.logsigmoid(logits) if box.outputs == "multilabel" else logits.log_softmax(1))[:, goal]

    born = encoding.first(max(children, len(goal)), shape, step_generator(seed, 0, box.device))
    archive = _Archive(born[: len(goal)], torch.full((len(goal),), -torch.inf, device=box.device, dtype=box.dtype))
    history, evaluated, stopped = list[Tensor](), 0, False
    try:
        for generation in range(generations + 1):
            archive.challenge(born, scores(born))
            evaluated += len(born)
            history.append(archive.fitness)
            if bool((archive.fitness >= enough).all()):
                break
            generator = step_generator(seed, generation + 1, box.device)
            parents = torch.randint(len(goal), (children,), generator=generator, device=box.device)
            born = encoding.mutated(archive.genomes[parents], generation, generator)
    except KeyboardInterrupt:
        stopped = True
    if not history:
        archive.fitness = scores(archive.genomes).diagonal()
        history.append(archive.fitness)
    images = encoding.images(archive.genomes, shape).to(box.dtype)
    return Evolved(images, archive.fitness, torch.stack(history), evaluated, stopped)


def _uniform(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _normal(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
