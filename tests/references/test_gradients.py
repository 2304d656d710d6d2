"""Gradient, guided backprop and deconvnet against twins written from the papers, and against captum where it is right.

The twins use the chain rule by hand: no autograd, no hooks. `signal(above, x)` is what a ReLU with input x sends down.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import awkward
import unboxed as ub
from models import plain_images as images
from unboxed.engine.gradients.score import gradients
from unboxed.errors import RuleError, UnboxedWarning

Signal = Callable[[Tensor, Tensor], Tensor]
SIGNALS: dict[str, Signal] = {
    "gradient": lambda above, x: above * (x > 0),
    "guided_backprop": lambda above, x: above * (x > 0) * (above > 0),  # Springenberg et al. 2015, figure 1 c
    "deconvnet": lambda above, x: above * (above > 0),  # Zeiler & Fergus 2014, section 2.1
}
RULED = ("guided_backprop", "deconvnet")
methods = pytest.mark.parametrize("name", SIGNALS)
STD = awkward.GRAY_INPUTS.std


def method(name: str) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(ub.attribution, name)
    return found


def plain_by_hand(x: Tensor, k: Tensor, signal: Signal) -> Tensor:
    """d logit k / d x of `awkward.Plain`, its ReLUs sending down `signal`."""
    model = awkward.get_model("plain", torch.float64).model
    w1, w2, w3 = model.conv1.weight, model.conv2.weight, model.fc.weight
    a1 = F.conv2d(awkward.GRAY_INPUTS.encode(x), w1, model.conv1.bias, padding=1)
    a2 = F.conv2d(a1 * (a1 > 0), w2, model.conv2.bias, stride=2, padding=1)
    s = w3[k].view_as(a2)
    s = F.conv_transpose2d(signal(s, a2), w2, stride=2, padding=1, output_padding=1)
    s = F.conv_transpose2d(signal(s, a1), w1, padding=1)
    return (s / STD).detach()


REFUSED = ("checkpointed_reentrant",)
PLAIN_SPELLINGS = [n for n in awkward.MODELS if awkward.twin_name(n) == "plain" and n not in REFUSED]


@pytest.fixture(scope="module")
def by_chain_rule() -> dict[str, Tensor]:
    """Maps of the three methods, which differ here: the test can fail."""
    x, k = images(), torch.tensor([2, 0, 3])
    maps = {name: plain_by_hand(x, k, signal) for name, signal in SIGNALS.items()}
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in itertools.permutations(maps.values(), 2))
    return maps


@pytest.mark.parametrize("model", ["plain", *PLAIN_SPELLINGS])
def test_every_spelling_against_the_chain_rule(model: str, by_chain_rule: dict[str, Tensor]) -> None:
    """Modules, in-place, functional, aten, scripted, checkpointed, exported, compiled; dict outputs; softmax ends."""
    entry = awkward.get_model(model, torch.float64)
    box, x, k = ub.Box(entry.model, entry.inputs), images(), torch.tensor([2, 0, 3])
    off = [
        (name, size)
        for name, size in itertools.product(SIGNALS, ("auto", 1))
        if not torch.allclose(method(name)(box, x, k, batch_size=size), by_chain_rule[name], rtol=1e-9, atol=1e-12)
    ]
    assert off == []


@methods
def test_a_scripted_part_that_has_run_before_and_runs_again(name: str) -> None:
    """The profiling executor makes one node of the scripted part after some runs: the rule must hold on each call."""
    entry = awkward.get_model("scripted_and_optimized", torch.float64)
    box, x, k = ub.Box(entry.model, entry.inputs), images(), torch.tensor([2, 0, 3])
    want = plain_by_hand(x, k, SIGNALS[name])
    for _ in range(4):
        assert torch.allclose(method(name)(box, x, k), want, rtol=1e-9, atol=1e-12)
        entry.model(awkward.GRAY_INPUTS.encode(x))  # the user's own runs in between


@methods
def test_an_mlp_in_numpy(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)]
    model = nn.Sequential(*layers).double()
    w1, b1, w2, b2, w3, _ = (p.detach().numpy() for p in model.parameters())
    x = images()
    z = awkward.GRAY_INPUTS.encode(x).flatten(1).numpy()
    a1 = z @ w1.T + b1
    a2 = np.maximum(a1, 0) @ w2.T + b2
    send = {
        "gradient": lambda s, a: s * (a > 0),
        "guided_backprop": lambda s, a: np.maximum(s, 0) * (a > 0),
        "deconvnet": lambda s, a: np.maximum(s, 0),
    }[name]
    want = send(send(np.repeat(w3[1:2], 3, 0), a2) @ w2, a1) @ w1 / STD
    got = method(name)(ub.Box(model, awkward.GRAY_INPUTS), x, 1)
    assert np.allclose(got.flatten(1).numpy(), want, rtol=1e-9, atol=1e-12)


@methods
@pytest.mark.parametrize("channel", [0, 3])
def test_a_hidden_channel(name: str, channel: int) -> None:
    """The target is any hidden unit: its signal starts in its own layer, and deeper ReLUs have no say."""
    entry = awkward.get_model("functional_relu_ignored", torch.float64)
    box, x, w1, w2 = ub.Box(entry.model, entry.inputs), images(), entry.model.conv1.weight, entry.model.conv2.weight
    a1 = F.conv2d(awkward.GRAY_INPUTS.encode(x), w1, entry.model.conv1.bias, padding=1)
    s = torch.zeros(3, 4, 4, 4).double()
    s[:, channel] = 1 / 16
    s = F.conv_transpose2d(s, w2, stride=2, padding=1, output_padding=1)
    want = F.conv_transpose2d(SIGNALS[name](s, a1), w1, padding=1).detach() / STD
    assert torch.allclose(method(name)(box, x, ub.channel("conv2", channel)), want, rtol=1e-9, atol=1e-12)


@methods
def test_a_relu_module_called_twice_in_a_row_of_convolutions(name: str) -> None:
    entry = awkward.get_model("conv_called_twice", torch.float64)
    model, x = entry.model, images()
    a1 = F.conv2d(awkward.GRAY_INPUTS.encode(x), model.conv1.weight, model.conv1.bias, padding=1)
    h3 = model.conv3(model.conv3(a1 * (a1 > 0)))
    a2 = model.conv2(h3 * (h3 > 0))
    s, signal = model.fc.weight[1].expand(3, -1).view_as(a2), SIGNALS[name]
    s = signal(F.conv_transpose2d(signal(s, a2), model.conv2.weight, stride=2, padding=1, output_padding=1), h3)
    for _ in range(2):
        s = F.conv_transpose2d(s, model.conv3.weight, padding=1)
    want = F.conv_transpose2d(signal(s, a1), model.conv1.weight, padding=1).detach() / STD
    assert torch.allclose(method(name)(ub.Box(model, entry.inputs), x, 1), want, rtol=1e-9, atol=1e-12)


# ---- captum, where it is right: ReLU modules, each called once -------------------------------------------------------


def pooled() -> nn.Module:
    torch.manual_seed(1)
    lower = [nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*lower, nn.Conv2d(5, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)).double().eval()


@pytest.fixture
def _quiet_captum() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


PEERS = {
    "gradient": lambda model: captum.attr.Saliency(model),
    "guided_backprop": lambda model: captum.attr.GuidedBackprop(model),
    "deconvnet": lambda model: captum.attr.Deconvolution(model),
}


@pytest.mark.usefixtures("_quiet_captum")
@methods
@pytest.mark.parametrize(
    "build", [pooled, lambda: awkward.get_model("plain", torch.float64).model], ids=["pooled", "plain"]
)
def test_captum_agrees(name: str, build: Callable[[], nn.Module]) -> None:
    x, k = images(4), torch.tensor([1, 3, 0, 1])
    settings = {"abs": False} if name == "gradient" else {}
    z = awkward.GRAY_INPUTS.encode(x).requires_grad_()
    want = PEERS[name](build()).attribute(z, target=k, **settings).detach() / STD
    got = method(name)(ub.Box(build(), awkward.GRAY_INPUTS), x, k)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert got.std() > 0


# ---- ReLUs in disguise: ruled where they can be told (see test_relu_kin), refused or warned of where not -------------

HONEST = ("clamp", "clamp_min", "maximum", "threshold", "relu6")
DISGUISES: dict[str, Callable[[Tensor], Tensor]] = {
    "minus minimum": lambda h: -torch.minimum(-h, torch.zeros_like(h)),
    "minus fmin": lambda h: -torch.fmin(torch.zeros(()).to(h), -h),
    "minus clamp from above": lambda h: -(-h).clamp(max=0),
    "minus clamp to zero": lambda h: -(-h).clamp(-100, 0),
}
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    **{k: v for k, v in awkward.RELU_LOOKALIKE_FN_BY_NAME.items() if k not in HONEST},
    "mask in numbers": lambda h: h * (h > 0).to(h.dtype),
    "the other way": lambda h: (h > 0).to(h.dtype) * h,
    "step": lambda h: h * torch.heaviside(h.detach(), torch.zeros(()).to(h)),
    "absolute": lambda h: (h + h.abs()) / 2,
    "of two activations": lambda h: torch.maximum(h, 0 * h),
    "masked fill": lambda h: h.masked_fill(h < 0, 0),
}


class Disguised(awkward.PlainCNNWithReLU):
    """One plain ReLU, so that there is something to rule, and one written as a product."""

    def first_block(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1(x))


def disguised(build: Callable[[], nn.Module]) -> ub.Box:
    """A box with the weights of `awkward.plain`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ub.Box(build().double(), awkward.GRAY_INPUTS)


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", RULED)
def test_disguised_relus_are_refused(name: str, disguise: str) -> None:
    box = disguised(lambda: Disguised(DISGUISES[disguise]))
    with pytest.raises(RuleError, match="negated"):
        method(name)(box, images(), 1)


@pytest.mark.parametrize("disguise", MASKS)
@pytest.mark.parametrize("name", RULED)
def test_masks_are_warned_of(name: str, disguise: str) -> None:
    """They cannot be distinguished from other products: what is not ruled is reported."""
    box = disguised(lambda: Disguised(MASKS[disguise]))
    with pytest.warns(UnboxedWarning, match="keeps its plain gradient"):
        method(name)(box, images(), 1)


@pytest.mark.parametrize("disguise", [*DISGUISES, *MASKS])
@pytest.mark.parametrize("name", RULED)
def test_a_model_of_disguised_relus_only(name: str, disguise: str) -> None:
    """Masks too: where there is no ReLU at all, the plain gradient would pass for a ruled one."""
    box = ub.Box(awkward.CNNWithReLULookalike({**DISGUISES, **MASKS}[disguise]).double(), awkward.GRAY_INPUTS)
    with pytest.raises(RuleError):
        method(name)(box, images(), 1)


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(h)
        return h.clamp(min=0)

    @staticmethod
    def backward(ctx, above):  # type: ignore[no-untyped-def]
        (h,) = ctx.saved_tensors
        return above * (h > 0)


@pytest.mark.parametrize("name", RULED)
def test_a_custom_function_is_refused(name: str) -> None:
    box = ub.Box(Disguised(Custom.apply).double(), awkward.GRAY_INPUTS)
    with pytest.raises(RuleError, match="custom"):
        method(name)(box, images(), 1)


@pytest.mark.parametrize("disguise", [*DISGUISES, *MASKS])
def test_the_plain_gradient_takes_them_all(disguise: str) -> None:
    """What is refused by the rules is not refused by the gradient, which is the plain model's."""
    box = disguised(lambda: Disguised({**DISGUISES, **MASKS}[disguise]))
    want = plain_by_hand(images(), torch.tensor([1, 1, 1]), SIGNALS["gradient"])
    assert torch.allclose(method("gradient")(box, images(), 1), want, atol=1e-9)


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("act", [F.gelu, F.silu, torch.tanh, torch.sigmoid, F.softplus, F.hardswish, F.elu])
def test_smooth_models_have_no_relu_to_rule(name: str, act: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuleError, match="gradient"):
        method(name)(ub.Box(awkward.PlainCNNWithReLU(act).double(), awkward.GRAY_INPUTS), images(), 1)


@pytest.mark.parametrize("name", RULED)
def test_dead_branches_do_not_count(name: str) -> None:
    """A disguised ReLU that the target does not depend on is none of its business."""

    class Net(awkward.PlainCNN):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self.conv1(x).clamp(max=0)

    box = disguised(Net)
    x, k = images(), torch.tensor([1, 2, 0])
    assert torch.allclose(method(name)(box, x, k), plain_by_hand(x, k, SIGNALS[name]), atol=1e-12)


# ---- logits that a final ReLU clamps ---------------------------------------------------------------------------------


def clamped() -> tuple[ub.Box, Tensor, Tensor]:
    """relu(W x), its weights over the standard deviation (K, 1, 8, 8), and images."""
    entry = awkward.get_model("relu_logits", torch.float64)
    return ub.Box(entry.model, entry.inputs), entry.model[1].weight.detach().view(4, 1, 8, 8) / STD, images(4)


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("size", ["auto", 1])
def test_before_the_clamp(k: int, size: int | str) -> None:
    """d relu(w x) / d x is w or 0; where it is 0, the gradient before the clamp is w, and is marked."""
    box, w, x = clamped()
    found = gradients(box, ub.logit(k), x, batch_size=size)
    shut = box(x)[:, k] == 0
    assert torch.equal(found.before_clamp, shut)
    assert torch.allclose(found.map, w[k].expand_as(x))
    honest = gradients(box, ub.logit(k), x, batch_size=size, relu_bypass=False)
    assert torch.allclose(honest.map, torch.where(shut.view(-1, 1, 1, 1), 0, w[k]))
    assert not honest.before_clamp.any()


def test_some_logits_are_clamped_and_some_are_not() -> None:
    box, _, x = clamped()
    shut = box(x) == 0
    assert shut.any()
    assert not shut.all()


def test_a_difference_of_clamped_logits() -> None:
    """Where one of the two is inactive, the gradient is the other's: nothing is unclamped that was not wholly zero."""
    box, w, x = clamped()
    z = box(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        got = method("gradient")(box, x, ub.logit(0) - ub.logit(1))
    for i in range(len(x)):
        open0, open1 = z[i, 0] > 0, z[i, 1] > 0
        if open0 or open1:
            assert torch.allclose(got[i], w[0] * open0 - w[1] * open1)


@pytest.mark.parametrize(
    "model", ["log_softmax", "log_softmax_method", "log_softmax_module", "softmax", "softmax_module"]
)
def test_the_logit_lies_before_the_softmax(model: str) -> None:
    """And the log-probability's own gradient is that of z_k - log sum exp z."""
    entry = awkward.get_model(model, torch.float64)
    box, x = ub.Box(entry.model, entry.inputs), images()
    each = torch.stack([plain_by_hand(x, torch.full((3,), k), SIGNALS["gradient"]) for k in range(4)], 1)  # (N, K, ...)
    p = box.probs(x)
    for k in range(4):
        assert torch.allclose(method("gradient")(box, x, k), each[:, k], atol=1e-12)
        want = each[:, k] - torch.einsum("nk,nk...->n...", p, each)
        assert torch.allclose(method("gradient")(box, x, ub.logprob(k)), want, atol=1e-12)
