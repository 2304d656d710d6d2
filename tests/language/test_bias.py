"""The direction of a bias, removing it, and what remains: on an embedding with a planted bias, and on GloVe."""

from __future__ import annotations

import json

import pytest
import torch

from language.embedding import CARE, CRAFT, FEMALE, GENDER, MALE, OTHER, trained
from real_data import WORDS, needs_words
from unboxed.errors import InputError, UnboxedWarning
from unboxed.language import (
    BiasWords,
    WordVectors,
    bias_direction,
    biased_analogies,
    direct_bias,
    gender_words,
    hard_debias,
    indirect_bias,
    load_vectors,
    remaining_bias,
    soft_debias,
    word_map,
)


def test_the_planted_bias_is_measured() -> None:
    direction = bias_direction(trained(), GENDER)
    assert float(direction.explained_variance[0]) > 0.8
    assert direct_bias(trained(), direction, CARE + CRAFT) > 2 * direct_bias(trained(), direction, OTHER)
    sides = torch.stack([trained().unit[trained().index(w)].double() @ direction.direction for w in CARE + CRAFT])
    assert bool((sides[:20] > 0).all())  # the side of the pairs' first words
    assert bool((sides[20:] < 0).all())


def test_the_sign_is_that_of_the_first_words() -> None:
    turned = BiasWords([(b, a) for a, b in GENDER.defining])
    one, other = (bias_direction(trained(), words).direction for words in (GENDER, turned))
    assert torch.allclose(one, -other)


def test_strict_bias_counts_small_components_less() -> None:
    direction = bias_direction(trained(), GENDER)
    assert direct_bias(trained(), direction, OTHER, c=2) < direct_bias(trained(), direction, OTHER, c=1)
    with pytest.raises(InputError, match="got none"):
        direct_bias(trained(), direction, [])
    with pytest.raises(InputError, match=r"must come from ub\.language\.bias_direction"):
        direct_bias(trained(), direction.direction, OTHER)  # type: ignore[arg-type]


def test_indirect_bias() -> None:
    v = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8], [0, 1, 0], [0, 0.8, 0.6], [0, 0, 1]])
    vectors = WordVectors(["she", "he", "softball", "receptionist", "pit", "pin", "z"], v)
    direction = bias_direction(vectors, BiasWords([("she", "he")]))
    assert indirect_bias(vectors, direction, "softball", "receptionist") == pytest.approx(1)  # near by gender alone
    assert indirect_bias(vectors, direction, "pit", "pin") == pytest.approx(0)  # near without it
    with pytest.raises(InputError, match="orthogonal"):
        indirect_bias(vectors, direction, "pit", "z")
    with pytest.raises(InputError, match="orthogonal or have the bias alone"):
        indirect_bias(vectors, direction, "she", "softball")


def test_more_than_two_groups_and_a_subspace() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 8, generator=generator)
    groups = torch.zeros(3, 8)
    groups[range(3), range(3)] = 3
    v = torch.cat([(shared[:, None] + groups).reshape(12, 8), torch.randn(40, 8, generator=generator)])
    names = [f"{c}{i}" for i in range(4) for c in "abc"]
    vectors = WordVectors([*names, *(f"n{i}" for i in range(40))], v)
    words = BiasWords([tuple(names[3 * i : 3 * i + 3]) for i in range(4)])
    direction = bias_direction(vectors, words, n_components=2)
    assert direction.basis.shape == (2, 8)
    assert torch.allclose(direction.basis @ direction.basis.T, torch.eye(2, dtype=torch.float64), atol=1e-12)
    result = hard_debias(vectors, words, n_components=2)
    assert result.bias.after.direct < 1e-6
    a, b, c = (result.vectors[f"{g}0"] for g in "abc")
    neutral = result.vectors["n0"]
    assert torch.allclose(torch.stack([a @ neutral, b @ neutral]), (c @ neutral).repeat(2), atol=1e-5)


@pytest.mark.parametrize(
    ("defining", "message"),
    [
        ([("she",)], "needs two words or more"),
        ([("x", "y")], "has the words of no defining set: x/y"),
        (["she"], "must be a list of words"),
        ([("she", "she")], "more than once"),
    ],
)
def test_sets_that_define_nothing(defining: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bias_direction(trained(), BiasWords(defining))  # type: ignore[arg-type]


def test_more_components_than_there_are() -> None:
    with pytest.raises(InputError, match="differ in 1 dimensions; n_components is 2"):
        bias_direction(trained(), BiasWords([("she", "he")]), n_components=2)


def test_sets_without_a_vector_are_reported() -> None:
    direction = bias_direction(trained(), BiasWords([*GENDER.defining, ("gal", "guy"), ("her", "its")]))
    assert direction.missing == (("gal", "guy"), ("her", "its"))
    assert len(direction.sets) == 5
    assert "gal/guy" in str(direction)


# -- debiasing ---------------------------------------------------------------------------------------------------------


def test_hard_debiasing_and_what_remains() -> None:
    before = trained().vectors.clone()
    result = hard_debias(trained(), GENDER)
    bias = result.bias
    assert bias.before.direct > 0.05
    assert bias.after.direct < 1e-6
    assert bias.after.classifier > 0.8 > bias.chance.classifier  # the jobs still stand together, and apart
    assert bias.after.clustering > 0.8 > bias.chance.clustering
    lengths = result.vectors.vectors.norm(dim=1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-6)
    she, he = (result.vectors[w] for w in ("she", "he"))
    similar = torch.stack([result.vectors[w] @ (she - he) for w in CARE + CRAFT + OTHER])
    assert float(similar.abs().max()) < 1e-5  # no neutral word is nearer to one of a pair
    assert torch.equal(trained().vectors, before)
    assert "before" in str(result)
    assert "after" in str(result)


def test_chance_is_the_mean_of_random_directions_not_one_of_them() -> None:
    """Vectors with one strong component: a single random direction has 0.3 to 3 times the mean."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(200, 8, generator=generator) * torch.tensor([5.0, *[0.2] * 7])
    words = ["she", "he", *(f"word{i}" for i in range(198))]
    vectors = WordVectors(words, v)
    found = [remaining_bias(vectors, vectors, BiasWords([("she", "he")]), seed=seed).chance.direct for seed in range(4)]
    wide = torch.randn(8, 20_000, generator=generator)
    expected = float((vectors.unit[2:] @ (wide / wide.norm(dim=0))).abs().mean())
    assert all(abs(f - expected) < 0.25 * expected for f in found), (found, expected)


def test_named_words_alone_are_neutralized() -> None:
    result = hard_debias(trained(), GENDER, neutral=CARE)
    assert torch.allclose(result.vectors["craft0"], trained().unit[trained().index("craft0")])
    direction = bias_direction(trained(), GENDER)
    assert direct_bias(result.vectors, direction, CARE) < 1e-6 < direct_bias(result.vectors, direction, CRAFT)
    with pytest.warns(UnboxedWarning, match=r"left out \(1\): nurse"):
        assert hard_debias(trained(), GENDER, neutral=[*CARE, "nurse"]).missing == ("nurse",)
    with pytest.raises(InputError, match="none of the neutral words"):
        hard_debias(trained(), GENDER, neutral=["nurse"])


def test_equality_sets_that_clash() -> None:
    with pytest.raises(InputError, match="'she' is in two sets"):
        hard_debias(trained(), BiasWords(GENDER.defining, equalize=[("she", "he"), ("she", "man")]))
    v = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    v[3] = v[2]
    vectors = WordVectors([f"w{i}" for i in range(30)], v)
    with pytest.raises(InputError, match="w2/w3 do not differ in the bias"):
        hard_debias(vectors, BiasWords([("w0", "w1")], equalize=[("w2", "w3")]))


def test_soft_debiasing_trades_bias_for_similarity() -> None:
    results = [soft_debias(trained(), GENDER, weight=w) for w in (0.0, 10.0, 1000.0)]
    unchanged, some, most = results
    assert torch.allclose(unchanged.vectors.vectors, trained().unit, atol=1e-5)
    assert most.bias.after.direct < some.bias.after.direct < unchanged.bias.after.direct
    assert most.bias.after.direct < 0.2 * most.bias.before.direct
    old = trained().unit @ trained().unit.T
    changes = [float((r.vectors.unit @ r.vectors.unit.T - old).square().mean()) for r in results]
    assert changes[0] < changes[1] < changes[2]


def test_what_remains_is_nothing_where_nothing_remains() -> None:
    """Vectors that are drawn again keep no trace of the bias; unchanged ones all of it."""
    drawn = torch.randn(trained().vectors.shape, generator=torch.Generator().manual_seed(1))
    gone = remaining_bias(trained(), WordVectors(trained().words, drawn), GENDER)
    assert gone.after.clustering < 0.7 < gone.before.clustering
    assert gone.after.classifier < 0.75 < gone.before.classifier
    same = remaining_bias(trained(), trained(), GENDER)
    assert same.before == same.after
    with pytest.raises(InputError, match="same words"):
        remaining_bias(trained(), WordVectors(trained().words[::-1], drawn), GENDER)
    with pytest.raises(InputError, match="20 neutral words"):
        few = WordVectors(FEMALE + MALE, torch.stack([trained()[w] for w in FEMALE + MALE]))
        remaining_bias(few, few, GENDER)


# -- analogies and maps ------------------------------------------------------------------------------------------------


def test_biased_analogies() -> None:
    found = biased_analogies(trained(), ("she", "he"), n=8, delta=1.4)
    assert ("her", "his") in [(a.x, a.y) for a in found]
    assert len({a.x for a in found}) == 8
    assert not {"she", "he"} & {w for a in found for w in (a.x, a.y)}
    assert biased_analogies(trained(), delta=1e-5) == []
    with pytest.raises(InputError, match="did you mean"):
        biased_analogies(trained(), ("shee", "he"))
    with pytest.raises(InputError, match="same vector"):
        biased_analogies(trained(), ("she", "she"))


def test_a_map_keeps_clusters() -> None:
    result = word_map(trained(), [*CARE, *CRAFT, *FEMALE, *MALE, "unknown"], perplexity=8, k=5)
    assert result.missing == ("unknown",)
    assert result.points.shape == (50, 2)
    assert result.neighbors_preserved > 3 * result.chance
    assert result.chance == pytest.approx(5 / 49)
    care, craft = result.points[:20], result.points[20:40]
    assert float((care.mean(0) - craft.mean(0)).norm()) > float(care.std(0).norm())
    assert torch.equal(word_map(trained(), CARE).points, word_map(trained(), CARE).points)
    everything = word_map(trained(), perplexity=8, k=1)
    assert everything.nearest is not None
    assert [everything.words[i] for i in everything.nearest[:, 0]][:5] == [
        trained().nearest(word, k=1)[0][0] for word in everything.words[:5]
    ]
    with pytest.raises(InputError, match="three words or more; planted has 1 of 2"):
        word_map(trained(), ["she", "unknown"])


# -- real vectors ------------------------------------------------------------------------------------------------------


@needs_words
def test_the_gender_of_glove() -> None:
    glove = load_vectors(WORDS / "glove.6B.50d.top2446.txt")
    direction = bias_direction(glove)
    assert len(direction.sets) == 7
    assert float(direction.explained_variance[0]) == pytest.approx(0.77, abs=0.005)
    result = hard_debias(glove)
    assert result.bias.after.direct < 1e-6
    assert result.bias.after.classifier > result.bias.chance.classifier + 0.1
    assert result.bias.after.neighbors > 0.3 > result.bias.chance.neighbors
    assert ("mother", "father") in [(a.x, a.y) for a in biased_analogies(glove)]


@needs_words
def test_the_gender_words_are_those_of_the_data() -> None:
    ours = gender_words()
    for name, words in (("definitional_pairs", ours.defining), ("equalize_pairs", ours.equalize)):
        assert [tuple(p) for p in json.loads((WORDS / "debiaswe" / f"{name}.json").read_text())] == list(words)
    assert json.loads((WORDS / "debiaswe" / "gender_specific_seed.json").read_text()) == list(ours.specific)
