"""Group influence: what leaving a whole group of training examples out does, to second order.

Basu, You & Feizi 2020, "On second-order group influence functions for black-box predictions", arXiv:1911.00418.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.results import MAX_SUMMARY_LINES, ResultMixin
from ..errors import InputError
from ..model.batching import map_in_batches
from ..model.state import outside_callers_modes
from ..parameters import BatchSize, InputBatch, Labels, LayerAddresses, Seed
from ..settings import check_settings
from ._data import TrainingData, random_card_training_data, resolve_query_labels
from ._inverse import L2, CurvatureChoice, CurvatureSettings, Damping, InverseCurvature, LossFunction, SolverChoice
from ._scores import class_names_of, loss_change_unit_text
from .result import RANKING_UNIT_TEXT, ScoreTruth

Groups = Annotated[Sequence[Any], "Groups of training examples: each the indices of its members."]
GroupInfluenceOrder = Annotated[
    Literal[1, 2], "1: the sum of the members' influences; 2: with the second-order correction."
]


@dataclass(frozen=True, eq=False, repr=False)
class GroupInfluence(ResultMixin):
    """Scores of groups of training examples for queries: positive where the group helped the query.

    Attributes:
        scores: (Q, G) queries by groups.
        members: The indices of each group's training examples.
        truth: "one run" or "mean over seeds".
        unit: Unit of the scores.
        method: The name of the method, as its card has it.
        input: The queries (Q, ...), in the box's units.
        target: (Q,) the classes whose loss is explained; or what the loss was given.
        classes: The names of the model's classes.
        settings: What was chosen or given that the scores depend on: damping, solver, order.
    """

    returns: ClassVar[str] = "table"

    scores: Tensor
    members: tuple[Tensor, ...]
    truth: ScoreTruth
    unit: str = "nats per group left out"
    method: str = ""
    input: Any = None
    target: Tensor | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def summary_lines(self) -> Iterator[str]:
        yield f"{self.method}: {len(self.members)} groups for {len(self.scores)} queries, in {self.unit}"
        for q, row in enumerate(self.scores.tolist()):
            yield f"query {q}: " + ", ".join(
                f"group {g} {value:+.3g}" for g, value in enumerate(row[:MAX_SUMMARY_LINES])
            )


@card(
    name="Group influence",
    source="Basu, You & Feizi 2020, arXiv:1911.00418, section 4",
    shows="What leaving out a group of training examples together does to the loss of a query.",
    does_not_show="What a training does that is not at its optimum; and groups so large that another optimum results.",
    example=lambda method, box, x, y: method(
        box, x, y, random_card_training_data(box), [[0, 1], [2, 3, 4]], damping=1e5
    ),
    exempt={
        "one forward": "it runs the training examples many times",
        "another seed": "conjugate gradients, its default for few parameters, draw nothing",
        "row seeds": "conjugate gradients, its default for few parameters, draw nothing",
    },
    runs=200,
)
@outside_callers_modes
def group(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, groups: Groups, *, order: GroupInfluenceOrder = 2,
    solver: SolverChoice = "auto", curvature: CurvatureChoice = "gauss_newton", damping: Damping = None, l2: L2 = 0.0,
    layers: LayerAddresses = None, loss: LossFunction = None, batch_size: BatchSize = "auto", seed: Seed = 0,
) -> GroupInfluence:  # fmt: skip
    """What leaving each group of training examples out does to the loss of each query.

    For groups of some percent of the training data, where the sum of the members' influences is too small: without the
    group the curvature is smaller too, which the second order takes into account.

    Args:
        box: The opened model, trained.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        groups: Groups of training examples: each the indices of its members. They may overlap.
        order: 1: the sum of the members' influences; 2: with the second-order correction.
        solver: How the inverse is applied: "auto", or a solver or its name. As in `influence_functions`.
        curvature: Which curvature H of the training loss is inverted. As in `influence_functions`.
        damping: What is added to every eigenvalue of H before it is inverted. None as in `influence_functions`.
        l2: Weight decay of the training: its loss has l2 / 2 times the squared parameters.
        layers: Addresses of the layers, as `box.layers` lists them. None is all parameters that require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None fits the model's outputs.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Scores (Q, G), positive where the group helped, in nats per group left out; the others keep their weight 1/n.
        With a solver that approximates H (EK-FAC, Arnoldi) they are a ranking alone, as `unit` says.
        With s = (H + damping)^-1 g of the query, and t = (H + damping)^-1 g of the group's part of the mean loss, it is
        s^T g_group + s^T H_group t.

    Raises:
        InputError: for groups that are not indices of training examples, and as `influence_functions`.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(12), ub.data.digits("test").first(2)
        >>> ub.influence.group(box, x, y, train, [range(6), range(3, 12)], layers="fc2").scores.shape
        torch.Size([2, 2])

    Source:
        Basu et al. 2020, section 4, while all others keep their weight 1/n instead of 1/(n - group). Like there,
        third derivatives of the training loss and the query's second ones are left out.
    """
    check_settings(group, locals())
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    settings = CurvatureSettings(solver, curvature, damping, l2, layers, loss, batch_size, seed)
    inverse = settings.inverse(box, train)
    members = [_check_members(rows, inverse.curvature.n_examples, box.device) for rows in _check_groups(groups)]
    effects = torch.cat([_group_part_of_mean_gradient(inverse, rows) for rows in members])  # (G, P)
    if order == 2:
        effects = effects + _second_order_group_effects(inverse, members, effects)
    scores = inverse.gradients.flatten(inverse.solve_for_loss_gradients(x, y)) @ effects.T
    return GroupInfluence(
        scores.to(box.dtype), tuple(members), "one run", method="Group influence", input=box.restore_structure(x),
        target=y, classes=class_names_of(box), settings={**inverse.settings, "order": order},
        unit=_group_unit_text(box, inverse),
    )  # fmt: skip


def _group_unit_text(box: Box, inverse: InverseCurvature) -> str:
    if inverse.is_approximate:
        return RANKING_UNIT_TEXT
    return loss_change_unit_text(box, inverse.gradients.loss).replace("per example", "per group")


def _second_order_group_effects(inverse: InverseCurvature, members: list[Tensor], gradients: Tensor) -> Tensor:
    """H_group (H + damping)^-1 g_group (G, P)."""
    flatten, unflatten = inverse.gradients.flatten, inverse.gradients.unflatten
    moves = flatten(inverse.solve(unflatten(gradients)))
    products = [
        inverse.curvature.subset(rows, l2=0).matvec(move[None]) * len(rows)
        for rows, move in zip(members, moves, strict=True)
    ]
    return torch.cat(products) / inverse.curvature.n_examples


def _group_part_of_mean_gradient(inverse: InverseCurvature, rows: Tensor) -> Tensor:
    """The gradient (1, P) of a group's part of the mean loss, in batches."""
    c, gradients = inverse.curvature, inverse.gradients

    def sum_batch_gradients(part: slice) -> Tensor:
        mean = gradients.mean(c.x[rows[part]], c.y[rows[part]])
        return gradients.flatten({n: g[None] for n, g in mean.items()}).to(gradients.box.dtype) * len(rows[part])

    parts = map_in_batches(
        sum_batch_gradients, len(rows), *gradients.box.batch_size_and_max_rows(len(rows), c.batch_size)
    )
    return torch.stack(parts).sum(0) / c.n_examples


def _check_groups(groups: Any) -> list[Any]:
    if isinstance(groups, str) or not hasattr(groups, "__iter__") or not len(listed := list(groups)):
        raise InputError(f"groups must be a list with the indices of each group's members; got {groups!r}")
    return listed


def _check_members(rows: Any, n: int, device: torch.device) -> Tensor:
    """Indices (M,) of training examples, each once."""
    try:
        index = torch.as_tensor(list(rows) if isinstance(rows, range) else rows, device=device)
    except (TypeError, ValueError, RuntimeError):
        index = torch.empty(0)
    if index.ndim != 1 or not len(index) or index.is_floating_point() or index.dtype == torch.bool:
        raise InputError(f"groups must hold indices of training examples, at least one each; got {rows!r}"[:300])
    if not bool(((index >= 0) & (index < n)).all()) or len({*index.tolist()}) < len(index):
        raise InputError(f"groups must hold different indices from 0 to {n - 1}; got {rows!r}"[:300])
    return index.long()
