"""Dissection: against a literal reference, planted detectors, twins that must fail, and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import digit_concepts, dissect
from unboxed.concepts._anchors import Anchor, Anchors
from unboxed.concepts._detector_scan import above, n_top_values_to_keep
from unboxed.concepts._segmenting import bright_and_left_masks
from unboxed.concepts.dissect import random_orthogonal_matrix
from unboxed.engine.rows import evenly_spaced_indices
from unboxed.errors import InputError, LayerError


class Small(nn.Module):
    """Convolutions without padding, so that positions are not equal parts of the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.relu1 = nn.Conv2d(1, 5, 5), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(5, 6, 3, stride=2), nn.ReLU()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def small_box() -> ub.Box:
    return ub.Box(Small().eval(), ub.Pixels((1, 28, 28)), outputs="logits")


def images(n: int = 12) -> Tensor:
    return ub.data.digits("test").first(n)[0]


# -- the paper's definition, written out -------------------------------------------------------------------------------


def reference_iou(maps: Tensor, masks: Tensor, centers: tuple[float, float], quantile: float) -> np.ndarray:
    """IoU (U, K) of maps (N, U, h, w) and masks (K, N, H, W); position i lies at centers[0] + centers[1] * i."""
    n, n_units, h, w = maps.shape
    size = masks.shape[-1]
    at = np.array([centers[0] + centers[1] * i for i in range(h)])
    pixels = np.arange(size) + 0.5
    result = np.zeros((n_units, len(masks)))
    for unit in range(n_units):
        big = np.zeros((n, size, size))
        for i in range(n):
            columns = np.stack([np.interp(pixels, at[:w], row) for row in maps[i, unit].double().numpy()])
            big[i] = np.stack([np.interp(pixels, at, column) for column in columns.T], 1)
        values = np.sort(big.ravel())[::-1]
        threshold = values[int(quantile * len(values))]
        inside = big >= threshold - 1e-6 * abs(threshold) if threshold > values[-1] else big > threshold
        for k, mask in enumerate(masks.numpy()):
            result[unit, k] = (inside & mask).sum() / max(1, (inside | mask).sum())
    return result


@pytest.mark.parametrize(("layer", "centers"), [("relu1", (2.5, 1.0)), ("relu2", (3.5, 2.0))])
@pytest.mark.parametrize("quantile", [0.005, 0.05])
def test_iou_is_the_literal_one(layer: str, centers: tuple[float, float], quantile: float) -> None:
    box, x = small_box(), images()
    got = dissect(box, x, layers=layer, quantile=quantile, n_random=0, n_rotations=0).layers[0]
    wanted = reference_iou(box.read(x, [layer])[layer], digit_concepts(x), centers, quantile)
    assert np.abs(got.iou.numpy() - wanted).max() < 1e-6
    assert got.iou.shape == (got.threshold.numel(), 11)


def test_batches_and_groups_of_units_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x = ub.Box(Small().double().eval(), ub.Pixels((1, 28, 28)), outputs="logits"), images()
    settings: dict[str, Any] = {"n_random": 1, "n_rotations": 1}
    whole = dissect(box, x, **settings)
    split = dissect(box, x, batch_size=5, **settings)
    monkeypatch.setattr(
        "unboxed.concepts._detector_scan.MAX_KEPT_TOP_VALUES", 2 * n_top_values_to_keep(12 * 784, 0.005)
    )
    grouped = dissect(box, x, **settings)
    for a, b, c in zip(whole.layers, split.layers, grouped.layers, strict=True):
        assert torch.allclose(a.iou, b.iou, atol=1e-12)
        assert torch.allclose(a.iou, c.iou, atol=1e-12)
        assert torch.allclose(a.rotated.best_iou, c.rotated.best_iou, atol=1e-12)
        assert torch.equal(a.threshold, c.threshold)


def test_a_unit_that_is_never_active_detects_nothing() -> None:
    model = Small()
    with torch.no_grad():
        model.conv1.weight[2:4] = 0.0
        model.conv1.bias.copy_(torch.tensor([0.0, 0, -100, 1, 0]))  # type: ignore[union-attr]  # 3: the same everywhere
    result = dissect(ub.Box(model, ub.Pixels((1, 28, 28)), outputs="logits"), images(), layers="relu1", n_random=0)
    assert (result.layers[0].iou[2:4] == 0).all()


# -- planted detectors -------------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """Units that are the concepts of digits, among random ones; a linear layer mixes them in."""

    def __init__(self, n_noise: int = 5, n_planted: int = 11) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, n_noise, 5, padding=2)
        self.mix = nn.Conv2d(n_noise + n_planted, n_noise + n_planted, 1, bias=False)
        nn.init.dirac_(self.mix.weight)
        self.fc = nn.Linear(n_noise + n_planted, 2)
        self.n_planted = n_planted

    def forward(self, x: Tensor) -> Tensor:
        planted = digit_concepts(x)[: self.n_planted].movedim(0, 1).to(x)
        logits: Tensor = self.fc(self.mix(torch.cat([self.conv(x), planted], 1)).mean((2, 3)))
        return logits


def test_planted_units_are_found_and_their_twins_are_not() -> None:
    box = ub.Box(Planted(), ub.Pixels((1, 28, 28)), outputs="logits")
    result = dissect(box, images(12), layers="mix", quantile=0.005)
    layer = result.layers[0]
    assert torch.allclose(layer.iou[5:].diagonal(), torch.ones(11))
    assert layer.concept[5:].tolist() == list(range(11))
    assert set(layer.detectors[:11].tolist()) == set(range(5, 16))
    assert layer.concepts_detected == digit_concepts.names
    assert set(layer.beyond_chance.tolist()) <= set(range(5, 16))
    assert len(layer.beyond_chance) > 5
    assert (result.verdict, layer.verdict) == ("pass", "pass")
    assert "16 units of 'mix' are detectors" in result.reason
    assert "beyond chance" in result.reason


def test_a_plant_with_false_pixels_has_its_own_iou() -> None:
    """Half of the ink is missing, and as much of the ground is added."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit, self.fc = nn.Identity(), nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            ink = x >= 0.5
            checkers = (torch.arange(28)[:, None] + torch.arange(28)) % 2 == 0
            h = self.unit(((ink & checkers) | (ink.roll(14, 3) & checkers)).to(x))
            logits: Tensor = self.fc(h.mean((2, 3)))
            return logits

    x = images(40)
    ink = x[:, 0] >= 0.5
    checkers = (torch.arange(28)[:, None] + torch.arange(28)) % 2 == 0
    unit = (ink & checkers) | (ink.roll(14, 2) & checkers)
    wanted = int((unit & ink).sum()) / int((unit | ink).sum())
    layer = dissect(ub.Box(Half(), ub.Pixels((1, 28, 28)), outputs="logits"), x, layers="unit", n_random=0).layers[0]
    assert float(layer.iou[0, 0]) == pytest.approx(wanted, abs=1e-6)


def test_edges_that_random_filters_detect_are_no_finding() -> None:
    result = dissect(ub.Box(*ub.zoo.load("digits-cnn")), images(40), layers="relu1")
    layer = result.layers[0]
    assert len(layer.detectors) > 8
    assert float(layer.random.n_detectors.double().mean()) > 5
    assert result.verdict == "fail"
    assert "this picture is nothing" in result.reason or "nothing special" in result.reason


def test_few_twins_are_no_test_and_none_detected_fails() -> None:
    box = ub.Box(Planted(), ub.Pixels((1, 28, 28)), outputs="logits")
    few = dissect(box, images(20), layers="mix", n_random=3, n_rotations=0)
    assert few.verdict == "not tested"
    assert "at least 19" in few.reason
    none = dissect(box, images(20), layers="conv", min_iou=0.9, n_random=0, n_rotations=0)
    assert (none.verdict, len(none.layers[0].detectors)) == ("fail", 0)
    assert "none of 5 units" in none.reason


def test_shown_examples_are_those_with_the_largest_activation() -> None:
    box, x = small_box(), images(30)
    result = dissect(box, x, layers="relu1", n_random=0, n_rotations=0)
    shown = result.layers[0].shown[0]
    h = box.read(x, ["relu1"])["relu1"][:, shown.unit].amax((1, 2))
    assert torch.equal(shown.images, x[h.argsort(descending=True)[:4]])
    k = int(result.layers[0].concept[shown.unit])
    assert torch.equal(shown.concept_masks, digit_concepts(shown.images)[k])
    assert shown.unit_masks.any()


def test_generators_are_dissected_on_their_images() -> None:
    box = ub.load("zoo:digits-gan")
    z = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    result = dissect(box, z, layers=["relu2", "conv4"], n_random=1, n_rotations=1, quantile=0.15)
    assert result.is_generator
    ink = result.layers[1].iou[0, 0]  # the image before its sigmoid
    assert float(ink) > 0.9
    assert result.layers[0].iou.shape == (48, 11)
    assert result.layers[0].random.best_iou.shape == (1, 11)


def test_default_layers() -> None:
    result = dissect(small_box(), images(4), n_random=0, n_rotations=0)
    assert [p.layer for p in result.layers] == ["relu1", "relu2"]
    result = dissect(ub.load("zoo:digits-gan"), torch.randn(4, 64), n_random=0, n_rotations=0)
    assert [p.layer for p in result.layers] == ["relu1", "relu2", "relu3"]


def test_any_segmenter() -> None:
    def soft(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], 1 - x[:, 0]])

    result = dissect(small_box(), images(8), soft, n_random=0, n_rotations=0)
    assert result.names == ("concept 0", "concept 1")
    assert float(result.areas.sum()) == pytest.approx(1)
    color = ub.Box(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 2)), ub.Pixels((3, 10, 10)))
    assert dissect(color, torch.rand(4, 3, 10, 10), bright_and_left_masks, n_random=0, n_rotations=0).layers[
        0
    ].iou.shape == (
        4,
        2,
    )


# -- parts -------------------------------------------------------------------------------------------------------------


def test_anchors() -> None:
    assert Anchor.stretched(7, 28) == Anchor(2.0, 4.0)
    first, last = torch.arange(24), torch.arange(24) + 5  # of a 5x5 convolution without padding
    assert Anchor.from_bounds(first, last, 28) == Anchor(2.5, 1.0)
    padded = Anchor.from_bounds((torch.arange(28) - 2).clamp_min(0), (torch.arange(28) + 3).clamp_max(28), 28)
    assert padded == Anchor(0.5, 1.0)
    assert Anchor.from_bounds(first, last + first % 7, 28) is None  # not evenly spaced
    assert Anchor.from_bounds(torch.zeros(4), torch.full((4,), 28), 28) is None  # fields that hold the whole image
    weights = Anchor(2.5, 1.0).weights(24, 28)
    assert torch.allclose(weights.sum(1), torch.ones(28, dtype=torch.float64))
    assert weights[2].argmax() == 0
    assert weights[0, 0] == 1


def test_stretched_maps_are_torchs_bilinear() -> None:
    maps = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    wanted = nn.functional.interpolate(maps, (28, 30), mode="bilinear", align_corners=False)
    assert torch.allclose(Anchors.stretched((7, 5), (28, 30)).upsample(maps, (28, 30)), wanted)


def test_equal_values_are_above_their_threshold_in_spite_of_rounding() -> None:
    level = torch.tensor([0.1])
    maps = torch.tensor([0.1, 0.1 - 1e-9, 0.0999]).view(1, 1, 1, 3)
    assert above(maps, level, torch.tensor([False])).flatten().tolist() == [True, True, False]
    assert not above(maps, level, torch.tensor([True])).any()


def test_rotations_are_orthogonal_and_random() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = random_orthogonal_matrix(8, generator), random_orthogonal_matrix(8, generator)
    assert torch.allclose(a @ a.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(a, b)
    many = torch.stack([random_orthogonal_matrix(3, generator) for _ in range(2000)])
    assert many.mean(0).abs().max() < 0.06  # without the signs, the diagonal of R would bias it
    assert evenly_spaced_indices(3, 2) == [0, 2]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        (lambda x: x[:, 0] > 0.5, r"masks of shape \(2, 28, 28\) for 2 images; wanted \(K, 2, 28, 28\)"),
        (lambda x: (x > 0.5)[:, :, :14], r"masks of shape \(2, 1, 14, 28\)"),
        (lambda x: (x > 0.5).movedim(1, 0)[:0], r"masks of shape \(0, 2, 28, 28\)"),
        (lambda x: x.movedim(1, 0) * 3, r"True and False, or numbers in \[0, 1\]"),
        (lambda x: x.movedim(1, 0) * torch.nan, r"True and False, or numbers in \[0, 1\]"),
        (lambda x: [1, 2], "gives list"),
        ("ink", "must be a function from images to masks; got str"),
    ],
)
def test_masks_that_do_not_fit(segmenter: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dissect(small_box(), images(2), segmenter)


def test_a_segmenter_that_changes_its_mind_and_names_that_do_not_fit() -> None:
    class Changing:
        def __init__(self, names: tuple[str, ...] = ("a",)) -> None:
            self.names, self.calls = names, 0

        def __call__(self, x: Tensor) -> Tensor:
            self.calls += 1
            return (x > 0.5).movedim(1, 0).expand(1 + (self.calls > 1), -1, -1, -1)

    with pytest.raises(InputError, match=r"masks of shape \(2, 8, 28, 28\) for 8 images; wanted \(1, 8, 28, 28\)"):
        dissect(small_box(), images(8), Changing())
    with pytest.raises(InputError, match=r"gives 1 masks per image, and its names are \['a', 'b'\]"):
        dissect(small_box(), images(8), Changing(("a", "b")))


def test_color_images_need_a_segmenter() -> None:
    box = ub.Box(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 2)), ub.Pixels((3, 10, 10)))
    with pytest.raises(InputError, match="no concepts are known for images with 3 channels; give segmenter="):
        dissect(box, torch.rand(2, 3, 10, 10))


def test_layers_without_positions() -> None:
    with pytest.raises(LayerError, match=r"'fc' gives \(10,\), which has no positions|'fc1' gives"):
        dissect(ub.Box(*ub.zoo.load("digits-cnn")), images(2), layers="fc1")
    with pytest.raises(LayerError, match=r"'fc' gives \(3136,\), which has no positions on the image; these layers"):
        dissect(ub.load("zoo:digits-gan"), torch.randn(2, 64), layers="fc")


def test_models_without_images() -> None:
    table = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match=r"images alone \(Pixels\); this one takes Features, and gives no images"):
        dissect(table, torch.rand(4, 3))
    model, inputs = ub.zoo.load_generator("digits-gan")
    with pytest.raises(InputError, match='open it with outputs="regression"'):
        dissect(ub.Box(model, inputs, outputs="binary"), torch.randn(2, 64))


def test_a_generator_of_another_range_needs_decode() -> None:
    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, _ = ub.zoo.load_generator("digits-gan")

        def forward(self, z: Tensor) -> Tensor:
            images: Tensor = 2 * self.generator(z) - 1
            return images

    box = ub.Box(Tanh().eval(), ub.zoo.load_generator("digits-gan")[1], outputs="regression")
    z = torch.randn(4, 64)
    with pytest.raises(InputError, match=r"values from -1 to .*; wanted \[0, 1\]: give decode="):
        dissect(box, z)
    plain = dissect(ub.load("zoo:digits-gan"), z, layers="relu2", n_random=0, n_rotations=0)
    decoded = dissect(box, z, layers="generator.relu2", decode=lambda h: (h + 1) / 2, n_random=0, n_rotations=0)
    assert torch.allclose(plain.layers[0].iou, decoded.layers[0].iou, atol=1e-3)
    with pytest.raises(InputError, match="decode must give images of shape"):
        dissect(box, z, decode=lambda h: h[:, 0])
    with pytest.raises(InputError, match="decode must be a function"):
        dissect(box, z, decode=2)  # type: ignore[arg-type]
