"""The square attack: no gradient, exact budgets, inside its ball, no query wasted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from models import assert_in_its_ball
from unboxed.adversarial.square import square, square_side
from unboxed.engine.optimize.constraints import L1
from unboxed.errors import InputError


class Steps(nn.Module):
    """Rounds on the way, so that there is no gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model((20 * x).round() / 20).detach()
        return z


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_gradient_is_computed(norm: str) -> None:
    c = make_case("plain")
    box = ub.Box(Steps(c.box.model), c.box.inputs)
    y = box.predict(c.x)
    got = square(box, c.x, y, eps=0.4 if norm == "linf" else 3.0, norm=norm, queries=200)
    assert got.success.any()
    assert torch.equal(got.success, box.predict(got.images) != y)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.3), ("linf", 1e-4), ("l2", 0.5), ("l2", 3.0)])
@pytest.mark.parametrize("model", ["plain", "color", "non_square", "double", "bfloat16"])
def test_inside_its_ball(model: str, norm: str, eps: float) -> None:
    c = make_case(model)
    got = square(c.box, c.x, c.y, eps=eps, norm=norm, queries=25)
    assert_in_its_ball(c, got, norm, eps)


class Seen:
    """Every batch that the model is given."""

    def __init__(self, box: ub.Box) -> None:
        self.batches = list[Tensor]()
        box.model.register_forward_pre_hook(lambda module, args: self.batches.append(args[0].detach().clone()))


@pytest.mark.parametrize("queries", [1, 2, 30])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_queries_are_exact(norm: str, queries: int) -> None:
    c = make_case("plain")
    seen = Seen(c.box)
    got = square(c.box, c.x, c.y, eps=1e-4, norm=norm, queries=queries)
    assert [len(b) for b in seen.batches] == [3] + [2] * queries
    assert got.queries.tolist() == [queries + 1, queries + 1, 1]


def test_fooled_rows_are_dropped() -> None:
    c = make_case("plain")
    seen = Seen(c.box)
    got = square(c.box, c.x, c.y, eps=0.6, queries=500)
    assert got.success.all()
    assert sum(len(b) for b in seen.batches) == int(got.queries.sum()) < 500


@pytest.mark.parametrize("model", ["plain", "color"])
def test_every_query_is_used(model: str) -> None:
    """Each image that is evaluated is another than the best so far."""
    c = make_case(model)
    seen = Seen(c.box)
    square(c.box, c.x[:1], c.y[:1], eps=0.01, queries=80)
    margins = [float(margin(c, b)) for b in seen.batches[1:]]
    best = 0
    for k in range(1, len(margins)):
        assert not torch.equal(seen.batches[1 + k], seen.batches[1 + best])
        best = k if margins[k] > margins[best] else best


def margin(c: Any, z: Tensor) -> Tensor:
    """Of what the model is given, encoded already."""
    logits = c.box.model(z).detach()
    return logits.scatter(1, c.y[:1, None], -torch.inf).amax() - logits[0, c.y[0]]


def test_the_best_loss_never_falls() -> None:
    c = make_case("plain", torch.float64)
    last = torch.full((2,), -torch.inf, dtype=torch.float64)
    for queries in (1, 80):
        got = square(c.box, c.x[:2], c.y[:2], eps=1e-3, queries=queries)
        z = c.box(got.images)
        now = z.scatter(1, c.y[:2, None], -torch.inf).amax(1) - z.gather(1, c.y[:2, None])[:, 0]
        assert not got.success.any()
        assert (now > last).all()
        last = now


def test_targeted() -> None:
    c = make_case("plain")
    target = (c.box.predict(c.x) + 1) % 4
    got = square(c.box, c.x, target=target, eps=0.6, queries=300)
    assert got.success.any()
    assert torch.equal(got.success, c.box.predict(got.images) == target)


def test_objective() -> None:
    c = make_case("plain")
    got = square(c.box, c.x, objective=ub.channel("conv2", 1) - 0.3, eps=0.4, queries=50)
    score = c.box.read(got.images, "conv2")["conv2"][:, 1].flatten(1).mean(1) - 0.3
    assert torch.equal(got.success, score > 0)


@pytest.mark.parametrize("k", [3, 20])
def test_ctrl_c_keeps_what_was_found(k: int) -> None:
    c = make_case("plain")
    whole = square(c.box, c.x, c.y, eps=0.01, queries=k - 2)
    calls = [0]

    def stop(module: nn.Module, args: Any) -> None:
        calls[0] += 1
        if calls[0] == k:
            raise KeyboardInterrupt

    c.box.model.register_forward_pre_hook(stop)
    got = square(c.box, c.x, c.y, eps=0.01, queries=10 * (k - 2))
    assert got.interrupted
    assert got.queries.tolist()[2] == 1
    if k == 3:  # of longer searches the squares' schedule is another
        assert torch.equal(got.images, whole.images)
    else:
        assert not torch.equal(got.images[0], c.x[0])


def test_the_schedule_is_the_papers() -> None:
    """Half the area after 10, 50, 200, 500, 1000, ... of 10,000 queries, stretched to fewer."""
    assert [square_side(i, 10_000, 0.8, 32, 32) for i in (1, 10, 11, 50, 51, 201, 501, 1001, 2001, 9000)] == [
        29, 29, 20, 20, 14, 10, 7, 5, 4, 1,
    ]  # fmt: skip
    assert [square_side(i, 5_000, 0.8, 32, 32) for i in (5, 6, 25, 26)] == [29, 20, 20, 14]
    assert square_side(1, 10_000, 1.0, 8, 32) == 8
    assert square_side(9, 10, 0.01, 8, 8) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "l1"}, "linf"),
        ({"ball": L1(1.0), "eps": None}, "linf"),
        ({"queries": 0}, "queries"),
        ({"p": 0.0}, "p must"),
        ({"p": 1.5}, "p must"),
        ({"eps": 8.0}, "8/255"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    c = make_case("plain")
    with pytest.raises(InputError, match=said):
        square(c.box, c.x, c.y, **{"eps": 0.1, "queries": 2, **settings})


def test_features_are_refused() -> None:
    model = nn.Linear(3, 4)
    box = ub.Box(model, ub.Features(names=("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match="images"):
        square(box, torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), eps=0.1)
