"""Words and their vectors: lookup, nearest words, analogies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import check_int, nearest_names

MAX_WORDS_COMPARED_FOR_SPELLING = 50_000  # of the most frequent words, that a misspelled one is compared with
MAX_SPELLING_LENGTH_DIFFERENCE = 2  # characters between a misspelled word and those that it is compared with

RankedWords = list[tuple[str, float]]
"""Words with their cosine similarity, the largest first."""


@dataclass(frozen=True, eq=False, repr=False)
class WordVectors:
    """Words and their vectors, the most frequent word first. Immutable: what changes vectors makes new ones.

    Args:
        words: The words (V,), each once.
        vectors: Their vectors (V, D), on any device, in any floating-point type.
        name: What they are, for figures.
        ignore_case: Whether a word that is not there is looked up in lower case, too: for vectors of lower-case words,
            such as GloVe 6B. Results say which words were replaced.

    Example:
        >>> import torch, unboxed as ub
        >>> vectors = ub.language.WordVectors(["sun", "moon", "bread"], torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]]))
        >>> vectors.nearest("sun", k=1)[0][0], "tea" in vectors
        ('moon', False)
    """

    words: Sequence[str]
    vectors: Tensor  # (V, D)
    name: str = "word vectors"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        words, vectors = tuple(self.words), torch.as_tensor(self.vectors)
        if vectors.ndim != 2 or not vectors.numel() or not vectors.is_floating_point():
            raise InputError(f"vectors must be real numbers (V, D); got {tuple(vectors.shape)}, {vectors.dtype}")
        if len(words) != len(vectors):
            raise InputError(f"wanted one word per vector; got {len(words):,} words and {len(vectors):,} vectors")
        if not bool(vectors.isfinite().all()):
            row = int((~vectors.isfinite().all(1)).nonzero()[0])
            raise InputError(f"the vector of {words[row]!r} has NaN or infinite values")
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "vectors", vectors.detach())
        if len(self._index_by_word) != len(words):
            twice = next(w for i, w in enumerate(words) if self._index_by_word[w] != i)
            raise InputError(f"each word must have one vector; {twice!r} has several")

    @cached_property
    def _index_by_word(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def unit(self) -> Tensor:
        """The vectors (V, D) at length 1; a vector of zeros remains zero."""
        length = self.vectors.norm(dim=1, keepdim=True)
        unit: Tensor = self.vectors / length.where(length > 0, 1)
        return unit

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        case = ", ignore_case=True" * self.ignore_case
        return f"WordVectors({self.name!r}, {len(self):,} words, {self.vectors.shape[1]} dimensions{case})"

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.find(word) is not None

    def __getitem__(self, word: str) -> Tensor:
        """The vector (D,) of a word. Raises InputError for an unknown word, with those that are spelled like it."""
        return self.vectors[self.index(word)]

    def find(self, word: str) -> int | None:
        """The position of a word, None where it is unknown; in lower case, too, with `ignore_case`."""
        index = self._index_by_word.get(word)
        return self._index_by_word.get(word.lower()) if index is None and self.ignore_case else index

    def index(self, word: str) -> int:
        """The position of a word. Raises InputError for an unknown word, with those that are spelled like it."""
        if not isinstance(word, str):
            raise InputError(f"wanted a word; got {type(word).__name__}")
        index = self.find(word)
        if index is None:
            raise InputError(f"{self.name} has no word {word!r}: {self._spelling_advice(word)}")
        return index

    def nearest(self, query: str | Any, k: int = 10, *, exclude: Collection[str] = ()) -> RankedWords:
        """The words whose vectors point most nearly the same way.

        Args:
            query: A word, which is not listed itself, or a vector (D,).
            k: How many words.
            exclude: Further words that are not listed.

        Returns:
            [(word, cosine similarity)], the nearest first.
        """
        k = check_int("k", k, minimum=1)
        excluded = {self.index(word) for word in [*exclude, *([query] if isinstance(query, str) else [])]}
        direction = self.unit[self.index(query)] if isinstance(query, str) else self._normalized_query_vector(query)
        values, indices = (self.unit @ direction).topk(min(k + len(excluded), len(self)))
        ranked = [(i, value) for i, value in zip(indices.tolist(), values.tolist(), strict=True) if i not in excluded]
        return [(self.words[i], value) for i, value in ranked[:k]]

    def analogy(self, a: str, b: str, c: str, k: int = 5) -> RankedWords:
        """`a` is to `b` as `c` is to these words: the nearest to b - a + c, each vector at length 1.

        Args:
            a: A word, such as "man".
            b: A word that is to `a`, such as "king", as what is sought is to `c`.
            c: A word, such as "woman".
            k: How many words.

        Returns:
            [(word, cosine similarity)], the best first; without the three words themselves, as is usual.

        Source:
            Mikolov, Yih & Zweig 2013, "Linguistic Regularities in Continuous Space Word Representations", section 4
            (3CosAdd).
        """
        x, y, z = (self.unit[self.index(word)] for word in (a, b, c))
        return self.nearest(y - x + z, k, exclude=(a, b, c))

    def similarity(self, a: str, b: str) -> float:
        """The cosine of the angle between the vectors of two words."""
        return float(self.unit[self.index(a)] @ self.unit[self.index(b)])

    def _normalized_query_vector(self, query: Any) -> Tensor:
        vector = torch.as_tensor(query).to(self.vectors)
        if vector.shape != self.vectors.shape[1:] or not bool(vector.isfinite().all()):
            raise InputError(f"wanted a word, or a finite vector ({self.vectors.shape[1]},); got {tuple(vector.shape)}")
        if not bool(vector.any()):
            raise InputError("the vector is zero: no word is nearest to it")
        return cast(Tensor, vector / vector.norm())

    def _spelling_advice(self, word: str) -> str:
        """Words that are spelled like an unknown one."""
        other_case = [w for w in {word.lower(), word.capitalize(), word.upper()} if w in self._index_by_word]
        nearest = other_case or nearest_names(
            word, _words_of_similar_length(word, self.words[:MAX_WORDS_COMPARED_FOR_SPELLING])
        )
        hint = " ignore_case=True looks words up in lower case" if word.lower() in other_case else ""
        if nearest:
            return f"did you mean {' or '.join(map(repr, nearest))}?{hint}"
        return f"none of its {len(self):,} words is spelled like it"


def _words_of_similar_length(word: str, words: Iterable[str]) -> list[str]:
    return [w for w in words if abs(len(w) - len(word)) <= MAX_SPELLING_LENGTH_DIFFERENCE]
