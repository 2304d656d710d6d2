"""Analogies that word vectors complete along a pair: she is to he as x is to y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import Above, AtLeast, Unit, check_settings
from .bias import unit_vectors_of_words
from .vectors import WordVectors

MAX_CANDIDATE_PAIRS_PER_WORD = 5  # pairs of each first word that are kept while pairs are searched
MAX_WORDS_PER_BLOCK = 512  # words that are compared with all others at a time


@dataclass(frozen=True)
class BiasedAnalogy:
    """The first word of the pair is to the second as x is to y."""

    x: str
    y: str
    score: float  # cosine of the differences


def biased_analogies(
    vectors: WordVectors,
    pair: tuple[str, str] = ("she", "he"),
    *,
    n: Annotated[int, AtLeast(1), Unit("analogies"), "Number of analogies."] = 20,
    delta: Annotated[float, Above(0), "Largest distance of the words of an analogy, at length 1."] = 1.0,
    max_words: Annotated[int, AtLeast(2), Unit("words"), "Search among the first, most frequent words."] = 10_000,
) -> list[BiasedAnalogy]:
    """The pairs of words that differ most as a pair does: she is to he as x is to y.

    What the vectors take for feminine and masculine, in words: some are right ("queen", "king"), some are stereotypes.

    Args:
        vectors: The `WordVectors`.
        pair: The pair whose difference is looked for, itself left out.
        n: Number of analogies.
        delta: Largest distance of the words of an analogy, at length 1. Only similar words are an analogy; 1 means an
            angle of at most 60 degrees.
        max_words: Search among the first, most frequent words.

    Returns:
        The analogies, the best first. Each x is in one of them.

    Raises:
        InputError: for unknown words, or a pair without a difference.

    Example:
        >>> import torch, unboxed as ub
        >>> v = torch.tensor([[0.5, 1, 0], [-0.5, 1, 0], [0.5, 0, 1], [-0.5, 0, 1]])
        >>> vectors = ub.language.WordVectors(["she", "he", "queen", "king"], v)
        >>> [(a.x, a.y) for a in ub.language.biased_analogies(vectors, n=1)]
        [('queen', 'king')]

    Source:
        Bolukbasi et al. 2016, arXiv:1607.06520, eq. 1, with delta = 1; its section 4 reports one pair per x.
    """
    check_settings(biased_analogies, locals())
    a, b = unit_vectors_of_words(vectors, list(pair))
    seed = a - b
    if not bool(seed.any()):
        raise InputError(f"{pair[0]!r} and {pair[1]!r} have the same vector: there is no direction between them")
    unit = vectors.unit[:max_words]
    score, x, y = _best_analogy_pairs(unit, (seed / seed.norm()).to(unit), delta)
    excluded = {vectors.index(w) for w in pair}
    out = dict[int, BiasedAnalogy]()
    for i in score.argsort(descending=True, stable=True).tolist():
        first, second = int(x[i]), int(y[i])
        if len(out) < n and first not in out and not excluded & {first, second}:
            out[first] = BiasedAnalogy(vectors.words[first], vectors.words[second], float(score[i]))
    return list(out.values())


def _best_analogy_pairs(unit: Tensor, seed: Tensor, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(scores, x, y) of the best pairs of each x, with positive scores. `seed` (D,) at length 1."""
    projection = unit @ seed  # (V,)
    parts = []
    k = min(MAX_CANDIDATE_PAIRS_PER_WORD, len(unit))
    for start in range(0, len(unit), MAX_WORDS_PER_BLOCK):
        rows = slice(start, start + MAX_WORDS_PER_BLOCK)
        distance = (2 - 2 * unit[rows] @ unit.T).clamp_min(0).sqrt()  # (B, V)
        score = (projection[rows, None] - projection) / distance
        score = score.masked_fill((distance > delta) | (distance <= 1e-6), -torch.inf)
        value, y = score.topk(k, 1)
        x = torch.arange(start, start + len(value))[:, None].expand_as(y)
        is_pair = value.cpu() > 0
        parts.append((value.cpu()[is_pair], x[is_pair], y.cpu()[is_pair]))
    score, x, y = (torch.cat(p) for p in zip(*parts, strict=True))
    return score, x, y
