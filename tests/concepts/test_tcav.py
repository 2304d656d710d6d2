"""A concept that a model answers by is found, random ones are not; the control and bad input speak clearly."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import ConceptScores, concept_vectors, tcav
from unboxed.engine.gradients.layers import layer_gradients
from unboxed.errors import DataError, InputError, LayerError

N, HIDDEN = 600, 12


@cache
def planted(is_used: bool = True) -> tuple[ub.Box, Tensor, Tensor]:
    """Rows of 12 columns, passed on by the first layer; the score of class 1 is column 0, or without it the others."""
    model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Softplus(), nn.Linear(HIDDEN, 2, bias=False))
    weight = torch.zeros(2, HIDDEN)
    weight[1] = torch.eye(HIDDEN)[0] if is_used else torch.linspace(-1, 1, HIDDEN).roll(6) * (torch.arange(HIDDEN) > 0)
    with torch.no_grad():
        model[0].weight.copy_(3 * torch.eye(HIDDEN))
        model[2].weight.copy_(weight)
    x = torch.randn(N, HIDDEN, generator=torch.Generator().manual_seed(0))
    box = ub.Box(model, ub.Features(tuple("abcdefghijkl")), outputs="logits")
    return box, x, (x[:, 0] > 0).long()


def high(column: int, n: int = 50) -> Tensor:
    x = torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(column + 1))
    x[:, column] += 3
    return x


@cache
def scores_of(is_used: bool) -> ConceptScores:
    box, x, y = planted(is_used)
    concepts = {"first": high(0), "third": high(2), "random": x[::13][:40]}
    return tcav(box, (x, y), concepts, 1, "1", n_random=30, set_size=40)


def test_the_used_concept_is_significant_and_the_others_are_not() -> None:
    r = scores_of(True)
    assert r.scores[0].min() == 1.0
    assert float(r.alignment[0, 0]) > 0.8
    assert (r.p_values[:, 0] < 0.01).tolist() == [True, False, False]
    assert (r.verdict, r.n_examples, r.sizes) == ("pass", int(planted()[2].sum()), (40, 40, 40))
    assert "rises with 'first'" in r.reason
    assert "the score of class 1 depends no more than on random examples on 'third'" in r.sentence(1, 0)
    assert r.is_claimed[0, 0]


def test_what_is_not_used_is_not_claimed() -> None:
    r = scores_of(False)
    assert not r.is_significant[0, 0]
    assert not r.is_significant[2, 0]


def test_smooth_scores_agree_with_the_scores_where_these_are_sure() -> None:
    r = scores_of(True)
    assert float(r.smooth_scores[0, 0]) > 0.99
    assert 0.01 < float(r.smooth_scores[2, 0]) < 0.99


def test_the_smooth_score_settles_with_more_examples_where_the_score_does_not() -> None:
    """A concept across the gradient: its derivatives have either sign by chance, however many examples there are."""
    box, _, _ = planted(False)
    variances = []
    for size in (8, 100):
        g = torch.Generator().manual_seed(0)
        x, concepts, pool = (torch.randn(*n, HIDDEN, generator=g) for n in ((200,), (24, size), (6 * size,)))
        concepts[..., 0] += 3
        settings: dict[str, Any] = {"random_data": pool, "n_random": 6, "set_size": size}
        draws = {str(i): concept for i, concept in enumerate(concepts)}
        r = tcav(box, x, draws, ub.logit(1), "0", control=False, diagnostics=False, **settings)
        variances.append(torch.stack([r.scores.flatten(1).mean(1), r.smooth_scores.flatten(1).mean(1)]).var(1))
    (score, smooth), (score_of_more, smooth_of_more) = (v.tolist() for v in variances)
    assert smooth_of_more < 0.5 * smooth
    assert score_of_more > 0.7 * score


def test_random_scores_are_around_one_half_and_their_vectors_around_nothing() -> None:
    r = scores_of(True)
    assert float(r.random_scores.mean()) == pytest.approx(0.5, abs=1e-6)  # each pair's vectors are opposite
    assert float(r.random_alignment[0, 0].mean().abs()) < 0.2 * float(r.random_alignment[0, 0].std())


def test_half_of_the_random_concepts_would_pass_with_the_runs_taken_as_independent() -> None:
    """Why the concept is one draw: its scores against the random sets share its examples."""
    box, x, y = planted(False)
    draws = {str(i): x[torch.randperm(N, generator=torch.Generator().manual_seed(i))[:30]] for i in range(20)}
    r = tcav(box, (x, y), draws, 1, "1", set_size=30, control=False, diagnostics=False)
    t = (r.scores[:, 0].mean(1) - 0.5) / (r.scores[:, 0].std(1) / 20**0.5).clamp_min(1e-9)
    assert float((t.abs() > 2.1).double().mean()) > 0.3
    assert int(r.is_significant.sum()) == 0


def test_a_copy_of_the_concept_has_its_vector_and_is_named_as_most_entangled() -> None:
    box, x, y = planted()
    r = tcav(box, (x, y), {"first": high(0), "third": high(2), "again": high(0)}, 1, ["0", "1"], n_random=5)
    assert r.diagnostics is not None
    assert torch.equal(r.scores[0], r.scores[2])
    a, b, cosine = r.diagnostics.most_entangled(1) or (0, 0, 0.0)
    assert (r.concepts[a], r.concepts[b]) == ("first", "again")
    assert cosine == pytest.approx(1, abs=1e-5)
    assert r.diagnostics.spatial == (None, None)
    assert float(r.diagnostics.consistency[0, 0]) > 0.9


def test_a_concept_at_one_place_is_spatially_dependent() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))
    box = ub.Box(model, ub.Pixels((1, 10, 10)), outputs="logits")
    x = torch.rand(300, 1, 10, 10)
    corner, bright = x[:40].clone(), 0.5 + x[40:80] / 2
    corner[:, :, :3, :3] = 1
    r = tcav(box, x, {"corner": corner, "bright": bright}, ub.logit(1), ["0"], control=False)
    assert r.diagnostics is not None
    spatial = r.diagnostics.spatial[0]
    assert spatial is not None
    assert spatial.maps.shape == (2, 10, 10)
    assert float(spatial.maps.sum((1, 2)).sub(1).abs().max()) < 1e-4
    assert float(spatial.maps[0, :4, :4].sum()) > 0.5
    assert float(spatial.distance[0]) > float(spatial.random_distance.max())
    assert float(spatial.distance[1]) < float(spatial.distance[0])
    assert r.verdict == "not tested"


def test_a_function_and_a_mask_select_from_the_data() -> None:
    box, x, y = planted()
    quick: dict[str, Any] = {"n_random": 4, "diagnostics": False, "control": False}
    by_function = tcav(box, (x, y), {"a": lambda x: x[:, 0] > 1}, 1, "1", **quick)
    for mask in (x[:, 0] > 1, (x[:, 0] > 1).numpy()):
        by_mask = tcav(box, (x, y), {"a": mask}, 1, "1", **quick)
        assert torch.equal(by_mask.scores, by_function.scores)
    by_tensor = tcav(box, (x, y), {"a": x[x[:, 0] > 1]}, 1, "1", **quick)
    assert torch.equal(by_tensor.scores, by_function.scores)


def test_relative_vectors_tell_concepts_apart() -> None:
    box, x, y = planted()
    r = tcav(box, (x, y), {"a": high(0), "b": high(2)}, 1, "1", relative=True, diagnostics=False, control=False)
    torch.testing.assert_close(r.alignment[0], -r.alignment[1], atol=1e-5, rtol=0)
    assert r.relative
    assert float(r.alignment[0, 0]) > 0.5
    with pytest.raises(InputError, match="two concepts"):
        tcav(box, (x, y), {"a": high(0)}, 1, relative=True)


def test_vectors_of_wide_layers_are_the_same_at_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unboxed.concepts._layer_features.MAX_UNPOOLED_FEATURES", 10)
    monkeypatch.setattr("unboxed.concepts._layer_features.MAX_GROUP_VALUES", 10)  # a layer at a time
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))
    box = ub.Box(model.double(), ub.Pixels((1, 8, 8)), outputs="logits")
    x = torch.rand(60, 1, 8, 8, dtype=torch.float64)
    concepts, layers = {"bright": 0.5 + x[:20] / 2, "dark": x[:20] / 2}, ["0", "2"]
    r = tcav(box, x, concepts, ub.logit(1), layers, n_random=3)
    vectors = concept_vectors(box, x, concepts, layers, n_random=3)
    assert [tuple(v.shape) for v in vectors.vectors] == [(2, 5), (2, 4)]
    assert r.diagnostics is not None
    assert r.diagnostics.spatial == (None, None)
    for k, layer in enumerate(layers):
        step = 1e-6 * vectors.vectors[k][0].view(1, -1, 1, 1)
        with box.isolated(grad=False):
            moved = box.forward(x, ["logits"], {layer: lambda h, step=step: h + step})["logits"][:, 1]
        gradients = gradients_at(box, x, layer).flatten(2).sum(2)
        expected = (moved - box(x)[:, 1]) / 1e-6
        torch.testing.assert_close(gradients @ vectors.vectors[k][0], expected, atol=1e-6, rtol=1e-5)
        cosine = float((expected / gradients.norm(dim=1)).mean())
        assert float(r.alignment[0, k]) == pytest.approx(cosine, abs=1e-6)


def gradients_at(box: ub.Box, x: Tensor, layer: str) -> Tensor:
    return layer_gradients(box, ub.logit(1), x, [layer])[layer]


def test_signals_take_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(16, 2))
    box = ub.Box(model, ub.Pixels((1, 40)), outputs="logits")
    x = torch.rand(120, 1, 40)
    r = tcav(box, x, {"loud": 0.5 + x[:30] / 2}, None, "1", n_random=5)
    assert r.scores.shape == (1, 1, 5)
    assert r.diagnostics is not None
    assert r.diagnostics.spatial[0] is not None


def test_the_target_may_be_the_predicted_class_or_any_objective() -> None:
    box, x, _ = planted()
    quick: dict[str, Any] = {"n_random": 4, "control": False, "diagnostics": False}
    assert tcav(box, x, {"a": high(0)}, None, "1", **quick).n_examples == N
    r = tcav(box, x, {"a": high(0)}, ub.neuron("1", 0), "0", **quick)
    assert float(r.alignment[0, 0]) > 0.8


def test_a_twin_that_is_as_sensitive_makes_the_verdict_fail() -> None:
    r = scores_of(True)
    as_sensitive = ConceptScores(**{**vars(r), "twin_p_values": r.p_values})
    assert as_sensitive.verdict == "fail"
    assert as_sensitive.reason.startswith("a model with random weights is as sensitive")
    nothing = ConceptScores(**{**vars(r), "p_values": torch.ones_like(r.p_values)})
    assert nothing.verdict == "fail"
    assert nothing.reason.startswith("no concept matters more than random examples do")


CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"concepts": {"one": torch.rand(1, HIDDEN)}}, DataError, "'one' has 1 example"),
    ({"concepts": {}}, InputError, "mapping"),
    ({"concepts": {"none": lambda x: x[:, 0] > 99}}, DataError, "0 of 600 examples have concept 'none'"),
    ({"concepts": {"soft": lambda x: x[:, 0]}}, InputError, "'soft' must say of each of the 600 examples"),
    ({"concepts": {"short": torch.ones(5, dtype=torch.bool)}}, InputError, "'short' must say"),
    ({"random_data": torch.rand(3, HIDDEN)}, DataError, "at least 4 examples"),
    ({"random_data": []}, DataError, "random_data"),
    ({"layers": "input"}, LayerError, "hidden layer"),
    ({"layers": "none"}, LayerError, "none"),
    ({"target": 7}, InputError, "7"),
    ({"n_random": 2}, InputError, "n_random"),
    ({"target": ub.neuron("0", 1), "layers": ["0", "1"]}, LayerError, "has no gradient at '1'"),
]


@pytest.mark.parametrize(("change", "error", "words"), CASES)
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    box, x, y = planted()
    with pytest.raises(error, match=words):
        tcav(**{"box": box, "data": (x, y), "concepts": {"a": high(0)}, "target": 1, "layers": "1", **change})


def test_an_empty_folder_is_refused_by_its_concept(tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    with pytest.raises(DataError, match="concept 'empty'"):
        tcav(box, ub.data.digits("test"), {"empty": tmp_path}, 3)


def test_a_concept_that_is_its_random_set_is_refused() -> None:
    box, x, y = planted()
    with pytest.raises(DataError, match="same examples as a set"):
        tcav(box, (x, y), {"all": x[:8]}, 1, "1", random_data=x[:8])


def test_a_class_without_examples_is_refused() -> None:
    box, x, y = planted()
    with pytest.raises(DataError, match="labeled '1'"):
        tcav(box, (x[y == 0], y[y == 0]), {"a": high(0)}, 1, "1")


def test_a_layer_that_does_not_change_is_refused() -> None:
    box, x, y = planted()
    with pytest.raises(LayerError, match="same activations"):
        tcav(box, (x[:1].repeat(50, 1), y[:1].repeat(50)), {"a": high(0)}, ub.neuron("1", 0), "1")


def test_an_example_of_both_sets_is_of_the_concept_alone() -> None:
    box, x, y = planted()
    r = tcav(box, (x, y), {"half": x[:300]}, 1, "1", n_random=6, set_size=200, control=False)
    assert r.sizes == (200,)
    assert torch.isfinite(r.scores).all()


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_vectors_are_objectives_of_length_one() -> None:
    box, x, _ = planted()
    r = concept_vectors(box, x, {"a": high(0), "c": high(2)}, ["0", "1"])
    assert [tuple(v.shape) for v in r.vectors] == [(2, HIDDEN), (2, HIDDEN)]
    for v in r.vectors:
        torch.testing.assert_close(v.norm(dim=1), torch.ones(2), atol=1e-5, rtol=0)
    score = r.objective("a", "0")(box.read(x, ["0"]))
    torch.testing.assert_close(score, box.read(x, ["0"])["0"] @ r.vectors[0][0])
    assert r.verdict == "pass"
    with pytest.raises(InputError, match="no vector of the concept 'z'"):
        r.objective("z", "0")
    with pytest.raises(InputError, match="no vector of the layer '9'"):
        r.objective("a", "9")


def test_random_examples_have_no_vector() -> None:
    box, x, _ = planted()
    r = concept_vectors(box, x, {"a": high(0), "random": x[np.arange(0, 500, 10)]}, ["0", "1"])
    assert r.verdict == "fail"
    assert "'random' is told apart worst" in r.reason
    assert float(r.accuracy[0].min()) > 0.85


def test_layers_that_run_before_are_no_test_of_consistency() -> None:
    """Moving a layer cannot change an earlier one: the cosine was 0, the lowest of all."""
    box, x, y = planted()
    concepts = {"first": high(0), "third": high(2)}
    forward, backward = (
        tcav(box, (x, y), concepts, 1, layers, n_random=3, set_size=20).diagnostics
        for layers in (["1", "2"], ["2", "1"])
    )
    assert not forward.consistency.isnan().any()
    assert backward.consistency.isnan().all()
    r = tcav(box, (x, y), concepts, 1, ["2", "1"], n_random=3, set_size=20)
    assert not any("consistency" in sentence for sentence in r.diagnosis)
