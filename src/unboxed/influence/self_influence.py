"""Self-influence: how much the loss of a training example hangs on that example alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.results import MAX_SUMMARY_LINES, ResultMixin
from ..errors import LayerError, NaNError, OutputError
from ..model.batching import map_in_batches
from ..model.nan_checks import NAN_HINT, row_numbers_text
from ..parameters import BatchSize, LayerAddresses
from ..settings import AtLeast, check_settings
from ._data import TrainingData, random_card_training_data, read_training_examples
from .result import NATS_PER_EXAMPLE_UNIT_TEXT

CurvatureName = Literal["gauss_newton", "identity"]
MAX_DENSE_CURVATURE_PARAMETERS = 4096  # whose curvature is held as a matrix
DEFAULT_DAMPING_FRACTION_OF_MEAN_EIGENVALUE = 0.1  # of the eigenvalues: the damping of Grosse et al. 2023
SQUARED_NORM_UNIT_TEXT = "squared gradient norm"


@dataclass(frozen=True, eq=False, repr=False)
class SelfInfluence(ResultMixin):
    """The influence of training examples on their own loss: large ones were memorized, or are mislabeled.

    Attributes:
        scores: (N,) what leaving an example out adds to its own loss, to first order.
        unit: Unit of the scores: "nats per example left out", or "squared gradient norm".
        layers: The parameters that were taken to change.
        damping: What was added to every eigenvalue of the curvature; 0 for the identity.
        train_labels: (N,) the examples' labels.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    scores: Tensor
    unit: str
    layers: tuple[str, ...]
    damping: float
    train_labels: Tensor
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        tops = ", ".join(f"{i} ({float(self.scores[i]):.3g})" for i in self.top(MAX_SUMMARY_LINES).tolist())
        yield f"self-influence of {len(self.scores)} training examples, in {self.unit}; the largest: {tops}"

    def top(self, k: int = 8) -> Tensor:
        """The k examples (k,) of the largest scores, the largest first."""
        return self.scores.argsort(descending=True, stable=True)[:k]


@card(
    name="Self-influence",
    source="Koh & Liang 2017, arXiv:1703.04730, section 5.4; Pruthi et al. 2020, arXiv:2002.08484, section 4.1",
    shows="Which training examples the model could not predict from the others: rare ones and mislabeled ones.",
    does_not_show="Which of the two an example is; as a search for wrong labels the neighbors' vote finds more.",
    example=lambda method, box, x, y: method(box, random_card_training_data(box), curvature="identity"),
    order=60,
)
def self_influence(
    box: Box,
    train: TrainingData,
    *,
    layers: LayerAddresses = None,
    curvature: Annotated[CurvatureName, "What the gradients are measured by."] = "gauss_newton",
    damping: Annotated[
        float | None, AtLeast(0), "What is added to every eigenvalue of H before it is inverted."
    ] = None,
    batch_size: BatchSize = "auto",
) -> SelfInfluence:  # fmt: skip
    """The influence of each training example on its own loss: g^T (H + damping)^-1 g / n.

    To see what a model memorized: an example of large self-influence would be answered worse without itself. For wrong
    labels `suspected_mislabels` finds more.

    Args:
        box: The opened model, trained.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters are taken to change. None:
            the last layer with parameters; with the identity, and where no layer has any, all parameters.
        curvature: What the gradients are measured by. "gauss_newton" is the curvature of the mean loss over the
            training examples (for classes, the Fisher matrix), of up to 4,096 parameters; "identity" gives squared
            gradient norms, as TracIn at one checkpoint does.
        damping: What is added to every eigenvalue of H before it is inverted. None: a tenth of their mean.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `SelfInfluence`: `scores` (N,), in nats of the example's loss per example left out, or squared norms.

    Raises:
        DataError: where the training examples have no labels.
        LayerError: for layers of more parameters than the curvature is held for, or of none.
        NaNError: where a gradient is NaN; the error names the examples.
        OutputError: for a model without classes that exclude one another, or whose examples depend on one another.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.influence.self_influence(box, ub.data.digits("train").first(50))
        >>> tuple(result.scores.shape), result.unit, result.layers
        ((50,), 'nats per example left out', ('fc2',))

    Source:
        Koh & Liang 2017, arXiv:1703.04730, section 5.4, with the Gauss-Newton matrix and the damping of Grosse et al.
        2023, arXiv:2308.03296; the squared norms are TracIn's, Pruthi et al. 2020, arXiv:2002.08484.
    """
    check_settings(self_influence, locals())
    box.require_class_scores("self-influence", exclusive=True)
    _refuse_batch_dependent(box)
    x, y = read_training_examples(box, train)
    is_identity = curvature == "identity"
    layers = _last_layer_with_parameters(box) if layers is None and not is_identity else layers
    gradients = ExampleGradients(box, layers, batch_size=batch_size)
    names = tuple(gradients.parameters) if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if is_identity:
        scores = _finite_scores_of_gradients(gradients, batch_size, x, y, lambda g: g.double().square().sum(1))
        return SelfInfluence(scores.to(box.dtype), SQUARED_NORM_UNIT_TEXT, names, 0.0, y, box.classes)
    eigenvalues, vectors = torch.linalg.eigh(_gauss_newton_matrix(gradients, x, batch_size))
    damping = (
        DEFAULT_DAMPING_FRACTION_OF_MEAN_EIGENVALUE * float(eigenvalues.mean()) if damping is None else float(damping)
    )
    inverse = _inverse_eigenvalues(eigenvalues, damping)
    scores = _finite_scores_of_gradients(
        gradients, batch_size, x, y, lambda g: (g.double() @ vectors).square() @ inverse / len(x)
    )
    return SelfInfluence(scores.to(box.dtype), NATS_PER_EXAMPLE_UNIT_TEXT, names, damping, y, box.classes)


def _gauss_newton_matrix(gradients: ExampleGradients, x: Tensor, batch_size: BatchSize) -> Tensor:
    """The mean over examples and the model's own classes of their gradients' outer products, (P, P) in float64."""
    n, box = gradients.n_parameters, gradients.box
    if n > MAX_DENSE_CURVATURE_PARAMETERS:
        raise LayerError(
            f"the curvature is held as a matrix of up to {MAX_DENSE_CURVATURE_PARAMETERS} "
            f"parameters; got {n}. Name smaller "
            'layers, or give curvature="identity"'
        )
    probabilities = box.probs(x, batch_size=batch_size).double()  # (N, K)
    total = probabilities.new_zeros(n, n)
    for label in range(box.n_outputs):
        y = torch.full((len(x),), label, device=x.device)

        def add_batch_outer_products(rows: slice, y: Tensor = y) -> Tensor:
            g = gradients.matrix(x[rows], y[rows]).double()  # (n, P)
            total.addmm_(g.T * probabilities[rows, y[0]], g)
            return y[rows]

        _map_over_gradient_batches(gradients, batch_size, len(x), add_batch_outer_products)
    return total / len(x)


def _inverse_eigenvalues(eigenvalues: Tensor, damping: float) -> Tensor:
    """1 / (H + damping) of each eigenvalue; the pseudoinverse where both are zero."""
    damped = eigenvalues.clamp_min(0) + damping
    tiny = torch.finfo(damped.dtype).eps * len(damped) * damped.amax()
    return torch.where(damped > tiny, 1 / damped.clamp_min(torch.finfo(damped.dtype).tiny), 0.0)


def _map_over_gradient_batches(
    gradients: ExampleGradients, batch_size: BatchSize, n: int, func: Callable[[slice], Tensor]
) -> Tensor:
    """`func` of batches whose gradients fit in memory."""
    box = gradients.box
    limit = min(
        box.batch_size_and_max_rows(n, batch_size)[1],
        box.max_rows_in_memory(gradients.n_parameters * box.dtype.itemsize),
    )
    return torch.cat(map_in_batches(func, n, batch_size, limit))


def _finite_scores_of_gradients(
    gradients: ExampleGradients, batch_size: BatchSize, x: Tensor, y: Tensor, score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Scores (N,) of gradients (n, P). Raises NaNError that names the examples where they are not finite."""
    scores = _map_over_gradient_batches(
        gradients, batch_size, len(x), lambda rows: score(gradients.matrix(x[rows], y[rows]))
    )
    if bad := (~scores.isfinite()).nonzero().flatten().tolist():
        raise NaNError(
            f"the gradient is NaN or infinite for {len(bad)} of {len(x)} training examples ({row_numbers_text(bad)}). "
            f"{NAN_HINT}", bad, "training examples",
        )  # fmt: skip
    return scores


def _last_layer_with_parameters(box: Box) -> list[str] | None:
    """The last layer with parameters; None, which is all parameters, where the model itself has them, not a layer."""
    rows = [row for row in box.layers.leaves if row.n_parameters]
    return [rows[-1].path] if rows else None


def _refuse_batch_dependent(box: Box) -> None:
    if box.batch_dependent:
        raise OutputError(
            "the examples of a batch change one another's outputs in this model, so that no example has a gradient of "
            "its own"
        )
