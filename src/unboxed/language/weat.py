"""WEAT: do two sets of words differ in how near they are to two sets of attributes? With the published tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, combinations
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..engine.results import ResultMixin
from ..errors import InputError
from ..parameters import Seed
from ..settings import AtLeast, Unit, check_settings
from ..validation import suggestion_text, valid_seed
from ._lookup import EmbeddedWordSet, WordVectorsOrTextEncoder, check_word_set, embed_word_set, read_word_list

WordSets = Mapping[str, Sequence[str]]
MAX_ENUMERATED_PARTITIONS = 200_000  # up to which all are enumerated: two sets of ten words have 184,756
NULL_BAND_QUANTILES = (0.025, 0.975)  # of the effect sizes of random partitions: the null band
RELATIVE_EFFECT_TIE_TOLERANCE = 1e-12  # of the sum of all magnitudes: rounding must not break ties

NPartitions = Annotated[int, AtLeast(100), Unit("partitions"), "Random partitions where there are too many for all."]
DeltaDegreesOfFreedom = Annotated[
    Literal[0, 1], "1 divides the standard deviation of the effect size by N - 1, 0 by N."
]


@dataclass(frozen=True)
class WordTest:
    """The words of a test: two sets of targets that are compared, two sets of attributes that they are compared by.

    Args:
        targets: The two sets of words that are compared, {name: words}.
        attributes: The two sets of words that they are compared by, {name: words}.
        alternatives: {word: the word to take where it has no vector}.

    Example:
        >>> import unboxed as ub
        >>> targets = {"flowers": ["rose", "lily"], "insects": ["wasp", "flea"]}
        >>> test = ub.language.WordTest(targets, {"pleasant": ["joy", "love"], "unpleasant": ["war", "pain"]})
        >>> list(test.attributes)
        ['pleasant', 'unpleasant']
    """

    targets: WordSets  # {name: words}, two
    attributes: WordSets  # {name: words}, two
    alternatives: Mapping[str, str] = field(default_factory=dict)  # {word: what to take where it is missing}


@dataclass(frozen=True, eq=False, repr=False)
class WEAT(ResultMixin):
    """How much nearer the first targets are to the first attributes than the second targets are."""

    name: str
    effect_size: float  # in standard deviations of the associations: within +-2
    p_value: float  # share of partitions of the targets with at least this effect
    null_band: tuple[float, float]  # that holds the effect sizes of 95 % of the partitions
    n_partitions: int
    exact: bool  # all partitions were enumerated
    ddof: int
    targets: tuple[str, str]
    attributes: tuple[str, str]
    associations: Mapping[str, Mapping[str, float]] = field(repr=False)  # {target set: {word: s(w, A, B)}}
    n_words: Mapping[str, int] = field(repr=False)  # {set: words with a vector}
    missing: Mapping[str, tuple[str, ...]] = field(repr=False)  # {set: words without a vector}, where there are any
    replaced: Mapping[str, str] = field(repr=False)  # {word: the spelling that was found instead}

    def __str__(self) -> str:
        what = f"{' / '.join(self.targets)} by {' / '.join(self.attributes)}"
        kind = "all" if self.exact else "random"
        figures = f"effect size {self.effect_size:.2f} (ddof={self.ddof}), p = {self.p_value:.2g}"
        return f"{self.name or 'WEAT'}, {what}: {figures} ({kind} {self.n_partitions:,} partitions){self.note}"

    @property
    def note(self) -> str:
        """Which words are missing, and which were replaced; empty where all are there as they are."""
        missing = [f"{name}: {', '.join(words)}" for name, words in self.missing.items()]
        replaced = [f"{a} by {b}" for a, b in self.replaced.items()]
        parts = ["missing " + "; ".join(missing)] * bool(missing) + ["replaced " + ", ".join(replaced)] * bool(replaced)
        return "".join(f". {part[0].upper()}{part[1:]}" for part in parts)


@dataclass(frozen=True, eq=False, repr=False)
class WEATs(ResultMixin):
    """Several tests of one source of vectors."""

    results: Mapping[str, WEAT]
    skipped: Mapping[str, str]  # {test: why it could not be made}

    def __getitem__(self, name: str) -> WEAT:
        """The result of a test. Raises InputError for one that was not made, with the reason."""
        if name not in self.results:
            reason = self.skipped.get(name) or suggestion_text(name, self.results)
            raise InputError(f"there is no result of {name!r}: {reason}")
        return self.results[name]

    def __iter__(self) -> Iterator[WEAT]:
        return iter(self.results.values())

    def __len__(self) -> int:
        return len(self.results)

    def __str__(self) -> str:
        return "\n".join([*map(str, self), *(f"{name} was not made: {why}" for name, why in self.skipped.items())])


def weat(
    source: WordVectorsOrTextEncoder,
    targets: WordSets,
    attributes: WordSets,
    *,
    name: str = "",
    alternatives: Mapping[str, str] | None = None,
    ddof: DeltaDegreesOfFreedom = 1,
    n_partitions: NPartitions = 100_000,
    seed: Seed = 0,
) -> WEAT:
    """Word Embedding Association Test: are the first targets nearer to the first attributes than the second are?

    For any sets of words, such as names by career and family. `published_tests` has those of the paper, `run_tests`
    runs several. With a function from texts to vectors it tests contextual embeddings; whole sentences by `seat`.

    Args:
        source: Word vectors, or a function from N texts to vectors (N, D).
        targets: The two sets of words that are compared, {name: words}. Two words or more in each have a vector.
        attributes: The two sets of words that they are compared by, {name: words}.
        name: Name of the test, for tables and figures.
        alternatives: {word: the word to take where it has no vector}; None has none.
        ddof: 1 divides the standard deviation of the effect size by N - 1, 0 by N. Published figures differ in it.
        n_partitions: Random partitions where there are too many for all. Up to 200,000 partitions, all are enumerated.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `WEAT`: `effect_size`, `p_value` of the permutation test, `null_band`, each target's association, and the
        words that are `missing`.

    Raises:
        InputError: for other than two sets, a set with fewer than two words that have a vector, or words twice.

    Example:
        >>> import torch, unboxed as ub
        >>> words = ["rose", "lily", "wasp", "flea", "joy", "love", "pain", "war"]
        >>> v = torch.tensor([[1.0, 0.2], [1, 0.1], [0.1, 1], [0.2, 1], [1, 0], [1, 0.3], [0, 1], [0.3, 1]])
        >>> vectors = ub.language.WordVectors(words, v)
        >>> flowers, insects = {"flowers": ["rose", "lily"], "insects": ["wasp", "flea"]}, {"+": ["joy", "love"]}
        >>> ub.language.weat(vectors, flowers, insects | {"-": ["pain", "war"]}).effect_size > 1
        True

    Source:
        Caliskan, Bryson & Narayanan 2017, "Semantics derived automatically from language corpora contain human-like
        biases". Deviations: the p-value counts partitions with at least the observed statistic (the paper: with a
        larger one), so it is never 0 (Phipson & Smyth 2010; May et al. 2019); where missing words leave the targets
        with different numbers of words, partitions keep these numbers.
    """
    check_settings(weat, locals())
    alternatives = alternatives or {}
    x, y = _embed_two_sets(source, "targets", targets, alternatives)
    a, b = _embed_two_sets(source, "attributes", attributes, alternatives)
    if shared := set(x.words) & set(y.words):
        raise InputError(f"{', '.join(map(repr, sorted(shared)))} cannot be in both target sets")
    s = torch.cat([x.unit, y.unit]) @ (a.unit.mean(0) - b.unit.mean(0))  # (n,) s(w, A, B): means of cosines
    effects, observed, exact = _partition_effect_sizes(s, len(x.words), ddof, n_partitions, valid_seed(seed))
    at_least = int((effects >= observed).sum())
    low, high = torch.quantile(effects, torch.tensor(NULL_BAND_QUANTILES, dtype=effects.dtype)).tolist()
    sets = (x, y, a, b)
    return WEAT(
        name=name,
        effect_size=observed,
        p_value=at_least / len(effects) if exact else (1 + at_least) / (1 + len(effects)),
        null_band=(low, high),
        n_partitions=len(effects),
        exact=exact,
        ddof=ddof,
        targets=(x.name, y.name),
        attributes=(a.name, b.name),
        associations=_association_by_word(s.tolist(), x, y),
        n_words={h.name: len(h.words) for h in sets},
        missing={h.name: h.missing for h in sets if h.missing},
        replaced={word: other for h in sets for word, other in h.replaced.items()},
    )


def _embed_two_sets(
    source: WordVectorsOrTextEncoder, kind: str, sets: WordSets, alternatives: Mapping[str, str]
) -> tuple[EmbeddedWordSet, EmbeddedWordSet]:
    if not isinstance(sets, Mapping) or len(sets) != 2:
        got = f"{len(sets)} sets" if isinstance(sets, Mapping) else type(sets).__name__
        raise InputError(f"{kind} must be two sets of words, {{name: words, name: words}}; got {got}")
    first, second = (embed_word_set(source, str(name), words, alternatives) for name, words in sets.items())
    return first, second


def _association_by_word(s: list[float], x: EmbeddedWordSet, y: EmbeddedWordSet) -> Mapping[str, Mapping[str, float]]:
    n = len(x.words)
    return {
        x.name: dict(zip(x.words, s[:n], strict=True)),
        y.name: dict(zip(y.words, s[n:], strict=True)),
    }


def _partition_effect_sizes(
    s: Tensor, n_first: int, ddof: int, n_partitions: int, seed: int
) -> tuple[Tensor, float, bool]:
    """Effect sizes (P,) of partitions of the associations s (n,), the observed one, and whether these are all.

    The standard deviation over all words is the same for each partition, and so is the sum: one sum per partition is
    enough. Ties with the observed one, up to rounding, are made exact.
    """
    spread = float(s.std(correction=ddof))
    if spread <= RELATIVE_EFFECT_TIE_TOLERANCE * float(s.abs().max()):
        raise InputError("all targets have the same association with the attributes: there is nothing to compare")
    member, exact = _target_partition_masks(len(s), n_first, n_partitions, seed)
    sums = torch.cat([part.double() @ s for part in torch.split(member, 20_000)])  # (P,) over the first set
    observed = s[:n_first].sum()
    sums = torch.where((sums - observed).abs() <= RELATIVE_EFFECT_TIE_TOLERANCE * s.abs().sum(), observed, sums)
    n_second = len(s) - n_first

    def effect_size_of_sum(total: Tensor) -> Tensor:
        return (total / n_first - (s.sum() - total) / n_second) / spread

    return effect_size_of_sum(sums), float(effect_size_of_sum(observed)), exact


@lru_cache(maxsize=4)
def _target_partition_masks(n: int, n_first: int, n_random: int, seed: int) -> tuple[Tensor, bool]:
    """Which words are in the first set, (P, n) bool: of all partitions where these are few, else of random ones."""
    count = math.comb(n, n_first)
    exact = count <= MAX_ENUMERATED_PARTITIONS
    index = _all_subset_indices(n, n_first, count) if exact else _random_subset_indices(n, n_first, n_random, seed)
    return torch.zeros(len(index), n, dtype=torch.bool).scatter_(1, index, True), exact


def _all_subset_indices(n: int, k: int, count: int) -> Tensor:
    """All subsets of k of n, (count, k)."""
    flat = np.fromiter(chain.from_iterable(combinations(range(n), k)), dtype=np.int64, count=count * k)
    return torch.from_numpy(flat).reshape(count, k)


def _random_subset_indices(n: int, k: int, n_subsets: int, seed: int) -> Tensor:
    """Uniformly random subsets of k of n, (n_subsets, k): the first k steps of a shuffle (Fisher & Yates)."""
    generator = rng.keyed_generator(rng.CPU, "weat", seed, n, k)
    order = torch.arange(n)[:, None].repeat(1, n_subsets)  # (n, n_subsets), a column per subset
    for i in range(k):
        j = torch.randint(i, n, (1, n_subsets), generator=generator)
        chosen = order.gather(0, j)
        order.scatter_(0, j, order[i : i + 1].clone())
        order[i] = chosen[0]
    return order[:k].T


def published_tests() -> dict[str, WordTest]:
    """The ten tests of Caliskan et al. 2017, by their names "WEAT 1" to "WEAT 10".

    Returns:
        {name: `WordTest`}, with the words of the paper's supplement.

    Example:
        >>> import unboxed as ub
        >>> list(ub.language.published_tests()["WEAT 6"].targets)
        ['male names', 'female names']

    Source:
        Caliskan, Bryson & Narayanan 2017, supplement. WEAT 9 has "short-term", for which its word2vec experiments took
        "short": the alternative where it is missing.
    """
    lists = read_word_list("weat")
    sets = lists["sets"]
    return {
        name: WordTest(
            {s: tuple(sets[s]) for s in test["targets"]},
            {s: tuple(sets[s]) for s in test["attributes"]},
            lists["alternatives"],
        )
        for name, test in lists["tests"].items()
    }


def run_tests(
    source: WordVectorsOrTextEncoder,
    tests: Mapping[str, WordTest] | None = None,
    *,
    ddof: DeltaDegreesOfFreedom = 1,
    n_partitions: NPartitions = 100_000,
    seed: Seed = 0,
) -> WEATs:
    """Several association tests at once; those for which too few words have a vector are skipped, with the reason.

    Args:
        source: Word vectors, or a function from N texts to vectors (N, D).
        tests: The tests by their names; None takes the published ones.
        ddof: 1 divides the standard deviation of the effect size by N - 1, 0 by N. Published figures differ in it.
        n_partitions: Random partitions where there are too many for all. Up to 200,000 partitions, all are enumerated.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        The `WEATs`: `results` by name, and the `skipped` tests with the reason.

    Raises:
        InputError: for tests that are no `WordTest`, or whose words are no lists of different words.

    Example:
        >>> import torch, unboxed as ub
        >>> vectors = ub.language.WordVectors(["rose", "wasp"], torch.eye(2))
        >>> len(ub.language.run_tests(vectors).skipped)
        10

    Source:
        Caliskan, Bryson & Narayanan 2017; see `weat`.
    """
    check_settings(run_tests, locals())
    results, skipped = dict[str, WEAT](), dict[str, str]()
    for name, test in (published_tests() if tests is None else tests).items():
        _check_association_test(name, test)
        try:
            results[name] = weat(
                source, test.targets, test.attributes, name=name, alternatives=test.alternatives, ddof=ddof,
                n_partitions=n_partitions, seed=seed,
            )  # fmt: skip
        except InputError as error:
            skipped[name] = str(error)
    return WEATs(results, skipped)


def _check_association_test(name: str, test: object) -> None:
    """A test that could not be made with any vectors is an error, and is not skipped."""
    if not isinstance(test, WordTest):
        raise InputError(f"the test {name!r} must be a ub.language.WordTest(targets, attributes); got {test!r}")
    for kind, sets in (("targets", test.targets), ("attributes", test.attributes)):
        if not isinstance(sets, Mapping) or len(sets) != 2:
            raise InputError(f"{kind} of {name!r} must be two sets of words, {{name: words, name: words}}")
        for set_name, words in sets.items():
            check_word_set(set_name, words)
            if len(words) < 2:
                raise InputError(f"the set {set_name!r} of {name!r} needs two words or more; got {len(words)}")
