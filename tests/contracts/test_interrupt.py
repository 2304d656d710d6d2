"""Contract 9: interrupted long work keeps what it has."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from check_each import each
from contracts.common import (
    CARDS,
    MethodCase,
    call_example,
    each_method,
    has_parameters,
    make_case,
    result_difference_texts,
)
from contracts.trace import changes, snapshot


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler, also where the parent ignores SIGINT (`nohup make test`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def optimizes(card: Any) -> bool:
    return has_parameters(card, "steps")


class CtrlC:
    """A hook of the user's own: KeyboardInterrupt in the k-th forward from now on. Notes the optimization's begin."""

    def __init__(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self)
        self.at(-1)

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.calls += 1
        if self.calls == self.fail_at_call:
            raise KeyboardInterrupt
        if self.first is None and torch.is_grad_enabled():
            self.first = self.calls

    def at(self, k: int) -> None:
        self.calls, self.fail_at_call, self.first = 0, k, None


def interrupted(c: MethodCase, name: str, k: int, **settings: Any) -> Any:
    """What the method gives when Ctrl-C falls in its k-th forward."""
    ctrl_c = CtrlC(c.box.model)
    before = snapshot(c.box.model, c.x, c.y)
    ctrl_c.at(k)
    try:
        result = call_example(CARDS[name], c, **settings)
    except KeyboardInterrupt:  # not let through: pytest itself would stop
        pytest.fail(f"Ctrl-C in forward {k} threw away what was reached")
    assert changes(before, snapshot(c.box.model, c.x, c.y)) == []
    return result


MEASURED = ("scores", "history", "confidence_history")  # NaN where Ctrl-C came before the first evaluation
LONG = {"steps": 3, "early_stop": False, "step": 0.01}  # nobody is done before the end


def forwards(name: str, **settings: Any) -> tuple[int, int]:
    """The forward in which the optimization begins, and the last one; those before only prepare."""
    c = make_case("plain")
    counter = CtrlC(c.box.model)
    call_example(CARDS[name], c, **settings)
    return counter.first or 1, counter.calls


@each_method("interrupt", optimizes)
def test_what_was_reached_is_returned(name: str) -> None:
    """Whole, well-formed and marked, whichever forward Ctrl-C falls in: the first, the last, one between."""
    for size in ("auto", 1):
        settings, c = {**LONG, "batch_size": size}, make_case("plain")
        counter = CtrlC(c.box.model)
        whole = call_example(CARDS[name], c, **settings)
        assert whole.interrupted is False
        first, last = counter.first or 1, counter.calls
        for share in (0, 0.5, 1):
            check_partial(whole, interrupted(c, name, first + round(share * (last - first)), **settings))


def check_partial(whole: Any, got: Any) -> None:
    assert got.interrupted is True
    for field in dataclasses.fields(whole):
        a, b = getattr(whole, field.name), getattr(got, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, torch.Tensor):
            assert a.ndim == b.ndim, field.name
            assert a.shape[-1] == b.shape[-1] or a.ndim == 1, field.name
            unknown = field.name == "probs" and b.isnan().all()  # the images were kept, only their reading was cut off
            finite = ~b.isinf() if field.name in MEASURED else torch.isfinite(b)
            assert unknown or finite.all(), field.name


@each_method("partial results", optimizes)
def test_the_steps_taken_are_kept(name: str) -> None:
    """Stopped at the third forward, the work is that of the second: not lost, and not started again."""
    c = make_case("plain", torch.float64)
    if has_parameters(CARDS[name], "frame_every"):
        start, reached = call_example(CARDS[name], c, **LONG, frame_every=1).frames[:2]
    else:
        attacks = CARDS[name].family == "adversarial"  # of no steps they are refused
        start = c.x if attacks else call_example(CARDS[name], c, **{**LONG, "steps": 0}).images
        reached = call_example(CARDS[name], c, **{**LONG, "steps": 1}).images
    got = interrupted(c, name, forwards(name, **LONG)[0] + 2, **LONG)
    kept = got.frames[-1] if getattr(got, "frames", None) is not None else got.images
    assert result_difference_texts({"": kept}, {"": reached}, 1e-12) == []
    assert result_difference_texts({"": kept}, {"": start}, 1e-6) != []


def test_a_morph_keeps_its_frames() -> None:
    c = make_case("plain", torch.float64)
    target = (c.box.predict(c.x) + 1) % 4
    plan = {"confidence": 0.999, "step": 0.01}
    whole = ub.synthesis.morph(c.box, c.x, target, steps=5, **plan)
    ctrl_c = CtrlC(c.box.model)
    ctrl_c.at(4)
    got = ub.synthesis.morph(c.box, c.x, target, steps=5, **plan)
    assert got.interrupted
    assert len(got.frames) >= 3
    assert torch.equal(got.frames[:3], whole.frames[:3])
    assert len(got.probs) == len(got.frames)


def test_batches_before_ctrl_c_are_whole() -> None:
    """Rows of a batch that was finished keep their result; those not begun stay as they started."""
    c = make_case("plain", torch.float64)
    plan = {"eps": 1e-3, "steps": 2, "random_start": False, "early_stop": False, "batch_size": 1}
    whole = ub.adversarial.pgd(c.box, c.x, c.y, **plan)
    ctrl_c = CtrlC(c.box.model)
    ctrl_c.at(5)  # three looks a row: in the second row
    got = ub.adversarial.pgd(c.box, c.x, c.y, **plan)
    assert got.interrupted
    assert torch.equal(got.images[0], whole.images[0])
    assert torch.equal(got.images[2], c.x[2])


@each(["feature", "morph"])
def test_a_score_that_was_never_measured_is_nan(name: str) -> None:
    c = make_case("plain")
    got = interrupted(c, name, forwards(name, **LONG)[0], **LONG)
    assert got.interrupted
    assert got.scores.isnan().all()


SEARCHES = ("fgsm", "bim", "pgd", "mi_fgsm", "apgd", "auto_attack", "square", "fab", "fmn", "ddn", "deepfool",
            "carlini_wagner", "lbfgs", "boundary", "hop_skip_jump")  # fmt: skip


@each(product(SEARCHES, (1, 2, 3)))
def test_attacks_return_what_they_have_from_the_first_forward_on(name: str, k: int) -> None:
    c = make_case("plain")
    got = interrupted(c, name, k, batch_size=1)
    assert got.interrupted
    assert (got.success <= (c.box.predict(got.images) != c.y)).all()  # what was not evaluated is no success


@each_method(
    "interrupt", lambda card: not optimizes(card) and has_parameters(card, "x") and card.method.__name__ not in SEARCHES
)
def test_short_work_lets_ctrl_c_through(name: str) -> None:
    """There is nothing to keep: whoever pressed it gets it."""
    c = make_case("plain")
    CtrlC(c.box.model).at(1)
    with pytest.raises(KeyboardInterrupt):
        call_example(CARDS[name], c)
