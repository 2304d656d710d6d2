"""LiSSA: the inverse as a Neumann series in curvatures of random batches.

Agarwal, Bullins & Hazan 2017, "Second-order stochastic optimization for machine learning in linear time",
arXiv:1602.03943; Koh & Liang 2017, arXiv:1703.04730, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.parameters import Parameters
from ...engine.example_gradients.spectrum import lanczos
from ...errors import InputError

DIVERGENCE_CHECK_INTERVAL_STEPS = 50  # steps between looks at whether the series diverges
DIVERGENCE_FACTOR = 1e6  # times the largest sum that a converging series may have


@dataclass(frozen=True)
class LiSSA:
    """Estimates (H + damping)^-1 g by s <- g + s - (H_batch + damping) s / scale, whose limit is scale times it.

    One step reads a batch instead of all training examples, so that it suits data too large for a pass per product. It
    is an estimate: its error falls with `depth` (the slowest direction needs several times scale over the smallest
    eigenvalue), and with the square root of `repeats`. Where a pass over the data is affordable, take
    `ConjugateGradient`.

    Args:
        scale: A number larger than the largest eigenvalue of the curvature of any batch. Too large a one is slow.
        depth: Number of steps.
        repeats: Number of runs with other batches, which are averaged.
        batch_size: Examples per step.

    Raises:
        InputError: where the series diverges: `scale` is too small.

    Example:
        >>> import unboxed as ub
        >>> ub.influence.LiSSA(scale=10, depth=1000)
        LiSSA(scale=10, depth=1000, repeats=10, batch_size=1)

    Source:
        Agarwal et al. 2017, algorithm 1; the settings are those of Koh & Liang's published code for MNIST. There the
        damping is multiplied by scale; here it is added to H, as for the other solvers.
    """

    scale: float = 25.0
    depth: int = 5000
    repeats: int = 10
    batch_size: int = 1

    def __call__(self, curvature: Curvature, vectors: Parameters, damping: float) -> dict[str, Tensor]:
        g = curvature.gradients.flatten(vectors).to(curvature.gradients.box.dtype)  # (K, P)
        generator = curvature.make_seeded_generator()
        runs = [self._run_recursion(curvature, g, damping, generator) for _ in range(self.repeats)]
        return curvature.gradients.unflatten(torch.stack(runs).mean(0) / self.scale)

    def _run_recursion(self, curvature: Curvature, g: Tensor, damping: float, generator: torch.Generator) -> Tensor:
        s = g
        for step in range(self.depth):
            rows = torch.randint(curvature.n_examples, (self.batch_size,), generator=generator, device=generator.device)
            s = g + s - (curvature.subset(rows).matvec(s) + damping * s) / self.scale
            if step % DIVERGENCE_CHECK_INTERVAL_STEPS == 0 or step == self.depth - 1:
                self._check_converging(curvature, s, g, damping)
        return s

    def _check_converging(self, curvature: Curvature, s: Tensor, g: Tensor, damping: float) -> None:
        """A sum of n contractions of g is at most n times as long as g."""
        if not bool((s.norm(dim=1) <= DIVERGENCE_FACTOR * self.depth * g.norm(dim=1)).all()):
            largest = float(lanczos(curvature).values[-1]) + damping
            raise InputError(
                f"LiSSA diverges with scale={self.scale:g}: scale must be larger than the largest eigenvalue of the "
                f"curvature of any batch; that of all examples is about {largest:.3g}. Give LiSSA(scale="
                f"{4 * max(largest, self.scale):.2g}), or a larger batch_size"
            )
