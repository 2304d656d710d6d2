"""What a solver is, and the solvers by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
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

    One that has a method `default_damping(curvature)` is called with what it gives where the user gives no damping.
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


def find_solver(solver: str | Solver) -> Solver:
    """The solver of a name, or the given one. Raises InputError for an unknown name."""
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        raise InputError(f"there is no solver {solver!r}; {suggestion_text(solver, SOLVERS)}")
    return SOLVERS[solver]()
