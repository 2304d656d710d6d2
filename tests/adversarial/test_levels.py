"""bits=8: the grid in a ball, the search on models where the best file is known, and the file itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unboxed as ub
from as_png import decoded
from unboxed.adversarial.attack_state import AttackState
from unboxed.adversarial.level_grid import bisect_smallest_sufficient_t, level_grid_in_ball
from unboxed.adversarial.quantization import quantize_images
from unboxed.adversarial.result import Adversarial
from unboxed.engine.optimize.constraints import L1, L2, Linf, NormBall, unbounded_ball
from unboxed.errors import InputError, UnboxedWarning
from unboxed.inputs.image_files import read_image
from unboxed.plots.png_files import save_png

pytestmark = pytest.mark.filterwarnings("ignore:eps=.* is less than one of")
SHAPE = (3, 4, 4)
SIZES = {"linf": lambda d: d.abs().amax(1), "l2": lambda d: d.norm(dim=1), "l1": lambda d: d.abs().sum(1)}


class Linear(nn.Module):
    """Two classes; w.x + b is how far the second is ahead."""

    def __init__(self, seed: int, shape: tuple[int, ...] = SHAPE, far: float = 0.03) -> None:
        super().__init__()
        w = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(seed))
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(-0.5 * w.sum() - far * w.norm())

    def forward(self, x: Tensor) -> Tensor:
        ahead = x.flatten(1) @ self.w + self.b
        return torch.stack([-ahead / 2, ahead / 2], 1)


def files(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    """Originals near gray, on the grid, of class 0."""
    levels = torch.randint(120, 136, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


def on_the_boundary(box: ub.Box, x: Tensor, norm: str, beyond: float = 1e-4) -> AttackState:
    """What a perfect minimal attack on a linear model finds: the closed form, by the dual norm."""
    attempt = AttackState(box, x, 0, norm=unbounded_ball(norm))
    rows = attempt.find_rows_to_attack()
    w = box.model.w.detach()
    need = (-(x.flatten(1) @ w + box.model.b.detach()) * (1 + beyond))[:, None]  # (N, 1)
    first = torch.zeros_like(w)
    first[w.abs().argmax()] = w[w.abs().argmax()].sign()
    step = {"linf": w.sign() / w.abs().sum(), "l2": w / (w @ w), "l1": first / w.abs().max()}[norm]
    z = (x.flatten(1) + need * step).view_as(x)
    attempt.update_nearest(z[rows], rows, torch.ones_like(rows, dtype=torch.bool))
    return attempt


def result(attempt: AttackState, ball: NormBall | None = None, gradients: bool = True) -> Adversarial:
    quantize_images(attempt, 8, ball, use_gradients=gradients)
    made = attempt.to_result()
    loaded = decoded(made.images)
    assert torch.equal(loaded, made.images)
    assert torch.equal(made.success, attempt.box.predict(loaded) == 1)
    return made


def knapsack(box: ub.Box, x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Bounds of the least distance of any file that fools a linear model: the greedy purchase of levels, one by one.

    Before its last one nothing as near fools; the last may be too much for what was missing, but not in L-inf and L1.
    """
    w, low, high = box.model.w.detach().double() / 255, [], []
    for row in x.flatten(1).double():
        ahead = float(row @ (w * 255) + box.model.b.detach().double())
        taken = torch.zeros_like(w)
        while ahead <= 0:
            before = taken.clone()
            worth = {"l2": w.abs() / (2 * taken + 1), "l1": w.abs(), "linf": w.abs() - 1e3 * taken}[norm]
            i = worth.argmax()
            taken[i] += 1
            ahead += float(w[i].abs())
        high.append(SIZES[norm](taken[None])[0] / 255)
        low.append(SIZES[norm](before[None])[0] / 255 if norm == "l2" else high[-1])
    return torch.stack(low), torch.stack(high)


@pytest.mark.parametrize("far", [0.002, 0.03])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_on_a_linear_model_the_image_is_the_nearest(norm: str, far: float) -> None:
    x = files(12)
    box = ub.Box(Linear(0, far=far), ub.Pixels(SHAPE))
    low, high = knapsack(box, x[box.predict(x) == 0], norm)
    made = result(on_the_boundary(box, x, norm))
    own = made.distance[~made.initially_misclassified].double()
    assert made.success.all()
    assert len(own) > 6
    assert (own >= low - 1e-6).all()
    assert (own <= (1.02 if norm == "l2" else 1.0) * high + 1e-6).all()


def test_brute_force_is_no_nearer() -> None:
    """Every file within three levels of an image of six values, where rounding noise is worst."""
    shape, moves = (1, 2, 3), torch.tensor(list(itertools.product(range(-3, 4), repeat=6)))
    x = torch.full((5, *shape), 128 / 255) + torch.arange(5).view(-1, 1, 1, 1) / 255
    model = Linear(1, shape)
    box = ub.Box(model, ub.Pixels(shape))
    model.b.data = -(x[2].flatten() @ model.w.data) - 0.008  # the boundary lies a level or two from the middle one
    made = result(on_the_boundary(box, x, "l2"))
    tried = (~made.initially_misclassified & (made.distance <= 3 / 255)).nonzero()[:, 0].tolist()
    assert len(tried) >= 2
    for i in tried:
        fools = box.predict((x[i].flatten() + moves / 255).view(-1, *shape)) == 1
        nearest = moves[fools].double().norm(dim=1).min() / 255
        assert made.distance[i] <= 1.25 * nearest + 1e-6
        assert made.distance[i] >= nearest - 1e-6


def test_rounding_alone_fails_where_the_search_does_not() -> None:
    x = files(40)
    box = ub.Box(Linear(0, far=0.006), ub.Pixels(SHAPE))
    attempt = on_the_boundary(box, x, "l2")
    found, rounded = attempt.success.clone(), decoded(attempt.images)
    assert found.all()
    assert (box.predict(rounded) == 1).float().mean() < 0.8
    assert result(attempt).success.all()


def test_without_gradients_only_forward_passes() -> None:
    x = files(20)
    box = ub.Box(Linear(0, far=0.01), ub.Pixels(SHAPE))
    attempt, plain = (on_the_boundary(box, x, "l2") for _ in range(2))
    attempt.evaluate_with_grad = None  # type: ignore[assignment, method-assign]
    made = result(attempt, gradients=False)
    assert made.success.all()
    assert (made.distance <= 2.0 * plain.distance + 2 / 255).all()


def test_every_query_is_counted() -> None:
    x, seen = files(9), []
    box = ub.Box(Linear(0), ub.Pixels(SHAPE))
    attempt = on_the_boundary(box, x, "l2")
    box.model.register_forward_pre_hook(lambda model, args: seen.append(len(args[0])))
    before = int(attempt.queries.sum())
    quantize_images(attempt, 8)
    assert int(attempt.queries.sum()) - before == sum(seen) > 0


@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interruption_keeps_the_images(after: int) -> None:
    x = files(20)
    box = ub.Box(Linear(0, far=0.01), ub.Pixels(SHAPE))
    attempt, whole = (on_the_boundary(box, x, "l2") for _ in range(2))
    slope, asked = attempt.evaluate_with_grad, []

    def stopping(*args: object) -> object:
        asked.append(1)
        if len(asked) > after:
            raise KeyboardInterrupt
        return slope(*args)  # type: ignore[arg-type]

    attempt.evaluate_with_grad = stopping  # type: ignore[assignment, method-assign]
    made, all_of_it = result(attempt), result(whole)
    assert made.interrupted
    assert len(asked) == after + 1
    assert not all_of_it.interrupted
    assert (
        made.success.sum() > made.initially_misclassified.sum()
    )  # rounding alone leaves some, and the looks so far find more
    assert made.success.all() or after < 5


def test_failures_are_not_repaired() -> None:
    """A minimal attack that failed gives the original back; within a ball the search may find what it did not."""
    x = files(6)
    box = ub.Box(Linear(0, far=0.05), ub.Pixels(SHAPE))
    lost = AttackState(box, x, 0, norm=unbounded_ball("l2"))
    lost.find_rows_to_attack()
    made = result(lost)
    assert torch.equal(made.success, made.initially_misclassified)
    assert torch.equal(made.images, x)
    ball = L2(0.3)
    tried = AttackState(box, x, 0, norm=ball)
    tried.find_rows_to_attack()
    assert result(tried, ball).success.all()


@pytest.mark.parametrize("levels", [0.5, 1.0, 1.5, 7.9])
def test_a_ball_contains_its_integer_levels(levels: float) -> None:
    """On a linear model the best file within eps is the corner of the whole levels: none of them is missed."""
    x, ball = files(30), Linf(levels / 255)
    box = ub.Box(Linear(0, far=0.012), ub.Pixels(SHAPE))
    best = x + math.floor(levels) / 255 * box.model.w.detach().sign().view(SHAPE)
    attempt = AttackState(box, x, 0, norm=ball)
    rows = attempt.find_rows_to_attack()
    corner = x + ball.eps * box.model.w.detach().sign().view(SHAPE)  # the best in floating point
    attempt.update_nearest(corner[rows], rows, box.predict(corner)[rows] == 1)
    made = result(attempt, ball)
    assert torch.equal(made.success, box.predict(best) == 1)
    assert (made.images - x).abs().max() <= levels / 255 * (1 + 1e-6) + 1e-7


def test_targets_and_objectives() -> None:
    x = files(8)
    box = ub.Box(Linear(0), ub.Pixels(SHAPE))
    for want in ({"target": 1}, {"objective": ub.logit(1) - ub.logit(0)}):
        attempt = AttackState(box, x, norm=Linf(0.2), **want)
        attempt.find_rows_to_attack()
        assert result(attempt, Linf(0.2)).success.all()


@pytest.mark.parametrize("ball", [Linf(0.7 / 255), Linf(3.2 / 255), L2(0.02), L2(0.5), L1(0.4)])
def test_projected_points_are_inside(ball: NormBall) -> None:
    x = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3))
    x[:10] = (x[:10] * 255).round() / 255
    grid = level_grid_in_ball(x, 255, ball)
    v = 255 * x + 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    z = grid.round_to_levels_in_ball(v)
    assert torch.equal(z, z.round())
    assert z.min() >= 0
    assert z.max() <= 255
    inside = ball.distance(z.float() / 255, x) <= ball.eps * (1 + 1e-6) + 1e-7
    assert torch.equal(inside, grid.is_inside_ball(z))
    assert inside[:10].all()


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.1, 0.3])
def test_a_ball_keeps_its_outermost_levels(eps: float) -> None:
    """8/255 in floating point is eight levels, not seven, from wherever it starts."""
    x = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    grid, whole = level_grid_in_ball(x, 255, Linf(eps)), math.floor(eps * 255 + 1e-4)
    k = torch.arange(256).float()
    assert torch.equal(grid.lower.flatten(), (k - whole).clamp_min(0))
    assert torch.equal(grid.upper.flatten(), (k + whole).clamp_max(255))


def test_bisection_finds_the_threshold() -> None:
    at = torch.tensor([0.1, 0.5, 3.0])
    assert torch.allclose(bisect_smallest_sufficient_t(lambda t: t >= at, torch.full((3,), 4.0)), at, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fewer_bits_have_fewer_levels(bits: int) -> None:
    x = files(6)
    box = ub.Box(Linear(0), ub.Pixels(SHAPE))
    attempt = AttackState(box, x, 0, norm=Linf(0.6))
    attempt.find_rows_to_attack()
    quantize_images(attempt, bits, Linf(0.6))
    top = 2**bits - 1
    assert torch.equal(attempt.images, (attempt.images * top).round() / top)
    assert torch.equal(decoded(attempt.images), attempt.images)
    assert attempt.success.all()


@pytest.mark.parametrize("bits", [0, 3, 7, 9, 16, 8.0, True, "8"])
def test_bad_bits_are_refused(bits: object) -> None:
    box = ub.Box(Linear(0), ub.Pixels(SHAPE))
    attempt = AttackState(box, files(1), 0, norm=Linf(0.1))
    with pytest.raises(InputError, match="bits"):
        quantize_images(attempt, bits)  # type: ignore[arg-type]


def test_tables_are_refused() -> None:
    box = ub.Box(Linear(0, (3,)), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="images"):
        quantize_images(AttackState(box, torch.zeros(1, 3), 0, norm=Linf(0.1)), 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_files_load_unchanged(channels: int, tmp_path: object) -> None:
    x = files(11, (channels, 5, 4))
    paths = save_png(x, f"{tmp_path}/new")
    assert [p.name for p in paths][:2] == ["image-00.png", "image-01.png"]
    back = torch.stack([read_image(p, ub.Pixels((channels, 5, 4))) for p in paths])
    assert torch.equal(back, x)
    with Image.open(paths[0]) as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]


@pytest.mark.parametrize("bad", [torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 2, 4, 4), torch.zeros(3, 4, 4)])
def test_images_between_levels_are_not_saved(bad: Tensor, tmp_path: object) -> None:
    with pytest.raises(InputError):
        save_png(bad, str(tmp_path))


@pytest.mark.filterwarnings("default:eps=.* is less than one of")
def test_less_than_one_level_is_warned_of() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), ub.Pixels(SHAPE), outputs="logits")
    x = torch.full((2, *SHAPE), 0.2)
    with pytest.warns(UnboxedWarning, match="less than one of 255 levels"):
        made = ub.adversarial.pgd(box, x, box.predict(x), eps=0.5 / 255, steps=2, bits=8)
    assert torch.equal(made.images, x)
