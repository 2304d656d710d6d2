"""Occlusion against captum's, its own definition, and models that windows can't be carried through."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion as Captums
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.test_computes_less import Rows
from unboxed.attribution import occlusion
from unboxed.attribution.occlusion import window_start_pixels
from unboxed.engine.perturb import windows as engine
from unboxed.engine.perturb.baselines import baseline
from unboxed.errors import InputError
from unboxed.testing.cases import open_box


class Small(nn.Module):
    """Two convolutions with a pooling between, on images that are large enough for windows."""

    def __init__(self, first: Callable[[Any], Any] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 3), nn.Linear(8 * 7 * 9, 4)
        self.first = first

    def forward(self, x: Any) -> Any:
        h = F.max_pool2d(torch.relu_(self.conv1(self.first(x))), 2, 2, 1)
        return self.fc(F.max_pool2d(F.relu(self.conv2(h)), 2).flatten(1))


SHAPE = (3, 30, 38)


def opened(model: nn.Module | None = None, **more: Any) -> ub.Box:
    return ub.Box((model or Small()).double().eval(), ub.Pixels(SHAPE, (0.4, 0.5, 0.6), 0.5), **more)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


def twin(box: ub.Box, x: Tensor, k: Tensor, size: tuple[int, int], step: tuple[int, int], cover: Tensor) -> Any:
    """The definition: one image a window, one after another."""
    h, w = size
    tops, lefts = (window_start_pixels(n, a, s).tolist() for n, a, s in zip(x.shape[2:], size, step, strict=True))
    drops = torch.zeros(len(x), len(tops), len(lefts), dtype=x.dtype)
    logits = torch.zeros(*drops.shape, box.n_outputs, dtype=x.dtype)
    total, count = torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])
    for n, y in enumerate(k.tolist()):
        whole = box(x[n : n + 1])[0, y]
        for i, top in enumerate(tops):
            for j, left in enumerate(lefts):
                image, at = x[n : n + 1].clone(), (slice(top, top + h), slice(left, left + w))
                image[0, :, *at] = cover[n, :, *at]
                logits[n, i, j] = box(image)[0]
                drops[n, i, j] = whole - logits[n, i, j, y]
                total[n, 0, *at] += drops[n, i, j]
                count[n, 0, *at] += 1
    return total / count.clamp(min=1), drops, logits


@cache
def defined(at: Any) -> Any:
    box, x = opened(), images()
    return twin(box, x, torch.tensor([1, 3]), (7, 5), (4, 6), baseline(box, x, at))


@pytest.mark.parametrize("at", [None, "white", "blurred", "random", 0.25])
@pytest.mark.parametrize("local", [True, False])
def test_its_definition(at: Any, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not local:
        monkeypatch.setattr(engine, "MIN_INCREMENTAL_IMAGE_PIXELS", 10**9)
    box, x, k = opened(), images(), torch.tensor([1, 3])
    found = occlusion(box, x, k, window=(7, 5), stride=(4, 6), baseline=at)
    want_map, drops, logits = defined(at)
    assert torch.allclose(found.score_drops, drops, rtol=0, atol=1e-9)
    assert torch.allclose(found.map, want_map, rtol=0, atol=1e-9)
    assert torch.equal(found.predicted, logits.argmax(3))
    own = logits.softmax(3).gather(3, k[:, None, None, None].expand(*drops.shape, 1))[..., 0]
    assert torch.allclose(found.probability, own, rtol=0, atol=1e-9)
    assert torch.allclose(found.score, box(x).gather(1, k[:, None])[:, 0], rtol=0, atol=1e-9)
    assert (found.top.tolist(), found.left.tolist()) == ([0, 4, 8, 12, 16, 20, 23], [0, 6, 12, 18, 24, 30, 33])


@pytest.mark.parametrize(("window", "stride"), [((6, 6), (4, 4)), ((5, 3), (5, 5)), ((4, 8), (2, 3))])
def test_as_captum_does(window: tuple[int, int], stride: tuple[int, int]) -> None:
    """Where its strides end at the border; elsewhere captum's last windows hang over it, and ours lie at it."""
    stride = (min(stride[0], window[0]), min(stride[1], window[1]))
    box, x, y = opened(), images(), torch.tensor([2, 0])
    height, width = (n - (n - w) % s for n, w, s in zip(SHAPE[1:], window, stride, strict=True))
    cut = ub.Pixels((3, height, width), (0.4, 0.5, 0.6), 0.5)
    model = nn.Sequential(
        box.model.conv1, nn.ReLU(), nn.MaxPool2d(2), box.model.conv2, nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    box, x = ub.Box(model, cut, outputs="logits"), x[..., :height, :width].contiguous()
    captums = Captums(lambda x: model(cut.encode(x)))
    settings = {"sliding_window_shapes": (3, *window), "strides": (3, *stride), "baselines": 0.2}
    with torch.no_grad():
        want = captums.attribute(x, target=y, perturbations_per_eval=4, **settings)
    got = occlusion(box, x, y, window=window, stride=stride, baseline=0.2).map
    assert torch.allclose(got.float().expand_as(want), want, rtol=0, atol=1e-6 * float(want.abs().max()))  # in float32


def test_defaults() -> None:
    for side, window, count in ((28, 4, 13), (224, 32, 13)):
        model = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(16, 3))
        found = occlusion(ub.Box(model, ub.Pixels((1, side, side))), torch.rand(1, 1, side, side), 0)
        assert found.window == (window, window)
        assert found.score_drops.shape == (1, count, count)
        assert int(found.top[-1]) == side - window


@pytest.mark.parametrize("target", [None, 2, ub.channel("conv2", 3), ub.channel("conv1", 1) + ub.logit(2)])
def test_windows_and_whole_runs_agree(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the score is a hidden unit, one example goes in at a time, or memory runs out."""
    box, x = opened(), images()

    def run(**more: Any) -> Tensor:
        return occlusion(box, x, target, window=6, stride=(24, 32), **more).score_drops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "MIN_INCREMENTAL_IMAGE_PIXELS", 10**9)
        want = run()
    assert float(want.abs().max()) > 0
    for more in ({}, {"batch_size": 1}, {"batch_size": 7}):
        assert torch.allclose(run(**more), want, rtol=0, atol=1e-9)
    Rows(box.model, most=3)
    assert torch.allclose(run(), want, rtol=0, atol=1e-9)


def seen(box: ub.Box) -> list[str]:
    kinds: list[str] = []
    box.model.register_forward_pre_hook(lambda module, args: kinds.append(type(args[0]).__name__))
    return kinds


def test_windows_are_taken_where_they_pay() -> None:
    box = opened()
    kinds = seen(box)
    occlusion(box, images(1), 0, window=6, stride=3)
    assert kinds.count("Tensor") == 2  # two windows to compare, the first time
    occlusion(box, images(1), 0, window=6, stride=3)
    assert kinds.count("Tensor") == 2
    kinds.clear()
    occlusion(box, images(1), 0, window=(30, 37), stride=1)
    assert "WindowedTensor" not in kinds


def test_batches_are_as_large_as_asked() -> None:
    box = opened()
    rows = Rows(box.model)
    occlusion(box, images(1), 0, window=6, stride=3, batch_size=5)
    assert max(rows.seen) == 5


class Typed(Small):
    """What distinguishes windows from tensors."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.relu = how

    def forward(self, x: Any) -> Any:
        if self.relu == "raises" and not isinstance(x, Tensor):
            raise TypeError("wanted a tensor")
        if self.relu == "differs" and not isinstance(x, Tensor):
            return super().forward(x) + 0.1
        if self.relu == "swallows":
            try:
                assert isinstance(x, Tensor)
            except AssertionError:
                return torch.zeros(len(x), 4, dtype=x.dtype)
        if self.relu == "counts":
            x = x + (0.0 if type(x) is Tensor else 0.2)
        return super().forward(x)


@pytest.mark.parametrize("how", ["raises", "differs", "swallows", "counts"])
def test_models_that_distinguish_windows_from_tensors(how: str) -> None:
    x = images()
    want = occlusion(opened(), x, 1, window=6, stride=(12, 16))
    got = occlusion(opened(Typed(how)), x, 1, window=6, stride=(12, 16))
    assert torch.allclose(got.score_drops, want.score_drops, rtol=0, atol=1e-9)


class Keeping(Small):
    """Keeps maps on itself, in several ways; a mask for good."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails, self.many, self.named, self.mask, self.history = fails, [None], {"kept": 1}, None, []

    def forward(self, x: Any) -> Any:
        h = self.features = self.conv1(x)
        if self.mask is None or self.mask.shape != h.shape:
            self.mask = torch.full_like(h, 0.5)
        self.many[0], self.named["map"], self._buffers["buffer"], self.pair = h, {"in": [h]}, h, (h, 1)
        self.history.append(h)
        if self.fails:
            raise RuntimeError("fails")
        h = F.max_pool2d(torch.relu(h * self.mask), 2, 2, 1)
        return self.fc(F.max_pool2d(F.relu(self.conv2(h)), 2).flatten(1))


def kept(model: Keeping) -> list[Any]:
    named = model.named.get("map", {"in": []})["in"]
    return [model.mask, model.features, *model.many, *named, *model._buffers.values(), model.pair[0], *model.history]


def test_models_that_keep_maps_keep_tensors() -> None:
    model, x = Keeping(), images()
    box = opened(model)
    settings: dict[str, Any] = {"window": 6, "stride": (12, 16)}
    got = occlusion(box, x, 1, **settings)
    assert all(torch.is_tensor(h) for h in kept(model))
    assert torch.allclose(
        got.score_drops, occlusion(box, x, 1, **settings, batch_size=1).score_drops, rtol=0, atol=1e-9
    )


def test_models_that_fail_keep_no_windows() -> None:
    model = Keeping()
    box = opened(model)
    model.fails = True
    with pytest.raises(RuntimeError, match="fails"):
        occlusion(box, images(), 1, window=6, stride=(12, 16))
    assert all(torch.is_tensor(h) for h in kept(model))


def test_what_a_hook_keeps_is_seen() -> None:
    """It is out of reach, but not freed."""
    model, last = Small(), dict[str, Any]()
    box = opened(model)
    model.conv1.register_forward_hook(lambda module, args, out: last.update(out=out))
    occlusion(box, images(), 1, window=6, stride=(12, 16))
    assert torch.is_tensor(last["out"])


class Unpooled(Small):
    """Equal values below a cover: which of them is the largest, rounding says."""

    def forward(self, x: Any) -> Any:
        h = self.conv1(x)
        pooled, at = F.max_pool2d(h, 2, return_indices=True)
        h = F.max_unpool2d(pooled, at, [2, 2])
        return self.fc(F.max_pool2d(F.relu(self.conv2(F.pad(h, (1, 1, 1, 1)))), 2).flatten(1)[:, : 8 * 7 * 9])


def test_the_position_of_the_largest_is_found_by_full_runs() -> None:
    box = opened(Unpooled())
    kinds = seen(box)
    occlusion(box, images(1), 0, window=6, stride=3)
    assert kinds[0] == "WindowedTensor"  # the try
    assert set(kinds[1:]) == {"Tensor"}


class AtCorners(Small):
    """Windows differ from tensors only where one is in a corner."""

    def forward(self, x: Any) -> Any:
        out = super().forward(x)
        return out if isinstance(x, Tensor) or float(x[:, :, 0, 0].mean()) < 0.9 else out + 1


def test_a_corner_is_compared_too() -> None:
    x = images() * 0.5
    settings: dict[str, Any] = {"window": 6, "stride": (12, 16), "baseline": "white"}
    want = occlusion(opened(), x, 1, **settings)
    assert torch.allclose(
        occlusion(opened(AtCorners()), x, 1, **settings).score_drops, want.score_drops, rtol=0, atol=1e-9
    )


def test_a_model_that_was_rebuilt_is_inspected_again() -> None:
    model, x = Small(), images()
    box = opened(model)
    occlusion(box, x, 1, window=6, stride=(12, 16))
    model.conv2.register_module("more", nn.Identity())
    box(x)  # the box itself looks again, at whole images
    kinds = seen(box)
    occlusion(box, x, 1, window=6, stride=(12, 16))
    assert kinds.count("Tensor") == 2


def test_a_model_that_refuses_windows_later_is_run_in_full() -> None:
    model, x = Typed("no"), images()
    box = opened(model)
    want = occlusion(box, x, 1, window=6, stride=(12, 16))
    model.relu = "raises"
    assert torch.allclose(
        occlusion(box, x, 1, window=6, stride=(12, 16)).score_drops, want.score_drops, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("model", awkward.MODELS)
def test_the_zoo_by_windows(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are run whole; here they are not."""
    entry = awkward.get_model(model, torch.float64 if model != "bfloat16" else None)
    box = open_box(entry)
    x = entry.images(2).to(box.dtype)
    want = occlusion(box, x, 1, window=(2, 3), stride=3)
    monkeypatch.setattr(engine, "MIN_INCREMENTAL_IMAGE_PIXELS", 0)
    got = occlusion(box, x, 1, window=(2, 3), stride=3)
    close = 1e-9 if model != "bfloat16" else 2e-2
    assert torch.allclose(
        got.score_drops, want.score_drops, rtol=0, atol=close * max(1.0, float(want.score.abs().max()))
    )


def test_regression_has_no_classes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 28 * 36, 1))
    found = occlusion(opened(model, outputs="regression"), images(), None, window=8, stride=8)
    assert (found.predicted, found.probability) == (None, None)
    assert found.map.shape == (2, 1, 30, 38)


def test_pixels_left_out_are_zero() -> None:
    found = occlusion(opened(), images(1), 0, window=2, stride=5)
    assert (found.map[..., 2:5, :] == 0).all()
    assert (found.map[..., :2, :2] != 0).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 31}, "larger than the images"), ({"window": (5, 39)}, "larger than the images"),
        ({"window": 0}, "window must be a whole number, 1 or more"), ({"stride": 0}, "stride must be a whole number"),
        ({"window": 2.5}, "window must be"), ({"window": (1, 2, 3)}, "window is a whole number, or"),
        ({"stride": -1}, "stride must be"), ({"baseline": torch.zeros(3, 4, 4)}, "a baseline of these inputs"),
        ({"baseline": "grey"}, "baseline is"), ({"batch_size": 0}, "batch_size must be"),
        ({"target": 9}, "classes 0 to 3"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        occlusion(opened(), images(1), **settings)


def test_tables_are_refused() -> None:
    box = ub.Box(nn.Linear(3, 2), ub.Features(("a", "b", "c")))
    with pytest.raises(InputError, match="needs a model that takes images"):
        occlusion(box, torch.rand(2, 3))


def test_windows_put_in_what_they_are_given() -> None:
    """A rectangle of its own size, wherever it is put; corners beyond the image are refused."""
    box, x = opened(), images()
    patch = torch.rand(3, 4, 5).double()
    corners = torch.tensor([[0, 0], [26, 33], [7, 9], [11, 2]])
    got = engine.run_with_replaced_windows(box, x, ub.logit(1), patch, corners, (4, 5))
    for p, (top, left) in enumerate(corners.tolist()):
        image = x.clone()
        image[:, :, top : top + 4, left : left + 5] = patch
        assert torch.allclose(got.score[:, p], box(image)[:, 1], rtol=0, atol=1e-9)
    for wrong in (torch.tensor([[27, 0]]), torch.tensor([[0, -1]]), torch.zeros(3), torch.zeros(0, 2)):
        with pytest.raises(InputError):
            engine.run_with_replaced_windows(box, x, ub.logit(1), patch, wrong, (4, 5))
    with pytest.raises(InputError):
        engine.run_with_replaced_windows(box, x, ub.logit(1), patch, corners, (4, 6))
