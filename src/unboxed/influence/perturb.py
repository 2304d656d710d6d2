"""Which values of a training example, such as pixels, matter for a query's loss.

Koh & Liang 2017, arXiv:1703.04730, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.example_gradients.curvature import check_depends_on_parameters
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.parameters import Parameters
from ..model.state import outside_callers_modes
from ..parameters import BatchSize, InputBatch, Labels, LayerAddresses, Seed
from ..settings import check_settings
from ._data import TrainIndex, TrainingData, check_train_index, random_card_training_data, resolve_query_labels
from ._inverse import L2, CurvatureChoice, CurvatureSettings, Damping, LossFunction, SolverChoice


@card(
    name="Influence of training pixels",
    source="Koh & Liang 2017, arXiv:1703.04730, equation 5",
    shows="Which values of a training example would change the loss of a query, had they been other in training.",
    does_not_show="What a large change of the training example does: it is the slope at the example as it is.",
    example=lambda method, box, x, y: method(box, x, y, random_card_training_data(box), 0, damping=1e5),
    exempt={
        "one forward": "it runs the training examples many times",
        "another seed": "conjugate gradients, its default for few parameters, draw nothing",
        "row seeds": "conjugate gradients, its default for few parameters, draw nothing",
    },
    runs=100,
)
@outside_callers_modes
def perturb(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, index: TrainIndex, *,
    solver: SolverChoice = "auto", curvature: CurvatureChoice = "gauss_newton", damping: Damping = None, l2: L2 = 0.0,
    layers: LayerAddresses = None, loss: LossFunction = None, batch_size: BatchSize = "auto", seed: Seed = 0,
) -> Attribution:  # fmt: skip
    """The slope of a query's loss in the pixels of a training image, after training on the changed image.

    It shows through what a training example acts on a query; `influence_functions` says which example to look at. To
    poison a model, one would move the pixels along the map.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        index: Index of the training example, or one per query (N,).
        solver: How the inverse is applied: "auto", or a solver or its name. As in `influence_functions`.
        curvature: Which curvature H of the training loss is inverted. As in `influence_functions`.
        damping: What is added to every eigenvalue of H before it is inverted. None as in `influence_functions`.
        l2: Weight decay of the training: its loss has l2 / 2 times the squared parameters.
        layers: Addresses of the layers, as `box.layers` lists them. None is all parameters that require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None fits the model's outputs.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Maps (Q, ...) over the training image of each query, which is the result's `input`: the derivative of the
        query's loss in nats per unit of the pixel, but for a solver that approximates H: up to a factor by EK-FAC, and
        by Arnoldi without the directions that it leaves out. Positive: brighter there raises the query's loss. `score`
        is the influence of the example as a whole (`influence_functions`), `query` the queries, `damping` what was
        added, `solver` what inverted H.

    Raises:
        InputError: for an index that is no training example, and as `influence_functions`.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(10), ub.data.digits("test").first(2)
        >>> ub.influence.perturb(box, x, y, train, index=[3, 8], layers="fc2").shape
        torch.Size([2, 1, 28, 28])

    Source:
        Koh & Liang 2017, equation 5: -(1/n) g_query^T (H + damping)^-1 d/dx d/dtheta loss(x_train).
    """
    check_settings(perturb, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    settings = CurvatureSettings(solver, curvature, damping, l2, layers, loss, batch_size, seed)
    inverse = settings.inverse(box, train)
    c = inverse.curvature
    rows = check_train_index(index, len(x), c.n_examples, box.device)
    s = inverse.solve_for_loss_gradients(x, y)
    slopes = [
        _loss_gradient_projection_and_slope(
            inverse.gradients, {name: v[q] for name, v in s.items()}, c.x[i, None], c.y[i, None]
        )
        for q, i in enumerate(rows.tolist())
    ]
    scores, maps = torch.stack([score for score, _ in slopes]), torch.cat([slope for _, slope in slopes])
    return make_attribution(
        box, -maps / c.n_examples, x=c.x[rows], method="Influence of training pixels",
        target=None if c.y.is_floating_point() else c.y[rows], score=(scores / c.n_examples).to(box.dtype),
        query=box.restore_structure(x), query_target=y, damping=inverse.damping,
        solver=inverse.settings["solver"], slope="slope: change of the query's loss",
    )  # fmt: skip


def _loss_gradient_projection_and_slope(
    gradients: ExampleGradients, s: Parameters, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """<s, gradient of the loss at (x, y)>, a number, and its gradient (1, ...) in x."""
    parameters = {name: p.detach().requires_grad_() for name, p in gradients.parameters.items()}
    x = x.clone().requires_grad_()
    with gradients.box.isolated(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = gradients.losses(x, y, parameters).sum()
        check_depends_on_parameters(loss)
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
        projection = torch.stack(
            [(g * s[name].to(g.dtype)).sum() for name, g in zip(parameters, grads, strict=True)]
        ).sum()
        slope = torch.autograd.grad(projection, x, allow_unused=True)[0] if projection.requires_grad else None
    return projection.detach(), torch.zeros_like(x).detach() if slope is None else slope
