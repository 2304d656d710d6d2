"""Causal units: on a generator whose units are known, the interventions written out, and faults."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import CausalUnits, causal_units
from unboxed.concepts._anchors import Anchor, generator_layer_anchors
from unboxed.concepts._image_source import ImageSource, layers_with_anchors
from unboxed.concepts._interventions import Interventions, concept_positions
from unboxed.concepts._segmenting import Segmentation
from unboxed.concepts._unit_search import Effect, n_enough_units, optimize_unit_mask
from unboxed.errors import DataError, InputError, LayerError
from unboxed.testing.trace import changes, snapshot

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
DRAWING = {"upper left": {3, 7}, "lower right": {5}}  # the units that draw the two quadrants, which they share


class Painter(nn.Module):
    """Codes (N, 4) to images (N, 1, 16, 16): units draw bars in two quadrants, four more units do nothing.

    The layer "relu" has 8 units at 8x8. Units 3 and 7 draw the bar at the upper left (half of its brightness each, of
    which .5 is needed), unit 5 the one at the lower right; the others are active and have no weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.up = nn.ReLU(), nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[0, [3, 5, 7], 0, 0] = torch.tensor([0.45, 0.9, 0.45])
            self.out.bias.zero_()  # type: ignore[union-attr]

    def forward(self, z: Tensor) -> Tensor:
        h = z.new_zeros(len(z), 8, 8, 8)
        strength = 1 + 0.05 * z[:, 0].tanh()
        h[:, [3, 7], 1:3, 0:4] = strength[:, None, None, None]
        h[:, 5, 5:7, 4:8] = strength[:, None, None]
        h[:, [0, 1, 2, 4, 6]] = z[:, 1].tanh().abs()[:, None, None, None]
        images: Tensor = self.out(self.up(self.relu(h))).clamp(0, 1)
        return images


def quadrant_masks(images: Tensor) -> Tensor:
    """Masks (4, N, H, W) of the bright pixels of each quadrant."""
    bright = images[:, 0] >= 0.5
    n, half = images.shape[-1], images.shape[-1] // 2
    upper, left = torch.arange(n)[:, None] < half, torch.arange(n)[None] < half
    return torch.stack([bright & m for m in (upper & left, upper & ~left, ~upper & left, ~upper & ~left)])


quadrant_masks.names = QUADRANTS  # type: ignore[attr-defined]


def painter_box(dtype: torch.dtype = torch.float32) -> ub.Box:
    return ub.Box(Painter().to(dtype).eval(), ub.Features(("a", "b", "c", "d")), outputs="regression")


def codes(n: int = 32) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def found(concept: str = "upper left", **settings: Any) -> CausalUnits:
    return causal_units(painter_box(), codes(), concept, "relu", quadrant_masks, **settings)


# -- a generator whose units are known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", DRAWING)
def test_the_units_that_draw_a_concept_are_found(concept: str) -> None:
    units = DRAWING[concept]
    result = found(concept, n_units=len(units))
    assert set(result.units.tolist()) == units
    assert (result.removed, result.restored) == (1, 1)
    assert result.average_causal_effect == 1
    assert result.side_effects == {"lower right" if concept == "upper left" else "upper left": 0}
    assert result.verdict == "pass" or float(result.random_removed.max()) == 1  # a random set may be the same
    assert not result.images_ablated[:, :, :8, :8].any() or concept != "upper left"
    assert torch.equal(result.images_inserted >= 0.5, result.images >= 0.5)


@pytest.mark.parametrize("concept", DRAWING)
def test_the_greedy_search_finds_one_that_is_enough(concept: str) -> None:
    result = found(concept, search="greedy", n_units=1)
    assert set(result.units.tolist()) <= DRAWING[concept]
    assert (result.removed, result.restored) == (1, 1)


def test_the_fewest_units_are_taken_that_remove_most() -> None:
    """One of the two halves is enough: what is left is too dark to be ink."""
    result = found()
    assert len(result.units) == 1
    assert set(result.units.tolist()) < DRAWING["upper left"]
    assert result.removed == 1
    assert 0.1 < float(result.random_removed.mean()) < 0.5


def test_random_units_that_remove_as_much_fail() -> None:
    result = found(n_units=8)  # all of them are any 8
    assert (result.removed, result.verdict) == (1, "fail")
    assert result.p_value == 1


def test_a_layer_that_draws_nothing_fails() -> None:
    class Aside(nn.Module):
        """The layer `aside` runs and has no part in the image."""

        def __init__(self) -> None:
            super().__init__()
            self.painter, self.aside = Painter(), nn.ReLU()

        def forward(self, z: Tensor) -> Tensor:
            self.aside(z[:, :, None, None].expand(-1, -1, 8, 8))
            images: Tensor = self.painter(z)
            return images

    box = ub.Box(Aside().eval(), ub.Features(("a", "b", "c", "d")), outputs="regression")
    result = causal_units(box, codes(), "upper left", "aside", quadrant_masks, n_units=2)
    assert (result.removed, result.verdict) == (0, "fail")


def test_few_random_sets_are_no_test() -> None:
    result = found(n_random=3)
    assert result.verdict == "not tested"
    assert "at least 19 random sets" in result.reason
    assert found(n_random=0).random_removed.numel() == 0


def test_the_same_seed_gives_the_same_and_batches_change_nothing() -> None:
    box, x, few = painter_box(torch.float64), codes(24).double(), {"n_units": 2, "n_steps": 10, "n_random": 3}
    whole, again, split, other = (
        causal_units(box, x, "upper left", "relu", quadrant_masks, seed=seed, batch_size=size, **few)
        for seed, size in ((0, 24), (0, 24), (0, 7), (1, 24))
    )
    assert torch.equal(whole.weights, again.weights)
    assert torch.allclose(whole.weights, split.weights, atol=1e-12)
    assert torch.equal(whole.ablated, split.ablated)
    assert not torch.equal(whole.weights, other.weights)


def test_batches_are_bounded() -> None:
    box, seen = painter_box(), list[int]()
    box.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    causal_units(box, codes(), "upper left", "relu", quadrant_masks, n_steps=1, n_random=1, batch_size=7)
    assert max(seen) == 7


def test_it_leaves_no_trace() -> None:
    box, x = ub.load("zoo:digits-gan"), torch.randn(40, 64)
    before, z = snapshot(box.model), x.clone()
    causal_units(box, x, "upper left", "relu3", n_steps=1, n_random=1)
    assert changes(before, snapshot(box.model)) == []
    assert torch.equal(x, z)


def test_on_a_trained_generator() -> None:
    box, x = ub.load("zoo:digits-gan"), torch.randn(50, 64, generator=torch.Generator().manual_seed(7))
    result = causal_units(box, x, "lower right", "relu2", keep=QUADRANTS[:3], n_steps=8)
    assert result.removed >= 0.6
    assert result.restored >= 0.6
    assert float(result.random_removed.mean()) < 0.4
    assert max(abs(v) for name, v in result.side_effects.items() if name in QUADRANTS) <= 0.2
    assert result.verdict == "pass"
    assert "images that they were not chosen on" in result.reason
    assert result.images.shape == (6, 1, 28, 28)
    assert set(ub.plots.figures(result)) == {"images", "effects"}


# -- parts -------------------------------------------------------------------------------------------------------------


@cache
def interventions() -> Interventions:
    source = ImageSource(painter_box())
    x = source.box.validate_inputs(codes(20))
    (layer,) = layers_with_anchors(source, ["relu"], x)
    masks = quadrant_masks(source.images(x))
    positions = concept_positions(layer, masks[0], source.size, 0.2)
    return Interventions(source, Segmentation.of(quadrant_masks, source.images(x)), layer, x, positions)


def test_positions_of_a_concept() -> None:
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:3, 0:4] = True
    covered = interventions().positions[0]
    assert covered[inside].all()
    assert not covered[4:].any()
    layer, size = interventions().layer, (16, 16)
    assert layer.anchors.rows == Anchor(1.0, 2.0)
    everywhere = concept_positions(layer, torch.zeros(2, 16, 16, dtype=torch.bool), size, 0.0)
    assert everywhere.all()


def test_interventions_are_those_of_the_paper() -> None:
    """x_a = f((1 - alpha) r) and x_i = f(alpha k + (1 - alpha) r) at P, elsewhere r (equations 3 to 5)."""
    parts = interventions()
    box, x = parts.source.box, parts.x
    alpha, k = torch.linspace(0, 1, 8), torch.linspace(2, 0, 8)
    h = box.read(x, ["relu"])["relu"]
    at = parts.positions[:, None].float()
    model: Any = box.model
    for value in (None, k):
        moved = (1 - alpha[:, None, None]) * h + (0 if value is None else (alpha * value)[:, None, None])
        wanted = model.out(model.up(at * moved + (1 - at) * h)).clamp(0, 1).detach()
        assert torch.allclose(parts.images(alpha.double(), value), wanted, atol=1e-6)
        assert torch.equal(parts.areas(alpha.double(), value), quadrant_masks(wanted).sum((2, 3)).T.double())
    each = torch.rand(20, 8, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.stack([parts.rows(slice(i, i + 1)).areas(each[i])[0] for i in range(20)])
    assert torch.equal(parts.areas(each), rows)
    mean = (h.double() * at).sum((0, 2, 3)) / at.sum()
    assert torch.allclose(parts.mean_activation(), mean)


def test_the_mask_follows_the_effect() -> None:
    """On an effect that is linear, the slope that is estimated is that of each unit."""

    class Linear(Effect):
        def __call__(self, strength: Tensor) -> Tensor:
            return strength @ torch.tensor([1.0, 0.0, -1.0, 0.5]).double()

    parts = interventions()
    before = parts.areas()
    linear = Linear(parts, 0, torch.zeros(0).long(), torch.zeros(8), before, before.mean(0))
    alpha = optimize_unit_mask(linear, 4, 60, 0.05, 0)
    assert alpha[0] == 1
    assert alpha[2] == 0
    assert alpha[3] > 0.9
    assert float(optimize_unit_mask(linear, 4, 60, 100.0, 0).norm()) < 0.2  # the penalty outweighs it


def test_side_effects_are_subtracted() -> None:
    parts = interventions()
    before, value = parts.areas(), parts.mean_activation()
    plain = Effect(parts, 0, torch.zeros(0).long(), value, before, before.mean(0))
    all_units = torch.ones(8).double()
    assert torch.allclose(plain(all_units), torch.ones(20).double())
    keeping_itself = Effect(parts, 0, torch.tensor([0]), value, before, before.mean(0))
    assert torch.allclose(keeping_itself(all_units), torch.zeros(20).double())
    assert n_enough_units(plain, torch.tensor([0, 1, 3, 7, 2, 4, 5, 6])) == 3
    assert n_enough_units(plain, torch.tensor([0, 1, 2, 4, 6, 3, 5, 7])) == 1  # none of the first half does


def test_projective_anchors_are_those_of_the_upsampling() -> None:
    box = painter_box()
    x = box.validate_inputs(codes(4))
    anchors = generator_layer_anchors(box, "relu", (8, 8), x, 2)
    assert (anchors.rows, anchors.columns) == (Anchor(1.0, 2.0), Anchor(1.0, 2.0))


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_classifier_has_no_causal_units() -> None:
    x, _ = ub.data.digits("test").first(20)
    with pytest.raises(InputError, match="needs a generator, a model from codes to images"):
        causal_units(ub.Box(*ub.zoo.load("digits-cnn")), x, "hole", "relu1")


def test_unknown_concepts_and_layers() -> None:
    with pytest.raises(InputError, match="there is no concept 'middle'; the segmenter has 'upper left', 'upper right'"):
        found("middle")
    with pytest.raises(InputError, match="there is no concept 9"):
        found(9)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no concept 'middle'"):
        found(keep=["middle"])
    with pytest.raises(LayerError, match="relu9"):
        causal_units(painter_box(), codes(), "upper left", "relu9", quadrant_masks)
    with pytest.raises(LayerError, match=r"has no positions on the image; these layers have: "):
        causal_units(ub.load("zoo:digits-gan"), torch.randn(20, 64), "hole", "fc")


def test_a_concept_that_is_hardly_there() -> None:
    with pytest.raises(DataError, match="the concept 'upper right' is in 0 and 0 images of the two halves of 32 codes"):
        found("upper right")


def test_settings_out_of_range() -> None:
    for settings in ({"penalty": -1.0}, {"n_steps": 0}, {"n_units": 0}, {"search": "best"}, {"min_coverage": 2.0}):
        with pytest.raises(InputError):
            found(**settings)
