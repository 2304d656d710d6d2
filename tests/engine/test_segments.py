"""Segments and masking: which are features, what may be given, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.perturb.masking import make_maskable_inputs
from unboxed.engine.perturb.segments import FeatureGroups, feature_groups
from unboxed.errors import InputError

GRAY, COLOR, TABLE = ub.Pixels((1, 12, 9)), ub.Pixels((3, 12, 9)), ub.Features(tuple("abcde"))


def box_of(inputs: Any) -> ub.Box:
    class Net(nn.Module):
        def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
            return torch.cat([p.flatten(1)[:, :3] for p in (*parts, *named.values())], 1)

    return ub.Box(Net(), inputs, outputs="logits")


def found(inputs: Any, segments: Any = None, n: int = 2, **more: Any) -> FeatureGroups:
    box = box_of(inputs)
    return feature_groups(
        box,
        box.validate_inputs(box.restore_structure(box.inputs.random_inputs(n, torch.Generator().manual_seed(0)))),
        segments,
        **more,
    )


def digits() -> tuple[ub.Box, Tensor]:
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    return box, ub.data.digits("test").first(3)[0]


@pytest.mark.parametrize("name", ["slic", "quickshift", "squares", 30, ("slic", 30), ("squares", 4)])
def test_digits_are_cut_sensibly(name: Any) -> None:
    """Every number from 0 without gaps, neither a handful nor a crumb each, and ink apart from ground."""
    box, x = digits()
    own = feature_groups(box, box.validate_inputs(x), name)
    assert own.ids.shape == (3, 1, 28, 28)
    for of, count, image in zip(own.ids[:, 0], own.n_segments, x[:, 0], strict=True):
        assert torch.equal(of.unique(), torch.arange(count))
        assert 12 <= count <= 80
        if name != ("squares", 4) and name != "squares":
            within = torch.stack([image[of == k].std(correction=0) ** 2 * (of == k).sum() for k in range(count)]).sum()
            assert float(within / image.numel()) < 0.6 * float(image.var())  # most of the ink's variance lies between


@pytest.mark.parametrize("name", ["slic", "quickshift"])
@pytest.mark.parametrize("inputs", [GRAY, COLOR, ub.Pixels((2, 12, 9)), ub.Pixels((3, 100, 120))])
def test_images_of_any_kind(name: str, inputs: ub.Pixels) -> None:
    own = found(inputs, name)
    assert own.ids.shape == (2, 1, *inputs.shape[1:])
    assert min(own.n_segments) > 1


@pytest.mark.parametrize("name", ["slic", "quickshift"])
def test_an_even_image_is_cut_into_squares(name: str) -> None:
    box = box_of(GRAY)
    own = feature_groups(box, torch.zeros(1, 1, 12, 9), name)
    assert own.n_segments[0] > 3


def test_squares() -> None:
    of = found(GRAY, ("squares", 4)).ids[0, 0]
    assert of[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert of[:, 0].tolist() == [0] * 4 + [3] * 4 + [6] * 4
    assert found(GRAY, "pixels").ids[1, 0].flatten().tolist() == list(range(108))


def test_given_segments_are_relabeled() -> None:
    whole = torch.zeros(12, 9, dtype=torch.long)
    whole[3:], whole[6:] = 7, 40
    for given in (whole, whole[None], whole[None, None], whole.expand(2, 12, 9), whole.int(), whole.byte()):
        own = found(GRAY, given)
        assert own.n_segments == (3, 3)
        assert own.ids[1, 0, :, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 6
    each = torch.stack([whole, torch.zeros_like(whole)])
    assert found(GRAY, each).n_segments == (3, 1)
    channels = torch.arange(3).view(3, 1, 1).expand(3, 12, 9)
    assert found(COLOR, channels).ids.shape == (2, 3, 12, 9)
    assert found(TABLE, torch.tensor([0, 0, 1, 2, 2])).ids[1].tolist() == [0, 0, 1, 2, 2]


BAD = {
    "another size": torch.zeros(9, 12, dtype=torch.long),
    "of three images": torch.zeros(3, 12, 9, dtype=torch.long),
    "negative": torch.full((12, 9), -1),
    "floats": torch.zeros(12, 9),
    "booleans": torch.zeros(12, 9, dtype=torch.bool),
    "an unknown name": "voronoi",
    "none": 0,
    "less than none": -3,
    "a share": 0.5,
    "truth": True,
    "squares larger than the image": ("squares", 13),
    "pixels of a size": ("pixels", 3),
    "a list": [1, 2, 3],
    "a dict": {"image": "slic"},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", ["feature_ablation", "lime", "kernel_shap", "shapley"])
def test_bad_segments(bad: str, method: str) -> None:
    box = box_of(GRAY)
    x = GRAY.random_inputs(2, torch.Generator().manual_seed(0))
    with pytest.raises(InputError) as caught:
        getattr(ub.attribution, method)(box, x, 1, segments=BAD[bad])
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("bad", [("sqares", 4), ["Squares", 4], "square"])
@pytest.mark.parametrize("inputs", [GRAY, ub.MultiInput({"image": GRAY, "table": TABLE})])
def test_a_misspelled_name(inputs: Any, bad: Any) -> None:
    with pytest.raises(InputError) as caught:
        found(inputs, bad)
    assert f"got {bad!r}; did you mean 'squares'?" in str(caught.value)


@pytest.mark.parametrize("n_samples", [1000, 60])
@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
def test_segments_by_default_fit_the_samples(method: str, n_samples: int) -> None:
    """On noise quickshift makes thousands: then the image is cut more coarsely. What is asked for is not changed."""
    torch.manual_seed(0)
    inputs = ub.Pixels((3, 48, 48))
    box, x = box_of(inputs), torch.rand(2, 3, 48, 48)
    x[1] = 0.5
    x[1, :, :24] = 0.2
    result = getattr(ub.attribution, method)(box, x, 1, n_samples=n_samples)
    assert 1 <= int(result.segments.max()) + 1 <= n_samples // 4
    with pytest.raises(InputError, match="larger segments"):
        getattr(ub.attribution, method)(box, x, 1, segments="quickshift", n_samples=1000)


@pytest.mark.parametrize("n_samples", [9, 4])
@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
def test_too_few_samples_for_any_segments_are_refused(method: str, n_samples: int) -> None:
    """One segment per image says nothing."""
    inputs = ub.Pixels((3, 48, 48))
    with pytest.raises(InputError, match=f"or more; got {n_samples}"):
        getattr(ub.attribution, method)(box_of(inputs), torch.rand(2, 3, 48, 48), 1, n_samples=n_samples)


def test_one_an_image_or_one_a_channel() -> None:
    """Three color images: (3, H, W) may mean either."""
    of = torch.zeros(3, 12, 9, dtype=torch.long)
    with pytest.raises(InputError, match="ambiguous, per image or per channel"):
        found(COLOR, of, n=3)
    assert found(COLOR, of[:, None], n=3).ids.shape == (3, 1, 12, 9)
    assert found(COLOR, of[None], n=3).ids.shape == (3, 3, 12, 9)


def test_several_inputs() -> None:
    """Features of all parts are numbered on; groups may be given part by part."""
    both = ub.MultiInput({"image": GRAY, "table": TABLE})
    own = found(both, ("squares", 4))
    assert own.n_segments == (14, 14)
    assert own.ids[0, -5:].tolist() == [9, 10, 11, 12, 13]
    own = found(both, {"image": torch.zeros(12, 9, dtype=torch.long), "table": torch.tensor([0, 0, 0, 1, 1])})
    assert own.ids[0].tolist() == [0] * 108 + [1] * 3 + [2] * 2
    assert found(ub.MultiInput((GRAY, TABLE)), ("pixels", None)[0]).n_segments == (113, 113)
    with pytest.raises(InputError, match="one each"):
        found(both, torch.zeros(113, dtype=torch.long))


def test_segments_that_mask_nothing_are_left_out() -> None:
    box = box_of(GRAY)
    x = torch.rand(2, 1, 12, 9, generator=torch.Generator().manual_seed(0))
    x[0, :, :4] = 0
    played = make_maskable_inputs(box, x, ("squares", 4), None)
    assert played.n_maskable_segments_per_row == [6, 9]
    assert played.active[0].tolist() == [False] * 3 + [True] * 6
    assert played.maskable_segment_index_by_value[0, 0, ::4, 0].tolist() == [9, 0, 3]
    assert bool(make_maskable_inputs(box, x, ("squares", 4), 0.5).active.all())
    mean = make_maskable_inputs(box, x, ("squares", 4), "segment", allow_segment_mean=True).baseline_values
    assert torch.allclose(mean[1, 0, :4, :4], x[1, 0, :4, :4].mean())


def test_shares_sum_to_the_values() -> None:
    own = found(GRAY, ("squares", 4))
    values = torch.arange(18.0).view(2, 9)
    assert torch.allclose(own.distribute_within_segments(values).flatten(1).sum(1), values.sum(1))
    assert torch.equal(own.broadcast_to_values(values)[1, 0, 0], values[1][own.ids[1, 0, 0]])
