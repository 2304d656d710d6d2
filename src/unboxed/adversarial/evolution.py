"""MAP-Elites: one archive with the best image of each class, bred by mutation alone.

Mouret & Clune 2015, arXiv:1504.04909, as in Nguyen et al. 2015, arXiv:1412.1897, section 2.2: an image made from one
class's elite replaces the elite of any class that it has a higher probability of.
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
from .predictions import nan_checked_logits

Shape = tuple[int, ...]


class GenomeEncoding(ABC):
    """The image of a genome (N, D), and its mutations."""

    @abstractmethod
    def initial_genomes(self, n_genomes: int, shape: Shape, generator: torch.Generator) -> Tensor:
        """The first genomes (n, D)."""

    @abstractmethod
    def to_images(self, genomes: Tensor, shape: Shape) -> Tensor:
        """(N, C, H, W) in [0, 1]."""

    @abstractmethod
    def mutate(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor: ...


class DirectEncoding(GenomeEncoding):
    """One gene per pixel, mutated with probability 0.1, halved every 1,000 generations, by polynomial mutation."""

    mutation_rate, rate_half_life, eta = 0.1, 1000, 15.0

    def initial_genomes(self, n_genomes: int, shape: Shape, generator: torch.Generator) -> Tensor:
        return _uniform_samples((n_genomes, torch.Size(shape).numel()), generator)

    def to_images(self, genomes: Tensor, shape: Shape) -> Tensor:
        return genomes.view(-1, *shape)

    def mutate(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        mutation_rate = self.mutation_rate * 0.5 ** (generation // self.rate_half_life)
        mutation_draws, uniform = (_uniform_samples(tuple(genomes.shape), generator) for _ in range(2))
        return torch.where(
            mutation_draws < mutation_rate, (genomes + polynomial_mutation_step(uniform, self.eta)).clamp(0, 1), genomes
        )


class CPPNEncoding(GenomeEncoding):
    """One gene per weight of a small network from pixel position to color, mutated with probability 0.1."""

    mutation_rate, width, depth, initial_std, mutation_std = 0.1, 8, 4, 1.0, 0.5

    def initial_genomes(self, n_genomes: int, shape: Shape, generator: torch.Generator) -> Tensor:
        layer_sizes = self._cppn_layer_sizes(shape)
        gene_std = (
            torch.cat([torch.full((n_in * n_out,), self.initial_std / n_in**0.5) for n_in, n_out in layer_sizes])
            .to(generator.device)
            .double()
        )
        gene_std = torch.cat([gene_std, torch.full_like(gene_std[: sum(b for _, b in layer_sizes)], self.initial_std)])
        return _normal_samples((n_genomes, len(gene_std)), generator) * gene_std

    def to_images(self, genomes: Tensor, shape: Shape) -> Tensor:
        layer_sizes = self._cppn_layer_sizes(shape)
        weight_counts, bias_counts = [a * b for a, b in layer_sizes], [b for _, b in layer_sizes]
        gene_groups = torch.split_with_sizes(genomes, weight_counts + bias_counts, 1)
        w = [g.view(-1, a, b) for g, (a, b) in zip(gene_groups, layer_sizes, strict=False)]
        b = [g[:, None] for g in gene_groups[len(layer_sizes) :]]
        palette = Palette(genomes.new_full((shape[0],), 0.5), overshoot=0.02)
        rendered: Tensor = CPPN(w, b, (shape[1], shape[2]), palette)()
        return rendered.detach()

    def mutate(self, genomes: Tensor, generation: int, generator: torch.Generator) -> Tensor:
        is_mutated = _uniform_samples(tuple(genomes.shape), generator) < self.mutation_rate
        return genomes + is_mutated * self.mutation_std * _normal_samples(tuple(genomes.shape), generator)

    def _cppn_layer_sizes(self, shape: Shape) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer; activations are an odd and an even one, so the next has twice the inputs."""
        return [(2, self.width), *[(2 * self.width, self.width)] * (self.depth - 1), (2 * self.width, shape[0])]


ENCODING_BY_ALGORITHM: dict[str, GenomeEncoding] = {"evolution": DirectEncoding(), "cppn": CPPNEncoding()}


def polynomial_mutation_step(uniform: Tensor, eta: float) -> Tensor:
    """The polynomial mutation of Deb & Agrawal 1999, from u in [0, 1): between -1 and 1, small where eta is large."""
    negative_step = (2 * uniform) ** (1 / (eta + 1)) - 1
    positive_step = 1 - (2 * (1 - uniform)) ** (1 / (eta + 1))
    return torch.where(uniform < 0.5, negative_step, positive_step)


@dataclass(frozen=True, eq=False)
class EvolutionResult:
    """The elites of K classes, and their fitness over T generations."""

    images: Tensor  # (K, C, H, W)
    fitness: Tensor  # (K,) log-probability of each one's class
    history: Tensor  # (T, K)
    n_evaluated: int
    interrupted: bool


@dataclass
class _EliteArchive:
    """The best genome (K, D) of each class, and its fitness."""

    genomes: Tensor
    fitness: Tensor  # (K,)

    def update_elites(self, genomes: Tensor, fitness: Tensor) -> None:
        """Each child competes with the elite of every class, by fitness (n, K)."""
        best_children = fitness.max(0)
        is_better = best_children.values > self.fitness
        self.genomes = torch.where(is_better[:, None], genomes[best_children.indices], self.genomes)
        self.fitness = torch.where(is_better, best_children.values, self.fitness)


def evolve(
    box: Box,
    targets: Tensor,
    encoding: GenomeEncoding,
    min_confidence: float,
    n_generations: int,
    n_children: int,
    seed: int,
    batch_size: BatchSize,
) -> EvolutionResult:
    """Elites of the target classes (K,), until all reach min_confidence. On Ctrl-C, those found so far."""
    shape, min_log_prob = box.inputs.shape, torch.tensor(min_confidence).log().item()

    def class_log_probs(genomes: Tensor) -> Tensor:  # (n, K)
        logits = nan_checked_logits(box, encoding.to_images(genomes, shape).to(box.dtype), batch_size)
        return (F.logsigmoid(logits) if box.outputs == "multilabel" else logits.log_softmax(1))[:, targets]

    offspring = encoding.initial_genomes(max(n_children, len(targets)), shape, step_generator(seed, 0, box.device))
    archive = _EliteArchive(
        offspring[: len(targets)], torch.full((len(targets),), -torch.inf, device=box.device, dtype=box.dtype)
    )
    history, n_evaluated, was_interrupted = list[Tensor](), 0, False
    try:
        for generation in range(n_generations + 1):
            archive.update_elites(offspring, class_log_probs(offspring))
            n_evaluated += len(offspring)
            history.append(archive.fitness)
            if bool((archive.fitness >= min_log_prob).all()):
                break
            generator = step_generator(seed, generation + 1, box.device)
            parents = torch.randint(len(targets), (n_children,), generator=generator, device=box.device)
            offspring = encoding.mutate(archive.genomes[parents], generation, generator)
    except KeyboardInterrupt:
        was_interrupted = True
    if not history:
        archive.fitness = class_log_probs(archive.genomes).diagonal()
        history.append(archive.fitness)
    images = encoding.to_images(archive.genomes, shape).to(box.dtype)
    return EvolutionResult(images, archive.fitness, torch.stack(history), n_evaluated, was_interrupted)


def _uniform_samples(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _normal_samples(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
