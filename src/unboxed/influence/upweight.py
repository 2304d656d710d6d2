"""What a training example does to the parameters.

Koh & Liang 2017, arXiv:1703.04730, equation 1.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..parameters import BatchSize, LayerAddresses, Seed
from ..settings import check_settings
from ._data import TrainIndex, TrainingData, check_train_index
from ._inverse import L2, CurvatureChoice, CurvatureSettings, Damping, LossFunction, SolverChoice


def upweight(
    box: Box, train: TrainingData, index: TrainIndex, *,
    solver: SolverChoice = "auto", curvature: CurvatureChoice = "gauss_newton", damping: Damping = None, l2: L2 = 0.0,
    layers: LayerAddresses = None, loss: LossFunction = None, batch_size: BatchSize = "auto", seed: Seed = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """How the trained parameters move when a training example gets more weight: the slope in its weight, now 1.

    Minus it is, to first order, what leaving the example out does to the parameters: added to them, it gives a model
    without the example for any question, at the cost of no training.

    Args:
        box: The opened model, trained.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        index: Index of the training example, or one per query (N,). Here several indices (M,) are several examples.
        solver: How the inverse is applied: "auto", or a solver or its name. As in `influence_functions`.
        curvature: Which curvature H of the training loss is inverted. As in `influence_functions`.
        damping: What is added to every eigenvalue of H before it is inverted. None as in `influence_functions`.
        l2: Weight decay of the training: its loss has l2 / 2 times the squared parameters.
        layers: Addresses of the layers, as `box.layers` lists them. None is all parameters that require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None fits the model's outputs.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        {name of the parameter: derivatives (M, ...)}: -(1/n) (H + damping)^-1 g of each example.

    Raises:
        InputError: for an index that is no training example, and as `influence_functions`.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> moves = ub.influence.upweight(box, ub.data.digits("train").first(10), [3, 8], layers="fc2")
        >>> {name: tuple(m.shape) for name, m in moves.items()}
        {'fc2.weight': (2, 10, 64), 'fc2.bias': (2, 10)}

    Source:
        Koh & Liang 2017, equation 1, divided by n: there the weight that grows is one of 1, here one of 1/n.
    """
    check_settings(upweight, locals())
    settings = CurvatureSettings(solver, curvature, damping, l2, layers, loss, batch_size, seed)
    inverse = settings.inverse(box, train)
    c = inverse.curvature
    rows = check_train_index(index, None, c.n_examples, box.device)
    return {name: -s / c.n_examples for name, s in inverse.solve_for_loss_gradients(c.x[rows], c.y[rows]).items()}
