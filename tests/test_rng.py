"""Random streams: keyed, independent of one another, and alike in any batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from unboxed import rng
from unboxed.engine.optimize.constraints import L1, L2, Linf

SEEDS = (0, 7, 8, -3, 2**43, 2**80)


def first_numbers() -> dict[str, torch.Tensor]:
    """Numbers of every kind of stream, at seeds, rows and steps that lie next to one another."""
    like, steps = torch.empty(3, 16), range(3)
    found: dict[str, torch.Tensor] = {}
    for seed in SEEDS:
        for i in steps:
            found[f"normal {seed} {i}"] = rng.normal(like, seed)[i]
            found[f"radius {seed} {i}"] = rng.normal(like, seed, "radius")[i]
            found[f"shared {seed} {i}"] = torch.randn(16, generator=rng.step_generator(seed, i, rng.CPU))
            found[f"sample {seed} {i}"] = torch.randn(16, generator=rng.sample_generator(seed, i, 0, rng.CPU))
            found[f"block {seed} {i}"] = torch.randn(16, generator=rng.sample_generator(seed, 0, i + 1, rng.CPU))
    return found


def test_no_two_streams_share_their_numbers() -> None:
    found = first_numbers()
    alike = [(a, b) for (a, x), (b, y) in itertools.combinations(found.items(), 2) if torch.equal(x, y)]
    assert alike == []


def test_hashed_numbers_of_steps_share_nothing() -> None:
    """Whatever how many numbers a step draws: 3 numbers at step 2 are not the sixth to ninth of step 0."""
    rows = torch.arange(4)
    sets = [
        set(rng.hashed_uniform(seed, rows, step, count).flatten().tolist())
        for seed in (0, 1) for step, count in ((0, 64), (1, 64), (2, 7), (3, 5))
    ]  # fmt: skip
    shared = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    assert max(shared) <= 1  # 24 bits: a chance match among 256 numbers


def test_hashed_numbers_are_uniform() -> None:
    u = rng.hashed_uniform(3, torch.arange(200), 5, 500)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.005
    assert abs(float(u.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1])) < 0.01


@pytest.mark.parametrize("draw", [rng.normal, rng.uniform])
def test_a_row_draws_the_same_in_any_batch(draw: object) -> None:
    assert callable(draw)
    assert torch.equal(draw(torch.empty(5, 4), 9)[:2], draw(torch.empty(2, 4), 9))


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("seed", [0, 2**80])
def test_restarts_of_a_ball_share_no_number(kind: type, seed: int) -> None:
    """The radius of one seed is not among what the next seed draws."""
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    starts = [kind(1.0).sample(x, seed + i) for i in range(3)]
    radii = torch.stack([kind(1.0).distance(s, x) for s in starts])
    assert len(radii.flatten().unique()) == radii.numel()
    directions = [s.flatten(1) / s.flatten(1).norm(dim=1, keepdim=True) for s in starts]
    assert all(float((a * b).sum(1).abs().max()) < 0.9 for a, b in itertools.combinations(directions, 2))
