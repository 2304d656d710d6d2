"""Error slices: groups of examples that the model gets wrong more often than the rest, found in its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import scipy
import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.linear.principal import PrincipalBasis
from ..engine.multiple_tests import holm_adjusted
from ..engine.proportion import Proportion
from ..engine.read.examples import indexed_labeled_examples
from ..engine.read.features import (
    SKETCH_SIZE,
    count_sketch,
    input_and_hidden_layer_addresses,
    read_features,
    resolve_layers,
)
from ..engine.results import ResultMixin, class_name
from ..errors import DataError, InputError
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, Data, LayerAddresses, MaxExamples, Seed
from ..settings import Above, AtLeast, Below, Unit, check_settings
from ..validation import valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import random_card_examples
from ._data import Concepts, read_concepts
from ._scan import WardClusterTree, find_high_error_groups

MIN_EXAMPLES_OF_BOTH_HALVES = 8  # which two halves are made of
MAX_CLUSTERED_EXAMPLES = 2000  # examples that are clustered: all pairs are compared
N_PRINCIPAL_COMPONENTS, MAX_DEFAULT_LAYERS = 30, 3
N_VOTING_NEIGHBORS = 5  # searched examples that decide whether a held-out one is in a group
MIN_LOG_LIKELIHOOD_RATIO_OF_GROUP = 3.0  # log-likelihood ratio of a group that is tested at all
N_RETAINED_SLICE_EXAMPLES = 8  # examples of a slice that the result carries


@dataclass(frozen=True, eq=False, repr=False)
class ErrorSlice(ResultMixin):
    """A group of examples whose errors were tested on examples that it was not found with.

    Attributes:
        layer: The layer in which the group was found.
        members: (M,) indices of its examples in the data, the most typical first.
        errors: Errors among its held-out examples.
        rest: Errors among the other held-out examples.
        p_value: Of the exact permutation test on the held-out half, corrected for the groups that were tested.
        is_significant: Whether p_value is below alpha.
        label: The most frequent label.
        label_fraction: The fraction of its examples with that label.
        concept: The nearest of the given concepts; "" without any.
        concept_cosine: The cosine between the slice's direction (its mean minus the others') and the concept's.
        examples: (E, C, H, W) its first members where they are images.
        answers: (E, 2) their labels and predicted classes.
    """

    layer: str
    members: Tensor
    errors: Proportion
    rest: Proportion
    p_value: float
    is_significant: bool
    label: int
    label_fraction: float
    concept: str
    concept_cosine: float
    examples: Tensor | None
    answers: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ErrorSlices(ResultMixin):
    """The groups that were tested, with what was found.

    Attributes:
        candidates: The groups that were found on one half of the examples and tested on the other.
        layers: The layers that were searched.
        is_error: (N,) bool: which examples, of both halves, the model gets wrong.
        alpha: Level of significance.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    candidates: tuple[ErrorSlice, ...]
    layers: tuple[str, ...]
    is_error: Tensor
    alpha: float
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        yield from super().summary_lines()
        yield from (self.sentence(group) for group in self.slices[1:])

    @property
    def slices(self) -> tuple[ErrorSlice, ...]:
        """The groups with a significantly higher error."""
        return tuple(s for s in self.candidates if s.is_significant)

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where a group's higher error holds on held-out examples, "fail" where none does."""
        return PASS if self.slices else FAIL if self.candidates else NOT_TESTED_CLAIM

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        if not self.candidates:
            return f"no group stands out among {len(self.is_error)} examples with {int(self.is_error.sum())} errors"
        best = min(self.candidates, key=lambda s: s.p_value)
        held_out = self.sentence(best)
        return held_out if self.slices else f"no group's higher error holds on held-out examples: at best, {held_out}"

    def sentence(self, group: ErrorSlice) -> str:
        """A group's errors against the rest's."""
        low, high = group.errors.clopper_pearson_interval
        return (
            f"{group.errors.value:.0%} ({low:.0%} to {high:.0%}) of {group.errors.n} held-out examples of a group in "
            f"{group.layer!r} are wrong, of the others {group.rest.value:.1%} (p = {group.p_value:.2g}, corrected)"
        )

    def class_name(self, k: int) -> str:
        return class_name(k, self.classes)


@card(
    name="Error slices",
    source="After Eyuboglu et al. 2022, arXiv:2203.14960 (Domino), by a tree scan: Kulldorff et al. 2003",
    shows="Groups of examples, alike in a layer, that the model gets wrong more often than the rest.",
    does_not_show="Why it does: what the group's examples share is for you to see; and groups whose examples are near "
    "one another in no layer are not found.",
    example=lambda method, box, x, y: method(box, (random_card_examples(box), _random_card_labels(box)), min_size=2),
    order=72,
)
def error_slices(
    box: Box,
    data: Data,
    *,
    layers: LayerAddresses = None,
    concepts: Concepts | None = None,
    min_size: Annotated[int, AtLeast(2), Unit("examples"), "Smallest number of examples of a slice."] = 20,
    max_slices: Annotated[int, AtLeast(1), Unit("slices"), "Largest number of groups that are tested."] = 5,
    alpha: Annotated[float, Above(0), Below(1), "Level of significance, after correction."] = 0.05,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> ErrorSlices:  # fmt: skip
    """Groups of examples, alike in a layer, with a significantly higher error than the rest.

    To learn where a model fails where its accuracy is one number. Groups are found on one half of the examples, and
    tested on the other, so that a group that stands out by chance is not reported.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. They need labels, and should not be those that
            the model was trained on.
        layers: Addresses of the layers, as `box.layers` lists them. Each group is one layer's. None: the inputs
            themselves and the inputs of up to three layers.
        concepts: Examples of each concept by its name: {name: examples in any form}. Or {name: direction (D,)}, a
            vector in the one layer that is named. Of each slice the nearest concept is named. None: no concepts.
        min_size: Smallest number of examples of a slice.
        max_slices: Largest number of groups that are tested. More groups make each test stricter.
        alpha: Level of significance, after correction.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result. It splits the examples into halves.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `ErrorSlices`: the significant `slices` among the `candidates`, each with its members, its errors and the
        rest's on held-out examples; a `verdict` with its `reason`.

    Raises:
        DataError: for fewer than 8 examples, or examples without labels.
        InputError: for concepts that are no mapping, or directions of another length.
        LayerError: for an unknown layer.
        OutputError: for a model without classes that exclude one another.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("train").first(600)
        >>> x[:90] = 1 - x[:90]  # a group that the model was not trained on
        >>> result = ub.concepts.error_slices(box, (x, y))
        >>> result.verdict, bool((result.slices[0].members < 90).double().mean() > 0.8)
        ('pass', True)

    Source:
        The purpose and the held-out test follow Eyuboglu et al. 2022, arXiv:2203.14960. In place of a mixture of
        Gaussians the groups are those of Ward's hierarchical clustering of each layer's first 30 principal components,
        at all sizes; the scan statistic of Kulldorff 1997 chooses among them on the search half. A held-out example is
        in a group if most of its 5 nearest searched ones are. The permutation test of the error rates is exact
        (hypergeometric), with Holm's correction over the groups tested.
    """
    check_settings(error_slices, locals())
    box.require_class_scores("error_slices", exclusive=True)
    x, y, dataset_rows = indexed_labeled_examples(box, data, max_examples)
    if len(x) < MIN_EXAMPLES_OF_BOTH_HALVES:
        raise DataError(
            f"error_slices needs at least {MIN_EXAMPLES_OF_BOTH_HALVES} examples, to search and to test; got {len(x)}"
        )
    addresses = (
        input_and_hidden_layer_addresses(box, MAX_DEFAULT_LAYERS) if layers is None else resolve_layers(box, layers)
    )
    given = _read_concept_examples_or_directions(box, concepts)
    answers = torch.stack([y, box.predict(x, batch_size=batch_size)], 1).cpu()  # (N, 2)
    is_error = answers[:, 0] != answers[:, 1]
    features = _read_sketched_features(box, x, addresses, batch_size)
    for name, direction in given.items():
        if direction.ndim == 1:
            _check_direction(name, direction, features)
    order = torch.randperm(len(x), generator=rng.keyed_generator(rng.CPU, "error slices", valid_seed(seed)))
    n_search = min(len(x) // 2, MAX_CLUSTERED_EXAMPLES)
    search, held_out = order[:n_search].sort().values, order[n_search:].sort().values
    points = {a: _principal_components(h.double(), search) for a, h in features.items()}
    trees = [WardClusterTree(points[a][search]) for a in addresses]
    candidates = list[ErrorSlice]()
    for tree, is_member in find_high_error_groups(
        trees, is_error[search], max(1, min_size // 2), max_slices, MIN_LOG_LIKELIHOOD_RATIO_OF_GROUP
    ):
        address = addresses[tree]
        in_group = torch.zeros(len(x), dtype=torch.bool)
        in_group[search] = is_member
        in_group[held_out] = _most_neighbors_are_members(points[address], search, held_out, is_member)
        candidate = _make_slice_with_held_out_errors(in_group, held_out, is_error, answers, points[address], address)
        shown = candidate.members[:N_RETAINED_SLICE_EXAMPLES]
        name, cosine = _nearest_concept(box, given, address, features[address], in_group, batch_size)
        images = x[shown].cpu() if isinstance(box.inputs, Pixels) else None
        candidates.append(
            replace(candidate, members=dataset_rows[candidate.members], answers=answers[shown], examples=images,
                    concept=name, concept_cosine=cosine)
        )  # fmt: skip
    found = _with_corrected_significance(candidates, alpha)
    return ErrorSlices(found, tuple(addresses), is_error, float(alpha), box.classes)


def _read_sketched_features(box: Box, x: Tensor, addresses: Sequence[str], batch_size: BatchSize) -> dict[str, Tensor]:
    """Vectors (N, D) of each layer, on the CPU; more than 4,096 values are sketched."""
    h = read_features(box, x, addresses, batch_size=batch_size, max_features=SKETCH_SIZE)
    return {a: v.cpu() for a, v in h.items()}


def _principal_components(h: Tensor, search: Tensor) -> Tensor:
    """Features (N, D) on the first principal axes of the searched ones."""
    return PrincipalBasis.fit(h[search], N_PRINCIPAL_COMPONENTS, standardize=False)(h)


def _most_neighbors_are_members(points: Tensor, search: Tensor, held_out: Tensor, is_member: Tensor) -> Tensor:
    """(T,) bool: whether most of the nearest searched examples of each held-out one are members."""
    distances = torch.cdist(points[held_out], points[search])
    nearest = distances.topk(min(N_VOTING_NEIGHBORS, len(search)), largest=False).indices
    return is_member[nearest].double().mean(1) > 0.5


def _make_slice_with_held_out_errors(
    in_group: Tensor, held_out: Tensor, is_error: Tensor, answers: Tensor, points: Tensor, address: str
) -> ErrorSlice:
    """The group with its errors on held-out examples, and the p-value before it is corrected."""
    rows, tested = in_group.nonzero().flatten(), in_group[held_out]
    order = (points[rows] - points[rows].mean(0)).norm(dim=1).argsort(stable=True)
    wrong = is_error[held_out]
    inside, n, n_wrong = int((wrong & tested).sum()), int(tested.sum()), int(wrong.sum())
    p_value = float(scipy.stats.hypergeom.sf(inside - 1, len(wrong), n_wrong, n)) if inside else 1.0
    counts = answers[rows, 0].bincount()
    return ErrorSlice(
        address, rows[order], Proportion(inside, n), Proportion(n_wrong - inside, len(wrong) - n), p_value, False,
        int(counts.argmax()), float(counts.max()) / len(rows), "", 0.0, None, answers[:0],
    )  # fmt: skip


def _with_corrected_significance(candidates: list[ErrorSlice], alpha: float) -> tuple[ErrorSlice, ...]:
    adjusted = holm_adjusted([s.p_value for s in candidates])
    return tuple(replace(s, p_value=p, is_significant=p < alpha) for s, p in zip(candidates, adjusted, strict=True))


# -- concepts ----------------------------------------------------------------------------------------------------------


def _read_concept_examples_or_directions(box: Box, concepts: Any) -> dict[str, Tensor]:
    """Examples (n, ...) or a direction (D,) of each concept by its name. Raises DataError and InputError."""
    if concepts is None:
        return {}
    is_direction = {name: isinstance(c, Tensor) and c.ndim == 1 for name, c in getattr(concepts, "items", dict)()}
    given = {name: concepts[name] for name, direct in is_direction.items() if not direct}
    directions = {str(name): concepts[name] for name, direct in is_direction.items() if direct}
    return {**directions, **(read_concepts(box, given) if given or not directions else {})}


def _nearest_concept(
    box: Box, concepts: Mapping[str, Tensor], address: str, h: Tensor, in_group: Tensor, batch_size: BatchSize
) -> tuple[str, float]:
    """The concept whose direction has the largest cosine with the group's, and that cosine."""
    if not concepts or bool(in_group.all()):
        return "", 0.0
    direction = h[in_group].double().mean(0) - h[~in_group].double().mean(0)
    cosines = {
        name: float(torch.cosine_similarity(direction, _concept_direction(box, c, address, h, batch_size), dim=0))
        for name, c in concepts.items()
    }
    best = max(cosines, key=lambda name: cosines[name])
    return best, cosines[best]


def _concept_direction(box: Box, concept: Tensor, address: str, h: Tensor, batch_size: BatchSize) -> Tensor:
    """(D,) from the mean of all examples to the concept's, or the direction that was given."""
    if concept.ndim > 1:
        return _read_sketched_features(box, concept, [address], batch_size)[address].double().mean(0) - h.double().mean(
            0
        )
    return _sketched_direction(concept)


def _sketched_direction(direction: Tensor) -> Tensor:
    """(D,) as the features of a layer are sketched."""
    vector = direction.detach().cpu()[None].double()
    return (count_sketch(vector) if vector.shape[1] > SKETCH_SIZE else vector)[0]


def _check_direction(name: str, direction: Tensor, features: Mapping[str, Tensor]) -> None:
    """Raise InputError for a direction of another length than a layer's features, or that points nowhere."""
    if not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise InputError(f"the direction of concept {name!r} must be finite, and not all zeros")
    for address, h in features.items():
        if len(_sketched_direction(direction)) != h.shape[1]:
            raise InputError(
                f"the direction of concept {name!r} has {len(direction)} values, and {address!r} has {h.shape[1]} "
                "features; name the direction's layer as `layers`"
            )


def _random_card_labels(box: Box) -> Tensor:
    return torch.arange(12, device=box.device) % max(2, box.n_outputs)
