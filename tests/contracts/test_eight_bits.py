"""Contract 7 for files: with bits=8 an adversarial image is what its PNG gives, in its ball, and judged as such."""

from __future__ import annotations

import warnings

import pytest
import torch

from as_png import decoded
from check_each import each
from contracts.common import CARDS, REFUSED, MethodCase, call_example, has_parameters, shared_case
from unboxed.errors import InputError, UnboxedWarning

ATTACKS = [name for name, card in CARDS.items() if has_parameters(card, "bits")]
NETS = ("color", "bfloat16", "dropout_always_on")
TAKES_NO = {(name, "l1") for name in ("apgd", "auto_attack", "square")}
SIZES = {"linf": (0.5 / 255, 8 / 255), "l2": (0.02, 0.5), "l1": (3.0,)}


def case(model: str, on_grid: bool) -> MethodCase:
    """Four images, of 8 bits each value or not."""
    c = shared_case(model, n=4)
    if on_grid:
        c.x.copy_(((c.x * 255).round().float() / 255).to(c.x.dtype))
    return c


PAIRS = [(i + j, n, model) for i, n in enumerate(ATTACKS) for j, model in enumerate(NETS) if (n, model) not in REFUSED]


@each((n, model, i % 2 == 0) for i, n, model in PAIRS)
def test_the_image_is_its_file_and_success_is_the_files(name: str, model: str, on_grid: bool) -> None:
    c = case(model, on_grid)
    made = call_example(CARDS[name], c, bits=8)
    loaded = decoded(made.images).to(c.x.dtype)
    assert torch.equal(loaded, made.images)
    assert torch.equal(made.success, c.box.predict(loaded) != c.y)


BALLS = [(norm, eps) for norm, sizes in SIZES.items() for eps in sizes]
BOUNDED = [name for name in ATTACKS if has_parameters(CARDS[name], "ball")]


@each((n, *ball, (i + j) % 2 == 0) for i, n in enumerate(BOUNDED) for j, ball in enumerate(BALLS))
def test_the_file_is_in_the_ball(name: str, norm: str, eps: float, on_grid: bool) -> None:
    """Where the ball holds a file at all, which it always does around a file."""
    c = case("color", on_grid)
    try:
        made = call_example(CARDS[name], c, bits=8, eps=eps, norm=norm)
    except InputError:
        assert (name, norm) in TAKES_NO
        return
    d = (made.images - c.x).double().flatten(1)
    size = {"linf": d.abs().amax(1), "l2": d.norm(dim=1), "l1": d.abs().sum(1)}[norm]
    inside = size <= eps * (1 + 1e-6) + 1e-7
    nearest = made.images == (c.x * 255).round() / 255
    assert (inside | (nearest.flatten(1).all(1) & ~made.success)).all()
    assert inside.all() or not on_grid
    assert torch.equal(decoded(made.images), made.images)


@each(ATTACKS)
def test_splitting_changes_no_file(name: str) -> None:
    one, all_of_them = (
        call_example(CARDS[name], shared_case("plain", torch.float64), bits=8, batch_size=size) for size in (1, 3)
    )
    assert torch.equal(one.images, all_of_them.images)
    assert torch.equal(one.queries, all_of_them.queries)


@each(ATTACKS)
def test_other_depths_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="bits"):
        call_example(CARDS[name], shared_case("plain"), bits=7)


@pytest.mark.filterwarnings("ignore:eps=.* is less than one of")
def test_a_ball_that_holds_no_file_is_warned_of() -> None:
    c = shared_case("plain")
    c.x.copy_(((c.x * 254).floor() + 0.5) / 255)
    with pytest.warns(UnboxedWarning, match="3 of 3"), warnings.catch_warnings():
        made = CARDS["pgd"].method(c.box, c.x, c.y, eps=0.3 / 255, steps=2, bits=8)
    assert not made.success.any()
    assert torch.equal(decoded(made.images), made.images)
