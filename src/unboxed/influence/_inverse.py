"""What the methods of influence functions share: the inverse curvature of the training loss, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..engine.example_gradients.curvature import Curvature, CurvatureKind
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.losses import ExampleLoss
from ..engine.example_gradients.parameters import Parameters
from ..engine.example_gradients.spectrum import lanczos, mean_eigenvalue
from ..errors import NaNError
from ..model.batching import BatchSize, map_in_batches
from ..model.nan_checks import NAN_HINT, row_numbers_text
from ..parameters import LayerAddresses
from ..settings import AtLeast, ValueRole
from ..validation import valid_seed
from ._data import read_training_examples
from .solvers import Solver, find_solver

SolverChoice = Annotated[
    str | Solver,
    ValueRole("str"),
    'How the inverse is applied: "auto", or a solver or its name.',
]
CurvatureChoice = Annotated[CurvatureKind, "Which curvature H of the training loss is inverted."]
Damping = Annotated[float | None, AtLeast(0), "What is added to every eigenvalue of H before it is inverted."]
L2 = Annotated[float, AtLeast(0), "Weight decay of the training: its loss has l2 / 2 times the squared parameters."]
LossFunction = Annotated[ExampleLoss | None, "Function of (outputs, labels) that returns each example's loss (N,)."]
DEFAULT_DAMPING_FRACTION_OF_MEAN_EIGENVALUE = 0.1  # of the eigenvalues: the damping of Grosse et al. 2023
MIN_REMAINING_FRACTION_OF_L2 = 0.5  # in the smallest eigenvalue of a Hessian that needs no damping
DAMPING_MARGIN_FRACTION = 0.1  # beyond the smallest damping that makes H positive definite


@dataclass(frozen=True, eq=False)
class InverseCurvature:
    """(H + damping)^-1 of the mean loss of the training examples."""

    curvature: Curvature
    damping: float | Mapping[str, float]  # or by parameter
    solver: Solver

    @property
    def gradients(self) -> ExampleGradients:
        return self.curvature.gradients

    @property
    def is_approximate(self) -> bool:
        """Whether another matrix than H is inverted: scores are then a ranking alone."""
        return bool(getattr(self.solver, "is_approximate", False))

    @property
    def settings(self) -> dict[str, Any]:
        """What the scores depend on, for results."""
        c = self.curvature
        name = getattr(self.solver, "__name__", repr(self.solver))
        return {"solver": name, "damping": self.damping, "l2": c.l2, "curvature": c.kind}

    def solve(self, vectors: Parameters) -> dict[str, Tensor]:
        """Solutions {name: (K, ...)} for K vectors {name: (K, ...)}, in the order of the vectors."""
        solutions = self.solver(self.curvature, vectors, self.damping)
        return {name: solutions[name] for name in vectors}

    def solve_for_loss_gradients(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Solutions {name: (Q, ...)} for the gradients of each of Q examples' losses."""
        check_finite_losses(self.gradients, x, y, "queries")
        return self.solve(self.gradients.unflatten(self.gradients.matrix(x, y)))

    def project(self, vectors: Parameters) -> Tensor:
        """Inner products (K, N) of vectors {name: (K, ...)} with the gradients of all training examples' losses."""
        vectors = {name: v.to(self.gradients.parameters[name].dtype) for name, v in vectors.items()}
        c, box = self.curvature, self.gradients.box
        size, _ = box.batch_size_and_max_rows(c.n_examples, c.batch_size)
        limit = box.max_rows_in_memory(c.n_parameters * box.dtype.itemsize)

        def project_on_batch_gradients(rows: slice) -> Tensor:
            return self.gradients.project(vectors, c.x[rows], c.y[rows])

        return torch.cat(map_in_batches(project_on_batch_gradients, c.n_examples, size, limit), dim=1)


@dataclass(frozen=True, eq=False)
class CurvatureSettings:
    """What the methods of influence functions let one choose of the inverse curvature."""

    solver: str | Solver
    curvature: CurvatureKind
    damping: float | None
    l2: float
    layers: LayerAddresses
    loss: ExampleLoss | None
    batch_size: BatchSize
    seed: int

    def inverse(self, box: Box, train: Any) -> InverseCurvature:
        """The inverse curvature of the training examples' loss.

        Raises what reading the data and the model raises, and NaNError.
        """
        seed = valid_seed(self.seed)
        gradients = ExampleGradients(box, self.layers, self.loss, batch_size=self.batch_size)
        solver = find_solver(self.solver, gradients.n_parameters, self.curvature)
        x, y = read_training_examples(box, train)
        h = Curvature(gradients, x, y, kind=self.curvature, l2=self.l2, batch_size=self.batch_size, seed=seed)
        check_finite_losses(gradients, x, y, "training examples")
        rule = getattr(solver, "default_damping", default_damping)
        return InverseCurvature(h, rule(h) if self.damping is None else float(self.damping), solver)


def default_damping(curvature: Curvature) -> float:
    """None where l2 makes the curvature positive definite; else a tenth of its mean eigenvalue (Grosse et al. 2023).

    A Hessian counts as positive definite where its negative eigenvalues take up half of l2 at most: its smallest
    eigenvalue is an estimate, and scores divide by what is left of l2. An indefinite one gets what makes it positive
    definite besides.
    """
    if curvature.kind == "gauss_newton":
        return 0.0 if curvature.l2 > 0 else DEFAULT_DAMPING_FRACTION_OF_MEAN_EIGENVALUE * mean_eigenvalue(curvature)
    smallest = lanczos(curvature).smallest_eigenvalue_bound
    if smallest >= MIN_REMAINING_FRACTION_OF_L2 * curvature.l2 > 0:
        return 0.0
    return DEFAULT_DAMPING_FRACTION_OF_MEAN_EIGENVALUE * max(0.0, mean_eigenvalue(curvature)) + (
        1 + DAMPING_MARGIN_FRACTION
    ) * max(0.0, -smallest)


def check_finite_losses(gradients: ExampleGradients, x: Tensor, y: Tensor, what: str) -> None:
    """Raise NaNError that names the examples whose loss is NaN or infinite."""
    box = gradients.box

    def losses_of_rows(rows: slice) -> Tensor:
        with box.isolated(grad=False):
            return gradients.losses(x[rows], y[rows])

    finite = torch.cat(
        map_in_batches(losses_of_rows, len(x), *box.batch_size_and_max_rows(len(x), gradients.batch_size))
    ).isfinite()
    if bad := (~finite).nonzero()[:, 0].tolist():
        raise NaNError(
            f"the loss is NaN or infinite for {len(bad)} of {len(x)} {what} ({row_numbers_text(bad)}), and so would be "
            f"every influence. {NAN_HINT}", bad, what,
        )  # fmt: skip
