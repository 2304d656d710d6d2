"""Sets of words as vectors, from word vectors or from any function of texts; what is missing is always reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .vectors import WordVectors

TextEncoder = Callable[[list[str]], Any]
WordVectorsOrTextEncoder = WordVectors | TextEncoder
"""Word vectors, or a function from N texts to vectors (N, D), such as contextual embeddings."""

MAX_WORDS_LISTED_IN_ERROR = 8  # of an error
MIN_WORDS_PER_SET = 2  # that a set must have: one word has no spread, and stands for nothing but itself


@dataclass(frozen=True, eq=False)
class EmbeddedWordSet:
    """The words of a set that have a vector, at length 1, and what became of the others."""

    name: str
    words: tuple[str, ...]  # as they were asked for
    unit: Tensor  # (n, D) float64
    missing: tuple[str, ...]
    replaced: Mapping[str, str]  # {word: the spelling that was found instead}


def embed_word_set(
    source: WordVectorsOrTextEncoder, name: str, words: Sequence[str], alternatives: Mapping[str, str]
) -> EmbeddedWordSet:
    """The vectors of a set of words. Raises InputError for fewer than two words that have one."""
    wanted = check_word_set(name, words)
    spellings = {w: _find_word_or_alternative(source, w, alternatives) for w in wanted}
    present = {w: spelling for w, spelling in spellings.items() if spelling is not None}
    missing = tuple(w for w in wanted if w not in present)
    if len(present) < MIN_WORDS_PER_SET:
        detail = f"; without a vector: {_word_list_text(missing)}" if missing else ""
        raise InputError(f"the set {name!r} needs {MIN_WORDS_PER_SET} words or more; got {len(present)}{detail}")
    unit = _checked_unit_vectors(vectors_of_texts(source, list(present.values())), list(present), name)
    replaced = {w: spelling for w, spelling in present.items() if spelling != w}
    return EmbeddedWordSet(name, tuple(present), unit, missing, replaced)


def _word_list_text(words: Sequence[str]) -> str:
    rest = len(words) - MAX_WORDS_LISTED_IN_ERROR
    return ", ".join(words[:MAX_WORDS_LISTED_IN_ERROR]) + f" and {rest} more" * (rest > 0)


def check_word_set(name: str, words: Any) -> list[str]:
    """A set of different words, as a list. Raises InputError."""
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(w, str) for w in words):
        raise InputError(f"the set {name!r} must be a list of words; got {words!r}")
    twice = {w for w in words if list(words).count(w) > 1} if len(set(words)) < len(words) else set()
    if twice:
        raise InputError(f"the set {name!r} has {', '.join(map(repr, sorted(twice)))} more than once")
    return list(words)


def _find_word_or_alternative(
    source: WordVectorsOrTextEncoder, word: str, alternatives: Mapping[str, str]
) -> str | None:
    """The word as the source spells it; a function of texts takes every word as it is."""
    if not isinstance(source, WordVectors):
        return word
    for spelling in [word, *([alternatives[word]] if word in alternatives else [])]:
        if (index := source.find(spelling)) is not None:
            return source.words[index]
    return None


def vectors_of_texts(source: WordVectorsOrTextEncoder, texts: list[str]) -> Tensor:
    """The vectors (N, D) of texts. Raises InputError where a function gives something else."""
    if isinstance(source, WordVectors):
        rows: Tensor = source.vectors[[source.index(t) for t in texts]]
        return rows
    vectors = _stacked_vectors(source(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.is_complex():
        raise InputError(
            f"wanted the vectors ({len(texts)}, D) of {len(texts)} texts from {getattr(source, '__name__', source)!r}; "
            f"got shape {tuple(vectors.shape)}"
        )
    return vectors


def _stacked_vectors(found: Any) -> Tensor:
    """What a function of texts returned as one tensor; also a list of vectors. Raises InputError."""
    try:
        rows = [torch.as_tensor(v) for v in found] if isinstance(found, (list, tuple)) else []
        return (torch.stack(rows) if rows else torch.as_tensor(found)).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"wanted vectors (N, D) of N texts from the function; got {type(found).__name__}: {error}"
        ) from error


def _checked_unit_vectors(vectors: Tensor, words: list[str], name: str) -> Tensor:
    vectors = vectors.double().cpu()
    length = vectors.norm(dim=1)
    wrong = ~(length.isfinite() & (length > 0))
    if bool(wrong.any()):
        word = words[int(wrong.nonzero()[0])]
        raise InputError(f"the vector of {word!r} in the set {name!r} is zero or not finite: it has no direction")
    unit: Tensor = vectors / length[:, None]
    return unit


def read_word_list(name: str) -> Any:
    """A published list of words, with its source."""
    return json.loads((files(__package__) / "word_lists" / f"{name}.json").read_text(encoding="utf-8"))
