"""Signals (N, C, T) and volumes (N, C, D, H, W): methods work on them as on images, and results have their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.checks.relevance_gain import _rank_of_pixel_part_per_grid, fill_fn_by_name
from unboxed.checks.road import _impute_slices, _neighbor_weight_matrix
from unboxed.engine.perturb.baselines import baseline
from unboxed.errors import InputError
from unboxed.plots import colors

SHAPES = {"signal": (2, 40), "volume": (1, 4, 8, 6)}


def opened(kind: str) -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    conv, pool, c = (nn.Conv1d, nn.AdaptiveAvgPool1d, 2) if kind == "signal" else (nn.Conv3d, nn.AdaptiveAvgPool3d, 1)
    model = nn.Sequential(conv(c, 6, 3), nn.ReLU(), conv(6, 6, 1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(6, 3))
    box = ub.Box(model.eval(), ub.Pixels(SHAPES[kind], mean=0.5, std=0.25), outputs="logits")
    return box, torch.rand(3, *SHAPES[kind])


def as_model_takes(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.25


@pytest.mark.parametrize("kind", SHAPES)
def test_the_model_gets_what_it_takes(kind: str) -> None:
    box, x = opened(kind)
    assert torch.equal(box(x), box.model(as_model_takes(x)))
    assert str(SHAPES[kind]) in repr(box)
    assert box.restore_structure(box.validate_inputs(x)).shape == x.shape
    assert torch.equal(box.inputs.decode(box.inputs.encode(box.validate_inputs(x))).view_as(x), x) or kind == "signal"
    with pytest.raises(InputError, match="wanted images"):
        box(x[:, :, 1:])
    with pytest.raises(InputError, match="shape must be"):
        ub.Pixels((3, 1, 2, 3, 4))


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_are_those_of_the_model(kind: str) -> None:
    box, x = opened(kind)
    x.requires_grad_()
    (want,) = torch.autograd.grad(box.model(as_model_takes(x))[:, 1].sum(), x)
    assert torch.allclose(ub.attribution.gradient(box, x.detach(), 1).map, want, atol=1e-6)
    assert ub.attribution.integrated_gradients(box, x.detach(), 1).map.shape == x.shape


@pytest.mark.parametrize("kind", SHAPES)
def test_grad_cam_is_its_equation(kind: str) -> None:
    box, x = opened(kind)
    h = box.model[:4](as_model_takes(x)).detach().requires_grad_()
    (g,) = torch.autograd.grad(box.model[4:](h)[:, 1].sum(), h)
    weights = g.flatten(2).mean(2).view(*g.shape[:2], *[1] * (g.ndim - 2))
    small = (weights * h).sum(1, keepdim=True).relu().detach()
    want = F.interpolate(small, x.shape[2:], mode="linear" if kind == "signal" else "trilinear")
    found = ub.attribution.grad_cam(box, x, 1)
    assert found.layer.partition(":")[0] == "3"
    assert torch.allclose(found.map, want, atol=1e-5)
    assert torch.allclose(ub.attribution.grad_cam(box, x, 1, layer="3").map, want, atol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_occlusion_covers_windows_of_a_signal_and_of_the_slices_of_a_volume(kind: str) -> None:
    box, x = opened(kind)
    window = 5 if kind == "signal" else 4
    found = ub.attribution.occlusion(box, x, 1, window=window, stride=2, baseline=0.5)
    total, count = torch.zeros(3, 1, *x.shape[2:]), torch.zeros(x.shape[2:])
    starts = [range(n - window + 1) for n in x.shape[2:]]
    windows: list[tuple[Any, ...]] = (
        [(slice(i, i + 5),) for i in [*range(0, 36, 2), 35]]
        if kind == "signal"
        else [(d, slice(i, i + 4), slice(j, j + 4)) for d in range(4) for i in starts[1][::2] for j in starts[2][::2]]
    )
    for at in windows:
        hidden = x.clone()
        hidden[(slice(None), slice(None), *at)] = 0.5
        drop = (box(x) - box(hidden))[:, 1]
        total[(slice(None), 0, *at)] += drop.view(3, *[1] * total[(slice(None), 0, *at)][0].ndim)
        count[at] += 1
    assert torch.allclose(found.map, total / count, atol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_made_has_the_shape_of_the_inputs(kind: str) -> None:
    box, x = opened(kind)
    made = ub.synthesis.class_image(box, 0, steps=2, frame_every=1)
    assert made.images.shape == (1, *SHAPES[kind])
    assert made.frames.shape[2:] == SHAPES[kind]
    assert ub.adversarial.pgd(box, x, box.predict(x), eps=0.2).images.shape == x.shape
    assert ub.synthesis.morph(box, x, 0, steps=2).images.shape == x.shape
    assert ub.attribution.rise(box, x, 0, n_samples=8, cells=3).map.shape == (3, 1, *SHAPES[kind][1:])
    assert ub.synthesis.deepdream(box, x, ub.logit(0), steps=1).images.shape == x.shape
    guided = ub.attribution.guided_grad_cam(box, x, 0).map
    assert guided.shape == x.shape


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("method", ["gradient", "grad_cam", "occlusion"])
def test_verdicts_judge_maps_of_signals_and_volumes(kind: str, method: str) -> None:
    box, _ = opened(kind)
    x = torch.rand(8, *SHAPES[kind], generator=torch.Generator().manual_seed(0))
    found = ub.checks.verdict(box, x, getattr(ub.attribution, method))
    assert found.grade != "not applicable"
    assert found.figures["randomization"] < 1
    assert getattr(ub.attribution, method)(box, x).shape[2:] == SHAPES[kind][1:]


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("kind", SHAPES)
def test_the_report_and_figures_show_curves_and_slices(kind: str, tmp_path: Path) -> None:
    box, x = opened(kind)
    x = torch.rand(6, *SHAPES[kind])
    sections = ["overview", "activations", "units", "class-images", "gradients", "attacks", "morphs"]
    made = ub.report(box, (x, box.predict(x)), tmp_path, sections=sections, quiet=True)
    assert made.failures == {}
    assert set(ub.plots.figures(ub.attribution.gradient(box, x, 0), box)) == {"attribution"}


def test_a_signal_is_drawn_as_curves() -> None:
    x = torch.zeros(2, 1, 100)
    x[1] = 1.0
    rgb = colors.image_to_rgb(x)
    assert rgb.shape == (colors.CURVE_HEIGHT_PIXELS, 100, 3)
    assert (rgb[-1] == colors.CURVE_COLORS[0]).all()  # the first channel is 0, at the bottom
    assert (rgb[0] == colors.CURVE_COLORS[1]).all()
    assert (rgb[10] == 255).all()


def test_a_signal_among_several_inputs_keeps_its_shape() -> None:
    class Two(nn.Module):
        def forward(self, wave: Tensor, row: Tensor) -> Tensor:
            return torch.cat([wave.mean((1, 2), keepdim=False)[:, None], row.sum(1, keepdim=True)], 1)

    box = ub.Box(Two(), ub.MultiInput({"wave": ub.Pixels((2, 40)), "row": ub.Features(("a", "b"))}), outputs="logits")
    x = {"wave": torch.rand(3, 2, 40), "row": torch.randn(3, 2)}
    assert ub.attribution.gradient(box, x, 0).map["wave"].shape == (3, 2, 40)


def test_the_blurred_baseline_blurs_along_a_signal_and_within_a_slice() -> None:
    signal, _ = opened("signal")
    x = torch.rand(3, *SHAPES["signal"])
    found = ub.attribution.integrated_gradients(signal, x, 1, baseline="blurred").map
    assert float(found.abs().max()) > 0
    volume, _ = opened("volume")
    channels, depth, height, width = SHAPES["volume"]
    one_slice = torch.zeros(1, *SHAPES["volume"])
    one_slice[:, :, 1] = 1
    packed = volume.validate_inputs(one_slice)
    blurred = baseline(volume, packed, "blurred").view(1, channels, depth, height, width)
    assert torch.allclose(blurred, one_slice, atol=1e-6)


def test_a_signal_has_a_fine_and_a_coarse_grid_of_parts() -> None:
    signal, _ = opened("signal")
    found = ub.checks.verdict(signal, torch.rand(8, *SHAPES["signal"]), ub.attribution.gradient)
    assert len(set(found.evidence.removal.variants)) == len(found.evidence.removal.variants)


def slices_of_one_value() -> tuple[ub.Box, Tensor, Tensor]:
    """A volume as the box has it (1, 1, D H, W), slice d of value d / 4, and pixels removed at slices' borders."""
    box, _ = opened("volume")
    x = (torch.arange(4) / 4).view(1, 1, 4, 1, 1).expand(1, *SHAPES["volume"])
    removed = torch.zeros(1, 1, 4, 8, 6, dtype=torch.bool)
    removed[..., [0, 7], :] = removed[..., 1:3, 2:4] = True
    return box, box.validate_inputs(x), removed.flatten(2, 3)


@pytest.mark.parametrize("name", ["surroundings", "nearest", "blurred"])
def test_fills_of_a_volume_are_of_its_own_slices(name: str) -> None:
    box, x, removed = slices_of_one_value()
    filled = fill_fn_by_name(box, x, 0)[name](torch.tensor([0]), removed)
    assert torch.allclose(torch.where(removed, filled, x), x)
    removed = removed.clone()
    removed[:, :, 8:16] = True  # a whole slice: nothing of its own is left
    filled = fill_fn_by_name(box, x, 0)[name](torch.tensor([0]), removed)
    want = x if name == "blurred" else torch.where(torch.arange(32).view(-1, 1) // 8 == 1, x.mean(), x)
    assert torch.allclose(torch.where(removed, filled, x), want)


def test_road_imputes_each_slice_of_a_volume_by_itself() -> None:
    box, x, removed = slices_of_one_value()
    weights = _neighbor_weight_matrix(8, 6)
    assert torch.allclose(_impute_slices(box.inputs, x[0], removed.flatten(), weights), x[0], atol=1e-6)
    removed[:, :, 8:16] = True
    found = _impute_slices(box.inputs, x[0], removed.flatten(), weights)
    assert torch.allclose(found, torch.where(torch.arange(32).view(-1, 1) // 8 == 1, x.mean(), x[0]), atol=1e-6)
    maps = torch.rand(3, 1, 4, 8, 6)
    assert ub.checks.road(box, torch.rand(3, 1, 4, 8, 6), maps, 0, fractions=[0.5]).scores.shape == (3, 1)


def test_parts_of_a_volume_are_in_one_slice() -> None:
    box, x, _ = slices_of_one_value()
    for rank, n_parts in _rank_of_pixel_part_per_grid(box, x, torch.rand(1, x[0].numel()), 0):
        by_slice = [set(rows.flatten().tolist()) for rows in rank[0, 0].split(8)]
        assert sum(map(len, by_slice)) == len(set.union(*by_slice)) == n_parts


@pytest.mark.parametrize("kind", SHAPES)
def test_a_universal_perturbation_has_the_shape_of_the_inputs(kind: str) -> None:
    box, x = opened(kind)
    found = ub.adversarial.universal(box, x, box.predict(x), eps=0.1, steps=2)
    assert found.perturbation.shape == (1, *SHAPES[kind])
    assert torch.allclose(found.apply_to(box, x), (x + found.perturbation).clamp(0, 1))


def test_maps_of_several_inputs_may_be_of_signals() -> None:
    class Two(nn.Module):
        def forward(self, signal: Tensor, row: Tensor) -> Tensor:
            return torch.cat([signal.flatten(1)[:, :2], row], 1)

    inputs = ub.MultiInput({"signal": ub.Pixels((2, 40)), "row": ub.Features(("a",))})
    box = ub.Box(Two(), inputs, outputs="logits")
    x = {"signal": torch.rand(3, 2, 40), "row": torch.randn(3, 1)}
    maps = ub.attribution.gradient(box, x, 0).map
    assert maps["signal"].shape == (3, 2, 40)
    assert ub.checks.infidelity(box, x, maps, 0) is not None


def test_a_table_is_packed_as_it_is() -> None:
    table, x = ub.Features(("a", "b")), torch.rand(2, 2)
    assert table.pack(x) is x
    assert table.unpack(x) is x


def test_signals_of_another_range_are_told_how_to_be_given() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    x, low, high = torch.randn(2, 2, 64, generator=torch.Generator().manual_seed(0)), -5.0, 5.0
    with pytest.raises(InputError, match=r"signals must be in \[0, 1\].*mean=-a / \(b - a\), std=1 / \(b - a\)"):
        ub.Box(model, ub.Pixels((2, 64))).validate_inputs(x)
    box = ub.Box(model, ub.Pixels((2, 64), mean=-low / (high - low), std=1 / (high - low)))
    torch.testing.assert_close(box((x - low) / (high - low)), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_the_total_variation_of_a_signal_is_that_along_it() -> None:
    """It has no neighbors above and below."""
    x = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 1, 1, 4)
    assert float(ub.total_variation(kind="anisotropic")({"input": x})) == pytest.approx(0.5)
    assert float(ub.total_variation()({"input": x})) == pytest.approx(1.25)
    assert float(ub.total_variation(kind="anisotropic")({"input": x.mT})) == pytest.approx(0.5)
