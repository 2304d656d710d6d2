"""Contract 1: a method leaves the model, torch, the process and the caller's tensors as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import awkward
import unboxed as ub
from contracts.common import (
    CARDS,
    MethodCase,
    cached_result,
    call_example,
    call_example_with_warnings,
    has_parameters,
    make_case,
    methods,
    result_difference_texts,
    result_tensors,
    shared_case,
)
from contracts.trace import changes, snapshot
from unboxed.engine.optimize.loop import OptimizationConfig, _BatchOptimizer
from unboxed.engine.optimize.parameterizations import RawCanvas
from unboxed.errors import UnboxedError
from unboxed.testing.contracts import PlantedError, set_unseeded_rng_states


def traced(c: MethodCase, work: Callable[[], Any]) -> list[str]:
    """What `work` changed, whether it succeeds or not."""
    set_unseeded_rng_states(1)
    before = snapshot(c.box.model, c.x, c.y)
    with suppress(PlantedError, KeyboardInterrupt, UnboxedError):
        work()
    return changes(before, snapshot(c.box.model, c.x, c.y))


def with_gradients(model: nn.Module) -> None:
    """Gradients as in the middle of somebody's training: they must stay."""
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)


@pytest.mark.parametrize("model", awkward.MODELS)
def test_opening_a_model(model: str) -> None:
    entry = awkward.get_model(model)
    with_gradients(entry.model)
    set_unseeded_rng_states(1)
    before = snapshot(entry.model)
    box = ub.Box(entry.model, entry.inputs, **entry.box_settings)
    assert changes(before, snapshot(entry.model)) == []
    x = entry.images().to(box.dtype)
    box(x), box.probs(x), box.read(x, [row.path for row in box.layers if row.n_calls == 1 and row.shape]), repr(box)
    assert changes(before, snapshot(entry.model)) == []


@methods("leaves no trace")
def test_failure_in_the_backward_pass(name: str) -> None:
    c = make_case("plain")
    errors: list[type[BaseException]] = []

    def fail(module: nn.Module, grad: Any) -> None:
        raise errors[-1]("planted")

    c.box.model.conv2.register_full_backward_pre_hook(fail)
    for error in (PlantedError, KeyboardInterrupt):
        errors.append(error)
        assert traced(c, lambda: call_example(CARDS[name], c)) == [], error


@contextmanager
def no_grad_and_autocast() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


@methods("leaves no trace")
@pytest.mark.parametrize("mode", [no_grad_and_autocast, torch.inference_mode])
def test_the_callers_modes(name: str, mode: Any) -> None:
    """The same result in every grad mode and under autocast, which are as before; x may be an inference tensor."""
    want, c = cached_result(CARDS[name], "plain", torch.float64), shared_case("plain", torch.float64)
    with mode():
        mine = MethodCase(c.box, c.x.clone(), c.y.clone())
        found: dict[str, Any] = {}
        assert traced(mine, lambda: found.update(result_tensors(call_example(CARDS[name], mine)))) == []
    assert result_difference_texts(found, want, 1e-12) == []
    assert not any(t.requires_grad for t in found.values())


@methods("leaves no trace")
def test_the_callers_autocast(name: str) -> None:
    """It rounds nothing of a model in single precision: a box in mixed precision is asked for."""
    want, c = cached_result(CARDS[name], "plain"), shared_case("plain")
    with torch.autocast("cpu", torch.bfloat16):
        found = result_tensors(call_example(CARDS[name], MethodCase(c.box, c.x.clone(), c.y.clone())))
        assert torch.is_autocast_enabled("cpu")
    assert result_difference_texts(found, want, 0) == []


@methods("leaves no trace")
def test_a_model_built_in_inference_mode(name: str) -> None:
    """Its parameters can have no graph: what needs one may refuse, but not by a bare torch error."""
    with torch.inference_mode():
        c = make_case("batchnorm_in_train_mode", torch.float64)
        assert traced(c, lambda: call_example(CARDS[name], c)) == []


@methods("leaves no trace")
def test_an_input_with_a_graph(name: str) -> None:
    """x comes out of the caller's own computation: it isn't changed, and no gradient goes back into it."""
    c = shared_case("plain")
    source = c.x.clone().requires_grad_()
    mine = MethodCase(c.box, source * 1.0, c.y)
    assert traced(mine, lambda: call_example(CARDS[name], mine)) == []
    assert source.grad is None


@methods("leaves no trace", lambda card: not card.name.startswith("filters"))
def test_results_are_the_callers_own(name: str) -> None:
    """Writing into a result changes neither the model, nor x, nor the next result."""
    c = make_case("inplace_relu")
    first = result_tensors(call_example(CARDS[name], c))
    want = {k: v.clone() for k, v in first.items()}
    before = snapshot(c.box.model, c.x, c.y)
    for t in first.values():
        t.zero_()
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
    assert result_difference_texts(result_tensors(call_example(CARDS[name], c)), want, 0) == []


@pytest.mark.parametrize(
    "model", ["plain", "batchnorm_in_train_mode", "random_noise", "counts_calls", "compiled", "scripted_part"]
)
def test_between_steps_of_an_optimization(model: str) -> None:
    """A loop that is left after some steps holds nothing of the model open."""
    c = make_case(model)
    set_unseeded_rng_states(1)
    before = snapshot(c.box.model, c.x, c.y)
    plan = OptimizationConfig(steps=5, optimizer=partial(torch.optim.SGD, lr=0.1))
    optimizer = _BatchOptimizer(c.box, ub.loss(c.y), RawCanvas(c.x), plan, plan.constraint, slice(0, 3))
    for steps in (range(1), range(1, 4)):
        assert not optimizer._run_steps_until_finished(steps, [], [])
        assert changes(before, snapshot(c.box.model, c.x, c.y)) == []


def test_training_between_two_forwards() -> None:
    """A box opened before somebody trains on restores what it finds, not what it once saw."""
    entry = awkward.get_model("batchnorm_in_train_mode")
    boxes = [ub.Box(entry.model, entry.inputs, mode=mode) for mode in ("eval", "as-is")]
    x = entry.images()
    for box in boxes:
        box(x)
    entry.model(entry.inputs.encode(x)).sum().backward()  # moves the running statistics
    before = snapshot(entry.model)
    for box in boxes:
        box(x)
        assert changes(before, snapshot(entry.model)) == []


def test_as_is_keeps_the_flags_and_restores_the_buffers() -> None:
    entry = awkward.get_model("batchnorm_in_train_mode")
    before = snapshot(entry.model)
    box = ub.Box(entry.model, entry.inputs, mode="as-is")
    x = entry.images()
    one = box(x)
    assert changes(before, snapshot(entry.model)) == []
    assert torch.allclose(one, entry.model(entry.inputs.encode(x)), atol=1e-5)  # batch statistics: the flags were kept
    entry = awkward.get_model("batchnorm_in_train_mode")
    assert not torch.allclose(one, ub.Box(entry.model, entry.inputs)(x), atol=1e-2)


@methods("leaves no trace", lambda card: has_parameters(card, "box"))
def test_threads_share_a_box(name: str) -> None:
    """Flags, hooks and stances act in every thread: a box lets one in at a time."""
    c = shared_case("batchnorm_in_train_mode", torch.float64)
    want = result_tensors(call_example(CARDS[name], c))
    before = snapshot(c.box.model, c.x, c.y)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: result_tensors(call_example_with_warnings(CARDS[name], c)), range(2)))
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
    assert [result_difference_texts(f, want, 1e-12) for f in found] == [[]] * 2
