"""TRAK: a trained model as a logistic regression on its projected gradients, whose leaving out has a closed form.

Park, Georgiev, Ilyas, Leclerc & Madry 2023, "TRAK: Attributing model behavior at scale", arXiv:2303.14186.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.sketch import Sketch
from ..model.batching import map_in_batches
from ..parameters import InputBatch, Labels, LayerAddresses, Seed
from ..rng import derive_seed
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._checkpoints import CheckpointGradients, Checkpoints, CheckpointStates
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from .result import NATS_PER_EXAMPLE_UNIT_TEXT, Influence

UNSCALED_NATS_UNIT_TEXT = f"{NATS_PER_EXAMPLE_UNIT_TEXT}, up to a factor"
IndependentModels = Annotated[
    Checkpoints | None,
    ValueRole("checkpoints"),
    "Models trained from other seeds: state dicts, or paths of files that hold them.",
]


@card(
    name="TRAK",
    source="Park et al. 2023, arXiv:2303.14186, section 3",
    shows="Which training examples raise the margin of a query's class, on average over trainings.",
    does_not_show="Changes in nats, unless reweighted; and of one model alone little: it takes tens of models.",
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box), dim=4),
    exempt={
        "one forward": "it runs the training examples, too",
        "row seeds": "it draws a projection, the same for all queries",
    },
    runs=100,
)
def trak(
    box: Box,
    x: InputBatch,
    labels: Labels,
    train: TrainingData,
    *,
    models: IndependentModels = None,
    dim: Annotated[int, AtLeast(1), Unit("dimensions"), "Number of dimensions to which gradients are projected."] = 512,
    reweighted: Annotated[bool, "Weight training examples by p (1 - p) in the kernel, as a Newton step does."] = False,
    layers: LayerAddresses = None,
    seed: Seed = 0,
) -> Influence:
    """How much each training example raises the margin of a query's class, by a kernel of projected gradients.

    For classifiers, with several models trained on the same data from other seeds: scores of one model are noisy, and
    agreement with retraining grows with their number (5 to 50). No curvature and no checkpoints of the way are needed.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        models: Models trained from other seeds: state dicts, or paths of files that hold them. The box's own state
            counts where it is among them; boxes and modules count by their weights. None is the box alone.
        dim: Number of dimensions to which gradients are projected. Below the number of training examples; too small a
            number is noise, too large a one fits it.
        reweighted: Weight training examples by p (1 - p) in the kernel, as a Newton step does. The paper leaves these
            weights out: the ranking is more stable, and the scale is lost.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters are taken to change; None is
            all parameters that require a gradient.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Scores (Q, N), positive where the example helped. They estimate the mean over seeds: in nats of the query's loss
        per example left out with `reweighted`, else up to a factor, which `unit` says.

    Raises:
        OutputError: for a model whose outputs are no classes that exclude one another.
        ModelError: for weights of another model.
        DataError: where the training examples have no labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(20), ub.data.digits("test").first(2)
        >>> result = ub.influence.trak(box, x, y, train, dim=16, layers="fc2")
        >>> tuple(result.scores.shape), result.truth, result.unit
        ((2, 20), 'mean over seeds', 'nats per example left out, up to a factor')

    Source:
        Park et al. 2023, section 3: the mean over models of phi(x) (Phi^T Phi)^-1 Phi^T, times the mean of 1 - p.
        Deviations: multiplied by 1 - p of the query, the slope of its loss in its margin; a count sketch as projection,
        another per model, and none where there are no more parameters than dimensions; a pseudo-inverse, which fewer
        training examples than dimensions need; no soft threshold (nor has the published code); models may be trained on
        all data, in place of random halves.
    """
    check_settings(trak, locals())
    seed = valid_seed(seed)
    box.require_class_scores("trak", exclusive=True)
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    states = CheckpointStates(box, [box.model.state_dict()] if models is None else models, "models")
    parts = [
        _kernel_and_slopes_of_model(
            gradients, (x, y), (train_x, train_y), dim, derive_seed("trak", seed, index), reweighted
        )
        for index, gradients in enumerate(CheckpointGradients(box, states, layers, _negative_log_odds))
    ]
    kernel, train_slopes, query_slopes = (torch.stack(part).mean(0) for part in zip(*parts, strict=True))
    scores = kernel * train_slopes * query_slopes[:, None]
    return Influence(
        scores.to(box.dtype),
        "mean over seeds",
        NATS_PER_EXAMPLE_UNIT_TEXT if reweighted else UNSCALED_NATS_UNIT_TEXT,
        "TRAK",
        box.restore_structure(x),
        y,
        train_y,
        box.classes,
        settings={"models": len(states), "dim": dim, "reweighted": reweighted},
    )


class _KernelAndSlopesOfModel(NamedTuple):
    kernel: Tensor  # (Q, N), change of the query's margin per unit of the example's slope
    train_slopes: Tensor  # (N,), 1 - p
    query_slopes: Tensor  # (Q,)


def _kernel_and_slopes_of_model(
    gradients: ExampleGradients, queries: tuple[Tensor, Tensor], train: tuple[Tensor, Tensor], dim: int, seed: int,
    reweighted: bool,
) -> _KernelAndSlopesOfModel:  # fmt: skip
    ordered = _parameters_in_run_order(gradients)
    sketch = Sketch(ordered, dim, seed) if dim < gradients.n_parameters else None
    phi, slopes = _projected_gradients_and_errors(gradients, sketch, *train)
    query_phi, query_slopes = _projected_gradients_and_errors(gradients, sketch, *queries)
    weights = slopes * (1 - slopes) if reweighted else torch.ones_like(slopes)
    inverse = torch.linalg.pinv((phi.T * weights) @ phi, hermitian=True)  # (dim, dim)
    return _KernelAndSlopesOfModel(query_phi @ inverse @ phi.T, slopes, query_slopes)


def _parameters_in_run_order(gradients: ExampleGradients) -> dict[str, Tensor]:
    """The parameters in the order in which their layers run: compiling a part of a model may register it elsewhere."""
    box, own = gradients.box, dict(gradients.box.model.named_parameters())
    in_order = [p for row in box.layers.leaves for p in box.modules[row.path].parameters()]
    order = {id(p): k for k, p in enumerate(in_order)}
    if any(id(own[name]) not in order for name in gradients.parameters):  # layers of scripts are out of sight
        return dict(gradients.parameters)
    names = sorted(gradients.parameters, key=lambda name: order[id(own[name])])
    return {name: gradients.parameters[name] for name in names}


def _projected_gradients_and_errors(
    gradients: ExampleGradients, sketch: Sketch | None, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Projected gradients of the negative margins (N, dim), and 1 - p (N,), in double precision."""
    phi = gradients.matrix(x, y) if sketch is None else torch.cat(gradients.map_gradients_in_parts(sketch, x, y))

    def negative_margins(rows: slice) -> Tensor:
        with gradients.box.isolated(grad=False):
            return gradients.losses(x[rows], y[rows])

    margins = torch.cat(
        map_in_batches(negative_margins, len(x), *gradients.box.batch_size_and_max_rows(len(x), "auto"))
    )
    return phi.double(), margins.double().sigmoid()


def _negative_log_odds(z: Tensor, y: Tensor) -> Tensor:  # (N, K), (N,)
    """log((1 - p) / p) of the class, by which the loss is log(1 + exp of it)."""
    is_label = F.one_hot(y.long(), z.shape[1]).bool()
    return z.masked_fill(is_label, -torch.inf).logsumexp(1) - z.gather(1, y.long()[:, None])[:, 0]
