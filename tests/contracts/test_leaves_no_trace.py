"""Contract 1: a method leaves the model, torch, the process and the caller's tensors as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from check_each import each
from contracts.common import (
    CARDS,
    MethodCase,
    call_example,
    each_method,
    make_case,
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


@each(awkward.MODELS)
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


class FailingBackward:
    """A user's hook that raises in the backward pass of "conv2" of a plain model: `error`."""

    error: type[BaseException]

    def __init__(self) -> None:
        self.case = make_case("plain")
        self.case.box.model.conv2.register_full_backward_pre_hook(self)

    def __call__(self, module: nn.Module, grad: Any) -> None:
        raise self.error("planted")


failing_backward = cache(FailingBackward)


@each_method("leaves no trace")
def test_failure_in_the_backward_pass(name: str) -> None:
    planted = failing_backward()
    for planted.error in (PlantedError, KeyboardInterrupt):
        assert traced(planted.case, lambda: call_example(CARDS[name], planted.case)) == [], planted.error


OF_A_THREAD = ("grad mode", "autocast", "function modes", "dispatch modes", "saved tensor hooks", "the caller's tensor")


@contextmanager
def no_grad_and_autocast() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


class InACallersMode:
    """A method run as a caller may run it: x has a graph, or is an inference tensor; a mode is entered around it."""

    def __init__(self, name: str, c: MethodCase, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        self.name, self.c, self.mode = name, c, mode

    def __call__(self) -> tuple[dict[str, Tensor], list[str]]:
        """The result, and what is wrong about it or about what lies in the caller's thread."""
        source = self.c.x.clone().requires_grad_()
        x = source * 1.0
        with self.mode():
            mine = MethodCase(self.c.box, x.clone() if torch.is_inference_mode_enabled() else x, self.c.y.clone())
            before = self.of_this_thread(mine)
            found = result_tensors(call_example(CARDS[self.name], mine))
            changed = changes(before, self.of_this_thread(mine))
        wrong = [f"{at} requires a gradient" for at, t in found.items() if t.requires_grad]
        return found, [*changed, *wrong, *(["a gradient went back into x"] if source.grad is not None else [])]

    @staticmethod
    def of_this_thread(c: MethodCase) -> dict[str, Any]:
        return {k: v for k, v in snapshot(nn.Identity(), c.x, c.y).items() if k.startswith(OF_A_THREAD)}

    def problems(self, want: dict[str, Tensor], run: Callable[[], Any] | None = None) -> list[str]:
        found, wrong = (run or self)()
        return [f"{self.mode.__name__}: {text}" for text in (*wrong, *result_difference_texts(found, want, 0))]


@each_method("leaves no trace")
def test_two_threads_in_modes_of_their_own(name: str) -> None:
    """The same result in every grad mode and under autocast, which are as before, of an x with a graph or without;
    and in two threads at a time: flags, hooks and stances act in every thread, so a box lets one in at a time. Results
    are the caller's own: writing into one changes neither the model, nor x, nor the next result.
    """
    c = shared_case("batchnorm_in_train_mode")
    set_unseeded_rng_states(1)
    before = snapshot(c.box.model, c.x, c.y)
    first = result_tensors(call_example(CARDS[name], c))
    want = {k: v.clone() for k, v in first.items()}
    for t in first.values():
        t.zero_()
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == [], "a result is written into"
    runs = [InACallersMode(name, c, mode) for mode in (no_grad_and_autocast, torch.inference_mode)]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run) for run in runs]
        wrong = [text for run, f in zip(runs, futures, strict=True) for text in run.problems(want, f.result)]
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
    assert wrong == [], f"one after the other: {[text for run in runs for text in run.problems(want)]}"


@cache
def built_in_inference_mode() -> MethodCase:
    return make_case("batchnorm_in_train_mode", torch.float64)


@each_method("leaves no trace")
def test_a_model_built_in_inference_mode(name: str) -> None:
    """Its parameters can have no graph: what needs one may refuse, but not by a bare torch error."""
    with torch.inference_mode():
        c = built_in_inference_mode()
        mine = MethodCase(c.box, c.x.clone(), c.y.clone())
        assert traced(mine, lambda: call_example(CARDS[name], mine)) == []


@each(["plain", "batchnorm_in_train_mode", "random_noise", "counts_calls", "compiled", "scripted_part"])
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
