"""Association tests: published figures, published lists, what is missing, encoders in place of vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from language.embedding import CARE, CRAFT, FEMALE, MALE, trained
from real_data import WORDS, needs_words
from unboxed.errors import InputError
from unboxed.language import (
    WordTest,
    WordVectors,
    load_vectors,
    published_tests,
    run_tests,
    seat,
    sentences,
    weat,
)

JOBS, PEOPLE = {"care": CARE, "craft": CRAFT}, {"female": FEMALE, "male": MALE}
PUBLISHED = {"WEAT 1": 1.539, "WEAT 2": 1.628, "WEAT 6": 1.890, "WEAT 7": 0.966, "WEAT 8": 1.244, "WEAT 9": 1.297}


def test_a_planted_bias_is_found_and_its_opposite() -> None:
    result = weat(trained(), JOBS, PEOPLE, n_partitions=2000)
    assert not result.exact
    assert result.effect_size > 1.5
    assert result.p_value == 1 / 2001
    assert result.null_band[0] < 0 < result.null_band[1] < 1
    turned = weat(trained(), dict(reversed(JOBS.items())), PEOPLE, n_partitions=2000)
    assert turned.effect_size == pytest.approx(-result.effect_size)
    assert turned.p_value == 1


def test_no_bias_is_inside_the_null_band() -> None:
    halves = {"even": [*CARE[::2], *CRAFT[::2]], "odd": [*CARE[1::2], *CRAFT[1::2]]}
    result = weat(trained(), halves, PEOPLE, n_partitions=2000)
    assert result.null_band[0] < result.effect_size < result.null_band[1]
    assert result.p_value > 0.05


def test_the_seed_decides_the_partitions() -> None:
    first, again, other = (weat(trained(), JOBS, PEOPLE, n_partitions=500, seed=s).null_band for s in (1, 1, 2))
    assert first == again != other


def test_missing_words_are_reported() -> None:
    jobs = {"care": [*CARE[:4], "nurse", "nanny"], "craft": CRAFT[:5]}
    result = weat(trained(), jobs, PEOPLE)
    assert result.missing == {"care": ("nurse", "nanny")}
    assert result.n_words == {"care": 4, "craft": 5, "female": 5, "male": 5}
    assert "Missing care: nurse, nanny" in str(result)
    assert result.n_partitions == 126  # 9 choose 4: partitions have the sizes that are left


def test_alternatives_and_case_are_reported() -> None:
    vectors = WordVectors(["short", "amy", "b", "c", "d", "e", "f", "g"], torch.randn(8, 4), ignore_case=True)
    targets, attributes = {"x": ["short-term", "Amy"], "y": ["b", "c"]}, {"a": ["d", "e"], "b": ["f", "g"]}
    result = weat(vectors, targets, attributes, alternatives={"short-term": "short"})
    assert result.replaced == {"short-term": "short", "Amy": "amy"}
    assert "short-term by short" in str(result)


GOOD: Mapping[str, list[str]] = {"a": ["care0", "care1"], "b": ["craft0", "craft1"]}
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a one-word set": ({"a": ["care0"], "b": CRAFT}, PEOPLE, "'a' needs 2 words or more; got 1"),
    "one word that is there": ({"a": ["care0", "x"], "b": CRAFT}, PEOPLE, "got 1; without a vector: x"),
    "one set": ({"a": CARE}, PEOPLE, "targets must be two sets of words"),
    "three sets": (GOOD, {**PEOPLE, "third": CARE}, "attributes must be two sets of words.*3 sets"),
    "no mapping": ([CARE, CRAFT], PEOPLE, "targets must be two sets"),
    "a string": ({"a": "care0", "b": CRAFT}, PEOPLE, "'a' must be a list of words"),
    "a word twice": ({"a": ["care0", "care1", "care0"], "b": CRAFT}, PEOPLE, "'care0' more than once"),
    "a word in both": ({"a": CARE, "b": [*CRAFT, "care3"]}, PEOPLE, "'care3' cannot be in both"),
}


@pytest.mark.parametrize(("targets", "attributes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_test_is_refused(targets: Any, attributes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weat(trained(), targets, attributes)


def test_equal_vectors_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        weat(lambda texts: torch.ones(len(texts), 3), GOOD, PEOPLE)
    with pytest.raises(InputError, match="'care0' in the set 'a' is zero"):
        weat(lambda texts: torch.zeros(len(texts), 3), GOOD, PEOPLE)


def test_any_function_of_texts_takes_the_place_of_vectors() -> None:
    vectors = trained()

    def encode(texts: list[str]) -> Any:
        return np.stack([vectors[t].numpy() for t in texts])

    ours, its = (weat(source, JOBS, PEOPLE, n_partitions=500) for source in (vectors, encode))
    assert its.effect_size == pytest.approx(ours.effect_size)
    assert its.p_value == ours.p_value
    for wrong in (np.ones(3), np.ones((1, 3)), np.ones((20, 3), complex)):
        with pytest.raises(InputError, match=r"wanted the vectors \("):
            weat(lambda _, wrong=wrong: wrong, JOBS, PEOPLE)  # type: ignore[misc]


def test_several_tests_and_those_that_cannot_be_made() -> None:
    tests = {"jobs": WordTest(JOBS, PEOPLE), "absent": WordTest({"x": ["u", "v"], "y": ["s", "t"]}, PEOPLE)}
    results = run_tests(trained(), tests, n_partitions=500)
    assert list(results.results) == ["jobs"]
    assert "without a vector: u, v" in results.skipped["absent"]
    assert results["jobs"].name == "jobs"
    with pytest.raises(InputError, match="without a vector"):
        results["absent"]
    with pytest.raises(InputError, match="did you mean 'jobs'"):
        results["job"]
    with pytest.raises(InputError, match="'x' of 'one' needs two words"):
        run_tests(trained(), {"one": WordTest({"x": ["care0"], "y": CRAFT}, PEOPLE)})
    with pytest.raises(InputError, match=r"must be a ub\.language\.WordTest"):
        run_tests(trained(), {"one": (JOBS, PEOPLE)})  # type: ignore[dict-item]


# -- the published lists -----------------------------------------------------------------------------------------------


def test_the_published_lists() -> None:
    tests = published_tests()
    assert list(tests) == [f"WEAT {i}" for i in range(1, 11)]
    sizes = [[len(w) for s in (t.targets, t.attributes) for w in s.values()] for t in tests.values()]
    assert sizes == [
        [25, 25, 25, 25], [25, 25, 25, 25], [32, 32, 25, 25], [16, 16, 25, 25], [16, 16, 8, 8],
        [8, 8, 8, 8], [8, 8, 8, 8], [8, 8, 8, 8], [6, 6, 7, 7], [8, 8, 8, 8],
    ]  # fmt: skip


@needs_words
def test_the_lists_are_those_of_the_data() -> None:
    """But for the names that the paper left out, "short-term", and a "Bill" that the paper spells "Billy"."""
    other = {frozenset(words) for words in json.loads((WORDS / "WEAT.json").read_text()).values()}
    ours = {frozenset(w) for t in published_tests().values() for s in (t.targets, t.attributes) for w in s.values()}
    closest = {tuple(sorted(min((a ^ b for b in other), key=len))) for a in ours - other}
    assert closest == {("Jay", "Kristen"), ("Latonya", "Tremayne"), ("short", "short-term"), ("Bill", "Billy")}


@needs_words
@pytest.mark.parametrize(("name", "effect"), PUBLISHED.items())
def test_the_published_effects(name: str, effect: float) -> None:
    vectors = load_vectors(WORDS / "weat_w2v.txt")
    result = run_tests(vectors, {name: published_tests()[name]}, n_partitions=1000)[name]
    assert result.ddof == 1
    assert result.effect_size == pytest.approx(effect, abs=0.005)
    assert result.missing == ({"weapons": ("axe",)} if name == "WEAT 2" else {})


# -- sentences ---------------------------------------------------------------------------------------------------------


def test_every_published_word_has_sentences() -> None:
    for test in published_tests().values():
        for words in [*test.targets.values(), *test.attributes.values()]:
            texts = sentences(words)
            assert len(set(texts)) == len(texts) >= 3 * len(words)
            assert all(t[0].isupper() and t.endswith(".") and "{" not in t for t in texts)


def test_sentences_fit_their_words() -> None:
    assert "The person's name is Amy." in sentences(["Amy"])
    assert "They are happy." in sentences(["happy"])
    assert "This may kill." in sentences(["kill"])
    assert {"An aunt is a person.", "Aunts are people."} <= set(sentences(["aunt"]))
    assert {"These are women.", "Children are things.", "This is a child."} <= set(sentences(["woman", "children"]))
    assert {"These are butterflies.", "Those are wasps."} <= set(sentences(["butterfly", "wasp"]))
    assert sentences(["sun"], ["The {word}!"]) == ["The sun!"]
    with pytest.raises(InputError, match=r'must have "\{word\}"'):
        sentences(["sun"], ["none"])


def test_seat_of_a_bag_of_words_finds_what_weat_finds() -> None:
    vectors = trained()

    def encode(texts: list[str]) -> torch.Tensor:
        words = [[w for w in t.rstrip(".").split() if w in vectors] for t in texts]
        return torch.stack([torch.stack([vectors[w] for w in s]).mean(0) for s in words])

    jobs = {"care": CARE[:4], "craft": CRAFT[:4]}
    result = seat(encode, jobs, PEOPLE, templates=["Now {word} walks.", "There {word} is."], name="jobs")
    assert result.effect_size > 1
    assert result.n_words["care"] == 8
    assert "Now care0 walks." in result.associations["care"]
    with pytest.raises(InputError, match="must be a function"):
        seat(vectors, jobs, PEOPLE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two sets"):
        seat(encode, [CARE], PEOPLE)  # type: ignore[arg-type]
