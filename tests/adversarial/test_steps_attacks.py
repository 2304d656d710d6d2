"""FGSM, BIM, PGD and MI-FGSM: who is attacked, what is counted and kept, restarts, the model's own noise, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.adversarial import Adversarial, apgd, auto_attack, bim, fgsm, mi_fgsm, pgd, square
from unboxed.engine.optimize.constraints import L1, L2, Linf
from unboxed.errors import InputError, OutputError, UnboxedWarning

FAMILY: dict[str, Callable[..., Adversarial]] = {"fgsm": fgsm, "bim": bim, "pgd": pgd, "mi_fgsm": mi_fgsm}
every_one = pytest.mark.parametrize("attack", FAMILY.values(), ids=FAMILY.keys())


class Counted(nn.Module):
    """Counts the rows that come by."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        out: Tensor = self.model(x)
        return out


def small(scale: float = 8.0, *more: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), *more, nn.Linear(6 * 36, 4)).double()
    with torch.no_grad():
        model[-1].weight *= scale
        model[-1].bias -= model(torch.rand(99, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()).mean(0)
    return model


@pytest.fixture
def box() -> ub.Box:
    return ub.Box(Counted(small()), ub.Pixels((1, 8, 8)))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def y(box: ub.Box, x: Tensor) -> Tensor:
    """Of the model's own answers, but for rows 3 and 8."""
    y = box.predict(x)
    y[[3, 8]] = (y[[3, 8]] + 1) % 4
    return y


# ---- who is attacked, what is counted --------------------------------------------------------------------------------


@every_one
def test_initially_misclassified_is_returned_unchanged(
    attack: Callable[..., Adversarial], box: ub.Box, x: Tensor, y: Tensor
) -> None:
    made = attack(box, x, y, eps=0.02)
    assert made.initially_misclassified.nonzero()[:, 0].tolist() == [3, 8]
    assert torch.equal(made.images[made.initially_misclassified], x[made.initially_misclassified])
    assert made.success[made.initially_misclassified].all()
    assert (made.distance[made.initially_misclassified] == 0).all()
    assert (made.queries[made.initially_misclassified] == 1).all()
    goes = attack(box, x, y, eps=0.02, early_stop=False)
    assert torch.equal(goes.initially_misclassified, made.initially_misclassified)
    assert (goes.distance > 0).all()
    assert goes.success[made.initially_misclassified].all()


@every_one
@pytest.mark.parametrize(("early_stop", "more"), [(True, {}), (False, {"batch_size": 5}), (True, {"target": 2})])
def test_queries_are_forward_passes(
    attack: Callable[..., Adversarial], box: ub.Box, x: Tensor, y: Tensor, early_stop: bool, more: dict[str, Any]
) -> None:
    box.model.rows = 0
    made = attack(box, x, y, eps=0.02, early_stop=early_stop, **more)
    assert int(made.queries.sum()) == box.model.rows


def test_queries_of_restarts(box: ub.Box, x: Tensor, y: Tensor) -> None:
    box.model.rows = 0
    made = pgd(box, x, y, eps=0.015, steps=3, restarts=4)
    assert int(made.queries.sum()) == box.model.rows
    assert (made.queries[~made.success] == 1 + 4 * 4).all()
    assert (~made.success).any()


@every_one
def test_success_is_the_models_prediction(
    attack: Callable[..., Adversarial], box: ub.Box, x: Tensor, y: Tensor
) -> None:
    for more in ({}, {"early_stop": False}):
        made = attack(box, x, y, eps=0.03, **more)
        assert torch.equal(made.success, box.predict(made.images) != y)
        hit = attack(box, x, target=(y + 1) % 4, eps=0.05, **more)
        assert torch.equal(hit.success, box.predict(hit.images) == (y + 1) % 4)
        assert hit.success.any()
        assert made.norm == "linf"


# ---- restarts and what is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_restarts_never_fool_fewer(box: ub.Box, x: Tensor, y: Tensor, early_stop: bool, norm: str) -> None:
    eps = {"linf": 0.015, "l2": 0.1, "l1": 0.5}[norm]
    before = None
    for restarts in (1, 2, 5):
        made = pgd(box, x, y, eps=eps, norm=norm, steps=2, restarts=restarts, early_stop=early_stop)
        if before is not None:
            assert (made.success | ~before.success).all()
            same = before.success & torch.tensor(early_stop)
            assert torch.equal(made.images[same], before.images[same])
            assert (loss_of(box, made, y) >= loss_of(box, before, y) - 1e-12)[made.success == before.success].all()
        before = made


def loss_of(box: ub.Box, made: Adversarial, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(box(made.images), y, reduction="none")


def test_without_early_stop_the_last_adversarial_image_is_returned() -> None:
    """A model of one value that fools between .4 and .6, and nowhere else: a long step goes past it."""

    class Bump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)[:, :1]
            wrong = 2 * v - 20 * (v - 0.6).clamp_min(0)  # above .8 from .4 on; falls from .6
            return torch.cat([torch.full_like(v, 0.8), wrong], 1)

    box = ub.Box(Bump(), ub.Pixels((1, 1, 1)), outputs="logits")
    x = torch.tensor([0.25]).view(1, 1, 1, 1)
    made = bim(box, x, 0, eps=0.5, steps=2, step=0.2, early_stop=False)  # .45 fools, .65 does not
    assert made.success.all()
    assert made.images.item() == pytest.approx(0.45)
    far = bim(box, x, 0, eps=0.5, steps=1, step=0.4, early_stop=False)
    assert not far.success.any()
    assert far.images.item() == pytest.approx(0.65)


def test_a_failure_returns_its_last_image(box: ub.Box, x: Tensor, y: Tensor) -> None:
    one, many = (pgd(box, x, y, eps=0.005, steps=1, step=1e-4, restarts=r, seed=3) for r in (1, 6))
    left = ~many.success
    assert left.sum() > 5
    assert (loss_of(box, many, y) > loss_of(box, one, y))[left].any()
    assert (loss_of(box, many, y) >= loss_of(box, one, y))[left].all()


def test_batches_change_nothing(box: ub.Box, x: Tensor, y: Tensor) -> None:
    for norm, eps in (("linf", 0.02), ("l2", 0.15), ("l1", 0.7)):
        whole = pgd(box, x, y, eps=eps, norm=norm, steps=4, restarts=3)
        split = pgd(box, x, y, eps=eps, norm=norm, steps=4, restarts=3, batch_size=1)
        assert torch.allclose(whole.images, split.images, atol=1e-12)
        assert torch.equal(whole.queries, split.queries)


# ---- losses, objectives, balls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_losses(box: ub.Box, x: Tensor, y: Tensor, loss: str) -> None:
    made = pgd(box, x, y, eps=0.05, loss=loss)
    assert made.success.float().mean() > 0.8
    assert torch.equal(made.success, box.predict(made.images) != y)


def test_each_loss_is_maximized_best_by_itself(box: ub.Box, x: Tensor) -> None:
    y = box.predict(x)
    plan: dict[str, Any] = {"eps": 0.05, "norm": "l2", "steps": 1, "random_start": False, "early_stop": False}
    ways = [pgd(box, x, y, loss=loss, **plan).images for loss in ("ce", "margin", "dlr")]
    assert not any(torch.allclose(a, b, atol=1e-6) for a, b in ((ways[0], ways[1]), (ways[1], ways[2])))


def test_objective_above_zero(box: ub.Box, x: Tensor) -> None:
    before = box(x)[:, 1]
    made = bim(box, x, objective=ub.logit(1) - (before + 0.5), eps=0.1, steps=20)
    after = box(made.images)[:, 1]
    assert made.success.any()
    assert torch.equal(made.success, after > before + 0.5)
    assert (made.queries[made.success] < 21).all()


def test_a_ball_in_place_of_eps_and_norm(box: ub.Box, x: Tensor, y: Tensor) -> None:
    for norm, ball in (("linf", Linf(0.04)), ("l2", L2(0.4)), ("l1", L1(1.5))):
        a, b = pgd(box, x, y, eps=ball.eps, norm=norm, steps=3), pgd(box, x, y, ball=ball, steps=3)
        assert torch.equal(a.images, b.images)
        assert a.norm == b.norm == norm


class OwnBall:
    """A caller's own ball: an attack knows no more of it than its methods."""

    def __init__(self, eps: float) -> None:
        self.eps, linf = eps, Linf(eps)
        self.sample, self.steepest_direction = linf.sample, linf.steepest_direction
        self.project, self.distance = linf.project, linf.distance


def test_an_own_ball_is_taken_where_its_methods_suffice(box: ub.Box, x: Tensor, y: Tensor) -> None:
    for attack in (pgd, partial(apgd, steps=3)):
        same = attack(box, x, y, ball=OwnBall(0.04)).images == attack(box, x, y, eps=0.04).images
        assert same.all()
    for attack in (square, auto_attack):
        for ball in (OwnBall(0.04), L1(0.5)):
            with pytest.raises(InputError, match=f'norm="linf" or "l2".* got {type(ball).__name__}'):
                attack(box, x, y, ball=ball)


def test_starts_are_uniform_in_the_l1_ball() -> None:
    """Of D values, |d|_1 / eps has the distribution u ** (1 / D), and each value the same one, symmetric."""
    x = torch.zeros(4000, 3, dtype=torch.float64)
    d = L1(2.0).sample(x, seed=0)
    r = d.abs().sum(1) / 2
    assert r.max() <= 1
    assert (r**3).mean().item() == pytest.approx(0.5, abs=0.02)
    assert (r**3).std().item() == pytest.approx(12**-0.5, abs=0.02)
    share = d.abs() / d.abs().sum(1, keepdim=True)  # uniform on the simplex: mean 1/3, variance 1/18
    assert share.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert share.var(0).tolist() == pytest.approx([1 / 18] * 3, abs=0.005)
    assert (d > 0).double().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.03)


def test_l1_steps_move_few_values(box: ub.Box, x: Tensor, y: Tensor) -> None:
    made = fgsm(box, x, y, eps=0.5, norm="l1", early_stop=False)
    assert ((made.images != x).flatten(1).sum(1) == 1).all()  # a hundredth of 64, rounded up
    held = fgsm(box, torch.ones_like(x), y, eps=0.5, norm="l1", early_stop=False)
    assert (held.distance > 0).all()  # those that can't move up are passed over for one that can move down


# ---- linear models, where the least eps is known ---------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_is_fooled_exactly_at_its_margin(norm: str, dual: int) -> None:
    """|w.x + b| / |w|_dual is the distance to the plane: 1 % above it all fall, 1 % below none."""
    w = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w, -w]))
        model[1].bias.copy_(torch.stack([-w.sum() / 2, w.sum() / 2]))
    box = ub.Box(model, ub.Pixels((1, 8, 8)), outputs="logits")
    x = 0.5 + 0.02 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, least = box.predict(x), ((x.flatten(1) - 0.5) @ w).abs() / w.norm(dual)
    for i in range(2):
        for attack in (fgsm, bim, mi_fgsm, pgd):
            for factor in (0.99, 1.01):
                eps = factor * float(least[i])
                more = {"steps": 60, "step": eps / 8} if attack is pgd else {}  # from a random point it is a long way
                made = attack(box, x[i : i + 1], y[i : i + 1], eps=eps, norm=norm, **more)
                assert bool(made.success) == (factor > 1), attack


# ---- the model's own noise -------------------------------------------------------------------------------------------


class Drops(nn.Module):
    """Dropout that is never off."""

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, 0.5)


class Gates(nn.Module):
    """Stochastic depth that is never off: one gate per example, as timm writes it."""

    def forward(self, h: Tensor) -> Tensor:
        return h + h * h.new_empty(len(h), *[1] * (h.ndim - 1)).bernoulli_(0.5)


@pytest.mark.parametrize("noise", [Drops, Gates])
def test_eot_averages_over_the_models_noise(x: Tensor, noise: type[nn.Module]) -> None:
    """One FGSM step against the gradient of the mean loss over the very same draws."""
    box = ub.Box(small(2.0, noise()), ub.Pixels((1, 8, 8)))
    assert box.stochastic
    y, grad = box.predict(x), torch.zeros_like(x)
    for draw in range(5):
        a = x.clone().requires_grad_()
        with box.isolated(seed=draw):
            z = box.forward(a, {"logits"})["logits"]
            grad += torch.autograd.grad(nn.functional.cross_entropy(z, y, reduction="sum"), a)[0] / 5
    made = fgsm(box, x, y, eps=0.1, norm="l2", eot=5, early_stop=False)
    want = x + 0.1 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(made.images, want.clamp(0, 1), atol=1e-9)
    assert (made.queries == (15 if box.batch_dependent else 10)).all()  # then evaluated once more, all together
    assert not torch.allclose(made.images, fgsm(box, x, y, eps=0.1, norm="l2", early_stop=False).images, atol=1e-4)


def test_eot_of_a_deterministic_model_costs_nothing(box: ub.Box, x: Tensor, y: Tensor) -> None:
    one, five = pgd(box, x, y, eps=0.03), pgd(box, x, y, eps=0.03, eot=5)
    assert torch.equal(one.images, five.images)
    assert torch.equal(one.queries, five.queries)


# ---- rows that change one another ------------------------------------------------------------------------------------


class BatchDependent(nn.Module):
    """A row is taken for class 1 by its own value, less what the others have."""

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1)[:, :1]
        wrong = v - 0.3 - 0.5 * (v.sum() - v)
        return torch.cat([torch.zeros_like(v), wrong], 1)


def test_batch_dependent_rows_are_evaluated_together() -> None:
    """Row 0 fools the model after two steps, and stays; then row 1 comes so far that row 0 no longer does."""
    box = ub.Box(BatchDependent().double(), ub.Pixels((1, 1, 1)), outputs="logits")
    assert box.batch_dependent
    x = torch.tensor([0.35, 0.2]).view(2, 1, 1, 1)
    made = bim(box, x, 0, eps=0.5, step=0.1, steps=6)
    assert made.images.flatten().tolist() == pytest.approx([0.55, 0.6])
    assert torch.equal(made.success, box.predict(made.images) != 0)
    assert made.success.tolist() == [False, True]
    assert made.queries.tolist() == [6, 6]  # four steps, the look after them, and one at the end


def test_initially_misclassified_rows_stay_in_a_batch_dependent_batch() -> None:
    box = ub.Box(BatchDependent(), ub.Pixels((1, 1, 1)), outputs="logits")
    x = torch.tensor([0.45, 0.2]).view(2, 1, 1, 1)
    made = pgd(box, x, 0, eps=0.3, restarts=3)
    assert made.initially_misclassified.tolist() == [True, False]
    assert made.images[0] == x[0]


# ---- models without a slope, bad input -------------------------------------------------------------------------------


class Cut(nn.Module):
    """Steps, flat between them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.round().flatten(1)[:, :3]


@every_one
def test_a_zero_gradient_is_warned_of(attack: Callable[..., Adversarial], x: Tensor) -> None:
    box = ub.Box(Cut(), ub.Pixels((1, 8, 8)), outputs="logits")
    with pytest.warns(UnboxedWarning, match=r"exactly zero \(or NaN\) for \d+ of \d+ examples.*square.* boundary"):
        made = attack(box, x, box.predict(x), eps=0.01)
    assert not made.success.any()


def test_the_warning_points_at_the_caller(x: Tensor) -> None:
    box = ub.Box(Cut(), ub.Pixels((1, 8, 8)), outputs="logits")
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        bim(box, x, box.predict(x), eps=0.01)
    assert [w.filename for w in met] == [__file__]


def test_a_gradient_gives_no_warning(box: ub.Box, x: Tensor, y: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(box, x, y, eps=0.02)


def test_a_model_without_gradient_names_gradient_free_attacks(x: Tensor) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :3]

    box = ub.Box(Detached(), ub.Pixels((1, 8, 8)), outputs="logits")
    with pytest.raises(OutputError, match="square, hop_skip_jump and boundary"):
        pgd(box, x, box.predict(x), eps=0.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda box, x: fgsm(box, x, 0), "eps"),
        (lambda box, x: bim(box, x, 0, eps=-0.1), "above 0"),
        (lambda box, x: pgd(box, x, 0, eps=8), "8/255"),
        (lambda box, x: pgd(box, x, 0, eps=9.0, norm="l2"), "more than 8 apart"),
        (lambda box, x: mi_fgsm(box, x, 0, eps=0.1, decay=-1), "decay"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, restarts=0), "restarts"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, restarts=2, random_start=False), "random_start"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, steps="many"), "steps"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, step=0), "step"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, loss="hinge"), "loss must be"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, eot=0), "eot"),
        (lambda box, x: pgd(box, x, 4, eps=0.1), "classes 0 to 3"),
        (lambda box, x: pgd(box, x, target=7, eps=0.1), "classes 0 to 3"),
        (lambda box, x: pgd(box, x, 0, eps=0.1, norm="l0"), "norm must be"),
        (lambda box, x: pgd(box, x, 0, target=1, objective=ub.logit(1), eps=0.1), "not both"),
    ],
)
def test_bad_settings_are_refused(box: ub.Box, x: Tensor, call: Callable[..., object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(box, x)


@pytest.mark.parametrize("card", [c for c in ub.cards() if c.returns == "adversarial"], ids=lambda c: c.key)
def test_results_say_what_a_success_is(card) -> None:
    """An objective that holds from the start is no misclassification."""
    box, x = ub.load("zoo:digits-cnn"), ub.data.digits("test").first(2)[0]
    eps = {} if card.minimal else {"eps": 0.1}
    predicted = box.predict(x)
    met = card.method(box, x, objective=ub.logit(predicted) - ub.logit((predicted + 1) % 10), **eps)
    assert met.initially_misclassified.all()
    assert "2 of 2 meet the objective, objective already met for 2 of them" in repr(met)
    assert "misclassified" not in repr(met)
    starts = {"starts": x} if "starts" in card.settings else {}
    target = card.method(box, x, target=predicted, **eps, **starts)
    assert "2 of 2 classified as the target, 2 of them initially" in repr(target)
    wrong = card.method(box, x, (predicted + 1) % 10, **eps)
    assert "2 of 2 fooled, 2 of them initially misclassified" in repr(wrong)
