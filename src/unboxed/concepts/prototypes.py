"""Prototypes and criticisms: the examples that represent a class in a layer, and those that they do not represent.

Kim, Khanna & Koyejo 2016, "Examples are not Enough, Learn to Criticize! Criticism for Interpretability" (MMD-critic).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.read.examples import indexed_examples
from ..engine.read.features import default_feature_layer, read_features, resolve_address
from ..engine.results import ResultMixin
from ..errors import DataError
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, Data, LayerAddress, MaxExamples, Seed
from ..settings import Above, AtLeast, Unit, check_settings
from ..validation import valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import ClassSelection, example_indices_by_class, random_card_examples

N_RANDOM_PROTOTYPE_SETS = 200  # of as many examples as there are prototypes
MAX_AS_GOOD_RANDOM_SETS_FRACTION = 0.05  # of the random sets that may represent the class as well


@dataclass(frozen=True, eq=False, repr=False)
class ClassPrototypes(ResultMixin):
    """The prototypes and criticisms of one class.

    Attributes:
        target: The class.
        n_examples: Its examples.
        prototypes: (P,) indices of the prototypes in the data, in the order in which they were chosen.
        criticisms: (C,) indices of the criticisms.
        witness: (C,) the witness function at the criticisms: positive where prototypes are too few nearby.
        mmd2: Squared maximum mean discrepancy between all examples and the prototypes; 0 is a perfect summary.
        random_mmd2: (R,) the same of random sets of as many examples.
        bandwidth: The kernel is exp(-bandwidth * squared distance).
        examples: (P + C, C, H, W) the prototypes, then the criticisms, where they are images.
    """

    target: int
    n_examples: int
    prototypes: Tensor
    criticisms: Tensor
    witness: Tensor
    mmd2: float
    random_mmd2: Tensor
    bandwidth: float
    examples: Tensor | None = None

    @property
    def as_good_random_sets_fraction(self) -> float:
        """The fraction of random sets that represent the class as well."""
        return float((self.random_mmd2 <= self.mmd2).double().mean())


@dataclass(frozen=True, eq=False, repr=False)
class Prototypes(ResultMixin):
    """Prototypes and criticisms of each class, in a layer.

    Attributes:
        groups: One `ClassPrototypes` per class.
        layer: The layer in which examples were compared.
        classes: The names of the model's classes.
    """

    returns: ClassVar[str] = "table"

    groups: tuple[ClassPrototypes, ...]
    layer: str
    classes: tuple[str, ...] = ()

    @property
    def verdict(self) -> ClaimGrade:
        """Whether the prototypes represent each class better than random examples: "pass", "fail" or "not tested"."""
        if not self._tested_groups:
            return NOT_TESTED_CLAIM
        return (
            PASS
            if all(g.as_good_random_sets_fraction <= MAX_AS_GOOD_RANDOM_SETS_FRACTION for g in self._tested_groups)
            else FAIL
        )

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        if not self._tested_groups:
            return "no class has more examples than prototypes, so that there is nothing to choose"
        worst = max(self._tested_groups, key=lambda g: g.as_good_random_sets_fraction)
        return (
            f"squared MMD {worst.mmd2:.3g} from the prototypes of class {self.class_name(worst)} to its "
            f"{worst.n_examples} examples, against {float(worst.random_mmd2.mean()):.3g} from as many random examples, "
            f"of which {worst.as_good_random_sets_fraction:.0%} do as well"
        )

    @property
    def _tested_groups(self) -> list[ClassPrototypes]:
        return [g for g in self.groups if len(g.prototypes) < g.n_examples]

    def class_name(self, group: ClassPrototypes) -> str:
        return self.classes[group.target] if group.target < len(self.classes) else str(group.target)


@card(
    name="Prototypes and criticisms",
    source="Kim, Khanna & Koyejo 2016, Examples are not Enough, Learn to Criticize! (MMD-critic), section 3",
    shows="Which few examples represent a class in this layer, and which examples they leave out.",
    does_not_show="What the model answers by: the examples are near in the layer, for whatever reason.",
    example=lambda method, box, x, y: method(box, random_card_examples(box), n_prototypes=2, n_criticisms=1),
    order=70,
)
def prototypes(
    box: Box,
    data: Data,
    classes: ClassSelection = None,
    *,
    layer: LayerAddress = None,
    n_prototypes: Annotated[int, AtLeast(1), Unit("examples"), "Number of prototypes per class."] = 6,
    n_criticisms: Annotated[int, AtLeast(0), Unit("examples"), "Number of criticisms per class."] = 4,
    bandwidth: Annotated[float | None, Above(0), "The kernel is exp(-bandwidth * squared distance)."] = None,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Prototypes:
    """The examples of each class that represent it in a layer, and those that are represented least.

    To see what a class is to a model without reading all of it: prototypes say what is usual, criticisms what the
    prototypes would make one forget. Random sets of as many examples are the control.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. An example is of the class that is its label;
            where the data have no labels, of the predicted class.
        classes: The classes to look at, by number or name. None: all.
        layer: Address of the layer, as `box.layers` lists them. None: the input of the last layer with parameters.
        n_prototypes: Number of prototypes per class.
        n_criticisms: Number of criticisms per class.
        bandwidth: The kernel is exp(-bandwidth * squared distance). None: 1 over the median squared distance between
            two examples of the class.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result. They are the random sets of the control.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Prototypes`: per class the indices of `prototypes` and `criticisms` in the data, `mmd2` and that of random
        sets; `verdict` with its `reason`.

    Raises:
        DataError: where no class has two examples.
        LayerError: for an unknown layer.
        OutputError: for a model without classes.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.concepts.prototypes(box, ub.data.digits("test").first(200), classes=3)
        >>> tuple(result.groups[0].prototypes.shape), tuple(result.groups[0].criticisms.shape), result.verdict
        ((6,), (4,), 'pass')

    Source:
        Kim, Khanna & Koyejo 2016, section 3: prototypes by greedy maximization of J_b, equation 4; criticisms by greedy
        maximization of the absolute witness function, equation 3, with the regularizer log det K. Deviation: the
        bandwidth is not cross-validated but set by the median.
    """
    check_settings(prototypes, locals())
    box.require_class_scores("prototypes")
    seed = valid_seed(seed)
    x, labels, dataset_rows = indexed_examples(box, data, max_examples)
    address = default_feature_layer(box) if layer is None else resolve_address(box, layer)
    rows_by_class = example_indices_by_class(box, x, labels, classes, 2, batch_size)
    if not rows_by_class:
        raise DataError("no class has two examples, so that there is nothing to choose; give more examples")
    h = read_features(box, x, [address], batch_size=batch_size)[address].double().cpu()  # (N, D)
    groups = tuple(
        _choose_prototypes_of_class(k, rows, h[rows], n_prototypes, n_criticisms, bandwidth, seed, box.dtype)
        for k, rows in rows_by_class.items()
    )
    if isinstance(box.inputs, Pixels):
        groups = tuple(replace(g, examples=x[torch.cat([g.prototypes, g.criticisms])].cpu()) for g in groups)
    groups = tuple(
        replace(g, prototypes=dataset_rows[g.prototypes], criticisms=dataset_rows[g.criticisms]) for g in groups
    )
    return Prototypes(groups, address, box.classes)


def _choose_prototypes_of_class(
    target: int, rows: Tensor, h: Tensor, n_prototypes: int, n_criticisms: int, bandwidth: float | None, seed: int,
    dtype: torch.dtype,
) -> ClassPrototypes:  # fmt: skip
    bandwidth = median_bandwidth(h) if bandwidth is None else float(bandwidth)
    kernel = rbf_kernel(h, bandwidth)
    chosen = greedy_prototypes(kernel, min(n_prototypes, len(h)))
    criticisms = greedy_criticisms(kernel, chosen, min(n_criticisms, len(h) - len(chosen)))
    random_mmd2 = _squared_mmd_of_random_sets(
        kernel, len(chosen), rng.keyed_generator(rng.CPU, "random prototypes", seed, target)
    )
    return ClassPrototypes(
        target, len(h), rows[chosen], rows[criticisms], witness(kernel, chosen)[criticisms].to(dtype),
        squared_mmd(kernel, chosen), random_mmd2.to(dtype), bandwidth,
    )  # fmt: skip


def median_bandwidth(h: Tensor) -> float:
    """1 over the median squared distance between two of the examples (N, D); 1 where they are all the same."""
    distances = torch.pdist(h).square()
    median = float(distances.median())
    return 1 / median if median else 1.0


def rbf_kernel(h: Tensor, bandwidth: float) -> Tensor:
    """(N, N) exp(-bandwidth * squared distance)."""
    return torch.exp(-bandwidth * torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist").square())


def greedy_prototypes(kernel: Tensor, n: int) -> Tensor:
    """Indices (n,) that raise J_b most, one after the other: equation 4."""
    size, means = len(kernel), kernel.mean(1)  # (N,) mean kernel of each example with all
    chosen, sum_means, sum_pairs, row_sums = list[int](), 0.0, 0.0, torch.zeros_like(means)
    for m in range(1, n + 1):
        score = 2 / m * (sum_means + means) - (sum_pairs + 2 * row_sums + kernel.diagonal()) / m**2
        score[chosen] = -torch.inf
        j = int(score.argmax())
        sum_means, sum_pairs = sum_means + float(means[j]), sum_pairs + float(2 * row_sums[j] + kernel[j, j])
        row_sums = row_sums + kernel[j]
        chosen.append(j)
    return torch.tensor(chosen, dtype=torch.long).reshape(min(n, size))


def witness(kernel: Tensor, chosen: Tensor) -> Tensor:
    """(N,) the witness function, equation 3: mean kernel with all examples, minus that with the prototypes."""
    return kernel.mean(1) - kernel[:, chosen].mean(1)


def greedy_criticisms(kernel: Tensor, prototypes: Tensor, n: int) -> Tensor:
    """Indices (n or fewer,) that raise the sum of absolute witnesses + log det K most, one after the other.

    The determinant grows by what of an example its kernel with the chosen ones does not explain (Schur complement).
    Examples that are the same as a chosen one are never taken.
    """
    values, chosen = witness(kernel, prototypes).abs(), list[int]()
    values[prototypes] = -torch.inf
    rest = kernel.diagonal().clone()  # (N,) Schur complements
    factors = kernel.new_zeros(0, len(kernel))  # rows of the Cholesky factor of K[chosen], for all examples
    while len(chosen) < n:
        is_free = rest > torch.finfo(kernel.dtype).eps * len(kernel)
        score = torch.where(is_free, values + rest.clamp_min(torch.finfo(kernel.dtype).tiny).log(), -torch.inf)
        j = int(score.argmax())
        if score[j] == -torch.inf:
            break
        row = (kernel[j] - factors[:, j] @ factors) / rest[j].sqrt()
        factors, rest = torch.cat([factors, row[None]]), rest - row.square()
        values[j] = -torch.inf
        chosen.append(j)
    return torch.tensor(chosen, dtype=torch.long)


def squared_mmd(kernel: Tensor, chosen: Tensor) -> float:
    """Squared maximum mean discrepancy between all examples and the chosen ones, equation 2."""
    return float(_squared_mmds(kernel, chosen[None])[0])


def _squared_mmds(kernel: Tensor, sets: Tensor) -> Tensor:
    """(R,) squared MMD between all examples and each of the sets (R, n)."""
    # sorted, the same set gives the same number to the last bit, however it was found
    sets, which = sets.sort(1).values.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    means = kernel.mean(1)
    cross_minus_pairs = [2 * means[rows].mean() - kernel[rows][:, rows].mean() for rows in sets]
    return (means.mean() - torch.stack(cross_minus_pairs)).clamp_min(0)[which]


def _squared_mmd_of_random_sets(kernel: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(R,) squared MMD of random sets of n examples."""
    orders = torch.rand(N_RANDOM_PROTOTYPE_SETS, len(kernel), generator=generator, dtype=kernel.dtype).argsort(1)[:, :n]
    return _squared_mmds(kernel, orders)
