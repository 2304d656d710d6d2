"""HopSkipJump and the boundary attack: what they must reach, what they may spend, where they start."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import MethodCase, make_case
from unboxed import data, zoo
from unboxed.adversarial.attack_state import AttackState
from unboxed.adversarial.decisions import DecisionOracle, hashed_normal
from unboxed.adversarial.hop_skip_jump import _HopSkipJump
from unboxed.engine.optimize.constraints import unbounded_ball
from unboxed.errors import InputError, UnboxedWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports from places that scipy has left
    import foolbox as fb

hop, walk = ub.adversarial.hop_skip_jump, ub.adversarial.boundary
both = pytest.mark.parametrize("attack", [hop, walk])


class Halves(nn.Module):
    """Two classes on two sides of a plane w.x = b; decisions only, no gradient."""

    def __init__(self, d: int) -> None:
        super().__init__()
        w = torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.w = nn.Parameter(w / w.norm())
        self.b = nn.Parameter(self.w.detach().sum() * 0.5 + 0.1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) @ self.w > self.b).to(x.dtype)
        return torch.stack([1 - side, side], 1)


def halves(n: int = 6) -> tuple[MethodCase, Tensor]:
    """A case of images (1, 5, 6) near the middle, and the distance (N,) of each from the plane, in L2."""
    model = Halves(30)
    box = ub.Box(model, ub.Pixels((1, 5, 6)), outputs="logits")
    x = 0.5 + 0.05 * torch.randn(n, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = (x.flatten(1) @ model.w - model.b).detach()
    return MethodCase(box, x, (gap > 0).long()), gap.abs()


@pytest.mark.parametrize(("attack", "norm", "within"), [(hop, "l2", 1.06), (hop, "linf", 1.15), (walk, "l2", 1.25)])
def test_reaches_the_distance_of_a_linear_boundary(attack: Any, norm: str, within: float) -> None:
    """Without a gradient, to within some percent of the closed form |w.x - b| / |w| of the dual norm, never nearer."""
    c, far = halves()
    far = far if norm == "l2" else far / c.box.model.w.detach().abs().sum()
    more = {"initial_num_evals": 30, "queries": 1000} if attack is hop else {"queries": 500}
    made = attack(c.box, c.x, c.y, norm=norm, **more)
    assert made.success.all()
    assert (made.distance >= far * (1 - 1e-9)).all()
    assert (made.distance <= far * within).all()
    assert (c.box.predict(made.images) != c.y).all()


@both
@pytest.mark.parametrize("queries", [2, 3, 20, 90])
def test_never_more_than_the_budget(attack: Any, queries: int) -> None:
    """And as many as the model was really asked."""
    c, _ = halves(1)
    seen = list[int]()
    c.box.model.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    made = attack(c.box, c.x, c.y, queries=queries)
    assert made.queries.tolist() == [sum(seen)]
    assert max(0.5 * queries, 1) <= sum(seen) <= queries


@both
@pytest.mark.parametrize("queries", [12, 34])
def test_each_row_has_its_own_budget(attack: Any, queries: int) -> None:
    """Rows spend theirs at different paces, some on the way to a start that others found at once."""
    c, _ = halves()
    more = {"initial_num_evals": 5} if attack is hop else {}
    made = attack(c.box, c.x, c.y, queries=queries, **more)
    assert made.queries.max() <= queries


@both
@pytest.mark.parametrize("model", ["batchnorm_on_batch_statistics", "plain"])
def test_batch_dependent_models_keep_the_budget(attack: Any, model: str) -> None:
    c = make_case(model)
    made = attack(c.box, c.x, c.y, queries=50)
    together = int(c.box.batch_dependent)  # the last look, at all of them as they end
    assert made.queries.max() <= 50 + together


@both
def test_finished_rows_are_dropped(attack: Any) -> None:
    c, far = halves()
    whole = attack(c.box, c.x, c.y, queries=100)
    eps = 1.5 * float(far.median())
    made = attack(c.box, c.x, c.y, queries=100, eps=eps)
    assert (made.queries[made.success] < whole.queries[made.success]).any()
    assert (made.distance[made.success] <= eps).all()
    assert (made.distance[~made.success] == 0).all()
    assert torch.equal(made.images[~made.success], c.x[~made.success])
    on = attack(c.box, c.x, c.y, queries=100, eps=eps, early_stop=False)
    assert torch.equal(on.images[on.success], whole.images[on.success])


@both
def test_initially_misclassified_takes_one_query(attack: Any) -> None:
    c, _ = halves()
    c.y[2] = 1 - c.y[2]
    made = attack(c.box, c.x, c.y, queries=60)
    assert made.initially_misclassified.tolist() == [i == 2 for i in range(6)]
    assert made.queries[2] == 1
    assert torch.equal(made.images[2], c.x[2])


@both
def test_a_target_needs_starting_images(attack: Any) -> None:
    c = make_case("plain")
    with pytest.raises(InputError, match="starts="):
        attack(c.box, c.x, c.y, target=1, queries=50)
    pool = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    made = attack(c.box, c.x, c.y, target=1, starts=pool, queries=80)
    assert made.success.all()
    assert (c.box.predict(made.images) == 1).all()


def test_the_nearest_adversarial_start_is_used() -> None:
    c = make_case("plain", torch.float64)
    pool = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    attempt = AttackState(c.box, c.x[:2], c.y[:2], norm=unbounded_ball("l2"))
    z, rows = DecisionOracle(attempt, 100, 0).find_adversarial_starts(attempt.find_rows_to_attack(), pool)
    for image, row in zip(z, rows.tolist(), strict=True):
        good = pool[c.box.predict(pool) != c.y[row]]
        assert torch.equal(image, good[(good - c.x[row]).flatten(1).norm(dim=1).argmin()])


@both
def test_starts_that_are_not_adversarial_are_warned_of(attack: Any) -> None:
    c, _ = halves()
    with pytest.warns(UnboxedWarning, match="starts"):
        made = attack(c.box, c.x, c.y, starts=c.x[:1], queries=30)
    same = c.y == c.y[0]
    assert not made.success[same].any()
    assert torch.equal(made.images[same], c.x[same])


def test_without_any_start_there_is_a_warning() -> None:
    class Sure(Halves):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2) + 0 * self.b.detach()

    box = ub.Box(Sure(30), ub.Pixels((1, 5, 6)), outputs="logits")
    with pytest.warns(UnboxedWarning, match="random image"):
        made = hop(box, torch.rand(2, 1, 5, 6), 0, queries=40)
    assert not made.success.any()
    assert made.queries.tolist() == [40, 40]


@both
def test_an_interrupted_attack_keeps_its_images(attack: Any) -> None:
    c, _ = halves()
    calls = 0

    def stop(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt

    c.box.model.register_forward_pre_hook(stop)
    made = attack(c.box, c.x, c.y, queries=300)
    assert made.interrupted
    assert made.success.all()
    assert (c.box.predict(made.images) != c.y).all()


@both
def test_features_and_objectives(attack: Any) -> None:
    c = make_case("plain", torch.float64)
    unit = ub.logit(0) - 0.5 * ub.logit(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = attack(c.box, c.x, objective=unit, queries=80)
    assert torch.equal(made.success, unit(c.box.read(made.images, ["logits"])) > 0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    rows = ub.Box(nn.Sequential(nn.Linear(5, 3)), ub.Features(tuple("abcde"), low=(-3,) * 5, high=(3,) * 5))
    x = torch.randn(4, 5).clamp(-2, 2)
    found = attack(rows, x, rows.predict(x), queries=80)
    assert found.success.all()
    assert found.images.abs().max() <= 3


# ---- against what others wrote ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_direction_equals_equation_16(norm: str) -> None:
    c, _ = halves(2)
    z, radius, many = 1 - c.x, torch.tensor([0.5, 0.8]).double(), torch.tensor([9, 14])
    attempt = AttackState(c.box, c.x, c.y, norm=unbounded_ball(norm))
    hopping = _HopSkipJump(DecisionOracle(attempt, 1000, seed=4), 10, 0.0)
    got = hopping.estimate_direction(z, torch.arange(2), radius, many, 3)
    for i in range(2):
        drawn = hopping._sample_directions(i, 3 * 4096, 14, z)[: many[i]]
        near = [(z[i] + radius[i] * u).clamp(0, 1) for u in drawn]
        phi = [1.0 if int(c.box.predict(q[None])) != int(c.y[i]) else -1.0 for q in near]
        assert len(set(phi)) == 2
        mean = sum(phi) / len(phi)
        v = sum((p - mean) * (q - z[i]) / radius[i] for p, q in zip(phi, near, strict=True))
        want = v.sign() if norm == "linf" else v / v.norm()
        assert torch.allclose(got[i], want, atol=1e-12)


def test_memory_for_the_directions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In smaller parts, the same images of each row, and the same answer."""
    c, _ = halves(3)
    monkeypatch.setattr(
        sys.modules[_HopSkipJump.__module__], "MAX_DIRECTION_VALUES_IN_MEMORY", 30 * 8 * 4
    )  # in blocks of 4, for one row at a time
    held = list[int]()
    c.box.model.register_forward_pre_hook(lambda m, args: held.append(len(args[0])))
    whole = hop(c.box, c.x, c.y, queries=120, initial_num_evals=11)
    alone = hop(c.box, c.x[:1], c.y[:1], queries=120, initial_num_evals=11)
    assert whole.success.all()
    assert max(held) <= 32
    assert torch.allclose(whole.images[:1], alone.images, atol=1e-12)


def test_normal_draws() -> None:
    rows = torch.arange(200)
    drawn = hashed_normal(3, rows, 5, 501)
    assert drawn.shape == (200, 501)
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.var()) - 1) < 0.02
    assert abs(float((drawn.abs() < 1).float().mean()) - math.erf(2**-0.5)) < 0.01
    assert torch.equal(hashed_normal(3, rows[7:9], 5, 501), drawn[7:9])
    assert not torch.allclose(hashed_normal(3, rows, 6, 501), drawn)


class Counted(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x)


def peers(attack: Any, n: int = 6) -> tuple[ub.Box, Tensor, Tensor, Tensor, int]:
    """Digits that the model names right, the peer's distances (N,) and how often it asked about each."""
    net, inputs = zoo.load("digits-cnn")
    box = ub.Box(net, inputs)
    x, y = data.digits().first(2 * n)
    right = (box.predict(x) == y).nonzero()[:n, 0]
    x, y = x[right], y[right]
    counted = Counted(net).eval()
    scale = {"mean": float(inputs.mean), "std": float(inputs.std)}
    model = fb.PyTorchModel(counted, bounds=(0, 1), preprocessing=scale)
    before = torch.get_rng_state()
    torch.manual_seed(0), np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = attack.run(model, x, fb.criteria.Misclassification(y))
    torch.set_rng_state(before)
    return box, x, y, (made - x).flatten(1).norm(dim=1), counted.rows // len(x)


@pytest.mark.parametrize(
    ("attack", "peer"),
    [(hop, fb.attacks.HopSkipJumpAttack(steps=2)), (walk, fb.attacks.BoundaryAttack(steps=80))],
)
def test_no_weaker_than_foolbox_at_equal_queries(attack: Any, peer: Any) -> None:
    box, x, y, far, queries = peers(peer)
    made = attack(box, x, y, queries=queries)
    assert made.success.all()
    assert made.distance.median() <= far.median() * 1.02
    assert made.distance.mean() <= far.mean() * 1.02


BAD = [
    {"queries": 0},
    {"queries": 2.5},
    {"norm": "l1"},
    {"eps": -1},
    {"starts": torch.full((2, 1, 4, 4), 0.5)},
    {"seed": 1.5},
]


@both
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: "".join(bad))
def test_bad_settings(attack: Any, bad: dict[str, Any]) -> None:
    c = make_case("plain")
    with pytest.raises(InputError):
        attack(c.box, c.x, c.y, **bad)
