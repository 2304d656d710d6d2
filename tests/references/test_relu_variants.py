"""Guided backprop and deconvnet at ReLU6, hardtanh, threshold and leaky ReLUs, in every spelling, by the chain rule.

The twin is a forward and a backward written out with masks: no autograd, no hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import awkward
import unboxed as ub

Op = Callable[[Tensor], Tensor]
STD = awkward.GRAY_INPUTS.std


@dataclass(frozen=True)
class Kin:
    """What an op computes and its slope, both by masks, and how it can be spelled."""

    value: Op
    slope: Op
    spellings: dict[str, Op]


def number(mask: Tensor) -> Tensor:
    return mask.double()


def ignoring(op: Op) -> Op:
    """In place, with what it gives thrown away."""

    def act(h: Tensor) -> Tensor:
        op(h)
        return h

    return act


def capped(low: float, high: float) -> tuple[Op, Op]:
    def value(a: Tensor) -> Tensor:
        return a * number((a > low) & (a < high)) + low * number(a <= low) + high * number(a >= high)

    return value, lambda a: number((a > low) & (a < high))


def leaking(slope: float | Tensor) -> tuple[Op, Op]:
    return lambda a: a * number(a > 0) + slope * a * number(a <= 0), lambda a: number(a > 0) + slope * number(a <= 0)


def zero(h: Tensor) -> Tensor:
    return torch.zeros((), dtype=h.dtype)


PER_CHANNEL = torch.tensor([0.1, 0.5, 0.0, 0.3], dtype=torch.float64)
KIN = {
    "relu": Kin(*capped(0, torch.finfo(torch.float64).max), {
        "relu": F.relu,
        "clamp": lambda h: h.clamp(min=0),
        "clamp in place": lambda h: h.clamp_(min=0),
        "clip": lambda h: torch.clip(h, 0),
        "clamp_min": lambda h: torch.clamp_min(h, 0),
        "aten clamp_min": lambda h: torch.ops.aten.clamp_min.default(h, 0),
        "clamp by a tensor": lambda h: h.clamp(min=torch.zeros_like(h)),
        "clamp_min by a tensor": lambda h: h.clamp_min(torch.zeros(1).to(h)),
        "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
        "maximum the other way": lambda h: torch.maximum(zero(h), h),
        "max": lambda h: torch.max(h, zero(h)),
        "fmax": lambda h: torch.fmax(h, zero(h)),
        "fmax the other way": lambda h: torch.fmax(torch.zeros_like(h), h),
        "threshold": lambda h: F.threshold(h, 0, 0),
        "threshold in place": lambda h: F.threshold_(h, 0, 0),
        "leaky relu without a leak": lambda h: F.leaky_relu(h, 0.0),
        "rrelu without a leak": lambda h: F.rrelu(h, 0.0, 0.0),
    }),
    "relu6": Kin(*capped(0, 6), {
        "relu6": F.relu6,
        "relu6 in place": lambda h: F.relu6(h, inplace=True),
        "module": nn.ReLU6(),
        "module in place": nn.ReLU6(inplace=True),
        "hardtanh": lambda h: F.hardtanh(h, 0.0, 6.0),
        "hardtanh in place": lambda h: F.hardtanh_(h, 0.0, 6.0),
        "clamp": lambda h: h.clamp(0, 6),
        "clip in place": lambda h: h.clip_(0, 6),
        "clamp by tensors": lambda h: torch.clamp(h, torch.zeros_like(h), torch.full_like(h, 6)),
        "ignored": ignoring(lambda h: F.relu6(h, inplace=True)),
        "twice": lambda h: F.relu6(F.relu(h)),
    }),
    "hardtanh": Kin(*capped(-1, 1), {"hardtanh": F.hardtanh, "module": nn.Hardtanh(inplace=True)}),
    "threshold": Kin(
        lambda a: a * number(a > 0.5), lambda a: number(a > 0.5),
        {"functional": lambda h: F.threshold(h, 0.5, 0), "module": nn.Threshold(0.5, 0.0, inplace=True)},
    ),
    "leaky": Kin(*leaking(0.1), {
        "functional": lambda h: F.leaky_relu(h, 0.1),
        "in place": lambda h: F.leaky_relu_(h, 0.1),
        "module": nn.LeakyReLU(0.1),
        "module in place": nn.LeakyReLU(0.1, inplace=True),
        "prelu": lambda h: F.prelu(h, torch.tensor([0.1], dtype=h.dtype)),
        "rrelu": lambda h: F.rrelu(h, 0.05, 0.15),
    }),
    "prelu": Kin(*leaking(PER_CHANNEL.view(4, 1, 1)), {"per channel": lambda h: F.prelu(h, PER_CHANNEL)}),
    "falling": Kin(*leaking(-0.5), {"leaky": lambda h: F.leaky_relu(h, -0.5), "prelu": nn.PReLU(1, -0.5).double()}),
}  # fmt: skip
SENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (slope at x, signal from above) -> the signal below
    "gradient": lambda slope, above: slope * above,
    "guided_backprop": lambda slope, above: slope * above * number(above > 0),
    "deconvnet": lambda slope, above: above * number(above > 0),
}
CASES = [(kin, spelling) for kin, k in KIN.items() for spelling in k.spellings]


class Loud(awkward.PlainCNNWithReLU):
    """Its activations reach beyond 6, and both its activation functions are `how`."""

    def __init__(self, how: Op) -> None:
        super().__init__(how)
        with torch.no_grad():
            self.conv1.weight.mul_(12)
            self.conv2.weight.mul_(4)


def loud(how: Op) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Loud(how).double()


def images(n: int = 3) -> Tensor:
    return awkward.get_model("plain").images(n).double()


def by_hand(model: nn.Module, x: Tensor, k: int, kin: Kin, sends: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """d logit k / d x, each activation passing on what `sends` returns."""
    w1, w2, w3 = model.conv1.weight, model.conv2.weight, model.fc.weight
    a1 = F.conv2d(awkward.GRAY_INPUTS.encode(x), w1, model.conv1.bias, padding=1)
    a2 = F.conv2d(kin.value(a1), w2, model.conv2.bias, stride=2, padding=1)
    s = w3[k].expand(len(x), -1).view_as(a2)
    s = F.conv_transpose2d(sends(kin.slope(a2), s), w2, stride=2, padding=1, output_padding=1)
    s = F.conv_transpose2d(sends(kin.slope(a1), s), w1, padding=1)
    return (s / STD).detach()


@pytest.mark.parametrize("name", SENDS)
@pytest.mark.parametrize(("kin", "spelling"), CASES)
def test_every_spelling_by_the_chain_rule(name: str, kin: str, spelling: str) -> None:
    model, x = loud(KIN[kin].spellings[spelling]), images()
    want = by_hand(model, x, 1, KIN[kin], SENDS[name])
    got = getattr(ub.attribution, name)(ub.Box(model, awkward.GRAY_INPUTS), x, 1)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    others = [by_hand(model, x, 1, KIN[kin], sends) for n, sends in SENDS.items() if n != name]
    assert not any(torch.allclose(want, o, rtol=1e-2) for o in others)  # the three differ here: the test can fail


@pytest.mark.parametrize("kin", ["relu6", "hardtanh"])
def test_the_caps_are_reached(kin: str) -> None:
    """Without it the test above could not distinguish ReLU6 from ReLU."""
    model = loud(F.relu)
    with torch.no_grad():
        a1 = F.conv2d(awkward.GRAY_INPUTS.encode(images()), model.conv1.weight, model.conv1.bias, padding=1)
    at_the_cap = KIN[kin].value(a1) == {"relu6": 6, "hardtanh": 1}[kin]
    assert 0.01 < float(at_the_cap.double().mean()) < 0.95


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_relu6_is_no_relu_to_guided_backprop(name: str) -> None:
    """Above its cap ReLU6 has no slope; deconvnet does not use the input, so there the two agree if switches do."""
    x = images()
    maps = [getattr(ub.attribution, name)(ub.Box(loud(how), awkward.GRAY_INPUTS), x, 1) for how in (F.relu, F.relu6)]
    assert torch.allclose(*maps) is (name == "deconvnet")


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_a_map_doubles_with_the_score(name: str) -> None:
    """No cap is applied to the signal, which has no scale of its own."""
    box, x = ub.Box(loud(F.relu6), awkward.GRAY_INPUTS), images()
    once, more = (getattr(ub.attribution, name)(box, x, ub.logit(1) * c) for c in (1, 100))
    assert torch.allclose(100 * once, more, rtol=1e-9)


# ---- hard sigmoids: gates, not rectifiers ----------------------------------------------------------------------------

GATES: dict[str, tuple[Op, Op]] = {
    "hardsigmoid": (F.hardsigmoid, lambda h: F.relu6(h + 3) / 6),
    "hardswish": (F.hardswish, lambda h: h * F.relu6(h + 3) / 6),
    "hardswish, scaled first": (F.hardswish, lambda h: h * (F.relu6(3 + h, inplace=True) * (1 / 6))),
    "hardswish by clamp": (F.hardswish, lambda h: h * (h + 3).clamp(0, 6) / 6),
}


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
@pytest.mark.parametrize("gate", GATES)
def test_a_hard_sigmoid_written_out_is_what_the_op_is(name: str, gate: str) -> None:
    class Net(awkward.PlainCNNWithReLU):
        def first_block(self, x: Tensor) -> Tensor:
            return F.relu6(self.conv1(x))

    maps = []
    for how in GATES[gate]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            maps.append(getattr(ub.attribution, name)(ub.Box(Net(how).double(), awkward.GRAY_INPUTS), images(), 1))
    assert torch.allclose(*maps, rtol=1e-4, atol=1e-6)  # torch rounds its 1 / 6 in float32


def test_a_frozen_bias_before_a_relu6_makes_no_gate() -> None:
    class Biased(awkward.PlainCNNWithReLU):
        def __init__(self, frozen: bool) -> None:
            super().__init__(F.relu6)
            self.frozen, self.learned = frozen, nn.Parameter(torch.tensor(0.5))

        def second_block(self, h: Tensor) -> Tensor:
            return F.relu6(self.conv2(h) + (0.5 if self.frozen else self.learned))

    maps = []
    for frozen in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            maps.append(
                ub.attribution.guided_backprop(ub.Box(Biased(frozen).double(), awkward.GRAY_INPUTS), images(), 1)
            )
    assert torch.allclose(*maps, rtol=1e-9, atol=1e-12)


# ---- a small MobileNet -----------------------------------------------------------------------------------------------


class Inverted(nn.Module):
    """An inverted residual block with squeeze and excitation, as in MobileNets."""

    def __init__(self, c: int, act: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(c, 3 * c, 1, bias=False), nn.BatchNorm2d(3 * c), act(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(3 * c, 3 * c, 3, padding=1, groups=3 * c, bias=False), nn.BatchNorm2d(3 * c), act(inplace=True)
        )
        self.squeeze, self.excite = nn.Conv2d(3 * c, 4, 1), nn.Conv2d(4, 3 * c, 1)
        self.project = nn.Sequential(nn.Conv2d(3 * c, c, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        h = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return x + self.project(h * gate)  # type: ignore[no-any-return]


def mobile(act: Callable[..., nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), act(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, 4)]
    return nn.Sequential(*stem, Inverted(6, act), Inverted(6, act), *head).double().eval()


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet", "guided_grad_cam"])
@pytest.mark.parametrize("act", [nn.ReLU6, nn.LeakyReLU, nn.Hardtanh])
def test_mobile_models_are_explained(name: str, act: Callable[..., nn.Module]) -> None:
    box, x = ub.Box(mobile(act), awkward.GRAY_INPUTS), images()
    found = getattr(ub.attribution, name)(box, x, 2)
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert found.std() > 0
