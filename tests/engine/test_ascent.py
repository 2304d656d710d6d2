"""The climbing loop: rows that are done leave, step rules keep their state, frames, interruption."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import unboxed as ub
from unboxed.engine.gradients.score import gradients
from unboxed.engine.optimize.constraints import L2, Linf
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import FourierCanvas, RawCanvas
from unboxed.errors import InputError, OutputError, UnboxedWarning
from unboxed.objectives import layer_objective, logit, logprob, loss, margin


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 4)).double()
    with torch.no_grad():
        model[3].weight *= 8
    return ub.Box(model, ub.Pixels((1, 8, 8)))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_rows_that_leave_change_nothing_for_those_that_stay(box: ub.Box, x: Tensor) -> None:
    """With Adam, whose state must follow its rows: each row ends where it ends alone."""
    goal = torch.tensor([0, 1, 2, 3, 0])
    plan = OptimizationConfig(60, partial(Adam, lr=0.01), stop_when=logprob(goal) + 0.5, frame_every=1)
    together = optimize(box, logit(goal), RawCanvas(x), plan)
    assert together.finished.all()
    assert len(together.steps.unique()) > 1
    for i in range(5):
        own = slice(i, i + 1)
        plan = OptimizationConfig(60, partial(Adam, lr=0.01), stop_when=logprob(goal[own]) + 0.5)
        alone = optimize(box, logit(goal[own]), RawCanvas(x[own]), plan)
        assert torch.allclose(alone.input[0], together.input[i], atol=1e-9)
        assert alone.steps[0] == together.steps[i]


def test_the_step_rule_is_torchs_own(box: ub.Box, x: Tensor) -> None:
    """The loop against ten literal lines of torch."""
    p = x.clone().requires_grad_()
    adam = Adam([p], lr=0.02)
    for _ in range(7):
        adam.zero_grad()
        (-box.model(p)[:, 2].sum()).backward()
        adam.step()
    climb = optimize(box, logit(2), RawCanvas(x), OptimizationConfig(7, partial(Adam, lr=0.02)))
    assert torch.allclose(climb.input, p.detach(), atol=1e-12)


def test_the_fourier_canvas_starts_gray_and_its_score_rises(box: ub.Box, x: Tensor) -> None:
    climb = optimize(
        box, logit(1), FourierCanvas.noise(x, seed=0), OptimizationConfig(30, partial(Adam, lr=0.05), frame_every=10)
    )
    assert climb.frames is not None
    assert climb.frames.shape == (4, 5, 1, 8, 8)
    assert climb.frames[0].std() < 0.1
    assert (climb.history[-1] > climb.history[0]).all()
    assert (climb.input > 0).all()
    assert (climb.input < 1).all()


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.8)])
def test_balls(ball: Linf | L2, x: Tensor) -> None:
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    back = ball.project(far, x)
    assert (ball.distance(back, x) <= ball.eps * (1 + 1e-12)).all()
    assert torch.allclose(ball.project(back, x), back)
    assert torch.allclose(ball.project(x + 0.01, x), x + 0.01)
    start = ball.sample(x, seed=0)
    assert (ball.distance(start, x) <= ball.eps * (1 + 1e-12)).all()
    assert torch.equal(start[3:], torch.cat([ball.sample(x[:4], 0), ball.sample(x, 0)[4:]])[3:])
    assert (ball.steepest_direction(torch.zeros_like(x)) == 0).all()


def test_pgd_against_a_literal_twin(box: ub.Box, x: Tensor) -> None:
    """Madry et al. 2018: x <- clip(x + step * sign(g)), from x itself."""
    y, eps, step = box.predict(x), 0.05, 0.01
    a = x.clone()
    for _ in range(10):
        a.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(box.model(a), y, reduction="sum"), a)
        a = torch.minimum(torch.maximum(a.detach() + step * g.sign(), x - eps), x + eps).clamp(0, 1)
    ours = ub.adversarial.pgd(box, x, y, eps=eps, steps=10, step=step, random_start=False, early_stop=False)
    assert torch.allclose(ours.images, a, atol=1e-12)
    assert torch.equal(ours.success, box.predict(a) != y)
    assert (ours.queries == 11).all()


def test_pgd_stops_at_the_first_fooling_image_and_counts(box: ub.Box, x: Tensor) -> None:
    y = box.predict(x)
    stops = ub.adversarial.pgd(box, x, y, eps=0.3, steps=30, random_start=False)
    goes = ub.adversarial.pgd(box, x, y, eps=0.3, steps=30, random_start=False, early_stop=False)
    assert stops.success.all()
    assert (stops.queries < goes.queries).all()
    left = [box.probs(a.images).gather(1, y[:, None]) for a in (goes, stops)]
    assert (left[0] < left[1]).all()


def test_targeted_pgd_and_any_objective(box: ub.Box, x: Tensor) -> None:
    goal = (box.predict(x) + 1) % 4
    hit = ub.adversarial.pgd(box, x, target=goal, eps=0.5, steps=40)
    assert hit.success.all()
    assert torch.equal(box.predict(hit.images), goal)
    quiet = ub.adversarial.pgd(box, x, objective=-logit(2) + box(x)[:, 2], eps=0.05, steps=5, random_start=False)
    assert quiet.success.all()
    assert (box(quiet.images)[:, 2] < box(x)[:, 2]).all()


def test_objectives_are_algebra_and_follow_rows(box: ub.Box, x: Tensor) -> None:
    y = torch.tensor([0, 1, 2, 3, 0])
    z = box(x)
    k = torch.arange(5.0)
    mixed = 2 * loss(y) - margin(y) * k + logit(1) * logit(2) + 3.0 - k
    want = 2 * nn.functional.cross_entropy(z, y, reduction="none")
    right = z.gather(1, y[:, None])[:, 0]
    want = want - k * (z.scatter(1, y[:, None], -torch.inf).amax(1) - right) + z[:, 1] * z[:, 2] + 3 - k
    assert torch.allclose(mixed({"logits": z}), want)
    index = torch.tensor([True, False, True, False, True])
    assert torch.allclose(mixed.rows(index)({"logits": z[index]}), want[index])


def test_morph_reaches_the_class_and_stops_there(box: ub.Box, x: Tensor) -> None:
    goal = (box.predict(x) + 1) % 4
    m = ub.synthesis.morph(box, x, goal, confidence=0.6)
    assert m.confidence_reached.all()
    assert torch.equal(m.frames[0], x)
    p = box.probs(m.images).gather(1, goal[:, None])[:, 0]
    assert (p > 0.6).all()
    before = m.frames[int(m.steps[0]) - 1, 0][None]
    assert box.probs(before)[0, goal[0]] <= 0.6  # it stopped at the first such frame


def test_morph_on_a_clamped_model_never_divides_zero_by_zero() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())
    with torch.no_grad():
        model[1].bias[:] = torch.tensor([5.0, -5.0, -5.0])  # classes 1 and 2 are shut for every input
    box = ub.Box(model, ub.Pixels((1, 8, 8)))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    m = ub.synthesis.morph(box, x, 1, steps=5)
    assert m.before_clamp.all()
    assert m.frames.isfinite().all()
    assert torch.allclose(m.initial_gradient, model[1].weight[1].view(1, 1, 8, 8).expand_as(x))
    with pytest.warns(UnboxedWarning, match="clamped at 0 by a final ReLU for 4 of 4"):
        g = ub.attribution.gradient(box, x, 1)
    assert torch.allclose(g, m.initial_gradient)


def test_a_gradient_that_is_dead_for_another_reason_is_reported() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].bias[:] = -100
    box = ub.Box(model, ub.Pixels((1, 8, 8)))
    with pytest.warns(UnboxedWarning, match="exactly zero for 2 of 2"):
        g = ub.attribution.gradient(box, torch.rand(2, 1, 8, 8), 0)
    assert (g == 0).all()
    m = ub.synthesis.morph(box, torch.rand(2, 1, 8, 8), 1, steps=3)
    assert m.frames.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda box, x: ub.adversarial.pgd(box, x, 0), "eps"),
        (lambda box, x: ub.adversarial.pgd(box, x, 0, eps=-1), "above 0"),
        (lambda box, x: ub.adversarial.pgd(box, x, 0, eps=0.1, norm="l7"), "norm must be"),
        (lambda box, x: ub.adversarial.pgd(box, x, 0, eps=8), r"for 8 gray levels give eps=8/255"),
        (lambda box, x: ub.adversarial.pgd(box, x, 0, eps=1e30), r"got eps=1e\+30$"),
        (lambda box, x: ub.adversarial.pgd(box, x, eps=0.1), "correct classes"),
        (lambda box, x: ub.adversarial.pgd(box, x, 9, eps=0.1), "classes 0 to 3"),
        (lambda box, x: ub.adversarial.pgd(box, x, torch.tensor([1, 2]), eps=0.1), "one for each of 5"),
        (lambda box, x: ub.synthesis.morph(box, x, 1, confidence=1.5), "between 0 and 1"),
        (lambda box, x: ub.synthesis.class_image(box, recipe="pretty"), "recipe must be"),
        (lambda box, x: ub.synthesis.class_image(box, 7), "classes 0 to 3"),
        (lambda box, x: ub.attribution.gradient(box, x, 1.5), "a class must be an int"),
        (lambda box, x: ub.attribution.gradient(box, x, 2**70), "got 1180591620717411303424"),
        (lambda box, x: ub.attribution.gradient(box, x, []), "got none"),
        (lambda box, x: ub.synthesis.class_image(box, []), "got none"),
        (lambda box, x: ub.attribution.gradient(box, x, -1), "classes 0 to 3"),
        (lambda box, x: ub.attribution.gradient(box, x, 1, batch_size=0), "batch_size"),
    ],
)
def test_bad_settings_are_refused(box: ub.Box, x: Tensor, call: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(box, x)  # type: ignore[operator]


def test_regression_has_no_class_to_become(x: Tensor) -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double(), ub.Pixels((1, 8, 8)), outputs="regression")
    with pytest.raises(OutputError, match="regression"):
        ub.synthesis.morph(box, x, 1)
    with pytest.raises(OutputError, match="regression"):
        ub.synthesis.class_image(box)
    with pytest.raises(OutputError, match="regression"):
        ub.adversarial.pgd(box, x, target=1, eps=0.1)


# ---- on a device that is slow to ask ---------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unboxed.engine.optimize.loop.waits_for_device_on_read", lambda device: True)


@pytest.mark.parametrize("keep_going", [False, True])
def test_rows_end_where_they_do_on_a_quick_one(
    box: ub.Box, x: Tensor, keep_going: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave later, and are not moved meanwhile."""
    goal = torch.tensor([0, 1, 2, 3, 0])
    plan = OptimizationConfig(
        60, partial(Adam, lr=0.01), stop_when=logprob(goal) + 0.5, frame_every=1, continue_finished=keep_going
    )
    quick = optimize(box, logit(goal), RawCanvas(x), plan)
    monkeypatch.setattr("unboxed.engine.optimize.loop.waits_for_device_on_read", lambda device: True)
    slow = optimize(box, logit(goal), RawCanvas(x), plan)
    assert torch.equal(slow.input, quick.input)
    assert torch.equal(slow.steps, quick.steps)
    assert torch.equal(slow.finished, quick.finished)
    assert torch.allclose(slow.history[: len(quick.history)], quick.history, atol=1e-12)


def gated() -> tuple[ub.Box, Tensor]:
    """Logits behind a ReLU that is inactive for row 0 at once, and never for row 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]]))
        model[1].bias.copy_(torch.tensor([-2.0, 0]))
    x = torch.tensor([0.0, 0.9])[:, None, None, None].expand(2, 1, 2, 2)
    return ub.Box(model, ub.Pixels((1, 2, 2)), outputs="logits"), x


def test_stuck_rows_are_bypassed_between_syncs_and_no_others(slow: None) -> None:
    """Whether a row is taken before its clamp depends on no other row of the batch."""
    box, x = gated()
    plan = OptimizationConfig(6, partial(SGD, lr=0.05))
    both = optimize(box, logit(0), RawCanvas(x), plan)
    assert both.before_clamp.tolist() == [True, False]
    assert (both.input[0] > x[0] + 0.2).all()  # it was opened at each step, not at the meeting alone
    falls = optimize(
        box, -logit(0), RawCanvas(x), OptimizationConfig(6, partial(SGD, lr=0.3))
    )  # row 1 falls shut after the meeting
    alone = optimize(box, -logit(0), RawCanvas(x[1:]), OptimizationConfig(6, partial(SGD, lr=0.3)))
    assert falls.score[1] == 0
    assert torch.equal(falls.input[1], alone.input[0])
    assert not falls.before_clamp[1]


def test_the_prior_is_climbed_and_not_scored(box: ub.Box, x: Tensor) -> None:
    """Against literal lines; the sum of gradients is the score's alone."""
    p, pulled = x.clone(), torch.zeros_like(x)
    for _ in range(4):
        p.requires_grad_()
        (own,) = torch.autograd.grad(box.model(p)[:, 1].sum(), p)
        (prior,) = torch.autograd.grad(-0.3 * p.pow(2).sum(), p)
        pulled += own.abs()
        p = (p + 0.1 * (own + prior)).detach()
    small = layer_objective("input", lambda x: -x.pow(2).flatten(1).sum(1), "small")
    climb = optimize(
        box, logit(1), RawCanvas(x), OptimizationConfig(4, partial(SGD, lr=0.1), prior=0.3 * small, sum_abs_grads=True)
    )
    assert torch.allclose(climb.input, p, atol=1e-12)
    assert torch.allclose(climb.score, box.model(p)[:, 1])
    assert climb.abs_grad_sum is not None
    assert torch.allclose(climb.abs_grad_sum, pulled)


def test_the_first_gradient_is_the_images_own(box: ub.Box, x: Tensor) -> None:
    """On whatever canvas, shaped like the image."""
    canvas = FourierCanvas.noise(x, 0)
    climb = optimize(box, logit(1), canvas, OptimizationConfig(2, partial(Adam, lr=0.05)))
    want = gradients(box, logit(1), canvas().detach(), relu_bypass="no").map
    assert torch.allclose(climb.initial_grad, want)
