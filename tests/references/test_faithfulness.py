"""Metrics of faithfulness against their definitions, one image, pixel and draw at a time; and against captum's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed import checks
from unboxed.checks.infidelity import _all_square_positions, _PerturbationSampler
from unboxed.checks.perturbing import keyed_noise

Draw = Callable[..., Any]
COLOR = awkward.COLOR_INPUTS


@pytest.fixture
def model() -> nn.Module:
    return awkward.get_model("color", torch.float64).model


@pytest.fixture
def box(model: nn.Module) -> ub.Box:
    return ub.Box(model, COLOR)


MEAN, STD = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (COLOR.mean, COLOR.std))


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(n: int = 3, channels: int = 3, seed: int = 5) -> Tensor:
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Without a box: what is normalized by hand goes into the model."""
    return model((x - MEAN) / STD)


def agree(a: Tensor, b: Any, tolerance: float = 1e-9) -> None:
    b = b if isinstance(b, Tensor) else torch.as_tensor(np.array(b))
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


# -- deletion and insertion ------------------------------------------------------------------------------------------


def walk(model: nn.Module, x: Tensor, start: Tensor, end: Tensor, phi: Tensor, step: int) -> list[float]:
    """The probability of x's class at each step of the authors' loop, for one image (C, H, W)."""
    k = int(logits(model, x[None]).argmax())
    order = sorted(((float(phi[:, i, j].sum()), i, j) for i in range(8) for j in range(8)), reverse=True)
    now, found = start.clone(), []
    for done in range(0, 65, step):
        found.append(float(logits(model, now[None]).softmax(1)[0, k]))
        for _, i, j in order[done : done + step]:
            now[:, i, j] = end[:, i, j]
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("steps", [64, 16, 1])
def test_deletion(model: nn.Module, box: ub.Box, channels: int, steps: int) -> None:
    x, phi = images(), maps(channels=channels)
    ours = checks.deletion(box, x, phi, n_steps=steps, baseline="mean")
    gray = MEAN.expand(3, 8, 8)
    literal = [walk(model, x[i], x[i], gray, phi[i], 64 // steps) for i in range(3)]
    agree(ours.curve, literal)
    area = [(sum(c) - c[0] / 2 - c[-1] / 2) / (len(c) - 1) for c in ours.curve.tolist()]  # as the authors write it
    agree(ours.auc, area)
    agree(ours.fractions, [k / steps for k in range(steps + 1)])


def test_insertion(model: nn.Module, box: ub.Box) -> None:
    x, phi, canvas = images(), maps(), images(seed=9)
    ours = checks.insertion(box, x, phi, n_steps=32, baseline=canvas)
    agree(ours.curve, [walk(model, x[i], canvas[i], x[i], phi[i], 2) for i in range(3)])


def test_steps_that_do_not_divide_the_pixels(model: nn.Module, box: ub.Box) -> None:
    x, phi = images(1), maps(1)
    ours = checks.deletion(box, x, phi, n_steps=5, baseline=0.0)
    whole = walk(model, x[0], x[0], torch.zeros(3, 8, 8).double(), phi[0], 1)
    agree(ours.curve[0], [whole[k] for k in (0, 13, 26, 38, 51, 64)])
    agree(ours.fractions, [k / 64 for k in (0, 13, 26, 38, 51, 64)])


# -- infidelity ------------------------------------------------------------------------------------------------------


def perturbations(box: ub.Box, x: Tensor, kind: Any, count: int, base: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The I (N, K, ...) and the masks that the metric draws."""
    law = _PerturbationSampler(box, x, kind, 0.2, base, seed, _all_square_positions(box, kind, None), False)
    pairs = torch.arange(len(x) * count)
    change, mask = law(pairs // count, pairs % count)
    return change.view(len(x), count, *x.shape[1:]), mask.expand(-1, 1, 8, 8).reshape(len(x), count, 1, 8, 8)


def literal_infidelity(
    model: nn.Module, x: Tensor, phi: Tensor, change: Tensor, weight: Tensor, scaled: bool
) -> list[float]:
    found = []
    for i in range(len(x)):
        k = int(logits(model, x[i : i + 1]).argmax())
        f = float(logits(model, x[i : i + 1])[0, k])
        pairs = []
        for j in range(change.shape[1]):
            drop = f - float(logits(model, (x[i] - change[i, j])[None])[0, k])
            pairs.append((float((weight[i, j] * phi[i]).sum()), drop))
        beta = sum(a * d for a, d in pairs) / sum(a * a for a, d in pairs) if scaled else 1.0
        found.append(sum((beta * a - d) ** 2 for a, d in pairs) / len(pairs))
    return found


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "noisy_baseline", "square"])
def test_infidelity(model: nn.Module, box: ub.Box, kind: Any, scaled: bool) -> None:
    x, phi = images(), maps()
    change, mask = perturbations(box, x, kind, 7, torch.zeros_like(x))
    weight = mask.double() if kind == "square" else change
    ours = checks.infidelity(box, x, phi, perturbation=kind, n_samples=7, fit_scale=scaled)
    agree(ours.infidelity, literal_infidelity(model, x, phi, change, weight, scaled))


def test_infidelity_of_every_square(model: nn.Module, box: ub.Box) -> None:
    x, phi = images(2), maps(2, channels=1)
    change, mask = [], []
    for side in (1, 2, 3):
        for i in range(8 - side + 1):
            for j in range(8 - side + 1):
                m = torch.zeros(1, 8, 8, dtype=torch.float64)
                m[:, i : i + side, j : j + side] = 1
                mask.append(m)
                change.append((x - 0.3) * m)
    both = torch.stack(change, 1), torch.stack(mask).expand(2, -1, 1, 8, 8)
    ours = checks.infidelity(box, x, phi, perturbation="square", n_samples=None, window=3, baseline=0.3, fit_scale=True)
    agree(ours.infidelity, literal_infidelity(model, x, phi, *both, scaled=True))
    assert ours.standard_error.tolist() == [0, 0]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "noisy_baseline", "square"])
def test_infidelity_as_captum(model: nn.Module, box: ub.Box, kind: Any, scaled: bool) -> None:
    from captum.metrics import infidelity

    x, phi = images(), maps()
    change, _ = perturbations(box, x, kind, 6, torch.full_like(x, 0.2), seed=3)
    flat = change.flatten(0, 1)
    theirs = infidelity(
        lambda z: logits(model, z), lambda z: (flat, z - flat), x, phi, target=logits(model, x).argmax(1),
        n_perturb_samples=6, normalize=scaled,
    )  # fmt: skip
    ours = checks.infidelity(
        box, x, phi, perturbation=kind, attribution="local", n_samples=6, baseline=0.2, seed=3, fit_scale=scaled
    )
    agree(ours.infidelity, theirs)


def test_draws_of_squares_are_even(box: ub.Box) -> None:
    """Each of the squares is as likely as any other."""
    x = images(1)
    squares = _all_square_positions(box, "square", 3)
    assert len(squares) == 64 + 49 + 36
    law = _PerturbationSampler(box, x, "square", 0.2, torch.zeros_like(x), 0, squares, False)
    _, mask = law(torch.zeros(4000, dtype=torch.long), torch.arange(4000))
    sides = mask.sum((1, 2, 3)).sqrt().round().long().bincount(minlength=4)[1:] / 4000
    assert (sides - torch.tensor([64, 49, 36]) / 149).abs().max() < 0.03


def test_noise_is_as_said(box: ub.Box) -> None:
    """Gaussian noise has its deviation; with a noisy baseline, x - I is the baseline plus such noise, made valid."""
    x, base = images(20), torch.full((20, 3, 8, 8), 0.5, dtype=torch.float64)
    change, _ = perturbations(box, x, "gaussian", 20, base)
    assert abs(float(change.std()) - 0.2) < 0.002
    assert abs(float(change.mean())) < 0.002
    left = x[:, None] - perturbations(box, x, "noisy_baseline", 20, base)[0]
    assert left.min() == 0
    assert left.max() == 1
    assert torch.allclose(left, (base[:, None] + change).clamp(0, 1))


def test_each_row_and_sample_has_a_draw_of_its_own() -> None:
    rows, samples = torch.cartesian_prod(torch.arange(4), torch.arange(5)).T
    like = torch.empty(0)
    found = [keyed_noise(torch.rand, (3,), like, seed, rows, samples) for seed in (0, 1)]
    assert len(torch.cat(found).unique(dim=0)) == 40
    assert torch.equal(found[0][7:9], keyed_noise(torch.rand, (3,), like, 0, rows[7:9], samples[7:9]))


# -- max-sensitivity -------------------------------------------------------------------------------------------------


def moved(x: Tensor, radius: float, count: int, seed: int) -> Tensor:
    """The points (N, K, ...) around x that the metric draws."""
    found = torch.empty(len(x), count, *x.shape[1:], dtype=torch.float64)
    for i in range(len(x)):
        for j in range(count):
            u = keyed_noise(torch.rand, x.shape[1:], x, seed, torch.tensor([i]), torch.tensor([j]))[0]
            found[i, j] = (x[i] + radius * (2 * u - 1)).clamp(0, 1)
    return found


@pytest.mark.parametrize("relative", [False, True])
def test_max_sensitivity(model: nn.Module, box: ub.Box, relative: bool) -> None:
    x = images()
    points = moved(x, 0.1, 5, seed=2)

    def gradient(z: Tensor, k: int) -> Tensor:
        z = z[None].clone().requires_grad_()
        with torch.enable_grad():
            score = model((z - MEAN) / STD)[0, k]
        return torch.autograd.grad(score, z)[0][0]

    literal = []
    for i in range(3):
        k = int(logits(model, x[i : i + 1]).argmax())
        own = gradient(x[i], k)
        most = max(float((gradient(points[i, j], k) - own).norm()) for j in range(5))
        literal.append(most / float(own.norm()) if relative else most)
    ours = checks.max_sensitivity(box, x, ub.attribution.gradient, radius=0.1, n_samples=5, seed=2, relative=relative)
    assert ours.min() > 0
    agree(ours, literal, 1e-6)


def test_max_sensitivity_as_captum(model: nn.Module, box: ub.Box) -> None:
    from captum.attr import Saliency
    from captum.metrics import sensitivity_max

    x = images()
    points, y = moved(x, 0.1, 4, seed=1).flatten(0, 1), box.predict(x)
    saliency = Saliency(nn.Sequential(Normalize(), model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sensitivity_max(
            lambda z, target: saliency.attribute(z, target=target, abs=False),
            x,
            lambda z: points,
            n_perturb_samples=4,
            target=y,
        )
    ours = checks.max_sensitivity(box, x, ub.attribution.gradient, radius=0.1, n_samples=4, seed=1, relative=True)
    agree(ours, theirs.detach(), 1e-6)


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return COLOR.encode(x)


# -- sensitivity-n ---------------------------------------------------------------------------------------------------


def test_sensitivity_n(model: nn.Module, box: ub.Box) -> None:
    x, phi, sizes, many = images(2), maps(2), [1, 5, 40], 9
    ours = checks.sensitivity_n(box, x, phi, sizes=sizes, n_samples=many, baseline=0.5, seed=4)
    literal = np.empty((2, 3))
    for i in range(2):
        k = int(logits(model, x[i : i + 1]).argmax())
        for s, n in enumerate(sizes):
            sums, drops = [], []
            for j in range(many):
                keys = keyed_noise(torch.rand, (64,), x, 4, torch.tensor([i]), torch.tensor([s * many + j]))[0]
                chosen = sorted(range(64), key=lambda p: float(keys[p]))[:n]
                z = x[i].clone()
                for p in chosen:
                    z[:, p // 8, p % 8] = 0.5
                sums.append(sum(float(phi[i, :, p // 8, p % 8].sum()) for p in chosen))
                drops.append(float(logits(model, x[i : i + 1])[0, k] - logits(model, z[None])[0, k]))
            literal[i, s] = np.corrcoef(sums, drops)[0, 1]
    agree(ours.correlation, literal)
    agree(ours.mean, literal.mean(0))


# -- ROAD ------------------------------------------------------------------------------------------------------------


def imputed(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The authors' equations, written out pixel by pixel and solved densely: image (C, H, W), gone (H, W)."""
    where = [(int(i), int(j)) for i, j in zip(*gone.nonzero(), strict=True)]
    a, b = np.zeros((len(where), len(where))), np.zeros((len(where), len(image)))
    for row, (i, j) in enumerate(where):
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                p, q = i + di, j + dj
                if (di, dj) == (0, 0) or not (0 <= p < gone.shape[0] and 0 <= q < gone.shape[1]):
                    continue
                weight = 1 / 12 if di and dj else 1 / 6
                a[row, row] -= weight
                if gone[p, q]:
                    a[row, where.index((p, q))] += weight
                else:
                    b[row] -= weight * image[:, p, q]
    new = image.copy()
    new[:, gone] = np.linalg.solve(a, b).T
    return new


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_road(model: nn.Module, box: ub.Box, order: Any, noise: float) -> None:
    x, phi, shares = images(), maps(), [0.05, 0.3, 0.9]
    y = torch.tensor([0, 3, 1])
    ours = checks.road(box, x, phi, y, fractions=shares, order=order, noise=noise, seed=6)
    score, right = np.empty((3, 3)), np.empty((3, 3), dtype=bool)
    for i in range(3):
        sums = phi[i].sum(0).flatten().numpy() * (1 if order == "morf" else -1)
        for s, share in enumerate(shares):
            gone = np.zeros(64, dtype=bool)
            gone[np.argsort(-sums)[: round(share * 64)]] = True
            gone = gone.reshape(8, 8)
            grain = keyed_noise(torch.randn, (3, 8, 8), x, 6, torch.tensor([i]), torch.tensor([s]))[0].numpy()
            z = torch.from_numpy(imputed(x[i].numpy(), gone) + noise * grain * gone)
            p = logits(model, z[None]).softmax(1)[0]
            score[i, s], right[i, s] = p[y[i]], int(p.argmax()) == y[i]
    agree(ours.scores, score)
    assert ours.correct is not None
    assert ours.correct.tolist() == right.tolist()
    agree(ours.accuracy, right.mean(0))


# -- pointing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 15])
def test_pointing_game(tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    phi = torch.randn(20, 3, 9, 7, generator=generator)
    masks = torch.rand(20, 9, 7, generator=generator) < 0.08
    masks[:, 4, 4] = True
    literal = []
    for i in range(20):
        flat = [(float(phi[i, :, p, q].double().sum()), p, q) for p in range(9) for q in range(7)]
        _, p, q = max(flat)
        near = [((p - a) ** 2 + (q - b) ** 2) ** 0.5 for a in range(9) for b in range(7) if masks[i, a, b]]
        literal.append(float(min(near) <= tolerance))
    if tolerance < 15:
        assert 0 < sum(literal) < 20
    assert checks.pointing_game(phi, masks, tolerance=tolerance).tolist() == literal


def test_energy_inside() -> None:
    phi, masks = maps(4).float(), torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.3
    literal = []
    for i in range(4):
        positive = {(p, q): max(0.0, float(phi[i, :, p, q].double().sum())) for p in range(8) for q in range(8)}
        literal.append(sum(v for at, v in positive.items() if masks[i][at]) / sum(positive.values()))
    agree(checks.energy_inside(phi, masks).double(), literal, 1e-6)
