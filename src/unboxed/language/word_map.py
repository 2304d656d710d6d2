"""A t-SNE map of words, with how many of their nearest words it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from ..engine.read.embedding import fit_tsne
from ..engine.read.neighbors import nearest_points
from ..engine.results import ResultMixin
from ..errors import InputError
from ..parameters import Seed
from ..settings import Above, AtLeast, Unit, check_settings
from ..validation import valid_seed
from ._lookup import check_word_set
from .vectors import WordVectors


@dataclass(frozen=True, eq=False, repr=False)
class WordMap(ResultMixin):
    """Words as points of the plane, and how far the map can be believed."""

    words: tuple[str, ...]
    points: Tensor  # (N, 2)
    neighbors_preserved: float  # mean share of a word's k nearest words that are among its k nearest on the map
    chance: float  # the same for random points
    k: int
    name: str = ""
    nearest: Tensor | None = field(default=None, repr=False)  # (N, k) the k nearest words of each, by their vectors
    missing: tuple[str, ...] = field(default=(), repr=False)  # words without a vector

    def __str__(self) -> str:
        shares = f"{self.neighbors_preserved:.1%} of the {self.k} nearest words ({self.chance:.1%} by chance)"
        left_out = f"; without a vector: {', '.join(self.missing)}" if self.missing else ""
        return f"map of {len(self.words):,} words of {self.name} keeps {shares}{left_out}"


def word_map(
    vectors: WordVectors,
    words: Sequence[str] | None = None,
    *,
    max_words: Annotated[int, AtLeast(3), Unit("words"), "Words of the map where none are named."] = 1000,
    perplexity: Annotated[float, Above(1), "About how many neighbors of each point count."] = 30.0,
    k: Annotated[int, AtLeast(1), Unit("words"), "Nearest words that are compared with those on the map."] = 10,
    seed: Seed = 0,
) -> WordMap:
    """A t-SNE map of words by their cosine similarity.

    An overview of what stands together. The map keeps some neighbors and loses others: `neighbors_preserved` says how
    many. For the neighbors of a word, exactly, use `WordVectors.nearest`.

    Args:
        vectors: The `WordVectors`.
        words: The words; None takes the first, most frequent ones.
        max_words: Words of the map where none are named.
        perplexity: About how many neighbors of each point count. At most (N - 1) / 3.
        k: Nearest words that are compared with those on the map.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `WordMap`: `points` (N, 2) of its `words`, `neighbors_preserved`, and the k `nearest` words (N, k) of each by
        their vectors. Saved as HTML it is a map in which words are pointed at and searched for.

    Raises:
        InputError: for words that are listed twice, or fewer than three that have a vector.

    Example:
        >>> import torch, unboxed as ub
        >>> vectors = ub.language.WordVectors([f"word{i}" for i in range(40)], torch.eye(40)[:, :20] + 0.1)
        >>> tuple(ub.language.word_map(vectors, k=3).points.shape)
        (40, 2)

    Source:
        van der Maaten & Hinton 2008, as openTSNE computes it (Poličar et al. 2024), of vectors at length 1: squared
        distances are then 2 - 2 cos. More than 50 dimensions become their 50 principal components.
    """
    check_settings(word_map, locals())
    wanted = list(vectors.words[:max_words]) if words is None else check_word_set("words", words)
    found = {w: i for w in wanted if (i := vectors.find(w)) is not None}
    index = list(dict.fromkeys(found.values()))
    if len(index) < 3:
        raise InputError(f"a map needs three words or more; {vectors.name} has {len(index)} of {len(wanted)}")
    unit = vectors.unit[index].cpu().double()
    points = torch.from_numpy(fit_tsne(unit.numpy(), perplexity=perplexity, seed=valid_seed(seed) % 2**32).points)
    k = min(k, len(index) - 1)
    nearest = _nearest_other_rows(unit, k)  # (N, k)
    kept = (nearest[:, :, None] == _nearest_other_rows(points, k)[:, None, :]).any(2).double().mean()
    missing = tuple(w for w in wanted if w not in found)
    names = tuple(vectors.words[i] for i in index)
    return WordMap(names, points, float(kept), k / (len(index) - 1), k, vectors.name, nearest, missing)


def _nearest_other_rows(rows: Tensor, k: int) -> Tensor:
    """The k nearest other rows (N, k) of each."""
    return nearest_points(rows, rows, k, exclude=torch.arange(len(rows))).indices
