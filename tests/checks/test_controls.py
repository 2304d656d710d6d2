"""Controls: methods that show the image, or have a map for a constant model, are detected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import boxed, digits
from unboxed import Box, Features, Pixels, attribution, checks
from unboxed.errors import InputError


def image_copy(box: Box, x: Tensor, target: Any) -> Tensor:
    return x - 0.5


def prior(box: Box, x: Tensor, target: Any) -> Tensor:
    """The same for every input."""
    return torch.linspace(-1, 1, x[0].numel()).view(1, *x.shape[1:]).expand_as(x)


def activations(box: Box, x: Tensor, target: Any) -> Tensor:
    """Activations, whatever the output is."""
    h = box.read(x, ["conv1"])["conv1"]
    return h.mean(1, keepdim=True)


def test_a_copy_of_the_image_follows_its_pixels_and_the_gradient_does_not() -> None:
    box, x = digits(16)
    found = checks.random_input(box, x, image_copy)
    assert found.shuffled.signed.tolist() == pytest.approx([1] * 16)
    assert found.norm_ratio_shuffled.tolist() == pytest.approx([1] * 16, rel=1e-5)
    assert found.noise.signed.abs().mean() < 0.1
    plain = checks.random_input(box, x, attribution.gradient)
    assert plain.shuffled.signed.abs().mean() < 0.1
    assert plain.shuffled.ssim.mean() < 0.2
    for scores in (found.score_shuffled, found.score_noise):
        assert scores.mean() < found.score.mean() - 5  # the evidence has gone


def test_the_shuffled_map_is_restored_to_order() -> None:
    """On a model that treats all pixels alike the map moves with the pixels, so that put back it is the old one."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x.flatten(2).pow(2).sum(2)  # (N, C)
            return torch.stack([h.sum(1), h[:, 0] - h[:, 1]], 1)

    x = torch.rand(4, 2, 5, 6)
    found = checks.random_input(Box(Sums(), Pixels((2, 5, 6))), x, attribution.gradient, 1)
    assert found.shuffled.signed.tolist() == pytest.approx([1] * 4)
    assert found.score_shuffled.tolist() == pytest.approx(found.score.tolist(), rel=1e-4)
    assert found.noise.signed.abs().max() < 0.7


def test_a_map_that_is_the_same_for_every_input() -> None:
    box, x = digits(3)
    found = checks.random_input(box, x, prior)
    assert found.noise.signed.tolist() == pytest.approx([1] * 3)
    assert found.norm_ratio_noise.tolist() == pytest.approx([1] * 3, rel=1e-5)
    linear = Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), awkward.GRAY_INPUTS)
    x = torch.rand(2, 1, 8, 8)
    assert (checks.random_input(linear, x, attribution.gradient, 1).noise.signed > 0.999).all()  # rightly so


def test_draws_are_keyed_by_seed_and_row_and_the_score_stays() -> None:
    box, x = digits(3)
    a, b, c = (checks.random_input(box, x, attribution.gradient, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.noise.signed, b.noise.signed)
    assert not torch.equal(a.noise.signed, c.noise.signed)
    assert not torch.equal(a.score_shuffled, c.score_shuffled)
    one = checks.random_input(box, x[:1], attribution.gradient)
    assert float(one.shuffled.signed) == pytest.approx(float(a.shuffled.signed[0]), abs=1e-4)
    y = box.predict(x)
    assert a.score.tolist() == pytest.approx(box(x).gather(1, y[:, None])[:, 0].tolist(), rel=1e-5)
    hidden = checks.random_input(box, x, attribution.gradient, ub.channel("conv2", 3))
    assert hidden.shuffled.signed.isfinite().all()


def test_tables_have_noise_but_no_pixels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    box = Box(model, Features(tuple("abcdef")))
    found = checks.random_input(box, torch.randn(4, 6), attribution.gradient)
    assert found.noise.signed.isfinite().all()
    assert found.shuffled.signed.isnan().all()
    assert found.score_shuffled.isnan().all()
    assert found.norm_ratio_shuffled.isnan().all()


def test_a_map_of_another_size_cannot_be_restored() -> None:
    box, x = digits(2)
    with pytest.raises(InputError, match="as large as the image"):
        checks.random_input(box, x, lambda box, x, target: x[:, :, ::2])


@pytest.mark.parametrize("method", [attribution.gradient, attribution.guided_backprop, attribution.deconvnet])
def test_gradients_are_zero_for_a_constant_model(method: Any) -> None:
    box, x = digits(3)
    found = checks.constant_model(box, x, method)
    assert found.constant_input.tolist() == found.constant_output.tolist() == [0] * 3
    assert found.maps_constant_input.abs().max() == found.maps_constant_output.abs().max() == 0


def test_a_map_for_a_constant_model_is_detected() -> None:
    box, x = digits(3)
    found = checks.constant_model(box, x, image_copy)
    assert found.constant_input.tolist() == found.constant_output.tolist() == pytest.approx([1] * 3)
    inside = checks.constant_model(box, x, activations)
    assert inside.constant_input.max() < 1e-6  # constant activations, constant map
    assert inside.constant_output.tolist() == pytest.approx([1] * 3)  # constant logits, and yet there is a map
    even = checks.constant_model(box, x, lambda box, x, target: torch.ones_like(x) + float(target.sum()))
    assert even.constant_output.tolist() == [0] * 3  # the same everywhere is no map


def test_constant_models_are_constant_whatever_the_output_is() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def method(box: Box, x: Tensor, target: Any) -> Tensor:
        seen.append((box(x), box.probs(x)))
        return attribution.gradient(box, x, target)

    for name in ("plain", "dict_output", "log_softmax", "softmax_module", "bfloat16", "batchnorm", "transformer",
                 "checkpointed", "compiled", "scripted_part", "exported", "frozen", "swallows_exceptions"):  # fmt: skip
        box, x = boxed(name)
        seen.clear()
        found = checks.constant_model(box, x, method)
        assert len(seen) == 3
        own, constant_input, constant_output = (z for z, _ in seen)
        assert not torch.allclose(own[0], own[1], atol=1e-3)
        for z in (constant_input, constant_output):
            assert torch.allclose(z, z[:1].expand_as(z), atol=1e-6), name
        assert constant_output.unique().numel() == 1
        assert float(constant_output[0, 0]) == pytest.approx(float(own.abs().max()), rel=1e-2)
        assert found.constant_input.max() == found.constant_output.max() == 0, name
        assert box.outputs == Box(box.model, box.inputs).outputs
        assert torch.equal(box(x), own)  # the box itself is what it was


def test_hidden_units_and_several_inputs() -> None:
    box, x = digits(2)
    found = checks.constant_model(box, x, attribution.gradient, ub.channel("conv2", 3))
    assert found.constant_input.tolist() == [0, 0]
    assert found.constant_output.isnan().all()  # constant logits do not change the unit

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 3), nn.Linear(2, 3)

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return self.a(image.flatten(1)) * self.b(row)

    torch.manual_seed(0)
    two = Box(Two(), ub.MultiInput({"image": Pixels((1, 4, 4)), "row": Features(("p", "q"))}))
    found = checks.constant_model(
        two, {"image": torch.rand(3, 1, 4, 4), "row": torch.randn(3, 2)}, attribution.gradient
    )
    assert found.constant_input.tolist() == found.constant_output.tolist() == [0] * 3
