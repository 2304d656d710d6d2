"""SOURCE: the training as a few stretches, in each of which it descends a quadratic of constant curvature.

Bae, Lin, Lorraine & Grosse 2024, "Training data attribution via approximate unrolled differentiation",
arXiv:2405.12186.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.example_gradients.fisher_labels import FisherKind
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.kronecker import Approximation, fit_fisher
from ..engine.example_gradients.spectral import VectorsByParameter
from ..errors import InputError
from ..parameters import InputBatch, Labels, LayerAddresses, Seed
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import check_float, check_int, valid_seed
from ._checkpoints import CheckpointGradients, Checkpoints, CheckpointStates
from ._data import TrainingData, random_card_training_data, read_training_examples, resolve_query_labels
from ._scores import LossFunction, class_names_of, loss_change_unit_text
from .result import Influence

DecayKind = Literal["exponential", "geometric"]
FisherLabelKind = Annotated[FisherKind, "Labels at which the curvature is taken: the model's, or those of the data."]


@card(
    name="SOURCE",
    source="Bae et al. 2024, arXiv:2405.12186, section 3",
    shows="How much each training example lowered the loss of a query, also in a training that has not converged.",
    does_not_show="What one run with its own order of batches would do: it is the mean over orders.",
    example=lambda method, box, x, y: method(  # the diagonal also sees layers of scripted models as they are
        box,
        x,
        y,
        random_card_training_data(box),
        checkpoints=[box.model.state_dict()],
        lr=0.1,
        n_steps=10,
        segments=1,
        approximation="diagonal",
    ),
    exempt={
        "one forward": "it runs the training examples at every checkpoint",
        "row seeds": "it draws labels of training examples, the same for all queries",
    },
    runs=100,
)
def source(
    box: Box, x: InputBatch, labels: Labels, train: TrainingData, *,
    checkpoints: Checkpoints,
    lr: Annotated[float | Sequence[float], ValueRole("floats"), "Learning rate, or one per segment: the mean in it."],
    n_steps: Annotated[
        int | Sequence[int], ValueRole("ints"), Unit("steps"), "Number of steps of the training, or one per segment."
    ],
    segments: Annotated[int, AtLeast(1), Unit("segments"), "Number of stretches of constant curvature."] = 3,
    weight_decay: Annotated[float, AtLeast(0), "Weight decay of the training, as torch.optim.SGD takes it."] = 0.0,
    approximation: Annotated[Approximation, "Approximation of the curvature of each segment."] = "ekfac",
    fisher: FisherLabelKind = "sampled",
    decay: Annotated[DecayKind, "How a step shrinks what came before it."] = "exponential",
    layers: LayerAddresses = None, loss: LossFunction = None, seed: Seed = 0,
) -> Influence:  # fmt: skip
    """What leaving each training example out of a training by gradient descent does to the loss of each query.

    For trainings that stopped before they converged, or whose data changed on the way, of which checkpoints were kept.
    The training is cut into segments; in each, curvature and gradients are those of its checkpoints, so that the effect
    of an example's weight on the final parameters is a sum of products of exponentials. Nothing is trained again.

    Args:
        box: The opened model, trained: in its final state.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
        labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        checkpoints: Checkpoints of the training: state dicts, or paths of files that hold them. In the order of the
            training; they are spread over the segments, at least one for each. Boxes and modules count
            by their weights.
        lr: Learning rate, or one per segment: the mean in it. With momentum m it is that of SGD, divided by 1 - m.
        n_steps: Number of steps of the training, or one per segment.
        segments: Number of stretches of constant curvature.
        weight_decay: Weight decay of the training, as torch.optim.SGD takes it. It is added to each eigenvalue.
        approximation: Approximation of the curvature of each segment. "ekfac" is the paper's; "kfac", "diagonal";
            "dense" is the Gauss-Newton matrix itself, of at most 4096 parameters.
        fisher: Labels at which the curvature is taken: the model's, or those of the data. "sampled" draws one per
            example, "exact" sums over all of them, "empirical" takes those of the data.
        decay: How a step shrinks what came before it. "exponential" is the paper's exp(-lr H) per step, also where
            steps are too large for the curvature; "geometric" is that of gradient descent, 1 - lr H.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters are taken to change; None is
            all parameters that require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None is the one that fits the
            model's outputs: cross-entropy in nats, or half the squared error of a regression model.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Scores (Q, N), positive where the example helped: in nats of the query's loss per example left out. They
        estimate the mean over seeds.

    Raises:
        InputError: for fewer checkpoints than segments, or rates and steps that are not one per segment.
        ModelError: for a checkpoint of another model.
        DataError: where the training examples have no labels.
        NaNError: where the loss of a training example is NaN; the error names it.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(20), ub.data.digits("test").first(2)
        >>> states = [box.model.state_dict()] * 3  # as saved on the way
        >>> result = ub.influence.source(box, x, y, train, checkpoints=states, lr=0.01, n_steps=300, layers="fc2")
        >>> tuple(result.scores.shape), result.truth
        ((2, 20), 'mean over seeds')

    Source:
        Bae et al. 2024, section 3, with the sign of leaving out: 1/N times the sum over segments of the query's
        gradient, carried back through the later segments' exp(-lr K H), times (1 - exp(-lr K H)) H^-1, times the
        example's mean gradient. The factors of a segment are the means over its checkpoints, as there. Deviations:
        "geometric", which is exact for full-batch gradient descent of constant rate on a quadratic; weight decay;
        layers without Kronecker factors have diagonals.
    """
    check_settings(source, locals())
    seed = valid_seed(seed)
    x = box.validate_inputs(x)
    y = resolve_query_labels(box, x, labels)
    train_x, train_y = read_training_examples(box, train)
    states = CheckpointStates(box, checkpoints)
    plan = _make_training_segments(
        CheckpointGradients(box, states, layers, loss), len(states), lr, n_steps, segments, weight_decay, decay
    )
    gradients = ExampleGradients(box, layers, loss)
    remaining: VectorsByParameter = gradients.unflatten(gradients.matrix(x, y))  # (Q, ...), the queries' gradients
    scores = torch.zeros(len(x), len(train_x), dtype=box.dtype, device=box.device)
    for segment in reversed(plan):
        curvature = fit_fisher(segment.states, train_x, train_y, approximation=approximation, fisher=fisher, seed=seed)
        scores += segment.mean_projection(curvature.apply(remaining, segment.decayed_step_size_sum), train_x, train_y)
        remaining = curvature.apply(remaining, segment.decay_to_segment_end)
    return Influence(
        scores / len(train_x), "mean over seeds", loss_change_unit_text(box, loss), "SOURCE",
        box.restore_structure(x), y, train_labels=train_y, classes=class_names_of(box), settings={
            "checkpoints": len(states), "segments": segments, "lr": lr, "n_steps": n_steps,
            "weight_decay": weight_decay, "curvature": approximation, "fisher": fisher, "decay": decay,
        },
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _TrainingSegment:
    """A stretch of K steps of one rate, whose curvature and gradients are the means of its checkpoints'."""

    states: CheckpointGradients
    lr: float
    n_steps: int
    weight_decay: float
    decay: DecayKind

    def decay_to_segment_end(self, eigenvalues: Tensor) -> Tensor:
        """exp(-lr K s), or (1 - lr s)^K: what remains at the end of a change at the start."""
        z = self.lr * (eigenvalues.double() + self.weight_decay)
        remains = torch.exp(-self.n_steps * z) if self.decay == "exponential" else (1 - z) ** self.n_steps
        return remains.to(eigenvalues)

    def decayed_step_size_sum(self, eigenvalues: Tensor) -> Tensor:
        """(1 - what remains) / s: what K steps along the same gradient add up to; lr K where s is zero."""
        s = eigenvalues.double() + self.weight_decay
        log_decay = -self.lr * s if self.decay == "exponential" else torch.log1p(-(self.lr * s).clamp(max=0.5))
        lost = -torch.expm1(self.n_steps * log_decay)  # exact also where next to nothing is lost
        if self.decay == "geometric":
            lost = torch.where(self.lr * s > 0.5, 1 - (1 - self.lr * s) ** self.n_steps, lost)
        return torch.where(s > 0, lost / s, torch.full_like(s, self.lr * self.n_steps)).to(eigenvalues)

    def mean_projection(self, vectors: VectorsByParameter, x: Tensor, y: Tensor) -> Tensor:
        """Inner products (Q, N) of vectors with the gradients of training examples, the mean over checkpoints."""
        return torch.stack([gradients.project(vectors, x, y) for gradients in self.states]).mean(0)


def _make_training_segments(
    states: CheckpointGradients, n_states: int, lr: float | Sequence[float], n_steps: int | Sequence[int],
    segments: int, weight_decay: float, decay: DecayKind,
) -> list[_TrainingSegment]:  # fmt: skip
    """The segments, with their checkpoints, rates and steps. Raises InputError."""
    if n_states < segments:
        wanted = f"at least one for each of the {segments} segments; give more, or segments={n_states}"
        raise InputError(f"there are {n_states} checkpoints; wanted {wanted}")
    rates = [check_float("lr", rate, above=0) for rate in _expand_to_one_value_per_segment("lr", lr, segments)]
    if not isinstance(n_steps, Sequence) and check_int("n_steps", n_steps, minimum=1) < segments:
        wanted = f"{segments} or more, at least one for each of the {segments} segments"
        raise InputError(f"n_steps must be {wanted}; got {n_steps}. Give more, or segments={n_steps}")
    shares = n_steps if isinstance(n_steps, Sequence) else _split_evenly(n_steps, segments)
    steps = [check_int("n_steps", k, minimum=1) for k in _expand_to_one_value_per_segment("n_steps", shares, segments)]
    ends = list(accumulate(_split_evenly(n_states, segments)))
    parts = [states.of_checkpoint_range(start, end) for start, end in pairwise([0, *ends])]
    return [_TrainingSegment(*of_segment, weight_decay, decay) for of_segment in zip(parts, rates, steps, strict=True)]


def _split_evenly(n: int, n_parts: int) -> list[int]:
    """Whole numbers that sum to n, and differ by at most 1."""
    return [n // n_parts + (i < n % n_parts) for i in range(n_parts)]


def _expand_to_one_value_per_segment(name: str, value: Any, segments: int) -> list[Any]:
    values = [*value] if isinstance(value, Sequence) else [value] * segments
    if len(values) != segments:
        raise InputError(f"{name} must be a number, or one for each of the {segments} segments; got {len(values)}")
    return values
