"""Kronecker-factored approximations of the Fisher information: K-FAC, EK-FAC and the diagonal.

Martens & Grosse 2015, arXiv:1503.05671; Grosse & Martens 2016, arXiv:1602.01407 (convolutions); George et al. 2018,
arXiv:1806.03884 (EK-FAC); Grosse et al. 2023, arXiv:2308.03296, section 3 (influence functions by it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...model.state import leaving_inference_mode
from .fisher_labels import FisherKind, check_fisher_kind_fits_loss
from .fisher_passes import FisherPasses
from .gradients import ExampleGradients
from .matrix_layers import MatrixLayer
from .spectral import DenseBlock, DiagonalBlock, KroneckerBlock, SpectralCurvature

Approximation = Literal["ekfac", "kfac", "diagonal", "dense"]
MAX_DENSE_PARAMETERS = 4096  # of a matrix that is held and decomposed whole
MAX_CHUNK_VALUES = 2**24  # of gradients of a layer's weight, one per example, at a time


def fit_fisher(
    states: ExampleGradients | Iterable[ExampleGradients],
    x: Tensor,
    y: Tensor,
    *,
    approximation: Approximation = "ekfac",
    fisher: FisherKind = "sampled",
    seed: int = 0,
) -> SpectralCurvature:
    """The Fisher of a model on data, or its mean over several states of a model, in a form that can be inverted.

    For the losses that fit `box.outputs` the Fisher is the Gauss-Newton matrix of the mean loss. Of a Linear or
    convolution layer it is taken as Kronecker products of the second moments of what the weight receives and of the
    gradients of what it gives; of every other parameter as its diagonal, and these are named in the result.

    Args:
        states: The parameters and the loss; or several of the same model in other states, which are iterated more than
            once: a list, or what opens each state when it is asked for.
        x: Inputs (N, ...), validated.
        y: Labels (N, ...).
        approximation: "kfac" has the products of the factors' eigenvalues; "ekfac" has their eigenvectors, with the
            mean squared gradients in that basis as eigenvalues; "diagonal" has these in the basis of the parameters;
            "dense" is the matrix itself, of at most 4096 parameters.
        fisher: "sampled" draws one label per example from the model, "exact" sums over all labels (a backward pass per
            output), "empirical" takes the labels y, and is no Fisher.
        seed: Seed of the labels that are drawn.

    Returns:
        A `SpectralCurvature`: `.solve(vectors)` and `.apply(vectors, function of eigenvalues)`.

    Raises:
        InputError: for a loss of one's own with another fisher than "empirical", or too many parameters for "dense".
        NaNError: for examples whose loss is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> from unboxed.engine.example_gradients.gradients import ExampleGradients
        >>> from unboxed.engine.example_gradients.kronecker import fit_fisher
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(8)
        >>> gradients = ExampleGradients(box, "fc2")
        >>> solved = fit_fisher(gradients, x, y).solve({n: p[None] for n, p in gradients.mean(x, y).items()})
        >>> {name: tuple(v.shape) for name, v in solved.items()}
        {'fc2.weight': (1, 10, 64), 'fc2.bias': (1, 10)}

    Source:
        Grosse et al. 2023, equations 12 to 20. Deviations: fisher="exact"; the positions of a layer that is called
        several times count as those of one call; convolutions in groups have factors per group.
    """
    passes = FisherPasses([states] if isinstance(states, ExampleGradients) else states, x, y, fisher, seed)
    check_fisher_kind_fits_loss(passes.first_state_gradients(), fisher)
    with leaving_inference_mode():
        return _fit_spectral_curvature(passes, approximation)


def _fit_spectral_curvature(passes: FisherPasses, approximation: Approximation) -> SpectralCurvature:
    if approximation == "dense":
        return SpectralCurvature([_dense_block(passes)])
    matrices = passes.matrix_layers()
    in_products = {name for layer in matrices for name in layer.parameters}
    rest = [name for name in passes.first_state_gradients().parameters if name not in in_products]
    blocks = [*_kronecker_blocks(passes, matrices, approximation), *(_diagonal_blocks(passes, rest) if rest else ())]
    return SpectralCurvature(blocks, () if approximation == "diagonal" else tuple(rest))


def _kronecker_blocks(
    passes: FisherPasses, layers: Sequence[MatrixLayer], approximation: Approximation
) -> list[KroneckerBlock]:
    if not layers:
        return []
    if approximation == "diagonal":
        bases: dict[str, _EigenBases] = {layer.weight: (None, None) for layer in layers}
        squares = _mean_squared_gradients_in_bases(passes, bases)
    else:
        eigendecompositions = _factor_eigendecompositions(passes, layers)
        bases = {name: (output.vectors, input.vectors) for name, (output, input) in eigendecompositions.items()}
        squares = (
            _mean_squared_gradients_in_bases(passes, bases)
            if approximation == "ekfac"
            else _kronecker_eigenvalues(eigendecompositions)
        )
    return [KroneckerBlock(layer, squares[layer.weight], *bases[layer.weight]) for layer in layers]


# -- second moments of what a weight receives, and of the gradients of what it gives -----------------------------------

_EigenBases = tuple[Tensor | None, Tensor | None]  # of output gradients (G, O, O) and of inputs (G, I, I)


class _Eigendecomposition:
    """Eigenvalues (G, D) and eigenvectors (G, D, D) of a second moment (G, D, D)."""

    def __init__(self, moment: Tensor) -> None:
        values, vectors = torch.linalg.eigh(moment.double())
        self.values, self.vectors = values.clamp(min=0).to(moment.dtype), vectors.to(moment.dtype)


class _SecondMoments:
    """Sums over rows of a a^T over positions, and of s s^T averaged over positions (Grosse & Martens 2016, eq. 16)."""

    def __init__(self) -> None:
        self.inputs = self.outputs = torch.zeros(())
        self.n_inputs = 0

    def add_layer_factors(self, a: Tensor, s: Tensor) -> None:  # (N, T, G, I), (N, T, G, O)
        self.inputs = self.inputs.to(a) + torch.einsum("ntgi,ntgj->gij", a, a)
        self.outputs = self.outputs.to(s) + torch.einsum("ntgi,ntgj->gij", s, s) / s.shape[1]
        self.n_inputs += len(a)  # the same inputs come once per label

    def eigendecompositions(self, n_rows: int) -> tuple[_Eigendecomposition, _Eigendecomposition]:
        return _Eigendecomposition(self.outputs / n_rows), _Eigendecomposition(self.inputs / self.n_inputs)


def _factor_eigendecompositions(
    passes: FisherPasses, layers: Sequence[MatrixLayer]
) -> dict[str, tuple[_Eigendecomposition, _Eigendecomposition]]:
    """{weight: spectra of its output gradients and of its inputs}."""
    moments = {layer.weight: _SecondMoments() for layer in layers}
    n = passes.for_each_layer_factors(moments.keys(), lambda layer, a, s: moments[layer.weight].add_layer_factors(a, s))
    return {name: m.eigendecompositions(n) for name, m in moments.items()}


def _kronecker_eigenvalues(
    eigendecompositions: Mapping[str, tuple[_Eigendecomposition, _Eigendecomposition]],
) -> dict[str, Tensor]:
    return {name: s.values[:, :, None] * a.values[:, None] for name, (s, a) in eigendecompositions.items()}


# -- mean squared gradients, in a basis --------------------------------------------------------------------------------


def _mean_squared_gradients_in_bases(passes: FisherPasses, bases: Mapping[str, _EigenBases]) -> dict[str, Tensor]:
    """{weight: (G, O, I)} means of the squares of each example's gradient in the bases (George et al. 2018, eq. 10)."""
    totals = dict[str, Tensor]()

    def add_layer_factors(layer: MatrixLayer, a: Tensor, s: Tensor) -> None:
        output_basis, input_basis = bases[layer.weight]
        if output_basis is not None and input_basis is not None:
            s, a = torch.einsum("ntgo,gok->ntgk", s, output_basis), torch.einsum("ntgi,gik->ntgk", a, input_basis)
        total = _sum_squared_gradients(a, s)
        totals[layer.weight] = totals[layer.weight] + total if layer.weight in totals else total

    n = passes.for_each_layer_factors(bases.keys(), add_layer_factors)
    return {name: total / n for name, total in totals.items()}


def _sum_squared_gradients(a: Tensor, s: Tensor) -> Tensor:
    """sum_n (sum_t s_t a_t^T)^2, (G, O, I), of a (N, T, G, I) and s (N, T, G, O)."""
    if a.shape[1] == 1:
        return torch.einsum("ngo,ngi->goi", s[:, 0].square(), a[:, 0].square())
    rows = max(1, MAX_CHUNK_VALUES // (a[0, 0].numel() * s.shape[3]))
    parts = zip(torch.split(a, rows), torch.split(s, rows), strict=True)
    return torch.stack([torch.einsum("ntgo,ntgi->ngoi", t, b).square().sum(0) for b, t in parts]).sum(0)


def _diagonal_blocks(passes: FisherPasses, names: Sequence[str]) -> list[DiagonalBlock]:
    """Mean squared gradients of other parameters."""
    shapes = [passes.first_state_gradients().parameters[name].shape for name in names]
    total = torch.zeros(sum(map(math.prod, shapes)), dtype=passes.x.dtype, device=passes.x.device)
    n = passes.for_each_gradient_rows(names, lambda rows: total.add_(rows.square().sum(0)))
    parts = torch.split(total / n, [*map(math.prod, shapes)])
    return [DiagonalBlock(name, h.view(shape)) for name, h, shape in zip(names, parts, shapes, strict=True)]


def _dense_block(passes: FisherPasses) -> DenseBlock:
    """The mean of g g^T over all parameters. Raises InputError where there are too many."""
    gradients = passes.first_state_gradients()
    if gradients.n_parameters > MAX_DENSE_PARAMETERS:
        wanted = f'at most {MAX_DENSE_PARAMETERS:,} parameters for a dense matrix; choose layers, or "ekfac"'
        raise InputError(f"the chosen layers have {gradients.n_parameters:,} parameters; wanted {wanted}")
    total = torch.zeros(2 * (gradients.n_parameters,), dtype=passes.x.dtype, device=passes.x.device)
    n = passes.for_each_gradient_rows([*gradients.parameters], lambda rows: total.addmm_(rows.T, rows))
    spectrum = _Eigendecomposition(total / n)
    shapes = {name: p.shape for name, p in gradients.parameters.items()}
    return DenseBlock(shapes, spectrum.values, spectrum.vectors)
