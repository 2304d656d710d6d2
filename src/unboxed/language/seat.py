"""SEAT: the association test for encoders of sentences, with the published templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..parameters import Seed
from ..settings import check_settings
from ._lookup import TextEncoder, check_word_set, read_word_list
from .weat import WEAT, DeltaDegreesOfFreedom, NPartitions, WordSets, weat


def seat(
    encoder: TextEncoder,
    targets: WordSets,
    attributes: WordSets,
    *,
    templates: Sequence[str] | None = None,
    name: str = "",
    ddof: DeltaDegreesOfFreedom = 1,
    n_partitions: NPartitions = 100_000,
    seed: Seed = 0,
) -> WEAT:
    """Sentence Encoder Association Test: WEAT with each word in simple sentences.

    For encoders that need a context. A sentence says as little as it can besides its word ("This is a rose."), so that
    what is measured is the encoder's association with the word.

    Args:
        encoder: A function from N sentences to vectors (N, D).
        targets: The two sets of words that are compared, {name: words}. Two words or more in each have a vector.
        attributes: The two sets of words that they are compared by, {name: words}.
        templates: Sentences with "{word}" in place of the word; None takes the published ones for each kind of word.
        name: Name of the test, for tables and figures.
        ddof: 1 divides the standard deviation of the effect size by N - 1, 0 by N. Published figures differ in it.
        n_partitions: Random partitions where there are too many for all. Up to 200,000 partitions, all are enumerated.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `WEAT` whose words are sentences.

    Raises:
        InputError: as `weat`; for a template without "{word}".

    Example:
        >>> import torch, unboxed as ub
        >>> def encode(texts):
        ...     return torch.tensor([[float("rose" in t or "joy" in t), float(len(t)), 20.0] for t in texts])
        >>> targets = {"flowers": ["rose", "roses"], "insects": ["wasp", "flea"]}
        >>> attributes = {"pleasant": ["joy", "joys"], "unpleasant": ["war", "pain"]}
        >>> ub.language.seat(encode, targets, attributes, templates=["A {word}."]).targets
        ('flowers', 'insects')

    Source:
        May, Wang, Bordia, Bowman & Rudinger 2019, "On Measuring Social Biases in Sentence Encoders", arXiv:1903.10561.
        Deviation: sets of sentences of different sizes are kept whole; the paper drops sentences at random.
    """
    check_settings(seat, locals())
    if not callable(encoder):
        raise InputError(f"encoder must be a function from N sentences to vectors (N, D); got {type(encoder).__name__}")
    sentence_sets = [_sentence_sets(sets, templates) for sets in (targets, attributes)]
    return weat(encoder, *sentence_sets, name=name, ddof=ddof, n_partitions=n_partitions, seed=seed)


def _sentence_sets(sets: Any, templates: Sequence[str] | None) -> WordSets:
    if not isinstance(sets, Mapping):
        raise InputError(f"wanted two sets of words, {{name: words, name: words}}; got {type(sets).__name__}")
    return {
        str(name): sentences(check_word_set(str(name), words), templates) for name, words in sets.items()
    }  # fmt: skip


def sentences(words: Sequence[str], templates: Sequence[str] | None = None) -> list[str]:
    """Simple sentences with each word: the published ones for names, pronouns, adjectives, verbs and nouns.

    Args:
        words: The words. One that begins with a capital letter is a name; one that no list has is a thing.
        templates: Sentences with "{word}" in place of the word; None takes the published ones for each kind of word.

    Returns:
        The sentences, all of a word after one another.

    Raises:
        InputError: for a template without "{word}".

    Example:
        >>> import unboxed as ub
        >>> ub.language.sentences(["rose"])[:2], ub.language.sentences(["Amy"], ["I know {word}."])
        (['This is a rose.', 'That is a rose.'], ['I know Amy.'])

    Source:
        May et al. 2019, arXiv:1903.10561, and its published code.
    """
    if templates is not None:
        if not templates or not all(isinstance(t, str) and "{word}" in t for t in templates):
            raise InputError(f'each template must have "{{word}}" in place of the word; got {templates!r}')
        return [t.replace("{word}", word) for word in words for t in templates]
    lists = read_word_list("seat")
    return [
        _fill_sentence_template(t, word, lists["singular_of"])
        for word in words
        for t in lists["templates"][_template_kind_of_word(word, lists)]
    ]


def _template_kind_of_word(word: str, lists: Any) -> str:
    if word[:1].isupper():
        return "name"
    return next((str(kind) for kind, words in lists["kinds"].items() if word in words), "thing")


def _fill_sentence_template(template: str, word: str, singular_of: Mapping[str, str]) -> str:
    singular = singular_of.get(word, word)
    plural = word if word in singular_of else _plural_of_noun(word)
    article = "an" if singular[:1] in "aeiouAEIOU" else "a"
    sentence = template.replace("{a word}", f"{article} {singular}").replace("{word}", singular)
    sentence = sentence.replace("{words}", plural)
    return sentence[:1].upper() + sentence[1:]


def _plural_of_noun(word: str) -> str:
    """The plural of a noun, by the rules of the paper's code."""
    if word.endswith("man"):
        return word[:-2] + "en"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("ch", "sh", "s")) else "s")
