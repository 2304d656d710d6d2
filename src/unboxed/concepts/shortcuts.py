"""Shortcuts without labels: clusters of a class's explanations, and a patch whose effect is proved by pasting it.

Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what machines really learn", arXiv:1902.10178
(SpRAy: spectral relevance analysis). The proof by paste is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import scipy
import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card, cards, find_card
from ..engine.multiple_tests import holm_adjusted
from ..engine.proportion import Proportion
from ..engine.read.examples import indexed_inputs
from ..engine.rectangle import Rectangle
from ..engine.results import ResultMixin, attribution_map, class_name
from ..engine.rows import broadcast_rows, evenly_spaced_indices
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, Data, MaxExamples, Seed
from ..settings import Above, AtLeast, Below, Unit, ValueRole, check_settings
from ..validation import valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import ClassSelection, example_indices_by_class, random_card_examples
from ._patches import (
    border_mask,
    corner_mask,
    densest_relevance_rectangle,
    paste_donor_patches,
    relevance_share_inside,
    sample_random_patches,
)
from ._spectral import spectral_clusters

MapMethod = Callable[[Box, Any, Any], Any]
MIN_EXPLAINED_EXAMPLES = 8  # examples of a class, so that there are clusters to speak of
# Of the images with the patch that must become the class, by the lower end of the interval
MIN_CHANGED_TO_CLASS_FRACTION = 0.5
MAX_CLUSTERED_MAP_SIDE_PIXELS = 14  # pixels of the maps that are clustered
N_RETAINED_EXAMPLES_PER_CLUSTER = 4  # examples of a cluster, and of the proof, that the result carries


@dataclass(frozen=True)
class PatchPasteTest:
    """What images of other classes become when a patch is pasted.

    Attributes:
        with_patch: Those that become the class with the cluster's patch.
        with_random: Those that become the class with a random patch of the class's images, of the same size.
        p_value: Of the one-sided sign test on images that only one of the two changes, corrected for all clusters.
        is_shortcut: Whether a shortcut is claimed.
    """

    with_patch: Proportion
    with_random: Proportion
    p_value: float
    is_shortcut: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class ExplanationCluster(ResultMixin):
    """Examples of one class that the model explains alike.

    Attributes:
        target: The class.
        members: (M,) indices of the examples in the data, the most typical first.
        n_class: Explained examples of the class.
        mean_map: (H, W) the mean of their maps, each the positive relevance with sum 1.
        patch: The small rectangle in which the mean map is most concentrated.
        patch_share: Its share of the mean map.
        border_share: The share of the border, the outer eighth of each side.
        corner_share: The share of the corners, a quarter of each side.
        test: What images of other classes become with the patch; None where there are no such images.
        examples: (E, C, H, W) the first members.
        before: (S, C, H, W) some of the images that the patch was pasted onto; None without a test.
        after: (S, C, H, W) the same with the patch.
        answers: (S, 2) the predicted classes before and after.
    """

    target: int
    members: Tensor
    n_class: int
    mean_map: Tensor
    patch: Rectangle
    patch_share: float
    border_share: float
    corner_share: float
    test: PatchPasteTest | None
    examples: Tensor
    before: Tensor | None = None
    after: Tensor | None = None
    answers: Tensor | None = None

    @property
    def is_shortcut(self) -> bool:
        return self.test is not None and self.test.is_shortcut


@dataclass(frozen=True, eq=False, repr=False)
class Shortcuts(ResultMixin):
    """Clusters of explanations, with the shortcuts that pasting proves.

    Attributes:
        clusters: All clusters, class by class, the largest first.
        method: The method of the maps.
        border_area: The border's share of the image.
        corner_area: The corners' share of the image.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    clusters: tuple[ExplanationCluster, ...]
    method: str
    border_area: float
    corner_area: float
    classes: tuple[str, ...] = ()

    def summary_lines(self) -> Iterator[str]:
        yield from super().summary_lines()
        yield from (self.sentence(cluster) for cluster in self.shortcuts[1:])

    @property
    def shortcuts(self) -> tuple[ExplanationCluster, ...]:
        """The clusters whose patch is a shortcut."""
        return tuple(c for c in self.clusters if c.is_shortcut)

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where pasting proves a shortcut, "fail" where it proves none: the clusters are then no finding."""
        if not any(c.test for c in self.clusters):
            return NOT_TESTED_CLAIM
        return PASS if self.shortcuts else FAIL

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        tested = [c for c in self.clusters if c.test is not None]
        if not tested:
            return (
                f"no class has {MIN_EXPLAINED_EXAMPLES} examples and "
                f"images of other classes to paste onto, so that nothing "
                "could be tested"
            )
        best = max(self.shortcuts or tested, key=_changed_to_class_fraction)
        return self.sentence(best) if self.shortcuts else f"no patch decides answers: at most, {self.sentence(best)}"

    def sentence(self, cluster: ExplanationCluster) -> str:
        """What pasting a cluster's patch does."""
        patch, name = cluster.patch, self.class_name(cluster.target)
        if (test := cluster.test) is None:
            return f"class {name} has no images of other classes to paste onto"
        low, high = test.with_patch.clopper_pearson_interval
        return (
            f"pasting {patch.height}x{patch.width} pixels (row {patch.top}, column {patch.left}) of {name} turns "
            f"{test.with_patch.value:.0%} ({low:.0%} to {high:.0%}) of {test.with_patch.n} other images into {name}, "
            f"random patches {test.with_random.value:.0%}"
        )

    def class_name(self, k: int) -> str:
        return class_name(k, self.classes)


def _changed_to_class_fraction(cluster: ExplanationCluster) -> float:
    return cluster.test.with_patch.value if cluster.test is not None else 0.0


@card(
    name="Shortcuts without labels",
    source="Lapuschkin et al. 2019, arXiv:1902.10178 (SpRAy); the proof by paste is our own",
    shows="Whether a small patch at its place decides answers: a mark, a tag, a stain in the images of a class.",
    does_not_show="Shortcuts that are no patch at one place, such as a color, a texture or a background.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, random_card_examples(box, 40), n_pastes=4),
    order=71,
)
def shortcuts(
    box: Box,
    data: Data,
    classes: ClassSelection = None,
    *,
    method: Annotated[
        str | MapMethod,
        ValueRole("str"),
        "The attribution method of the maps: its name, or a function (box, x, target).",
    ] = "gradient_x_input",
    n_explained: Annotated[
        int,
        AtLeast(MIN_EXPLAINED_EXAMPLES),
        Unit("examples"),
        "Largest number of a class's examples that are explained.",
    ] = 300,
    max_clusters: Annotated[int, AtLeast(1), Unit("clusters"), "Largest number of clusters per class."] = 8,
    n_pastes: Annotated[int, AtLeast(1), Unit("images"), "Images that each patch is pasted onto."] = 200,
    alpha: Annotated[float, Above(0), Below(1), "Level of significance, after correction."] = 0.01,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Shortcuts:
    """Clusters of a class's explanations, and whether a patch that they point at decides the model's answers.

    To find a mark that a model goes by where nobody has labeled it. The maps of the examples that the model classifies
    as a class are clustered; where a cluster's mean map is most concentrated lies the suspected patch. It is cut out of
    the half of the cluster's examples with the most relevance there, and pasted, at its place, onto images that are
    classified as other classes. A shortcut is claimed only where most of them become the class, and far fewer with
    random patches of the class's images.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. They need no labels; those that the model was
            trained on show its shortcuts best.
        classes: The classes to look at, by number or name. None: all.
        method: The attribution method of the maps: its name, or a function (box, x, target). "integrated_gradients"
            costs more, and suits models whose gradients saturate.
        n_explained: Largest number of a class's examples that are explained. They are evenly spread over the data.
        max_clusters: Largest number of clusters per class. Their number is read from the eigengap.
        n_pastes: Images that each patch is pasted onto. They are drawn at random.
        alpha: Level of significance, after correction.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Shortcuts`: `clusters` with their examples, mean maps, patches and tests, the `shortcuts` among them, and a
        `verdict` with its `reason`.

    Raises:
        InputError: for inputs that are no images, a method that does not exist, or maps of another size.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))  # which was trained without a mark
        >>> result = ub.concepts.shortcuts(box, ub.data.digits("train").first(300), classes=[3])
        >>> result.verdict, len(result.shortcuts)
        ('fail', 0)

    Source:
        Lapuschkin et al. 2019, arXiv:1902.10178, Methods, "Spectral relevance analysis": maps are made smaller, and
        clustered by the eigengap of the graph of their nearest neighbors. Deviations: of the maps the positive part
        with sum 1 is taken; the map is gradient x input by default, not LRP. The patch maximizes a scan statistic. It
        is claimed where the lower end of the exact interval of the images that become the class is above one half, and
        the sign test against random patches, with Holm's correction over all clusters, is significant.
    """
    check_settings(shortcuts, locals())
    box.require_class_scores("shortcuts")
    if not isinstance(box.inputs, Pixels):
        raise InputError(
            f"shortcuts needs a model that takes images alone (Pixels); this one takes {type(box.inputs).__name__}"
        )
    seed, explain = valid_seed(seed), _attribution_method_fn(method, batch_size)
    x, dataset_rows = indexed_inputs(box, data, max_examples)
    answered = _ExamplesWithPredictions(box, x, box.predict(x, batch_size=batch_size).cpu(), batch_size)
    rows_by_class = example_indices_by_class(box, x, answered.predicted, classes, MIN_EXPLAINED_EXAMPLES, batch_size)
    found = list[ExplanationCluster]()
    for k, rows in rows_by_class.items():
        rows = rows[evenly_spaced_indices(len(rows), n_explained)]
        maps = _positive_maps(box, explain, x[rows], k)
        labels = spectral_clusters(_maps_to_clustering_points(maps), max_clusters, seed)
        found += _clusters_with_patch_tests(answered, k, rows, maps, labels, n_pastes, seed)
    found = [replace(cluster, members=dataset_rows[cluster.members]) for cluster in found]
    border_area, corner_area = (float(mask(*x.shape[-2:]).double().mean()) for mask in (border_mask, corner_mask))
    name = method if isinstance(method, str) else getattr(method, "__name__", "map")
    return Shortcuts(_with_corrected_p_values(found, alpha), name, border_area, corner_area, box.classes)


@dataclass(frozen=True, eq=False)
class _ExamplesWithPredictions:
    """The examples with the model's answers."""

    box: Box
    x: Tensor  # (N, C, H, W)
    predicted: Tensor  # (N,) classes
    batch_size: BatchSize

    def answers(self, x: Tensor) -> Tensor:
        """The classes (n,) of other images."""
        return self.box.predict(x, batch_size=self.batch_size).cpu()


def _attribution_method_fn(method: str | MapMethod, batch_size: BatchSize) -> MapMethod:
    """The function of a method's name. Raises InputError."""
    if callable(method):
        return method
    if not isinstance(method, str):
        raise InputError(f"method must be the name of an attribution method or a function; got {method!r}")
    named = find_card(method, cards("attribution"))
    return partial(named.method, batch_size=batch_size) if "batch_size" in named.settings else named.method


def _positive_maps(box: Box, explain: MapMethod, x: Tensor, target: int) -> Tensor:
    """The positive relevance (n, H, W) for a class, each map with sum 1. Raises InputError for maps of another size."""
    maps = box.inputs.pack(attribution_map(explain(box, box.restore_structure(x.clone()), target)))
    if maps.ndim != 4 or len(maps) != len(x) or maps.shape[-2:] != x.shape[-2:]:
        raise InputError(
            f"the method gives maps {tuple(maps.shape)}; wanted (N, C, H, W) as the images {tuple(x.shape)}"
        )
    positive = maps.detach().double().cpu().nan_to_num(0, 0, 0).sum(1).clamp_min(0)
    return positive / broadcast_rows(positive.sum((1, 2)).clamp_min(1e-300), positive)


def _maps_to_clustering_points(maps: Tensor) -> Tensor:
    """The maps (n, H, W) as points (n, D), made smaller: what is shifted by a few pixels is alike."""
    size = (min(MAX_CLUSTERED_MAP_SIDE_PIXELS, maps.shape[1]), min(MAX_CLUSTERED_MAP_SIDE_PIXELS, maps.shape[2]))
    return torch.nn.functional.adaptive_avg_pool2d(maps[:, None], size).flatten(1)


def _clusters_with_patch_tests(
    answered: _ExamplesWithPredictions,
    target: int,
    rows: Tensor,
    maps: Tensor,
    labels: Tensor,
    n_pastes: int,
    seed: int,
) -> list[ExplanationCluster]:
    """The clusters of a class's examples, whose maps (n, H, W) have these labels (n,), with their tests."""
    generator = rng.keyed_generator(rng.CPU, "shortcuts", seed, target)
    others = (answered.predicted != target).nonzero().flatten()
    others = others[torch.randperm(len(others), generator=generator)[:n_pastes]]
    clusters = list[ExplanationCluster]()
    for j in range(int(labels.max()) + 1):
        members, member_maps = rows[labels == j], maps[labels == j]
        cluster = _make_cluster_with_patch(answered.x, members, member_maps, target, len(rows))
        donors = members[_half_with_most_relevance_in_patch(member_maps, cluster.patch)]
        clusters.append(_paste_and_test(answered, cluster, donors, rows, others, generator) if len(others) else cluster)
    return clusters


def _half_with_most_relevance_in_patch(maps: Tensor, patch: Rectangle) -> Tensor:
    """Indices of the half of the maps (n, H, W) with the most relevance in a patch."""
    inside = maps[:, patch.rows, patch.columns].sum((1, 2))
    return inside.argsort(descending=True, stable=True)[: (len(maps) + 1) // 2]


def _make_cluster_with_patch(x: Tensor, rows: Tensor, maps: Tensor, target: int, n_class: int) -> ExplanationCluster:
    """A cluster with its suspected patch, before it is tested."""
    mean = maps.mean(0)
    order = (maps - mean).flatten(1).norm(dim=1).argsort(stable=True)
    patch = densest_relevance_rectangle(mean)
    in_patch = torch.zeros_like(mean, dtype=torch.bool)
    in_patch[patch.rows, patch.columns] = True
    patch_share, border_share, corner_share = (
        relevance_share_inside(mean, mask) for mask in (in_patch, border_mask(*mean.shape), corner_mask(*mean.shape))
    )
    return ExplanationCluster(
        target=target,
        members=rows[order],
        n_class=n_class,
        mean_map=mean.to(x.dtype),
        patch=patch,
        patch_share=patch_share,
        border_share=border_share,
        corner_share=corner_share,
        test=None,
        examples=x[rows[order][:N_RETAINED_EXAMPLES_PER_CLUSTER]].cpu(),
    )


def _paste_and_test(
    answered: _ExamplesWithPredictions, cluster: ExplanationCluster, donors: Tensor, class_rows: Tensor, others: Tensor,
    generator: torch.Generator,
) -> ExplanationCluster:  # fmt: skip
    """The cluster with what the other images become with its patch, cut out of the donors, and with random ones."""
    n, x = len(others), answered.x
    images = x[others]
    patched_from, random_from = (
        x[rows[torch.randint(len(rows), (n,), generator=generator)]] for rows in (donors, class_rows)
    )
    elsewhere = sample_random_patches(n, cluster.patch, (x.shape[-2], x.shape[-1]), generator)
    pasted = paste_donor_patches(images, patched_from, [cluster.patch] * n)
    after, after_random = map(answered.answers, (pasted, paste_donor_patches(images, random_from, elsewhere)))
    follows, follows_random = after == cluster.target, after_random == cluster.target
    only_patch, only_random = int((follows & ~follows_random).sum()), int((follows_random & ~follows).sum())
    p_value = float(scipy.stats.binom.sf(only_patch - 1, only_patch + only_random, 0.5)) if only_patch else 1.0
    test = PatchPasteTest(Proportion(int(follows.sum()), n), Proportion(int(follows_random.sum()), n), p_value)
    shown = follows.long().argsort(descending=True, stable=True)[:N_RETAINED_EXAMPLES_PER_CLUSTER]
    answers = torch.stack([answered.predicted[others[shown]], after[shown]], 1)
    return replace(cluster, test=test, before=images[shown].cpu(), after=pasted[shown].cpu(), answers=answers)


def _with_corrected_p_values(clusters: list[ExplanationCluster], alpha: float) -> tuple[ExplanationCluster, ...]:
    """The clusters with corrected p-values, and what is claimed of each."""
    tests = [c.test for c in clusters if c.test is not None]
    adjusted = iter(holm_adjusted([t.p_value for t in tests]))
    return tuple(
        c if c.test is None else replace(c, test=_decide_is_shortcut(c.test, next(adjusted), alpha)) for c in clusters
    )


def _decide_is_shortcut(test: PatchPasteTest, p_value: float, alpha: float) -> PatchPasteTest:
    is_shortcut = p_value < alpha and test.with_patch.clopper_pearson_interval[0] > MIN_CHANGED_TO_CLASS_FRACTION
    return replace(test, p_value=p_value, is_shortcut=is_shortcut)
