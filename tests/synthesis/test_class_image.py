"""Class images: no result is blank, rows are independent, known statistics are kept."""

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.optimize.colors import Palette
from unboxed.engine.optimize.parameterizations import FourierCanvas
from unboxed.engine.optimize.transforms import random_affine
from unboxed.errors import InputError, UnboxedWarning
from unboxed.rng import step_generator
from unboxed.synthesis.class_image import CLASS_IMAGE_RECIPE_BY_NAME, class_image


def model(seed: int = 0, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 4))


def box(channels: int = 1, **kw: float) -> ub.Box:
    return ub.Box(model(channels=channels), ub.Pixels((channels, 16, 16), **kw))


@pytest.mark.parametrize(("recipe", "channels"), [("robust", 3), ("faithful", 1), ("faithful", 3), ("noise", 1)])
def test_no_recipe_gives_an_empty_image(recipe: str, channels: int) -> None:
    """An untrained model too, whose logits hardly differ."""
    result = ub.synthesis.class_image(box(channels, mean=0.2, std=0.3), recipe=recipe, steps=40)
    assert result.images.shape == (4, channels, 16, 16)
    assert (result.images.flatten(1).std(1) > 0.05).all()
    assert result.probs.argmax(1).tolist() == [0, 1, 2, 3]


def test_a_class_that_is_not_reached_is_warned_of() -> None:
    hidden = model()
    with torch.no_grad():
        hidden[4].weight[1], hidden[4].bias[1] = hidden[4].weight[0], hidden[4].bias[0] - 1  # class 0 always beats it
    b = ub.Box(hidden, ub.Pixels((1, 16, 16)), classes=("a", "b", "c", "d"))
    with pytest.warns(UnboxedWarning, match=r"1 of 4 images are not predicted as their class, such as b \(p 0\.\d+\)"):
        result = class_image(b, recipe="faithful")
    assert result.is_predicted.tolist() == [True, False, True, True]
    class_image(b, recipe="faithful", steps=2)  # few steps were asked for


def test_a_model_without_gradient_on_black_is_bypassed_and_warned_of() -> None:
    inactive = model()
    with torch.no_grad():
        inactive[0].bias.fill_(-0.05)  # no channel is active on black: every gradient is exactly zero there
    b = ub.Box(inactive, ub.Pixels((1, 16, 16)))
    with pytest.warns(UnboxedWarning, match="exactly zero in some steps for 4 of 4"):
        result = ub.synthesis.class_image(b, recipe="faithful", steps=20)
    assert result.before_clamp.all()
    assert (result.images.flatten(1).std(1) > 0.05).all()


def test_the_mean_color_of_the_data_is_kept() -> None:
    result = ub.synthesis.class_image(box(3, mean=(0.2, 0.5, 0.7), std=(0.3, 0.3, 0.3)))
    means = result.images.mean((2, 3))
    assert torch.allclose(means, torch.tensor([0.2, 0.5, 0.7]).expand(4, 3), atol=0.05)


def test_a_class_named_twice_gets_two_images_and_rows_are_independent() -> None:
    b = ub.Box(model().double(), ub.Pixels((1, 16, 16), 0.2, 0.3))
    twice = ub.synthesis.class_image(b, [2, 2, 1], steps=20)
    assert not torch.allclose(twice.images[0], twice.images[1], atol=0.05)
    split = ub.synthesis.class_image(b, [2, 2, 1], steps=20, batch_size=1)
    assert torch.allclose(twice.images, split.images, atol=1e-9)
    other = ub.synthesis.class_image(b, [2, 2, 1], steps=20, seed=1)
    assert not torch.allclose(other.images, twice.images, atol=0.05)


def test_the_scale_of_the_logits_does_not_matter() -> None:
    small, large = model().double(), model().double()
    with torch.no_grad():
        for p in large[4].parameters():
            p.mul_(50)
    boxes = [ub.Box(n, ub.Pixels((1, 16, 16), 0.2, 0.3)) for n in (small, large)]
    a, b = (ub.synthesis.class_image(b, steps=30).images for b in boxes)
    assert torch.allclose(a, b, atol=1e-9)


def test_frames_are_kept_when_asked_for() -> None:
    result = ub.synthesis.class_image(box(), 1, steps=10, frame_every=4)
    assert result.frames is not None
    assert result.frames.shape == (4, 1, 1, 16, 16)  # steps 0, 4, 8 and the last
    assert torch.equal(result.frames[-1], result.images)


def test_tabular_models_have_no_class_image() -> None:
    with pytest.raises(InputError, match="images"):
        ub.synthesis.class_image(ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c"))))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (9, 6)])
def test_the_fourier_canvas_starts_at_its_color_in_any_size(size: tuple[int, int]) -> None:
    like = torch.zeros(2, 3, *size)
    x = FourierCanvas.noise(like, 0, Palette(torch.tensor([0.1, 0.5, 0.8])), sd=0.0)()
    assert x.shape == like.shape
    assert torch.allclose(x, torch.tensor([0.1, 0.5, 0.8]).view(3, 1, 1).expand_as(x), atol=1e-6)


def quarter_turn(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (2, 3))


def test_random_affine_without_amplitude_is_the_identity_and_keeps_shapes() -> None:
    x = torch.rand(2, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    still = random_affine(0, 0, 0)(x, step_generator(0, 0, x.device))
    assert torch.allclose(still, x, atol=1e-5)
    disk = ((torch.arange(12.0)[:, None] - 5.5) ** 2 + (torch.arange(20.0)[None] - 9.5) ** 2 < 16).float()[None, None]
    turned = random_affine(60, 0, 0)(disk, step_generator(3, 1, x.device))
    assert (turned - disk).abs().mean() < 0.03  # a disk stays a disk, on a wide image too
    assert (turned - disk).abs().max() > 0  # and it was turned


def test_the_table_of_recipes_has_those_that_the_setting_takes() -> None:
    assert tuple(CLASS_IMAGE_RECIPE_BY_NAME) == class_image.card.settings["recipe"].choices  # type: ignore[attr-defined]
