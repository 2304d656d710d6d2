"""Solvers of (H + damping) s = g, for many g at once: one file each, listed in `SOLVERS` by the names that users give.

A way to apply the inverse of a curvature, exact or approximate, moves in here: a function or an object that is called
as `Solver` says, and a line in `SOLVERS`.
"""

from .arnoldi import Arnoldi as Arnoldi
from .conjugate_gradient import ConjugateGradient as ConjugateGradient
from .exact import Exact as Exact
from .kronecker import Kronecker as Kronecker
from .lissa import LiSSA as LiSSA
from .registry import DEFAULT_SOLVER_NAME as DEFAULT_SOLVER_NAME
from .registry import SOLVERS as SOLVERS
from .registry import Solver as Solver
from .registry import find_solver as find_solver
