"""Contract 4: work happens where the model is, in its dtype; results are float32, or float64 for a double model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

import awkward
import unboxed as ub
from contracts.common import (
    CARDS,
    MethodCase,
    call_example,
    each_method,
    make_case,
    open_box,
    result_difference_texts,
    result_tensors,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def watched_case(dtype: torch.dtype, device: str, default: torch.dtype) -> tuple[MethodCase, set[Any]]:
    """A box opened while the caller has this default dtype, and what all of its modules receive."""
    with default_dtype(default):
        entry = awkward.get_model("plain", dtype)
        entry.model.to(device)
        seen: set[tuple[torch.dtype, str]] = set()
        for module in entry.model.modules():
            module.register_forward_pre_hook(lambda m, args: seen.add((args[0].dtype, args[0].device.type)))
        return MethodCase(open_box(entry), entry.images(), torch.tensor([0, 1, 2])), seen


def result_where_the_work_is(
    name: str, dtype: torch.dtype, device: str, given: torch.dtype, default: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The result for x of a dtype: the model only ever sees its own dtype and device, and there the result is."""
    c, seen = watched_case(dtype, device, default)
    seen.clear()
    x, y = c.x.bfloat16().to(given), c.y.to(torch.int64 if given == torch.float64 else torch.int32)  # none is rounded
    with default_dtype(default):
        result = result_tensors(call_example(CARDS[name], MethodCase(c.box, x, y)))
    case = f"x in {given}, the model in {dtype}, the caller's default {default}"
    assert seen == {(dtype, device)}, case
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert c.box.dtype == wide, case
    assert {h.dtype for h in result.values() if h.is_floating_point() and h.ndim} <= {wide}, case
    assert {h.device.type for h in result.values() if h.ndim} == {device}, case
    return result


@each_method("dtype and device")
def test_where_the_work_is(name: str) -> None:
    """Wherever the caller's tensors are and whatever their dtype: x is moved, and the numbers are those of the moved x.

    In bfloat16 a map is noisy, but it is the same map. The caller's default dtype changes no dtype.
    """
    single, double, half = torch.float32, torch.float64, torch.bfloat16
    for device in DEVICES:
        got, want = (result_where_the_work_is(name, double, device, given) for given in (single, double))
        assert result_difference_texts(got, want, 0) == []
        fine, coarse = (result_where_the_work_is(name, dtype, device, single) for dtype in (single, half))
        if "awkward" not in CARDS[name].exempt:
            assert unlike(coarse, fine) == []
        other = result_where_the_work_is(name, single, device, half, double)
        shared = other.keys() & fine.keys()  # other weights are drawn, of which other groups may be found
        assert shared
        assert {k: other[k].dtype for k in shared} == {k: fine[k].dtype for k in shared}


def unlike(coarse: dict[str, Tensor], fine: dict[str, Tensor]) -> list[str]:
    """The maps that point in another direction."""
    pairs = {k: (coarse[k].flatten().double(), fine[k].flatten().double()) for k in coarse.keys() & fine.keys()}
    maps = {k: (a, b) for k, (a, b) in pairs.items() if a.numel() > 16 and a.shape == b.shape and b.norm() > 0}
    return [k for k, (a, b) in maps.items() if not torch.cosine_similarity(a, b, dim=0) > 0.9]


def test_small_steps_survive_a_bfloat16_model() -> None:
    """In bfloat16 a step of a quarter gray level would vanish."""
    c = make_case("bfloat16")
    step = 0.25 / 255
    made = ub.adversarial.pgd(c.box, c.x, c.y, eps=8 / 255, step=step, steps=2, random_start=False, early_stop=False)
    moved = (made.images - c.x).abs()
    assert moved.max() > 0.9 * step
    assert moved.max() < 2.1 * step
