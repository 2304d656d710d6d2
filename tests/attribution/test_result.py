"""The one result of all attribution methods: a tensor with what it explains."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import awkward
import unboxed as ub
from contracts.common import CARDS, REFUSED, call_example, make_case
from unboxed.attribution import Attribution
from unboxed.engine.results import attribution_map, json_summary, result_tensors
from unboxed.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # that a row's map is blank
METHODS = [name for name, c in CARDS.items() if c.family == "attribution"]
NEED_ATTENTION = [name for name in METHODS if "attention" in CARDS[name].needs]


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def digits(n: int = 2) -> tuple[Tensor, Tensor]:
    return ub.data.digits("test").first(n)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_returns_one(name: str) -> None:
    refused = {m for n, m in REFUSED if n == name}
    case = make_case(next(m for m in awkward.MODELS if m not in refused))
    result = call_example(CARDS[name], case)
    assert CARDS[name].returns == "attribution"
    assert isinstance(result, Attribution)
    assert result.method == CARDS[name].name
    assert result.classes == case.box.classes
    assert type(result.map) is Tensor
    assert torch.equal(result.map, result)
    assert len(result) == len(case.x)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in (*NEED_ATTENTION, "expected_gradients")])
def test_the_target_is_the_class_that_was_predicted(name: str) -> None:
    case = make_case("plain", torch.float64)
    settings: dict[str, Any] = {"n_samples": 40} if "n_samples" in CARDS[name].settings else {}
    if "segments" in CARDS[name].settings:
        settings["segments"] = ("squares", 4)
    method = CARDS[name].method
    predicted = case.box.predict(case.x)
    for batch_size in ("auto", 2):
        unasked = method(case.box, case.x, batch_size=batch_size, **settings)
        asked = method(case.box, case.x, predicted, batch_size=batch_size, **settings)
        assert torch.equal(unasked.target, predicted)
        assert torch.equal(asked.target, predicted)
        assert torch.allclose(unasked, asked, rtol=1e-9, atol=1e-12)
    assert torch.equal(method(case.box, case.x, 2, **settings).target, torch.full((3,), 2))
    objective = ub.logit(1) - ub.logit(0)
    assert method(case.box, case.x, objective, **settings).target is objective


@pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in (*NEED_ATTENTION, "expected_gradients", "smoothgrad", "rise")]
)
def test_the_score_is_that_of_x(name: str) -> None:
    case = make_case("plain", torch.float64)
    settings: dict[str, Any] = {"n_samples": 40} if "n_samples" in CARDS[name].settings else {}
    if "segments" in CARDS[name].settings:
        settings["segments"] = ("squares", 4)
    score = CARDS[name].method(case.box, case.x, ub.logit(1), **settings).score
    assert torch.allclose(score, case.box(case.x)[:, 1], rtol=1e-9)


def results(box: ub.Box) -> Iterator[Attribution]:
    x, y = digits()
    yield ub.attribution.gradient(box, x, y)
    yield ub.attribution.grad_cam(box, x, layer="conv2" if "conv2" in [str(a) for a in box.layers] else None)
    yield ub.attribution.lime(box, x, y, segments=("squares", 7), n_samples=60)


def test_it_is_a_tensor(box: ub.Box) -> None:
    for a in results(box):
        assert isinstance(a, Tensor)
        for made in (a + 1, a.abs(), a[0], a.double(), torch.cat([a, a]), torch.stack([a]), a * a, 2 * a, a.mean()):
            assert type(made) is Tensor
        assert torch.equal(a, a.map)
        torch.testing.assert_close(a, a.map)
        torch.testing.assert_close(a.map, a)
        assert np.array_equal(a.numpy(), a.map.numpy())
        assert np.asarray(a).shape == tuple(a.shape)
        assert a.data_ptr() == a.map.data_ptr()
        assert not a.requires_grad


def test_it_keeps_what_it_explains_through_copies(box: ub.Box) -> None:
    for a in results(box):
        for b in (copy.deepcopy(a), copy.copy(a), pickle.loads(pickle.dumps(a))):
            assert type(b) is Attribution
            assert torch.equal(a, b)
            assert torch.equal(b.map, b)
            assert vars(b).keys() == vars(a).keys()
            assert torch.equal(a.target, b.target)
            assert b.data_ptr() == b.map.data_ptr()
        assert copy.deepcopy(a).data_ptr() != a.data_ptr()
        copied = copy.deepcopy({"a": a, "b": a})
        assert copied["a"] is copied["b"]
    x, _ = digits()
    scored = ub.attribution.gradient(box, x, ub.logit(1) - ub.logit(2))
    assert pickle.loads(pickle.dumps(scored)).target.name == scored.target.name


def test_it_works_without_gradients(box: ub.Box) -> None:
    x, y = digits()
    want = ub.attribution.gradient(box, x, y)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            a = ub.attribution.gradient(box, x, y)
            assert type(a + 1) is Tensor
            assert torch.equal(copy.deepcopy(a), want)
    assert torch.equal(a, want)


def test_its_repr_is_one_line(box: ub.Box) -> None:
    for a in results(box):
        assert repr(a) == str(a) == f"{a}"
        assert repr(a).startswith(f"Attribution('{a.method}', map=(2, 1, ")
        assert "\n" not in repr(a)
        assert "tensor(" not in repr(a)


def test_extras_are_attributes(box: ub.Box) -> None:
    x, y = digits()
    a = ub.attribution.lime(box, x, y, segments=("squares", 7), n_samples=60)
    assert list(a.extras) == ["weights", "standard_error", "r2", "intercept", "prediction", "segments"]
    assert all(getattr(a, name) is value for name, value in a.extras.items())
    with pytest.raises(AttributeError, match=r"LIME gives no 'peak'; besides the map it gives weights, "):
        _ = a.peak
    assert not hasattr(ub.attribution.gradient(box, x), "weights")


def test_what_is_in_it_is_listed(box: ub.Box) -> None:
    x, y = digits()
    a = ub.attribution.lime(box, x, y, segments=("squares", 7), n_samples=60)
    assert [*result_tensors(a)] == [".map", ".input", ".target", ".score"] + [f".{name}" for name in a.extras]
    listed = json_summary(a)
    assert listed["target"] == y.tolist()
    assert listed["method"] == "LIME"
    assert type(attribution_map(a)) is Tensor


def test_several_inputs_get_a_map_each() -> None:
    from contracts.test_multi_input import case

    for kind in ("dict", "tuple"):
        c = case(kind)
        a = ub.attribution.gradient(c.box, c.x, 0)
        assert type(a.map) is {"dict": dict, "tuple": tuple}[kind]
        assert torch.equal(a, c.box.inputs.pack(a.map))
        assert type(attribution_map(a)) is Tensor
        assert torch.equal(pickle.loads(pickle.dumps(a)), a)


def test_positive_is_for_lime(box: ub.Box) -> None:
    x, y = digits()
    for other in (ub.attribution.gradient(box, x, y), torch.zeros(2, 1, 28, 28)):
        with pytest.raises(InputError, match="the result of lime for images"):
            ub.attribution.positive_segments_mask(other)


@pytest.mark.parametrize("name", METHODS)
def test_the_input_is_part_of_the_result(name: str) -> None:
    refused = {m for n, m in REFUSED if n == name}
    case = make_case(next(m for m in awkward.MODELS if m not in refused))
    result = call_example(CARDS[name], case)
    assert torch.equal(result.input, case.box.validate_inputs(case.x))
    assert "input" not in result.extras


def test_maps_of_named_inputs_are_a_dict_and_of_one_input_none(box: ub.Box) -> None:
    """A single map must not be taken for a mapping, by `dict(...)` or pandas."""
    from contracts.test_multi_input import case as multi_input_case

    c = multi_input_case("dict")
    a = ub.attribution.gradient(c.box, c.x, 0)
    assert [*a.keys()] == [*a.map] == [*c.x]
    assert all(a[name] is m for name, m in a.items())
    assert all(m is a.map[name] for name, m in zip(a.keys(), a.values(), strict=True))
    one = ub.attribution.gradient(box, digits()[0])
    assert not hasattr(one, "keys")
    assert not hasattr(one, "items")
    with pytest.raises(RuntimeError, match="sparse"):
        one.values()
    pair = multi_input_case("tuple")
    assert not hasattr(ub.attribution.gradient(pair.box, pair.x, 0), "items")
    shares = ub.attribution.shapley(box, digits()[0], segments=("squares", 14))
    assert isinstance(shares.values, Tensor)
