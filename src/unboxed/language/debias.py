"""Removing a bias from word vectors, hard and soft; what remains of it is measured with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor

from ..engine.results import ResultMixin
from ..errors import InputError, warn
from ..parameters import Seed
from ..settings import AtLeast, check_settings
from ._lookup import check_word_set
from .bias import BiasDirection, BiasWords, NComponents, bias_direction, gender_words, unit_vectors_of_words
from .remaining_bias import RemainingBias, neutral_word_indices, remaining_bias
from .vectors import WordVectors

VECTORS_PER_BLOCK = 65_536  # vectors that are multiplied at a time
MAX_SOFT_DEBIAS_STEPS, SOFT_DEBIAS_RELATIVE_TOLERANCE = (
    5000,
    1e-11,
)  # of the projected gradient; relative change at which it has converged
MIN_RELATIVE_GRAM_EIGENVALUE = 1e-10  # of W W^T: dimensions below it hold no words


@dataclass(frozen=True, eq=False, repr=False)
class Debiased(ResultMixin):
    """Word vectors from which a bias was removed, and what remains of it."""

    method: str
    vectors: WordVectors  # of length 1
    bias: RemainingBias  # before, after, and at chance
    direction: BiasDirection  # of the bias, in the new vectors
    n_neutral: int  # words from which it was removed
    equalized: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    missing: tuple[str, ...] = field(default=(), repr=False)  # words of the sets and of `neutral` without a vector

    def __str__(self) -> str:
        parts = [
            f"{self.method} of {self.n_neutral:,} words; {len(self.equalized)} sets were equalized",
            str(self.bias),
        ]
        return "\n".join(parts + [f"without a vector: {', '.join(self.missing)}"] * bool(self.missing))


def hard_debias(
    vectors: WordVectors,
    words: BiasWords | None = None,
    *,
    neutral: Sequence[str] | None = None,
    n_components: NComponents = 1,
    seed: Seed = 0,
) -> Debiased:
    """Remove a bias from word vectors: neutral words lose it, the words of each equality set differ in it alone.

    The direct bias is gone. Most of what it had made of the neighborhoods remains, which the result's `bias` states: do
    not take the vectors for unbiased.

    Args:
        vectors: The `WordVectors`; the new ones have length 1.
        words: The `BiasWords` of the attribute; None takes the published ones of gender.
        neutral: Words that lose the bias; None takes all that do not have the attribute by their meaning.
        n_components: Number of principal components that make the bias subspace. With sets of m words up to m - 1.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `Debiased`: the new `vectors`, and `bias` before, after, and at chance.

    Raises:
        InputError: as `bias_direction`; for a word in two equality sets, and sets whose words do not differ in the
            bias.

    Example:
        >>> import torch, unboxed as ub
        >>> generator = torch.Generator().manual_seed(0)
        >>> names = ["she", "he", *(f"word{i}" for i in range(60))]
        >>> v = torch.cat([torch.eye(6)[:1], -torch.eye(6)[:1], torch.randn(60, 6, generator=generator)])
        >>> vectors = ub.language.WordVectors(names, v)
        >>> debiased = ub.language.hard_debias(vectors, ub.language.BiasWords([("she", "he")]))
        >>> debiased.bias.after.direct < 1e-6 < debiased.bias.before.direct
        True

    Source:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 6, step 2a (neutralize and equalize).
    """
    check_settings(hard_debias, locals())
    words = gender_words() if words is None else words
    direction = bias_direction(vectors, words, n_components=n_components)
    rows, missing = _resolve_neutral_word_indices(vectors, words, neutral)
    sets, missing_of_sets = _equality_set_indices(vectors, words)
    new = vectors.unit.clone()
    _neutralize_in_place(new, rows, direction.basis.to(new))
    for indices in sets:
        new[indices] = _equalized_set_vectors(vectors, indices, direction).to(new)
    result = replace(vectors, vectors=new, name=f"{vectors.name}, debiased")
    names = tuple(tuple(vectors.words[i] for i in s) for s in sets)
    return Debiased(
        "hard debiasing", result, remaining_bias(vectors, result, words, direction_after=direction, seed=seed),
        direction, len(rows), names, (*missing, *missing_of_sets),
    )  # fmt: skip


def soft_debias(
    vectors: WordVectors,
    words: BiasWords | None = None,
    *,
    neutral: Sequence[str] | None = None,
    weight: Annotated[float, AtLeast(0), "Weight (lambda) of removing the bias against keeping inner products."] = 0.2,
    n_components: NComponents = 1,
    seed: Seed = 0,
) -> Debiased:
    """Reduce a bias by one linear map of all words, which keeps their inner products as far as it can.

    For a trade-off between bias and everything else. What it costs and what remains is in the result.

    Args:
        vectors: The `WordVectors`; the new ones have length 1.
        words: The `BiasWords` of the attribute; None takes the published ones of gender.
        neutral: Words that lose the bias; None takes all that do not have the attribute by their meaning.
        weight: Weight (lambda) of removing the bias against keeping inner products. 0.2 is published; there are as many
            terms of the first kind as neutral words, of the second as pairs of words, so large vocabularies need more.
        n_components: Number of principal components that make the bias subspace. With sets of m words up to m - 1.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `Debiased`: the new `vectors`, the mapped `direction`, and `bias` before, after, and at chance.

    Raises:
        InputError: as `bias_direction`.

    Example:
        >>> import torch, unboxed as ub
        >>> generator = torch.Generator().manual_seed(0)
        >>> names = ["she", "he", *(f"word{i}" for i in range(60))]
        >>> v = torch.cat([torch.eye(6)[:1], -torch.eye(6)[:1], torch.randn(60, 6, generator=generator)])
        >>> words = ub.language.BiasWords([("she", "he")])
        >>> bias = ub.language.soft_debias(ub.language.WordVectors(names, v), words, weight=100.0).bias
        >>> bias.after.direct < 0.5 * bias.before.direct
        True

    Source:
        Bolukbasi et al. 2016, arXiv:1607.06520, section 6, step 2b: the minimum over T of
        |(TW)'(TW) - W'W|^2 + lambda |(TN)'(TB)|^2, as its convex problem in X = T'T, by projected gradient steps.
    """
    check_settings(soft_debias, locals())
    words = gender_words() if words is None else words
    direction = bias_direction(vectors, words, n_components=n_components)
    rows, missing = _resolve_neutral_word_indices(vectors, words, neutral)
    transform = _soft_debias_transform(
        _vector_gram(vectors.unit), _vector_gram(vectors.unit[rows]), direction.basis, weight
    )
    new = torch.cat(
        [
            _normalize_to_unit_length(part.double() @ transform)
            for part in torch.split(vectors.unit.cpu(), VECTORS_PER_BLOCK)
        ]
    )
    result = replace(vectors, vectors=new.to(vectors.vectors), name=f"{vectors.name}, softly debiased")
    basis = torch.linalg.qr((direction.basis @ transform).T).Q.T
    mapped = replace(direction, basis=basis * torch.sign(basis[0] @ (direction.basis[0] @ transform)))
    return Debiased(
        f"soft debiasing (lambda = {weight:g})", result,
        remaining_bias(vectors, result, words, direction_after=mapped, seed=seed), mapped, len(rows), (), missing,
    )  # fmt: skip


def _resolve_neutral_word_indices(
    vectors: WordVectors, words: BiasWords, neutral: Sequence[str] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """The positions of the words that lose the bias, and the words without a vector."""
    if neutral is None:
        return neutral_word_indices(vectors, words), ()
    found = {word: vectors.find(word) for word in check_word_set("neutral", neutral)}
    missing = tuple(word for word, index in found.items() if index is None)
    index = sorted({i for i in found.values() if i is not None})
    if not index:
        raise InputError(f"{vectors.name} has none of the neutral words")
    if missing:
        warn(f"neutral words without a vector are left out ({len(missing)}): {', '.join(missing[:5])}")
    return torch.tensor(index), missing


def _equality_set_indices(vectors: WordVectors, words: BiasWords) -> tuple[list[list[int]], tuple[str, ...]]:
    """The positions of the sets' words, of sets with two or more; and the words without a vector."""
    sets, missing, owner = list[list[int]](), list[str](), dict[int, frozenset[int]]()
    for s in words.equality_sets:
        found = {w: vectors.find(w) for w in check_word_set("equalize", s)}
        missing += [w for w, i in found.items() if i is None]
        indices = sorted({i for i in found.values() if i is not None})
        key = frozenset(indices)
        if len(key) < 2 or all(owner.get(i) == key for i in key):  # the same set in another case
            continue
        if shared := [vectors.words[i] for i in indices if i in owner]:
            raise InputError(f"{shared[0]!r} is in two sets of words to equalize; give each word once")
        owner |= dict.fromkeys(key, key)
        sets.append(indices)
    return sets, tuple(dict.fromkeys(missing))


def _neutralize_in_place(unit: Tensor, rows: Tensor, basis: Tensor) -> None:
    """Take the bias from these rows of `unit` (V, D), which stay at length 1."""
    for part in torch.split(rows, VECTORS_PER_BLOCK):
        block = unit[part]
        for _ in range(2):  # the second time removes what rounding left
            block = _normalize_to_unit_length(block - block @ basis.T @ basis)
        unit[part] = block


def _equalized_set_vectors(vectors: WordVectors, indices: Sequence[int], direction: BiasDirection) -> Tensor:
    """The new vectors (n, D) of the words of a set: they differ in the bias alone, and are at length 1."""
    rows = unit_vectors_of_words(vectors, [vectors.words[i] for i in indices])
    mean = rows.mean(0)
    in_subspace = direction.project(rows - mean)  # w_B - mu_B
    length = in_subspace.norm(dim=1, keepdim=True)
    if float(length.min()) < 1e-9:
        names = "/".join(vectors.words[i] for i in indices)
        raise InputError(f"the words of the set {names} do not differ in the bias: they cannot be equalized")
    rest = mean - direction.project(mean)
    equalized: Tensor = rest + (1 - rest.square().sum()).clamp_min(0).sqrt() * in_subspace / length
    return equalized


def _normalize_to_unit_length(rows: Tensor) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    scaled: Tensor = rows / length.where(length > 0, 1)
    return scaled


def _split_into_vector_blocks(unit: Tensor) -> tuple[Tensor, ...]:
    return torch.split(unit.cpu(), VECTORS_PER_BLOCK)


def _vector_gram(unit: Tensor) -> Tensor:
    """W W' (D, D) of words in rows, in float64."""
    blocks = (part.double() for part in _split_into_vector_blocks(unit))
    return sum((block.T @ block for block in blocks), torch.zeros(unit.shape[1], unit.shape[1], dtype=torch.float64))


def _soft_debias_transform(gram: Tensor, neutral_gram: Tensor, basis: Tensor, weight: float) -> Tensor:
    """T (D, D), symmetric. In Y = S^1/2 X S^1/2 the first term is |Y - S|^2, so that steps of one size fit it all."""
    values, axes = torch.linalg.eigh(gram)
    is_used = values > MIN_RELATIVE_GRAM_EIGENVALUE * values[-1]
    target = torch.diag(values[is_used])
    to_range = (axes[:, is_used] / values[is_used].sqrt()).T  # (r, D): S^-1/2
    c = to_range @ neutral_gram @ to_range.T
    d = to_range @ basis.T
    y = _minimize_soft_debias(target, c, d @ d.T, weight)
    values, axes = torch.linalg.eigh(to_range.T @ y @ to_range)
    root: Tensor = axes * values.clamp_min(0).sqrt() @ axes.T
    return root


def _minimize_soft_debias(target: Tensor, c: Tensor, p: Tensor, weight: float) -> Tensor:
    """The positive semidefinite Y of least |Y - target|^2 + weight tr(C Y P Y): accelerated projected gradient.

    Nesterov 2004, "Introductory Lectures on Convex Optimization", section 2.2.4, constant step scheme III.
    """
    condition = 1 + weight * float(torch.linalg.matrix_norm(c, 2) * torch.linalg.matrix_norm(p, 2))
    momentum = (condition**0.5 - 1) / (condition**0.5 + 1)
    y = ahead = target
    for _ in range(MAX_SOFT_DEBIAS_STEPS):
        bias_term = c @ ahead @ p
        gradient = ahead - target + weight / 2 * (bias_term + bias_term.T)
        new = _nearest_semidefinite(ahead - gradient / condition)
        ahead, change = new + momentum * (new - y), (new - y).norm()
        y = new
        if float(change) <= SOFT_DEBIAS_RELATIVE_TOLERANCE * float(target.norm()):
            return y
    warn(f"soft debiasing did not converge in {MAX_SOFT_DEBIAS_STEPS} steps: take a smaller weight than {weight:g}")
    return y


def _nearest_semidefinite(matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
    nearest: Tensor = axes * values.clamp_min(0) @ axes.T
    return nearest
