"""What a solver is, and the solvers by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ...engine.example_gradients.curvature import Curvature, CurvatureKind
from ...engine.example_gradients.parameters import Parameters
from ...errors import InputError
from ...validation import suggestion_text
from .arnoldi import Arnoldi
from .conjugate_gradient import ConjugateGradient
from .exact import Exact
from .kronecker import Kronecker
from .lissa import LiSSA


class Solver(Protocol):
    """Solutions {name: (K, ...)} of (H + damping) s = g for K vectors g {name: (K, ...)}.

    One that has a method `default_damping(curvature)` is called with what it gives where the user gives no damping. One
    that solves with another matrix than H has `is_approximate`: what follows from its solutions is a ranking alone.
    """

    def __call__(self, curvature: Curvature, vectors: Parameters, damping: Any) -> dict[str, Tensor]: ...


SOLVERS: dict[str, Callable[[], Solver]] = {
    "cg": ConjugateGradient,
    "exact": Exact,
    "lissa": LiSSA,
    "arnoldi": Arnoldi,
    "ekfac": Kronecker,
    "kfac": partial(Kronecker, "kfac"),
    "diagonal": partial(Kronecker, "diagonal"),
}
"""{name: what makes the solver with its default settings}."""
DEFAULT_SOLVER_NAME = "auto"
MAX_DEFAULT_CG_PARAMETERS = 10_000  # of which conjugate gradients take seconds for a thousand training examples


def find_solver(solver: str | Solver, n_parameters: int, kind: CurvatureKind = "gauss_newton") -> Solver:
    """The solver of a name, or the given one. Raises InputError for an unknown name.

    "auto" is conjugate gradients for few parameters, and for a Hessian, which EK-FAC does not approximate; else EK-FAC.
    """
    if not isinstance(solver, str):
        return solver
    if solver == DEFAULT_SOLVER_NAME:
        solver = "cg" if n_parameters <= MAX_DEFAULT_CG_PARAMETERS or kind == "hessian" else "ekfac"
    if solver not in SOLVERS:
        raise InputError(f"there is no solver {solver!r}; {suggestion_text(solver, [DEFAULT_SOLVER_NAME, *SOLVERS])}")
    return SOLVERS[solver]()
