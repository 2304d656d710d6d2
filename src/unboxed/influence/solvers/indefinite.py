"""The error of a curvature that is not positive definite: it names a damping that makes it so."""

from __future__ import annotations

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.spectrum import RitzPairs, lanczos
from ...errors import InputError

PROPOSED_DAMPING_MARGIN_FRACTION = 0.1  # by which the proposed damping exceeds the smallest one that is enough
MIN_PROPOSED_RELATIVE_DAMPING = 1e-4  # of the largest eigenvalue: a damping that is proposed is at least so large


def not_positive_definite_error(curvature: Curvature, damping: float) -> InputError:
    """The error, with the damping to give, by a Lanczos estimate of the smallest eigenvalue."""
    ritz = lanczos(curvature)
    return InputError(
        f"the {curvature.kind.replace('_', '-')} curvature of the training loss, with l2={curvature.l2:g} and "
        f"damping={damping:g}, is not positive definite: its smallest eigenvalue is about "
        f"{ritz.smallest_eigenvalue_bound + damping:.3g}. Give damping={sufficient_damping(ritz):.3g} or more, or "
        'curvature="gauss_newton", which has no negative eigenvalues'
    )


def sufficient_damping(ritz: RitzPairs) -> float:
    """A damping that makes a curvature with these eigenvalues positive definite, rounded up to three digits."""
    needed = max(0.0, -ritz.smallest_eigenvalue_bound) * (
        1 + PROPOSED_DAMPING_MARGIN_FRACTION
    ) + MIN_PROPOSED_RELATIVE_DAMPING * float(ritz.values.abs().max())
    return float(f"{needed * 1.01:.3g}")
