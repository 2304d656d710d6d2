"""Suspected mislabels: training examples ranked by how likely their labels are wrong, with labels to put in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.features import read_features, resolve_address
from ..engine.read.neighbors import Neighbors, StreamingNeighborSearch
from ..engine.results import MAX_SUMMARY_LINES, ResultMixin, class_name
from ..errors import InputError
from ..model.nan_checks import check_no_nan
from ..parameters import BatchSize, LayerAddress
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ._data import TrainingData, random_card_training_data, read_training_examples
from .self_influence import self_influence

MislabelMethod = Literal["neighbors", "loss", "self-influence"]
VOTE_SMOOTHING = 0.03  # votes that all classes share, against one of all neighbors
VOTE_DISTANCE_SHARPNESS = 2.0  # of weights exp(-SHARPNESS * distance / median distance)


@dataclass(frozen=True, eq=False, repr=False)
class SuspectedMislabels(ResultMixin):
    """Training examples ranked by how likely their labels are wrong.

    Attributes:
        scores: (N,) in nats, minus the log-probability of the label; of method "self-influence" the self-influence.
            Larger is more suspect. They rank; what is above no bound is no proof.
        log_probs: (N, K) log-probabilities of the classes, by the model and, of method "neighbors", their vote.
        train_labels: (N,) the labels.
        method: What the examples were ranked by.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    scores: Tensor
    log_probs: Tensor
    train_labels: Tensor
    method: str
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        n, rows = len(self.train_labels), self.top(MAX_SUMMARY_LINES - 1).tolist()
        yield f"{self.n_suspected} of {n} examples have a likelier class than their label, by {self.method}"
        for i in rows:
            label, other = (class_name(int(k[i]), self.classes) for k in (self.train_labels, self.suggested))
            suggestion = f", likelier {other}" * (label != other)
            yield f"example {i}: labeled {label}{suggestion} (score {float(self.scores[i]):.3g})"

    @property
    def suggested(self) -> Tensor:
        """(N,) the likeliest class of each example, which may be its label."""
        return self.log_probs.argmax(1)

    @property
    def order(self) -> Tensor:
        """(N,) indices of the training examples, the most suspect first."""
        return self.scores.argsort(descending=True, stable=True)

    @property
    def n_suspected(self) -> int:
        """Number of examples of which another class than their label is likelier."""
        return int((self.suggested != self.train_labels).sum())

    def top(self, k: int = 8) -> Tensor:
        """The k most suspect examples (k,), the most suspect first."""
        return self.order[:k]


@card(
    name="Suspected mislabels",
    source="Wilson 1972, Asymptotic properties of nearest neighbor rules using edited data; Pleiss et al. 2020, "
    "arXiv:2001.10528 (losses along the training)",
    shows="Which training examples have a label that their neighbors and the model speak against.",
    does_not_show="Whether the label is wrong or the example is ambiguous: that takes a look at it.",
    example=lambda method, box, x, y: method(box, random_card_training_data(box), n_neighbors=2),
    order=61,
)
def suspected_mislabels(
    box: Box,
    train: TrainingData,
    *,
    method: Annotated[MislabelMethod, "What examples are ranked by."] = "neighbors",
    layer: LayerAddress = None,
    n_neighbors: Annotated[int, AtLeast(1), Unit("examples"), "Nearest neighbors that vote on each label."] = 20,
    checkpoints: Annotated[
        Sequence[Box] | None, ValueRole("object"), "Boxes of the model along its training."
    ] = None,
    batch_size: BatchSize = "auto",
) -> SuspectedMislabels:  # fmt: skip
    """Rank training examples by how likely their labels are wrong, and suggest others.

    To clean a training set: the first ones are to be looked at. The default takes the vote of each example's nearest
    neighbors, none of which is itself, times the model's probability of the class. A model learns wrong labels by
    heart, in the end, so that its loss alone says less the longer it was trained; neighbors do not.

    Args:
        box: The opened model, trained on these examples.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader.
        method: What examples are ranked by. "neighbors" is their vote times the model's probability; "loss" the
            model's loss alone; "self-influence" `self_influence` of the last layer.
        layer: Address of the layer, as `box.layers` lists them. Neighbors are near there, by the cosine. None: the
            inputs themselves, which suits digits and tables; for photos name a layer of a model that was not trained on
            these labels.
        n_neighbors: Nearest neighbors that vote on each label. At most N - 1.
        checkpoints: Boxes of the model along its training. Their log-probabilities are averaged in place of the
            model's own: early ones have not yet learned wrong labels. None: the model alone.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `SuspectedMislabels`: `scores` and `suggested` labels (N,), `order`, `top(k)`.

    Raises:
        DataError: where the training examples have no labels.
        InputError: for fewer examples than neighbors, or checkpoints with other classes.
        LayerError: for an unknown layer.
        OutputError: for a model without classes that exclude one another.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("train").first(200)
        >>> y[7] = (y[7] + 5) % 10  # a wrong label
        >>> result = ub.influence.suspected_mislabels(box, (x, y))
        >>> result.top(1).tolist(), int(result.suggested[7]) == (int(y[7]) - 5) % 10
        ([7], True)

    Source:
        The vote of neighbors without the example itself is Wilson's 1972 editing rule, with weights exp(-2 d / median
        d); the average along the training follows Pleiss et al. 2020 (area under the margin), with log-probabilities.
        Their product is our own.
    """
    check_settings(suspected_mislabels, locals())
    box.require_class_scores("suspected_mislabels", exclusive=True)
    x, y = read_training_examples(box, train)
    log_probs = _checkpoint_mean_log_probs(box, x, checkpoints, batch_size)  # (N, K)
    if method == "neighbors":
        neighbors = _nearest_other_examples(box, x, layer, n_neighbors, batch_size)
        log_probs = (log_probs + _label_votes_of_neighbors(neighbors, y, box.n_outputs).log()).log_softmax(1)
    if method == "self-influence":
        scores = self_influence(box, (x, y), batch_size=batch_size).scores
    else:
        scores = -log_probs.gather(1, y[:, None])[:, 0]
    return SuspectedMislabels(scores.to(box.dtype), log_probs.to(box.dtype), y, method, box.classes)


def _checkpoint_mean_log_probs(box: Box, x: Tensor, checkpoints: Sequence[Box] | None, batch_size: BatchSize) -> Tensor:
    """Log-probabilities (N, K) of the classes in float64: the model's, or their mean over checkpoints."""
    given = [box] if checkpoints is None else checkpoints
    boxes = list(given) if isinstance(given, Iterable) else []
    if not boxes or any(not isinstance(b, Box) or b.n_outputs != box.n_outputs for b in boxes):
        raise InputError(
            f"checkpoints must be boxes of the model, with its {box.n_outputs} classes, in a list of at least one; "
            "box.with_model(model) opens a model with the weights of a state dict"
        )
    logits = [check_no_nan(b(x, batch_size=batch_size)).double() for b in boxes]
    return torch.stack([z.log_softmax(1) for z in logits]).mean(0)


def _nearest_other_examples(box: Box, x: Tensor, layer: str | None, k: int, batch_size: BatchSize) -> Neighbors:
    """The k nearest other examples of each one (N, k)."""
    address = "input" if layer is None else resolve_address(box, layer)
    h = read_features(box, x, [address], batch_size=batch_size)[address]
    search = StreamingNeighborSearch(h, k, metric="cosine", exclude=torch.arange(len(h)))
    search.add(h)
    return search.nearest_so_far()


def _label_votes_of_neighbors(neighbors: Neighbors, y: Tensor, n_classes: int) -> Tensor:
    """What part of its neighbors has each class, (N, K) in float64, near ones counting more; none is zero."""
    d = neighbors.distances.double()
    median = d.median(1, keepdim=True).values.clamp_min(torch.finfo(torch.float32).tiny)
    weights = torch.exp(-VOTE_DISTANCE_SHARPNESS * d / median)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    votes = weights.new_zeros(len(y), n_classes).scatter_add_(1, y[neighbors.indices], weights)
    return (votes + VOTE_SMOOTHING / n_classes) / (1 + VOTE_SMOOTHING)
