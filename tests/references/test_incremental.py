"""Incremental inference against its slow twin: the same model on whole images, each with its window put in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import awkward
import unboxed as ub
from check_each import check_each, each
from contracts.common import make_case
from unboxed.model.incremental import BasePass, WindowedMode, WindowedTensor, regions

Places = list[tuple[int, int]]
EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def put_in(base: Tensor, patches: Tensor, places: Places) -> Tensor:
    """Whole images, (P, C, H, W): the definition."""
    images = base.repeat(len(places), 1, 1, 1)
    for i, (top, left) in enumerate(places):
        images[i, :, top : top + patches.shape[2], left : left + patches.shape[3]] = patches[i]
    return images


def begun(base: Tensor, patches: Tensor, places: Places, base_pass: BasePass | None = None) -> WindowedTensor:
    top, left = np.array(places).T
    return WindowedTensor.from_windows(base_pass or BasePass(), base, patches.clone(), top, left)


def all_over(height: int, width: int, size: tuple[int, int], step: int = 1) -> Places:
    """Every corner and border is among them."""
    tops, lefts = (sorted({*range(0, n - k + 1, step), n - k}) for n, k in ((height, size[0]), (width, size[1])))
    return [(top, left) for top in tops for left in lefts]


def same(got: Any, want: Tensor) -> None:
    got = got.dense_copy() if isinstance(got, WindowedTensor) else got
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    off = float((got.double() - want.double()).abs().max())
    assert off <= EXACT.get(want.dtype, 0.0) * max(1e-30, float(want.double().abs().max())), off


@torch.no_grad()
def check(
    model: Callable[[Any], Any], size: tuple[int, int] = (3, 2), height: int = 23, width: int = 19, channels: int = 4,
    dtype: torch.dtype = torch.float64, local: bool | None = True,
) -> BasePass:  # fmt: skip
    """The model on windows all over an image, in two batches on one base pass."""
    base = torch.randn(1, channels, height, width, generator=generator(), dtype=dtype)
    places, base_pass = all_over(height, width, size, 3), BasePass()
    patches = torch.randn(len(places), channels, *size, generator=generator(1), dtype=dtype)
    for part in (slice(0, len(places) // 2), slice(len(places) // 2, None)):
        want = model(put_in(base, patches[part], places[part]))
        with WindowedMode():
            got = model(begun(base, patches[part], places[part], base_pass))
        if local is not None:
            assert (isinstance(got, WindowedTensor) and got.is_windowed) == local
        same(got, want)
    return base_pass


# ---- single ops, in every setting ------------------------------------------------------------------------------------

CONVS: list[dict[str, Any]] = [
    {}, {"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1}, {"stride": 3, "padding": 2}, {"dilation": 2},
    {"dilation": 3, "padding": 3}, {"padding": "same"}, {"padding": "same", "dilation": (2, 1)}, {"padding": "valid"},
    {"groups": 2, "padding": (1, 0)}, {"groups": 4, "stride": (2, 1), "padding": (0, 2)}, {"padding": (4, 5)},
    {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "stride": 4, "padding": 1}, {"kernel_size": (1, 5)},
    {"kernel_size": 2, "padding": "same"}, {"kernel_size": (4, 3), "stride": (3, 2), "padding": (2, 1)},
    {"bias": False, "padding": 1},
]  # fmt: skip
POOLS: list[dict[str, Any]] = [
    {}, {"stride": 1}, {"padding": 1}, {"stride": 2, "padding": 1}, {"ceil_mode": True},
    {"stride": 3, "ceil_mode": True},
    {"stride": (2, 1), "padding": (1, 0), "ceil_mode": True}, {"kernel_size": (2, 4), "stride": (4, 3)},
    {"kernel_size": 2}, {"kernel_size": 2, "ceil_mode": True},
]  # fmt: skip
SIZES = [(1, 1), (3, 2), (5, 7), (2, 9)]


def made(layer: type[nn.Module], settings: dict[str, Any], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return layer(**{"kernel_size": 3, **settings, **more}).double().eval()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@each(product(CONVS, SIZES))
def test_convolution(settings: dict[str, Any], size: tuple[int, int]) -> None:
    check(made(nn.Conv2d, settings, in_channels=4, out_channels=8), size, local=None)


@each(product([*POOLS, {"dilation": 2}, {"dilation": (1, 3), "padding": 1}], SIZES))
def test_max_pooling(settings: dict[str, Any], size: tuple[int, int]) -> None:
    check(made(nn.MaxPool2d, settings), size, local=None)


@each(product([*POOLS, {"divisor_override": 5}], enumerate([*SIZES, SIZES[1]])))
def test_average_pooling(settings: dict[str, Any], numbered_size: tuple[int, tuple[int, int]]) -> None:
    i, size = numbered_size
    check(made(nn.AvgPool2d, settings, count_include_pad=i % 2 == 0), size, local=None)


def _then(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        act(x)
        return x

    return run


GAMMA = torch.randn(4, 1, 1, generator=generator(2), dtype=torch.float64)
FIELD = torch.randn(1, 4, 23, 19, generator=generator(3), dtype=torch.float64)
LOCAL: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu, "relu in place": lambda x: F.relu(x, inplace=True), "relu_ ignored": _then(torch.relu_),
    "method ignored": _then(lambda x: x.relu_()), "aten": torch.ops.aten.relu,
    "aten default": torch.ops.aten.relu.default,
    "aten ignored": _then(torch.ops.aten.relu_), "gelu": F.gelu, "tanh gelu": nn.GELU("tanh"), "silu": F.silu,
    "silu module in place": _then(nn.SiLU(inplace=True)), "elu_": _then(F.elu_),
    "leaky": nn.LeakyReLU(0.3, inplace=True),
    "hardswish": nn.Hardswish(), "relu6": nn.ReLU6(inplace=True), "softplus": F.softplus, "sigmoid": torch.sigmoid,
    "prelu": nn.PReLU(4).double(), "prelu one": nn.PReLU().double(), "threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "clamp": lambda x: x.clamp(min=0), "clamp_": _then(lambda x: x.clamp_(-0.5, 0.5)), "abs": abs, "neg": lambda x: -x,
    "scalars": lambda x: 2 - (x * 3 + 1) / 4, "power": lambda x: x**2, "of a number": lambda x: 2**x,
    "scalars in place": _then(lambda x: x.mul_(2).sub_(0.5).div_(3)), "channels": lambda x: x * GAMMA,
    "channels first": lambda x: GAMMA * x, "channels in place": _then(lambda x: x.mul_(GAMMA)),
    "a field": lambda x: x + FIELD, "a field first": lambda x: FIELD - x, "a row": lambda x: x * FIELD[0, 0, 0],
    "a field in place": _then(lambda x: x.add_(FIELD)), "add": lambda x: x + F.relu(x), "twice": lambda x: x + x,
    "add in place": _then(lambda x: x.add_(F.relu(x))), "alpha": lambda x: torch.add(x, x.abs(), alpha=2),
    "mask": lambda x: x * (x > 0), "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)), "swish": lambda x: x * x.sigmoid(),
    "iadd": lambda x: x.__iadd__(1), "clone": lambda x: x.clone().relu_() + x, "cat": lambda x: torch.cat([x, -x], 1),
    "cat negative": lambda x: torch.cat((x, x.relu()), dim=-3), "dropout off": lambda x: F.dropout(x, 0.5, False),
    "detach": lambda x: x.detach(), "float": lambda x: x.float(), "to": lambda x: x.to(torch.float32),
    "type_as": lambda x: x.type_as(FIELD), "contiguous": lambda x: x.contiguous(),
    "batch norm": nn.BatchNorm2d(4).double().eval(),
    "aten convolution": lambda x: torch.ops.aten.convolution(x, KERNEL, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "input by name": lambda x: F.conv2d(input=x, weight=KERNEL, padding=1),
    "two halos": lambda x: F.conv2d(x, KERNEL, padding=1) + F.max_pool2d(x, 5, 1, 2) * x,
    "halos in place": lambda x: F.conv2d(x, KERNEL, padding=1).add_(x).relu_(),
    "cat of halos": lambda x: torch.cat([F.conv2d(x, KERNEL, padding=1), x, F.avg_pool2d(x, 3, 1, 1)], 1),
}  # fmt: skip
KERNEL = torch.randn(4, 4, 3, 3, generator=generator(4), dtype=torch.float64)


@each(LOCAL)
def test_stays_local(model: str) -> None:
    assert check(LOCAL[model]).n_dense_values == 0


DENSE: dict[str, Callable[[Any], Any]] = {
    "flatten": lambda x: x.flatten(1), "mean": lambda x: x.mean((2, 3)), "global pool": nn.AdaptiveAvgPool2d(1),
    "softmax": lambda x: x.softmax(1), "view": lambda x: x.view(len(x), -1), "slice": lambda x: x[:, 1:3, ::2],
    "permute": lambda x: x.permute(0, 2, 3, 1), "pad": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True), "cat of rows": lambda x: torch.cat([x, x]),
    "transposed": lambda x: F.conv_transpose2d(x, KERNEL, stride=2), "norm": nn.GroupNorm(2, 4).double(),
    "instance norm": F.instance_norm, "upsampled": lambda x: F.interpolate(x, scale_factor=2),
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True), "row": lambda x: x[0],
    "unpacked": lambda x: torch.stack(list(x.unbind(1)), 1), "shape": lambda x: x.reshape(x.shape[0], x.size(1), -1),
    "einsum": lambda x: torch.einsum("nchw,cdhw->nd", x, KERNEL.new_ones(4, 2, 23, 19)),
    "iter": lambda x: next(iter(x)),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "out": lambda x: torch.abs(x, out=torch.empty(0).double()),
    "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular").double(),
    "linear": nn.Linear(19, 3).double(), "grows": lambda x: x[:, :, :1] * FIELD,
}  # fmt: skip


@each(DENSE)
def test_anything_else_becomes_dense(model: str) -> None:
    check(DENSE[model], local=False)


def _branch(x: Any) -> Any:
    return x + 1 if float(x.mean()) > 0 else x - 1


def _assigned(x: Any) -> Any:
    x[:, 0] = 0
    return x * 2


def _view_then_in_place(x: Any) -> Any:
    y = x + 0
    v = y.view(len(y), -1)
    F.relu_(y)
    return v


def _in_place_through_a_view(x: Any) -> Any:
    y = x + 0
    y.flatten(1).mul_(3)
    return y * 1


def _in_place_on_a_tensor(x: Any) -> Any:
    total = torch.zeros(x.shape, dtype=x.dtype)
    total += x
    return total


ALIASES = [_branch, _assigned, _view_then_in_place, _in_place_through_a_view, _in_place_on_a_tensor]


@each(ALIASES)
def test_aliases_and_branches(model: Callable[[Any], Any]) -> None:
    check(model, local=None)


def test_what_is_known_without_values() -> None:
    x = begun(torch.zeros(1, 2, 8, 6), torch.ones(3, 2, 2, 2), [(0, 0), (1, 1), (6, 4)])
    assert (tuple(x.shape), x.ndim, x.dim(), len(x), x.size(2), x.numel()) == ((3, 2, 8, 6), 4, 4, 3, 8, 288)
    assert (x.dtype, x.device.type, x.requires_grad, x.is_floating_point()) == (torch.float32, "cpu", False, True)
    assert x.new_zeros(3).shape == (3,)
    assert x.is_windowed


def test_a_window_of_most_of_the_map_is_made_dense() -> None:
    assert (
        check(made(nn.Conv2d, {"padding": 1}, in_channels=4, out_channels=4), (21, 18), local=False).n_dense_values > 0
    )


# ---- models ----------------------------------------------------------------------------------------------------------


def both(c: Any, size: tuple[int, int], step: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, BasePass]:
    """Logits of windows all over the first image, and of whole images."""
    x, base_pass = c.x[:1], BasePass()
    places = all_over(*x.shape[2:], size, step)
    patches = torch.rand(len(places), x.shape[1], *size, generator=generator(seed)).to(x)
    with c.box.isolated(grad=False):
        want = c.box.forward(put_in(x, patches, places), ["logits"])["logits"]
    with c.box.isolated(grad=False), WindowedMode():
        got = c.box.forward(begun(x, patches, places, base_pass), ["logits"])["logits"]
    return got, want, base_pass


NOT = {
    "exported": "asks whether its input is a tensor, and raises",
    "dropout_always_on": "draws noise, for which no windows are tried",
    "random_noise_per_row": "its rows are coupled",
    "bfloat16": "rounds in another order",
}
"""Models for which `engine.perturb.windows` runs whole images; the tests of occlusion see that they are right."""


@each((n, (torch.float64, torch.float32)[i % 2]) for i, n in enumerate(n for n in awkward.MODELS if n not in NOT))
def test_the_zoo(model: str, dtype: torch.dtype) -> None:
    same(*both(make_case(model, dtype), (2, 3))[:2])


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model


class Residual(nn.Module):
    """A stem, a block, and a block with a strided shortcut, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
        )
        self.a, self.b = (self._body(8, 8, 1), self._body(8, 12, 2))
        self.short = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(12, 5)

    @staticmethod
    def _body(before: int, width: int, stride: int) -> nn.Module:
        first = [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        return nn.Sequential(*first, nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.a(x)
        out += x
        x = self.relu(out)
        x = self.relu(self.b(x) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Squeezed(nn.Module):
    """Fire modules, pooling in ceil mode, and a convolution for a classifier, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.squeeze, self.one, self.three = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.final_op = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(12, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.squeeze(self.stem(x)))
        h = torch.cat([F.relu(self.one(h)), F.relu(self.three(h))], 1)
        return self.final_op(F.max_pool2d(h, 3, 2, ceil_mode=True)).flatten(1)


def deep() -> nn.Module:
    """As VGG."""
    layers: list[nn.Module] = []
    for before, width in ((3, 6), (6, 8), (8, 10)):
        layers += [
            nn.Conv2d(before, width, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(True),
        ]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 5))


LIKE: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "squeezed": Squeezed, "deep": deep}


WAYS = [
    (torch.float64, torch.contiguous_format, 0.0, 0),
    (torch.float64, torch.channels_last, 1e12, 10**9),
    (torch.float32, torch.contiguous_format, 1e12, 10**9),
    (torch.float32, torch.channels_last, 0.0, 0),
]


@pytest.mark.parametrize("model", LIKE)
def test_models_like_those_people_have(model: str) -> None:
    """Whether windows of unlike extent are computed apart or not, and base maps are kept or not."""
    spatial, base_run = (f"unboxed.model.incremental.{module}" for module in ("spatial", "base_run"))

    def check_way(dtype: torch.dtype, layout: torch.memory_format, apart: float, kept: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{base_run}.MAX_TOTAL_CACHED_BASE_MAP_BYTES", kept)
            patch.setattr(f"{spatial}.MIN_SAVED_MULTIPLICATIONS_PER_EXTRA_WINDOW_GROUP", apart)
            check_model(model, dtype, layout)

    check_each(WAYS, check_way)


def check_model(model: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    box = ub.Box(seeded(LIKE[model]).to(dtype).to(memory_format=layout), ub.Pixels((3, 48, 56)))
    x = torch.rand(1, 3, 48, 56, generator=generator()).to(box.dtype)
    got, want, base_pass = both(CaseOf(box, x), (9, 6), step=5)
    same(got, want)
    assert 0 < base_pass.n_local_values < elements(box, len(want)) / 3


class CaseOf:
    def __init__(self, box: ub.Box, x: Tensor) -> None:
        self.box, self.x = box, x


def elements(box: ub.Box, n: int) -> int:
    """Values that whole runs of n images compute in maps."""
    return n * sum(int(np.prod(row.shape)) for row in box.layers.leaves if len(row.shape) == 3)


def test_the_base_pass_runs_once() -> None:
    """However many batches there are; the windows alone are new."""
    ran: list[int] = []

    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            return F.relu(F.conv2d(x - GAMMA.view(-1, 1, 1), KERNEL, padding=1))  # a view is made anew

    real = F.conv2d

    def counted(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Tensor) and x.shape[2:] == (23, 19):
            ran.append(len(x))
        return real(x, *args, **kwargs)

    base, base_pass = torch.randn(1, 4, 23, 19, generator=generator(), dtype=torch.float64), BasePass()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "conv2d", counted)
        for place in (0, 5, 9):
            Net()(begun(base, torch.zeros(1, 4, 3, 3, dtype=torch.float64), [(place, place)], base_pass))
    assert ran == [1]


def test_cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut out is bounded; some rows at a time give what all give."""
    monkeypatch.setattr("unboxed.model.incremental.spatial.MAX_CROPPED_BYTES_AT_ONCE", 3000)
    for settings in ({"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 3, "dilation": 3}):
        check(made(nn.Conv2d, settings, in_channels=4, out_channels=8), local=None)
    check(made(nn.MaxPool2d, {"stride": 2, "padding": 1}), local=None)


def test_a_model_that_branches_differently_gets_a_base_of_its_own() -> None:
    """The replay compares what is asked for: weights written in between are new ones."""
    weight, base_pass = KERNEL.clone(), BasePass()
    base = torch.randn(1, 4, 23, 19, generator=generator(), dtype=torch.float64)
    patch = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    for factor in (1.0, 2.0, 3.0):
        weight.mul_(factor)
        got = F.conv2d(begun(base, patch, [(4, 4)], base_pass), weight, padding=1)
        same(got, F.conv2d(put_in(base, patch, [(4, 4)]), weight, padding=1))


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_halo_that_is_too_small_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from unboxed.model.incremental.spatial import KernelGeometry

    def short(self: KernelGeometry, axis: int) -> int:
        return max(0, (self.kernel[axis] - 1) * self.dilation[axis] - 1)

    monkeypatch.setattr(KernelGeometry, "last_element_offset", short)
    with pytest.raises((AssertionError, RuntimeError)):
        check(made(nn.Conv2d, {"padding": 1}, in_channels=4, out_channels=8))


def test_a_window_pasted_next_to_its_position_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = regions._overlap_slices
    monkeypatch.setattr(regions, "_overlap_slices", lambda shift, own, size: right(shift + 1, own, size))
    with pytest.raises((AssertionError, RuntimeError)):
        check(made(nn.Conv2d, {"padding": 1}, in_channels=4, out_channels=8))


def test_a_fill_of_zero_below_a_max_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = regions.crop_rectangles
    monkeypatch.setattr(
        regions, "crop_rectangles", lambda base, top, left, size, fill=0.0: right(base, top, left, size)
    )
    with pytest.raises(AssertionError):
        check(lambda x: F.max_pool2d(x - 10, 3, 2, 1), local=None)
