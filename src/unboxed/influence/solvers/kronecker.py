"""K-FAC, EK-FAC and the diagonal: the inverse layer by layer, from two passes over the training examples.

Martens & Grosse 2015, arXiv:1503.05671; George et al. 2018, arXiv:1806.03884; Grosse et al. 2023, "Studying large
language model generalization with influence functions", arXiv:2308.03296.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...engine.example_gradients.curvature import Curvature
from ...engine.example_gradients.fisher_labels import FisherKind
from ...engine.example_gradients.kronecker import fit_fisher
from ...engine.example_gradients.parameters import Parameters
from ...engine.example_gradients.spectral import SpectralCurvature
from ...errors import InputError


@dataclass(frozen=True)
class Kronecker:
    """Inverts a Gauss-Newton matrix of Kronecker products, one per Linear or convolution layer.

    For large models and many queries: the curvature is fitted in two passes over the training examples, and each query
    then costs a few matrix products. A `Kronecker` that is given to several calls with the same model and training
    examples is fitted once. Curvature between layers is left out; parameters of other layers (normalizations,
    embeddings, weights that are used outside their layer) have their diagonal.

    Args:
        approximation: "ekfac" corrects the eigenvalues of the Kronecker products by mean squared gradients; "kfac" does
            not; "diagonal" has no eigenvectors.
        fisher: Labels at which the curvature is taken: "sampled" draws one per example from the model, "exact" sums
            over all of them, "empirical" takes those of the data.

    Raises:
        InputError: for curvature="hessian".

    Example:
        >>> import unboxed as ub
        >>> ub.influence.Kronecker("kfac", fisher="exact")
        Kronecker(approximation='kfac', fisher='exact')

    Source:
        Grosse et al. 2023, section 3. Its damping, where none is given, is theirs: a tenth of the mean eigenvalue of
        each layer.
    """

    is_approximate: ClassVar[bool] = True

    approximation: Literal["ekfac", "kfac", "diagonal"] = "ekfac"
    fisher: FisherKind = "sampled"
    _fitted: dict[tuple[Any, ...], SpectralCurvature] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the last one

    def __call__(
        self, curvature: Curvature, vectors: Parameters, damping: float | Mapping[str, float]
    ) -> dict[str, Tensor]:
        given = damping if isinstance(damping, Mapping) else dict.fromkeys(curvature.gradients.parameters, damping)
        return self._fit(curvature).solve(vectors, {name: d + curvature.l2 for name, d in given.items()})

    def default_damping(self, curvature: Curvature) -> dict[str, float]:
        """{parameter: a tenth of the mean eigenvalue of its layer}."""
        return self._fit(curvature).damping()

    def _fit(self, curvature: Curvature) -> SpectralCurvature:
        if curvature.kind == "hessian":
            raise InputError(
                f"{self.approximation} approximates the Gauss-Newton matrix, not the Hessian; give "
                'curvature="gauss_newton", or another solver'
            )
        key = curvature.fingerprint
        if key not in self._fitted:
            fitted = fit_fisher(
                curvature.gradients, curvature.x, curvature.y,
                approximation=self.approximation, fisher=self.fisher, seed=curvature.seed,
            )  # fmt: skip
            self._fitted.clear()
            self._fitted[key] = fitted
        return self._fitted[key]
