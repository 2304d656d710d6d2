"""Contract 4: work happens where the model is, in its dtype; results are float32, or float64 for a double model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import awkward
import unboxed as ub
from contracts.common import (
    CARDS,
    MethodCase,
    cached_result,
    call_example,
    make_case,
    methods,
    open_box,
    result_difference_texts,
    result_tensors,
    shared_case,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@cache
def watched_case(dtype: torch.dtype, device: str) -> tuple[MethodCase, set[tuple[torch.dtype, str]]]:
    """A box, and what all of its modules receive."""
    entry = awkward.get_model("plain", dtype)
    entry.model.to(device)
    seen: set[tuple[torch.dtype, str]] = set()
    for module in entry.model.modules():
        module.register_forward_pre_hook(lambda m, args: seen.add((args[0].dtype, args[0].device.type)))
    return MethodCase(open_box(entry), entry.images(), torch.tensor([0, 1, 2])), seen


@methods("dtype and device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_where_the_work_is(name: str, dtype: torch.dtype, device: str) -> None:
    """The model only ever sees its own dtype and device, wherever the caller's tensors are; results lie on its
    device."""
    c, seen = watched_case(dtype, device)
    seen.clear()
    found = result_tensors(call_example(CARDS[name], c))
    assert seen == {(dtype, device)}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert c.box.dtype == wide
    assert {h.dtype for h in found.values() if h.is_floating_point() and h.ndim} <= {wide}
    assert {h.device.type for h in found.values() if h.ndim} == {device}


@methods("dtype and device")
@pytest.mark.parametrize(("model", "given"), [("plain", torch.bfloat16), ("double", torch.float32)])
def test_any_float_is_taken(name: str, model: str, given: torch.dtype) -> None:
    """The caller's dtype does not matter: x is moved to the box's, and the numbers are those of the moved x."""
    c = shared_case(model)
    x = c.x.to(given)
    got = result_tensors(call_example(CARDS[name], MethodCase(c.box, x, c.y.int())))
    if torch.equal(x.to(c.box.dtype), c.x):  # nothing was rounded
        want = cached_result(CARDS[name], model)
    else:
        want = result_tensors(call_example(CARDS[name], MethodCase(c.box, x.to(c.box.dtype), c.y)))
    assert result_difference_texts(got, want, 0) == []


def test_small_steps_survive_a_bfloat16_model() -> None:
    """In bfloat16 a step of a quarter gray level would vanish."""
    c = make_case("bfloat16")
    step = 0.25 / 255
    made = ub.adversarial.pgd(c.box, c.x, c.y, eps=8 / 255, step=step, steps=2, random_start=False, early_stop=False)
    moved = (made.images - c.x).abs()
    assert moved.max() > 0.9 * step
    assert moved.max() < 2.1 * step


@methods("dtype and device")
def test_the_callers_default_dtype(name: str) -> None:
    want = cached_result(CARDS[name], "plain")
    torch.set_default_dtype(torch.float64)
    try:
        got: dict[str, Any] = result_tensors(call_example(CARDS[name], make_case("plain", torch.float32)))
    finally:
        torch.set_default_dtype(torch.float32)
    shared = got.keys() & want.keys()  # other weights are drawn, of which other groups may be found
    assert shared
    assert {k: got[k].dtype for k in shared} == {k: want[k].dtype for k in shared}
