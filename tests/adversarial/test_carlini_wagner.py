"""Carlini & Wagner's attack: what is particular to it."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from adversarial.test_deepfool import digits, linear, peer, to_boundaries
from unboxed.adversarial import carlini_wagner
from unboxed.errors import InputError

CWDescent = sys.modules["unboxed.adversarial.carlini_wagner"].CWDescent  # the package's attribute is the function
QUICK = {"steps": 150, "binary_search_steps": 3}


def test_minimal_distance_to_a_linear_boundary() -> None:
    box, x, y, last = linear(classes=2)
    made = carlini_wagner(box, x, y, **QUICK)
    assert made.success.all()
    assert (box.predict(made.images) != y).all()
    least = to_boundaries(last, x, y, "l2").amin(1)
    assert ((made.distance >= least) & (made.distance <= 1.02 * least)).all()


def test_minimal_distance_with_a_margin() -> None:
    box, x, y, last = linear(classes=2)
    made = carlini_wagner(box, x, y, kappa=4.0, **QUICK)
    gap = box(made.images).gather(1, (1 - y)[:, None]) - box(made.images).gather(1, y[:, None])
    assert made.success.all()
    assert (gap >= 4).all()
    size = (last.weight[1] - last.weight[0]).norm()
    least = to_boundaries(last, x, y, "l2").amin(1) + 4 / size
    assert ((made.distance >= least) & (made.distance <= 1.02 * least)).all()


def test_pixels_at_the_bounds_move() -> None:
    """Black and white images, for which the paper's variable is infinite: the least distance is reached from there."""
    torch.manual_seed(0)
    last = nn.Linear(36, 2).requires_grad_(False).double()
    x = (torch.rand(8, 1, 6, 6) > 0.5).double()
    box = ub.Box(nn.Sequential(nn.Flatten(), last), ub.Pixels((1, 6, 6)))
    y = box.predict(x)
    made = carlini_wagner(box, x, y, **QUICK)
    w = last.weight[1 - y] - last.weight[y]  # (N, D)
    able = ((w > 0) == (x.flatten(1) == 0)) * w.abs()  # what may move where it should
    rise = -(w * x.flatten(1)).sum(1) - (last.bias[1 - y] - last.bias[y])
    least = rise / able.norm(dim=1)  # exact as long as nothing reaches its other end
    free = made.distance < 0.8
    assert made.success.all()
    assert free.sum() >= 4
    assert ((made.distance >= least - 1e-9) & (made.distance <= 1.02 * least))[free].all()


def test_features_without_bounds() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).requires_grad_(False).double()
    model.weight[:, 0] /= 5
    inputs = ub.Features(("a", "b", "c"), low=(0.0, -float("inf"), -float("inf")), high=(1.0, 5.0, float("inf")))
    x = torch.tensor([[0.0, 2.0, -3.0], [1.0, 5.0, 8.0], [0.5, -2.0, 0.0]]).double()
    box = ub.Box(model, inputs)
    y = box.predict(x)
    made = carlini_wagner(box, x, y, **QUICK)
    assert made.success.all()
    assert (box.predict(made.images) != y).all()
    assert torch.equal(inputs.clip(made.images), made.images)
    w = model.weight[1 - y] - model.weight[y]
    least = -(model(x).gather(1, (1 - y)[:, None]) - model(x).gather(1, y[:, None]))[:, 0] / w.norm(dim=1)
    assert (made.distance[2] - least[2]).abs() <= 0.02 * least[2]  # nothing is at a bound


@pytest.mark.parametrize("first", [1e-6, 0.02])
def test_the_search_finds_c(first: float) -> None:
    """From far too small and from far too large."""
    box, x, y, last = linear(classes=2)
    made = carlini_wagner(box, x, y, initial_c=first, steps=40, binary_search_steps=8)
    least = to_boundaries(last, x, y, "l2").amin(1)
    assert made.success.all()
    assert (made.distance <= 1.2 * least).all()


def test_a_c_that_is_too_small_finds_nothing() -> None:
    """So the search above had something to do."""
    box, x, y, _ = linear()
    assert not carlini_wagner(box, x, y, initial_c=1e-6, steps=60, binary_search_steps=1).success.any()


def searched(first: float, found: list[bool]) -> list[float]:
    """The values of c that the paper's search tries (times ten until one does, then halving the interval)."""
    low, high, tried = 0.0, math.inf, [first]
    for success in found:
        if success:
            high = tried[-1]
        else:
            low = tried[-1]
        tried.append((low + high) / 2 if high < math.inf else 10 * tried[-1])
    return tried


@pytest.mark.parametrize("first", [1e-4, 0.3, 1e2])
def test_each_row_halves_its_own_interval(first: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose descent succeeds from a c of their own on: each closes in on it, from below or from above."""
    box, x, y, _ = linear(classes=2)
    enough = torch.logspace(-2, 1, len(x), dtype=torch.float64)
    tried: list[Tensor] = []

    def run(descent: Any, c: Tensor) -> Tensor:
        tried.append(c.double().clone())
        return c >= enough[descent.rows]

    monkeypatch.setattr(CWDescent, "run", run)
    carlini_wagner(box, x, y, initial_c=first, binary_search_steps=20)
    for i, least in enumerate(enough.tolist()):
        row = [float(c[i]) for c in tried]
        assert row == pytest.approx(searched(first, [c >= least for c in row[:-1]]), rel=1e-12)
        assert row[-1] == pytest.approx(least, rel=0.02)


def test_the_search_uses_the_success_of_each_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x, y, _ = linear(classes=2)
    tried, successes = [], []
    original_run = CWDescent.run

    def run(descent: Any, c: Tensor) -> Tensor:
        success: Tensor = original_run(descent, c)
        tried.append(c.clone())
        successes.append(success.clone())
        return success

    monkeypatch.setattr(CWDescent, "run", run)
    made = carlini_wagner(box, x, y, initial_c=1e-3, steps=30, binary_search_steps=7, early_stop=False)
    assert made.success.all()
    for i in range(len(x)):
        row, found = [float(c[i]) for c in tried], [bool(f[i]) for f in successes]
        assert True in found
        assert False in found
        assert row == pytest.approx(searched(1e-3, found[:-1]), rel=1e-6)


@pytest.mark.parametrize("what", ["target", "objective"])
def test_target_and_objective(what: str) -> None:
    box, x, y = digits(2)
    more = {"target": (y + 1) % 10} if what == "target" else {"objective": ub.logit(3) - ub.logit(5) - 2}
    made = carlini_wagner(box, x, **more, steps=40, binary_search_steps=2)
    assert made.success.all()
    if what == "target":
        assert torch.equal(box.predict(made.images), (y + 1) % 10)
    else:
        assert (box(made.images)[:, 3] - box(made.images)[:, 5] > 2).all()


def test_no_weaker_than_foolbox() -> None:
    box, x, y = digits(4)
    made = carlini_wagner(box, x, y, steps=60, binary_search_steps=2)
    attacks, model = peer(box)
    theirs = attacks.L2CarliniWagnerAttack(2, 60, stepsize=0.1, initial_const=1.0)
    _, found, success = theirs(model, x, y, epsilons=None)
    d = (found - x).flatten(1).norm(dim=1).where(success, torch.inf)
    assert made.success.sum() >= success.sum()
    assert made.distance.median() <= d.median()


def test_early_stop_drops_rows_whose_loss_stalls() -> None:
    """With early_stop=False, each row uses all of its steps, and two queries for the original."""
    box, x, y, _ = linear()
    settings = {"steps": 100, "binary_search_steps": 2}
    quick = carlini_wagner(box, x, y, **settings)
    whole = carlini_wagner(box, x, y, **settings, early_stop=False)
    assert (whole.queries == 2 + 2 * 100).all()
    assert (quick.queries < 0.8 * whole.queries).all()
    assert (whole.distance <= quick.distance * 1.02).all()


def margins(box: ub.Box, images: Tensor, y: Tensor) -> Tensor:
    logits = box(images)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("bits", [None, 8])
def test_every_success_has_the_margin_kappa(bits: int | None) -> None:
    """After rounding, too, and where the original is misclassified by less than kappa."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model[1].weight.data *= 4
    box, x = ub.Box(model, ub.Pixels((1, 8, 8))), torch.rand(6, 1, 8, 8)
    logits = box(x)
    correct = logits.argmax(1)
    second = logits.scatter(1, correct[:, None], -torch.inf).argmax(1)  # as if it were correct: misclassified
    both, y = torch.cat([x, x]), torch.cat([correct, second])
    made = carlini_wagner(box, both, y, kappa=2.0, bits=bits, steps=80, binary_search_steps=4, initial_c=0.1)
    assert made.success.all()
    assert (margins(box, made.images, y) >= 2.0).all()
    assert torch.equal(made.initially_misclassified, margins(box, both, y) > 2.0)
    unreachable = carlini_wagner(box, x, second, kappa=1e4, bits=bits, steps=20, binary_search_steps=2)
    assert not unreachable.success.any()


def test_ctrl_c_keeps_what_was_found() -> None:
    box, x, y, _ = linear()
    calls: list[int] = []

    def press(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(1)
        if len(calls) == 120:
            raise KeyboardInterrupt

    handle = box.model.register_forward_pre_hook(press)
    made = carlini_wagner(box, x, y, **QUICK)
    handle.remove()
    assert made.interrupted
    assert made.success.any()
    assert (box.predict(made.images) != y)[made.success].all()


@pytest.mark.parametrize(
    "bad",
    [{"kappa": -1.0}, {"kappa": float("nan")}, {"lr": 0}, {"binary_search_steps": 0}, {"initial_c": 0.0},
     {"norm": "linf"}, {"eps": 0.0}, {"y": None}],
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any]) -> None:
    box, x, y, _ = linear()
    with pytest.raises(InputError):
        carlini_wagner(box, x, **{"y": y, **bad})
