"""DeepDream: against a literal twin of its notebook, tiles, sizes, and what it says to models of one size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import make_case
from models import uniform as images
from unboxed.errors import InputError, LayerError
from unboxed.rng import step_generator
from unboxed.synthesis import deepdream
from unboxed.synthesis.deepdream import _tile_start_pixels


def convolutional(channels: int = 1, side: int = 24) -> ub.Box:
    """A model that takes images of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).double().eval()
    return ub.Box(model, ub.Pixels((channels, side, side), mean=0.4, std=0.5))


def notebook(box: ub.Box, x: Tensor, layer: str, octaves: int, scale: float, steps: int, step: float, seed: int) -> Any:
    """The published loop for one image (1, C, H, W), written out."""
    bases = [x]
    for k in range(1, octaves):
        size = (round(x.shape[2] / scale**k), round(x.shape[3] / scale**k))
        bases.append(F.interpolate(x, size, mode="bilinear", antialias=True))
    detail, count = torch.zeros_like(bases[-1]), 0
    for base in bases[::-1]:
        if detail.shape != base.shape:
            detail = F.interpolate(detail, tuple(base.shape[2:]), mode="bilinear", antialias=True)
        image = (base + detail).clamp(0, 1)
        for _ in range(steps):
            by = torch.randint(-3, 4, (2,), generator=step_generator(seed, count, torch.device("cpu"))).tolist()
            moved = torch.roll(image, by, (2, 3)).requires_grad_()
            energy = box.model[:3](box.inputs.encode(moved)).pow(2).mean()
            (grad,) = torch.autograd.grad(energy, moved)
            grad = torch.roll(grad, [-by[0], -by[1]], (2, 3))
            image = (image + step / grad.abs().mean() * grad).clamp(0, 1).detach()
            count += 1
        detail = image - base
    return image


@pytest.mark.parametrize("octaves", [1, 3])
@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 31, 20)])
def test_the_loop_is_the_notebooks(octaves: int, shape: tuple[int, ...]) -> None:
    box, x = convolutional(shape[0]), images(2, *shape)
    result = deepdream(box, x, "2", octaves=octaves, steps=4, step=0.02, seed=5, jitter=3)
    for i in range(2):
        want = notebook(box, x[i : i + 1], "2", octaves, 1.4, 4, 0.02, 5)
        assert torch.allclose(result.images[i : i + 1], want, rtol=0, atol=1e-12)
    assert len(result.history) == 4 * octaves + 1


def test_the_energy_rises_and_the_image_stays() -> None:
    box, x = convolutional(), images(2, 1, 24, 24)
    result = deepdream(box, x, "3", octaves=1, jitter=0, step=0.02)
    assert (result.scores > 1.5 * box.read(x, "3")["3"].pow(2).flatten(1).mean(1)).all()
    likeness = torch.corrcoef(torch.stack([result.images[0].flatten(), x[0].flatten()]))[0, 1]
    assert likeness > 0.5


@pytest.mark.parametrize("tile", [24, 40, (24, 24), (100, 24)])
def test_a_tile_as_large_as_the_image_changes_nothing(tile: Any) -> None:
    box, x = convolutional(), images(2, 1, 24, 24)
    whole, tiled = (deepdream(box, x, "2", steps=3, tile=t) for t in (None, tile))
    assert torch.equal(whole.images, tiled.images)
    assert torch.equal(whole.history, tiled.history)


class Areas:
    """A hook of the user's own: how many pixels each forward of the model saw."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[int] = []
        model.register_forward_pre_hook(lambda module, args: self.seen.append(args[0][0, 0].numel()))


def test_memory_is_bounded_by_the_tile() -> None:
    box, x = convolutional(), images(1, 1, 60, 50)
    areas = Areas(box.model)
    deepdream(box, x, "2", steps=2, tile=(16, 20))
    assert max(areas.seen) <= 16 * 20


def test_tiles_give_nearly_the_image_without_tiles() -> None:
    """With equal borders they differ there alone: the gradients of tiles are those of the image, in other units."""
    box, x = convolutional(), images(1, 1, 48, 48)
    whole, tiled = (deepdream(box, x, "1", octaves=1, steps=1, step=1e-3, tile=t).images - x for t in (None, 24))
    assert torch.corrcoef(torch.stack([whole.flatten(), tiled.flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize(("length", "window"), [(10, 4), (8, 4), (5, 5), (9, 8), (7, 1)])
def test_tiles_cover_the_image(length: int, window: int) -> None:
    starts = _tile_start_pixels(length, window)
    assert {i for s in starts for i in range(s, s + window)} == set(range(length))


def test_borders_are_at_other_positions_in_each_step() -> None:
    box, x = convolutional(), images(1, 1, 48, 48)
    result = deepdream(box, x, "2", octaves=1, steps=8, tile=16, jitter=0)
    moved = (result.images - x).abs()
    seam = moved[..., 15:17, :].mean() + moved[..., 31:33, :].mean()
    assert seam / 2 > 0.7 * moved.mean()


def test_the_octaves_have_a_smallest_size() -> None:
    box = convolutional()
    sizes = Areas(box.model)
    deepdream(box, images(1, 1, 28, 28), "2", steps=1)
    assert sorted(set(sizes.seen)) == [20 * 20, 28 * 28]


def test_frames_are_of_the_full_size_image() -> None:
    box, x = convolutional(), images(2, 1, 40, 36)
    result = deepdream(box, x, "2", steps=2, frame_every=1)
    assert result.frames is not None
    assert result.frames.shape == (2 * 3 + 1, 2, 1, 40, 36)
    assert torch.allclose(result.frames[0], x, atol=1e-12)
    assert torch.equal(result.frames[-1], result.images)


def test_a_model_of_one_size_is_refused_with_advice() -> None:
    c = make_case("plain")
    x = torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"takes no images of 12x20 .* its own are 8x8: give tile=\(8, 8\)"):
        deepdream(c.box, x, ub.logit(0))
    result = deepdream(c.box, x, ub.logit(0), tile=(8, 8), octaves=1, steps=2)
    assert result.images.shape == x.shape
    assert deepdream(c.box, x, "conv2", steps=2).images.shape == x.shape  # as far as that it takes any


class Viewed(awkward.PlainCNN):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second_block(self.first_block(x)).reshape(-1, 64))


def test_a_model_that_multiplies_rows_is_refused() -> None:
    """`view(-1, 64)` makes four rows of a larger image, silently."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        box = ub.Box(Viewed(), awkward.GRAY_INPUTS)
    with pytest.raises(InputError, match="16x16"):
        deepdream(box, torch.zeros(1, 1, 16, 16), ub.logit(0))
    with pytest.raises(InputError, match="16x16"):
        deepdream(box, torch.zeros(1, 1, 16, 16), "fc")


def test_refusals() -> None:
    table = ub.Box(nn.Linear(2, 3), ub.Features(("a", "b")))
    with pytest.raises(InputError, match="images"):
        deepdream(table, torch.zeros(1, 2))
    flat = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), awkward.GRAY_INPUTS)
    with pytest.raises(LayerError, match="logit"):
        deepdream(flat, torch.zeros(1, 1, 8, 8))
    c = make_case("plain")
    for bad in (
        {"octaves": 0},
        {"octave_scale": 1},
        {"tile": 0},
        {"tile": (4,)},
        {"tile": "all"},
        {"jitter": -1},
        {"step": 0},
    ):
        with pytest.raises(InputError):
            deepdream(c.box, c.x, ub.logit(0), **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 24), (24, 1)])
def test_strips_have_positions(shape: tuple[int, int]) -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    box = ub.Box(nn.Sequential(*layers).eval(), ub.Pixels((1, *shape)))
    assert torch.isfinite(deepdream(box, torch.rand(2, 1, *shape), steps=2).images).all()
