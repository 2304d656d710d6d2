"""What remains of a bias after it was removed: words still stand where they stood because of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Annotated, cast

import torch
from torch import Tensor

from .. import rng
from ..engine.rank_correlation import pearson
from ..engine.results import ResultMixin
from ..errors import InputError
from ..parameters import Seed
from ..settings import AtLeast, Unit, check_settings
from ..validation import valid_seed
from .bias import BiasDirection, BiasWords, bias_direction, gender_words
from .vectors import WordVectors

MAX_CLUSTERED_WORDS_PER_SIDE, MAX_CLASSIFIED_WORDS_PER_SIDE = (
    500,
    2500,
)  # most biased words of each side: as published
CLASSIFIER_TRAIN_FRACTION = 0.2  # of the classified words: 1,000 of 5,000
MAX_NEIGHBORS_PER_WORD, MAX_WORDS_WITH_COUNTED_NEIGHBORS = (
    100,
    1000,
)  # neighbors of a word; words whose neighbors are counted
MIN_NEUTRAL_WORDS = 20
N_RANDOM_DIRECTIONS = 100  # whose direct bias is averaged


@dataclass(frozen=True)
class BiasMeasures:
    """Four figures of a bias in word vectors, each larger where there is more of it."""

    direct: float  # mean |cos(word, bias direction)|
    clustering: float  # accuracy of two clusters of the most biased words as their sides; chance is .5
    neighbors: float  # correlation of a word's original bias with the share of its neighbors on that side
    classifier: float  # accuracy of an SVM that is trained on some of the biased words, on the others; chance is .5


DESCRIPTION_BY_BIAS_MEASURE = {
    "direct": "direct bias",
    "clustering": "clusters match the sides",
    "neighbors": "neighbors keep the bias (correlation)",
    "classifier": "classifier tells the sides",
}


@dataclass(frozen=True, repr=False)
class RemainingBias(ResultMixin):
    """The measures before and after; and at chance: for random directions, and with the words' biases shuffled."""

    before: BiasMeasures
    after: BiasMeasures
    chance: BiasMeasures
    n_words: int  # neutral words that were compared

    def rows(self) -> list[tuple[str, float, float, float]]:
        """(measure, before, after, at chance), for tables and figures."""
        columns = (self.before, self.after, self.chance)
        names = [f.name for f in fields(BiasMeasures)]
        return [(DESCRIPTION_BY_BIAS_MEASURE[name], *(getattr(c, name) for c in columns)) for name in names]

    def __str__(self) -> str:
        rows = [f"{name}: {b:.3g} before, {a:.3g} after ({c:.3g} at chance)" for name, b, a, c in self.rows()]
        return "\n".join(rows)


def remaining_bias(
    before: WordVectors,
    after: WordVectors,
    words: BiasWords | None = None,
    *,
    direction_after: BiasDirection | None = None,
    max_words: Annotated[int, AtLeast(MIN_NEUTRAL_WORDS), Unit("words"), "Use the most frequent words only."] = 20_000,
    seed: Seed = 0,
) -> RemainingBias:
    """What is left of a bias after vectors were debiased: whether words still stand together as it had put them.

    A debiased word has no component along the direction, and is still surrounded by the words that had the same bias.
    `hard_debias` and `soft_debias` measure it themselves; this is for vectors that were debiased elsewhere.

    Args:
        before: The `WordVectors` before.
        after: The same words after.
        words: The `BiasWords` of the attribute; None takes the published ones of gender.
        direction_after: The direction of the bias after; None takes that of before.
        max_words: Use the most frequent words only. Those that have the attribute by their meaning are left out.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `RemainingBias`: `before`, `after` and at `chance`, four measures each.

    Raises:
        InputError: for other words, or fewer than 20 neutral ones.

    Example:
        >>> import torch, unboxed as ub
        >>> generator = torch.Generator().manual_seed(0)
        >>> names = ["she", "he", *(f"word{i}" for i in range(60))]
        >>> v = torch.cat([torch.eye(6)[:1], -torch.eye(6)[:1], torch.randn(60, 6, generator=generator)])
        >>> vectors = ub.language.WordVectors(names, v)
        >>> left = ub.language.remaining_bias(vectors, vectors, ub.language.BiasWords([("she", "he")]))
        >>> left.before == left.after
        True

    Source:
        Gonen & Goldberg 2019, "Lipstick on a Pig", arXiv:1903.03862: sections 4 (clusters of the 500 most biased words
        of each side; correlation with the neighbors), and 5 (SVM with an RBF kernel, 1,000 of 5,000 words). For smaller
        vocabularies a quarter of the words per side. Deviation: neighbors of up to 1,000 evenly spaced words are
        counted, not of professions; `chance` is added.
    """
    check_settings(remaining_bias, locals())
    if before.words != after.words:
        raise InputError("before and after must have the same words in the same order")
    words, seed = gender_words() if words is None else words, valid_seed(seed)
    direction = bias_direction(before, words)
    rows = neutral_word_indices(before, words)[:max_words]
    if len(rows) < MIN_NEUTRAL_WORDS:
        raise InputError(f"the remaining bias needs {MIN_NEUTRAL_WORDS} neutral words or more; got {len(rows)}")
    old, new = (v.unit[rows].float().cpu() for v in (before, after))  # (N, D)
    bias = old @ direction.direction.float()  # (N,) the words' bias before
    generator = rng.keyed_generator(rng.CPU, "remaining bias", seed)
    shuffled = bias[torch.randperm(len(bias), generator=generator)]
    by_chance = _bias_measures(new, shuffled, direction, seed)
    return RemainingBias(
        before=_bias_measures(old, bias, direction, seed),
        after=_bias_measures(new, bias, direction_after or direction, seed),
        chance=replace(by_chance, direct=_direct_bias_of_random_directions(new, len(direction.basis), generator)),
        n_words=len(rows),
    )


def neutral_word_indices(vectors: WordVectors, words: BiasWords) -> Tensor:
    """The positions (N,) of the words that do not have the attribute by their meaning, and have a direction."""
    specific = {i for w in words.specific_words if (i := vectors.find(w)) is not None}
    is_neutral = vectors.vectors.cpu().any(1)
    is_neutral[list(specific)] = False
    return is_neutral.nonzero()[:, 0]


def _direct_bias_of_random_directions(unit: Tensor, rank: int, generator: torch.Generator) -> float:
    """The mean component of vectors (N, D) along random subspaces of this rank: one alone differs much from others."""
    drawn = torch.randn(N_RANDOM_DIRECTIONS, unit.shape[1], rank, generator=generator, dtype=torch.float64)
    bases, unit = torch.linalg.qr(drawn).Q, unit.double()  # (S, D, R), (N, D)
    return float(torch.stack([(unit @ basis).norm(dim=1).mean() for basis in bases]).mean())


def _bias_measures(unit: Tensor, bias: Tensor, direction: BiasDirection, seed: int) -> BiasMeasures:
    """The measures of vectors (N, D) at length 1; `bias` (N,) is what the words had before."""
    along = (unit.double() @ direction.basis.T).norm(dim=1)
    return BiasMeasures(
        direct=float(along.mean()),
        clustering=_cluster_to_side_agreement(
            *_most_biased_vectors_and_sides(unit, bias, MAX_CLUSTERED_WORDS_PER_SIDE), seed
        ),
        neighbors=_neighbor_correlation(unit, bias),
        classifier=_classifier_accuracy(
            *_most_biased_vectors_and_sides(unit, bias, MAX_CLASSIFIED_WORDS_PER_SIDE), seed
        ),
    )


def _most_biased_vectors_and_sides(unit: Tensor, bias: Tensor, max_words: int) -> tuple[Tensor, Tensor]:
    """The vectors (2n, D) of the most biased words of both sides, and their side (2n,)."""
    n = min(max_words, len(bias) // 4)
    order = bias.argsort(stable=True)
    index = torch.cat([order[:n], order[-n:]])
    return unit[index], torch.arange(2).repeat_interleave(n)


def _cluster_to_side_agreement(unit: Tensor, side: Tensor, seed: int) -> float:
    """How well two clusters agree with the sides, whichever cluster is which."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer distinct points than clusters
        cluster = KMeans(2, n_init=10, random_state=seed % 2**32).fit(unit.numpy()).labels_
    agreement = float((torch.as_tensor(cluster) == side).double().mean())
    return max(agreement, 1 - agreement)


def _neighbor_correlation(unit: Tensor, bias: Tensor) -> float:
    """Pearson's correlation of a word's bias with the share of its nearest words on the positive side."""
    n_neighbors = min(MAX_NEIGHBORS_PER_WORD, max(2, len(unit) // 20))
    targets = torch.linspace(0, len(unit) - 1, min(MAX_WORDS_WITH_COUNTED_NEIGHBORS, len(unit))).round().long()
    similarity = unit[targets] @ unit.T  # (T, N)
    similarity[torch.arange(len(targets)), targets] = -torch.inf
    share = (bias[similarity.topk(n_neighbors, 1).indices] > 0).double().mean(1)
    return float(pearson(share[None], bias[None, targets])[0])


def _classifier_accuracy(unit: Tensor, side: Tensor, seed: int) -> float:
    """Of a support vector machine that has seen a fifth of the words, on the others."""
    from sklearn.svm import SVC

    order = torch.randperm(len(side), generator=rng.keyed_generator(rng.CPU, "remaining bias split", seed))
    half = len(side) // 2  # as many of each side: the first half of the rows is one side, the second the other
    n_train = max(1, round(CLASSIFIER_TRAIN_FRACTION * half))
    one, two = order[order < half], order[order >= half]
    train, test = torch.cat([one[:n_train], two[:n_train]]), torch.cat([one[n_train:], two[n_train:]])
    machine = SVC(kernel="rbf").fit(unit[train].numpy(), side[train].numpy())
    return cast(float, machine.score(unit[test].numpy(), side[test].numpy()))
