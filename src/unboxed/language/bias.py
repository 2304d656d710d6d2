"""The direction of a bias in word vectors, and how much of it there is: direct and indirect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from torch import Tensor

from ..engine.results import ResultMixin
from ..errors import InputError
from ..settings import Above, AtLeast, Unit, check_settings
from ._lookup import check_word_set, read_word_list
from .vectors import WordVectors

DefiningSets = Sequence[Sequence[str]]
NComponents = Annotated[
    int, AtLeast(1), Unit("components"), "Number of principal components that make the bias subspace."
]


@dataclass(frozen=True)
class BiasWords:
    """The words of an attribute, such as gender: what defines it, what is equalized, and what it belongs to.

    Args:
        defining: Sets of words that differ in the attribute alone: ("she", "he"); more than two for religions or
            ethnic groups. Sets begin with the same group, so that the direction has a sign.
        equalize: Sets of words that debiasing makes differ in the attribute alone; () equalizes the defining ones.
        specific: Words that have the attribute by their meaning ("mother"), which debiasing leaves as they are, besides
            those of the sets.

    Example:
        >>> import unboxed as ub
        >>> sorted(ub.language.BiasWords([("she", "he"), ("her", "his")]).specific_words)
        ['he', 'her', 'his', 'she']
    """

    defining: DefiningSets
    equalize: DefiningSets = ()
    specific: Sequence[str] = ()

    @property
    def specific_words(self) -> set[str]:
        """All words that have the attribute by their meaning."""
        return {*self.specific, *(w for s in (*self.defining, *self.equalize) for w in s)}

    @property
    def equality_sets(self) -> DefiningSets:
        return self.equalize or self.defining


def gender_words() -> BiasWords:
    """The published words of gender: ten defining pairs, 52 pairs to equalize, 218 gender-specific words.

    Returns:
        The `BiasWords`, those for women first in each defining pair.

    Example:
        >>> import unboxed as ub
        >>> ub.language.gender_words().defining[2]
        ('she', 'he')

    Source:
        Bolukbasi et al. 2016, arXiv:1607.06520, figure 3 and the appendix.
    """
    lists = read_word_list("gender")
    defining, equalize = (tuple(tuple(s) for s in lists[name]) for name in ("defining", "equalize"))
    return BiasWords(defining, equalize, tuple(lists["specific"]))


@dataclass(frozen=True, eq=False, repr=False)
class BiasDirection(ResultMixin):
    """The subspace in which the words of each defining set differ most: for one component a direction.

    Positive on the side of the sets' first words.
    """

    basis: Tensor  # (k, D) float64, orthonormal
    explained_variance: Tensor  # (min(D, words),) shares of the variance within the sets, the largest first
    sets: tuple[tuple[str, ...], ...]  # that were used
    missing: tuple[tuple[str, ...], ...] = field(default=())  # sets with fewer than two words that have a vector

    @property
    def direction(self) -> Tensor:
        """The first principal component (D,), at length 1."""
        return self.basis[0]

    def project(self, unit: Tensor) -> Tensor:
        """The parts (N, D) of vectors (N, D) that lie in the subspace."""
        return unit @ self.basis.T @ self.basis

    def __str__(self) -> str:
        left_out = f"; without a vector: {', '.join('/'.join(s) for s in self.missing)}" if self.missing else ""
        share = float(self.explained_variance[: len(self.basis)].sum())
        return f"bias direction of {len(self.sets)} sets: {share:.1%} of the variance within them{left_out}"


def bias_direction(
    vectors: WordVectors, words: BiasWords | None = None, *, n_components: NComponents = 1
) -> BiasDirection:
    """The direction in which words differ that differ in an attribute alone, by PCA over defining sets.

    For gender, ethnic groups, religions or any other attribute. The explained variance says whether it is one direction
    at all: compare the first component with the second.

    Args:
        vectors: The `WordVectors`.
        words: The `BiasWords` of the attribute; None takes the published ones of gender.
        n_components: Number of principal components that make the bias subspace. With sets of m words up to m - 1.

    Returns:
        A `BiasDirection`: the `direction` (D,), the `explained_variance`, the sets used and those that are `missing`.

    Raises:
        InputError: for a set of one word, or where no set has two words that have a vector.

    Example:
        >>> import torch, unboxed as ub
        >>> v = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [1, 0, 1], [-1, 0, 1]])
        >>> vectors = ub.language.WordVectors(["she", "he", "woman", "man"], v)
        >>> ub.language.bias_direction(vectors, ub.language.BiasWords([("she", "he"), ("woman", "man")])).direction
        tensor([1., 0., 0.], dtype=torch.float64)

    Source:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 5.1 ("Step 1: identify gender subspace"): the vectors at length
        1, each set centered and weighted by one over its size. Sets of more than two words: Manzini et al. 2019.
    """
    check_settings(bias_direction, locals())
    sets = [tuple(check_word_set("defining", s)) for s in (gender_words() if words is None else words).defining]
    present = {s: [w for w in s if w in vectors] for s in sets}
    for s in sets:
        if len(s) < 2:
            raise InputError(f"a defining set needs two words or more, such as ('she', 'he'); got {s!r}")
    used = [words for words in present.values() if len(words) > 1]
    missing = tuple(s for s, words in present.items() if len(words) < 2)
    if not used:
        raise InputError(f"{vectors.name} has the words of no defining set: {', '.join('/'.join(s) for s in sets)}")
    rows = torch.cat([_center_and_scale(unit_vectors_of_words(vectors, words)) for words in used])
    basis, variance = _principal_components(rows, n_components)
    first = torch.stack([unit_vectors_of_words(vectors, [s[0], s[-1]]) for s in used])  # (S, 2, D)
    signs = torch.sign((first[:, 0] - first[:, 1]).mean(0) @ basis.T)
    return BiasDirection(basis * torch.where(signs < 0, -1.0, 1.0)[:, None], variance, tuple(map(tuple, used)), missing)


def unit_vectors_of_words(vectors: WordVectors, words: Sequence[str]) -> Tensor:
    """The vectors (n, D) of words, at length 1, in float64. Raises InputError for unknown words and zero vectors."""
    rows = vectors.vectors[[vectors.index(w) for w in words]].double()
    length = rows.norm(dim=1, keepdim=True)
    if not bool(length.all()):
        raise InputError(f"the vector of {words[int((length == 0).nonzero()[0, 0])]!r} is zero: it has no direction")
    unit: Tensor = rows / length
    return unit


def _center_and_scale(rows: Tensor) -> Tensor:
    return cast(Tensor, (rows - rows.mean(0)) / len(rows) ** 0.5)


def _principal_components(rows: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (k, D), and all shares of the variance."""
    _, values, components = torch.linalg.svd(rows, full_matrices=False)
    variance = values.square()
    rank = int((variance > variance[0] * 1e-12).sum()) if float(variance[0]) > 0 else 0
    if rank < n_components:
        raise InputError(f"the defining sets differ in {rank} dimensions; n_components is {n_components}")
    return components[:n_components], variance / variance.sum()


def direct_bias(
    vectors: WordVectors,
    direction: BiasDirection,
    words: Sequence[str],
    *,
    c: Annotated[float, Above(0), "Exponent: how strictly small components count as bias."] = 1.0,
) -> float:
    """How much of a bias there is in words that should have none: the mean |cos(word, direction)| ** c.

    Args:
        vectors: The `WordVectors`.
        direction: The `BiasDirection`.
        words: Words that should be neutral, such as occupations.
        c: Exponent: how strictly small components count as bias. 1 is usual.

    Returns:
        The mean, from 0 to 1.

    Raises:
        InputError: for no words, or one without a vector.

    Example:
        >>> import torch, unboxed as ub
        >>> v = torch.tensor([[1.0, 0], [-1, 0], [0.6, 0.8], [0, 1]])
        >>> vectors = ub.language.WordVectors(["she", "he", "nurse", "cook"], v)
        >>> gender = ub.language.bias_direction(vectors, ub.language.BiasWords([("she", "he")]))
        >>> round(ub.language.direct_bias(vectors, gender, ["nurse", "cook"]), 3)
        0.3

    Source:
        Bolukbasi et al. 2016, section 5.2, DirectBias_c. In a subspace of several components: the length of the part
        that lies in it.
    """
    check_settings(direct_bias, locals())
    if not words:
        raise InputError("direct_bias needs words that should be neutral, such as occupations; got none")
    return float(_bias_component_norm_per_word(vectors, direction, words).pow(c).mean())


def _bias_component_norm_per_word(vectors: WordVectors, direction: BiasDirection, words: Sequence[str]) -> Tensor:
    components: Tensor = (
        unit_vectors_of_words(vectors, check_word_set("words", words)) @ _require_bias_direction(direction).basis.T
    )
    return cast(Tensor, components.norm(dim=1))


def indirect_bias(vectors: WordVectors, direction: BiasDirection, word: str, other: str) -> float:
    """How much of the similarity of two words is the bias: "receptionist" and "softball" are near by gender.

    Args:
        vectors: The `WordVectors`.
        direction: The `BiasDirection`.
        word: A word.
        other: Another word.

    Returns:
        The share of their inner product that the bias makes: 0 for none, 1 for all of it; negative where the bias makes
        them less similar.

    Raises:
        InputError: for unknown words, or where the words are orthogonal or lie in the bias subspace.

    Example:
        >>> import torch, unboxed as ub
        >>> v = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]])
        >>> vectors = ub.language.WordVectors(["she", "he", "softball", "receptionist"], v)
        >>> gender = ub.language.bias_direction(vectors, ub.language.BiasWords([("she", "he")]))
        >>> round(ub.language.indirect_bias(vectors, gender, "softball", "receptionist"), 3)
        1.0

    Source:
        Bolukbasi et al. 2016, section 5.2, beta(w, v).
    """
    w, v = unit_vectors_of_words(vectors, [word, other])
    w_rest, v_rest = (h - _require_bias_direction(direction).project(h) for h in (w, v))
    total, lengths = w @ v, w_rest.norm() * v_rest.norm()
    if abs(float(total)) < 1e-12 or float(lengths) < 1e-12:
        raise InputError(f"{word!r} and {other!r} are orthogonal or have the bias alone: it is no share of anything")
    return float((total - w_rest @ v_rest / lengths) / total)


def _require_bias_direction(value: Any) -> BiasDirection:
    if not isinstance(value, BiasDirection):
        raise InputError(f"direction must come from ub.language.bias_direction; got {type(value).__name__}")
    return value
