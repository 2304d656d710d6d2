"""DeepLIFT against twins written from the paper and in NumPy, captum where its models are taken, and completeness."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import REFUSED, make_case
from models import plain_images as images

PLAIN = [n for n in awkward.MODELS if awkward.twin_name(n) == "plain" and ("deep_lift", n) not in REFUSED]
STD = 0.5


def slope(a: Tensor, b: Tensor) -> Tensor:
    """The rescale rule for a ReLU (equation 12): m = (relu(a) - relu(b)) / (a - b)."""
    return torch.where(a == b, (a > 0).double(), (a.relu() - b.relu()) / torch.where(a == b, 1, a - b))


def plain_by_hand(x: Tensor, x0: Tensor, k: Tensor) -> Tensor:
    """Contributions of `Plain`'s pixels, by the chain rule for multipliers (equation 3)."""
    model = awkward.get_model("plain", torch.float64).model

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        a1 = model.conv1(awkward.GRAY_INPUTS.encode(x)).detach()
        return a1, model.conv2(a1.relu()).detach()

    (a1, a2), (b1, b2) = run(x), run(x0)
    m = model.fc.weight[k].detach().view(-1, 4, 4, 4) * slope(a2, b2)
    m = F.conv_transpose2d(m, model.conv2.weight, stride=2, padding=1, output_padding=1) * slope(a1, b1)
    return F.conv_transpose2d(m, model.conv1.weight, padding=1).detach() / STD * (x - x0)


@pytest.mark.parametrize("model", PLAIN)
@pytest.mark.parametrize("at", [None, 0.7])
def test_every_spelling_by_hand(model: str, at: float | None) -> None:
    """Reused, functional and in-place ReLUs, clamps, exported, compiled: the same numbers."""
    entry = awkward.get_model(model, torch.float64)
    x, k = images(), torch.tensor([2, 0, 3])
    want = plain_by_hand(x, torch.full_like(x, at or 0), k)
    got = ub.attribution.deep_lift(ub.Box(entry.model, entry.inputs), x, k, baseline=at)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)


def test_it_is_not_gradient_times_difference() -> None:
    """The tests above can fail: multipliers are not gradients here."""
    c = make_case("plain", torch.float64)
    plain = ub.attribution.gradient(c.box, c.x, 0) * c.x
    assert not torch.allclose(ub.attribution.deep_lift(c.box, c.x, 0), plain, rtol=1e-2)


@pytest.mark.parametrize("model", [n for n in awkward.MODELS if ("deep_lift", n) not in REFUSED])
def test_completeness(model: str) -> None:
    """Contributions sum to score(x) - score(baseline), to 1e-9; in all, where rows are batch-dependent."""
    c = make_case(model, torch.float64)
    x0 = torch.full_like(c.x, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = ub.attribution.deep_lift(c.box, c.x, 1, baseline=0.3).flatten(1).sum(1)
    want = c.box(c.x)[:, 1] - c.box(x0)[:, 1]
    got, want = (got.sum(), want.sum()) if c.box.batch_dependent else (got, want)
    fine = 1e-9 if c.box.dtype == torch.float64 else 1e-5  # a model without parameters is in single precision
    assert torch.allclose(got, want, rtol=fine, atol=fine)
    assert want.abs().max() > 1e-3


def test_an_mlp_in_numpy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 20), nn.GELU(), nn.Linear(20, 4)
    ).double()
    w1, b1, w2, b2, w3, _ = (p.detach().numpy() for p in model.parameters())
    x, x0 = images(), torch.full((3, 1, 8, 8), 0.5).double()
    gelu = lambda a: F.gelu(torch.from_numpy(a)).numpy()  # noqa: E731
    z, z0 = (awkward.GRAY_INPUTS.encode(t).flatten(1).numpy() for t in (x, x0))
    a, a0 = z @ w1.T + b1, z0 @ w1.T + b1
    c, c0 = np.tanh(a) @ w2.T + b2, np.tanh(a0) @ w2.T + b2
    m = w3[1] * (gelu(c) - gelu(c0)) / (c - c0)
    want = (m @ w2 * (np.tanh(a) - np.tanh(a0)) / (a - a0)) @ w1 * (z - z0)
    got = ub.attribution.deep_lift(ub.Box(model, awkward.GRAY_INPUTS), x, 1, baseline=0.5)
    assert np.allclose(got.flatten(1).numpy(), want, rtol=1e-9, atol=1e-12)


class Maxout(nn.Module):
    """Takes the values of a maximum by their name, from a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(64, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(x.flatten(1)).view(-1, 4, 3).max(2).values)


def test_named_tuples_stay_so_in_half_precision() -> None:
    """Rules work in single precision there, and their results are cast back."""
    torch.manual_seed(0)
    model, x = Maxout().eval(), images().float()
    want = ub.attribution.deep_lift(ub.Box(model, awkward.GRAY_INPUTS), x, 1)
    got = ub.attribution.deep_lift(ub.Box(model.bfloat16(), awkward.GRAY_INPUTS), x, 1)
    assert torch.allclose(got.flatten(), want.flatten(), atol=0.05 * float(want.abs().max()))


CAPTUM: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 9), nn.ReLU(),
                                  nn.Linear(9, 4)),
    "smooth": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 9), nn.Tanh(),
                                    nn.Linear(9, 6), nn.ELU(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4)),
    "average pooling": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.AvgPool2d(2),
                                             nn.Flatten(), nn.Linear(36, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTUM)
def test_captum(name: str) -> None:
    """Where each op is a module of its own, called once, and none is max pooling or a product."""
    torch.manual_seed(1)
    model = CAPTUM[name]().double().eval()
    x, x0 = images(), torch.full((3, 1, 8, 8), 0.2).double()
    z, z0 = awkward.GRAY_INPUTS.encode(x), awkward.GRAY_INPUTS.encode(x0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = captum.attr.DeepLift(model).attribute(z, z0, target=2).detach()
    got = ub.attribution.deep_lift(ub.Box(model, awkward.GRAY_INPUTS, outputs="logits"), x, 2, baseline=0.2)
    assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


class Ops(nn.Module):
    """A convolution, one op of interest, and a linear layer."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.op = nn.Conv2d(1, 4, 3, padding=1), op
        self.other, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.op(self.conv(x), self.other(x)).flatten(1))


def made(op: Callable[[Tensor, Tensor], Tensor]) -> ub.Box:
    model = Ops(op).double().eval()
    model(torch.zeros(1, 1, 8, 8).double())
    return ub.Box(model, awkward.GRAY_INPUTS, outputs="logits")


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max pooling": lambda a, b: F.max_pool2d(a, 2),
    "max pooling that overlaps": lambda a, b: F.max_pool2d(a, 3, 2, 1),
    "max pooling with ceil": lambda a, b: F.max_pool2d(a, 3, 2, ceil_mode=True),
    "max pooling with holes": lambda a, b: F.max_pool2d(a, 2, 1, dilation=2),
    "max pooling in a row": lambda a, b: F.max_pool1d(a.flatten(2), 4),
    "adaptive": lambda a, b: F.adaptive_max_pool2d(a.relu(), 2),
    "global": lambda a, b: a.amax((2, 3)),
    "along an axis": lambda a, b: a.max(1).values - b.min(1).values,
    "of two": lambda a, b: torch.maximum(a, b) + torch.minimum(a, b.sigmoid()) + a.clamp(min=b),
    "gate": lambda a, b: a * b.sigmoid(),
    "gate in place": lambda a, b: a.tanh_().mul_(b.sigmoid_()),
    "squeeze and excite": lambda a, b: a * a.mean((2, 3), keepdim=True).sigmoid(),
    "quotient": lambda a, b: a / (1 + b.square()) + 2 / (3 + b.abs()),
    "power": lambda a, b: (1 + a.abs()) ** 1.5 + a.pow(3) + 2**b,
    "glu": lambda a, b: F.glu(a, 1),
    "softmax": lambda a, b: a.softmax(1) * b,
    "log-softmax": lambda a, b: F.log_softmax(a, -1) + torch.logsumexp(b, 1, keepdim=True),
    "attention by hand": lambda a, b: (a.flatten(2) @ b.flatten(2).mT / 3).softmax(-1) @ a.flatten(2),
    "attention, fused": lambda a, b: F.scaled_dot_product_attention(a.flatten(2), b.flatten(2), a.flatten(2)),
    "attention, causal": lambda a, b: F.scaled_dot_product_attention(a, b, a * b, is_causal=True),
    "einsum": lambda a, b: torch.einsum("nchw,ndhw->ncd", a, b),
    "bmm": lambda a, b: torch.bmm(a.flatten(2), b.flatten(2).mT),
    "layer norm": lambda a, b: F.layer_norm(a, (8, 8), b.new_ones(8, 8)) * b,
    "rms norm": lambda a, b: F.rms_norm(a, (8,)),
    "group norm": lambda a, b: F.group_norm(a, 2),
    "instance norm": lambda a, b: F.instance_norm(a),
    "unit length": lambda a, b: F.normalize(a, dim=1),
    "activations": lambda a, b: F.gelu(a) + F.silu(a) + F.mish(b) + F.elu(b) + F.hardswish(a) + F.relu6(a),
    "a constant mask": lambda a, b: torch.where(torch.eye(8) > 0, a.sigmoid(), b.relu()) * torch.eye(8).add(1).double(),
}


@pytest.mark.parametrize("name", OPS)
def test_each_op_is_complete(name: str) -> None:
    box, x = made(OPS[name]), images()
    x0 = torch.full_like(x, 0.3)
    got = ub.attribution.deep_lift(box, x, 2, baseline=0.3)
    want = (box(x) - box(x0))[:, 2]
    assert torch.allclose(got.flatten(1).sum(1), want, rtol=1e-9, atol=1e-9)
    if "in place" in name:
        return  # torch has no gradient of it
    plain = (ub.attribution.gradient(box, x, 2) * (x - x0)).flatten(1).sum(1)
    assert not torch.allclose(plain, want, rtol=1e-3)  # the op bends: the gradient alone is not complete


def test_the_largest_by_a_fine_walk() -> None:
    """Each input of a maximum is weighed by the share of the straight way on which it is the largest."""
    from unboxed.model.deeplift.reference_run import ActivationPair, max_gradient_source

    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(5, 6, generator=generator).double(), torch.randn(5, 6, generator=generator).double()
    b[0], a[1, :3], b[1, :3] = a[0], 2.0, 1.0  # nothing changes; equals,
    a[1, 3], b[1, 3] = 3.0, 0.0  # which one overtakes half way
    now = a.clone().requires_grad_()
    (shares,) = torch.autograd.grad(max_gradient_source(ActivationPair(now, b), 1).sum(), now)
    steps = 20_000
    t = ((torch.arange(steps) + 0.5) / steps).double()[:, None, None]
    way = b + t * (a - b)
    top = (way == way.amax(2, keepdim=True)).double()
    assert torch.allclose(shares, (top / top.sum(2, keepdim=True)).mean(0), atol=1e-4)
    assert torch.allclose((shares * (a - b)).sum(1), a.amax(1) - b.amax(1))


def test_a_product_by_hand() -> None:
    """Each factor is weighed by the mean of the other's two values."""
    box, x = made(lambda a, b: a * b), images()
    model, k = box.model, 2
    a, b = (conv(awkward.GRAY_INPUTS.encode(x)) for conv in (model.conv, model.other))
    a0, b0 = (conv(awkward.GRAY_INPUTS.encode(0 * x)) for conv in (model.conv, model.other))
    m = model.fc.weight[k].view(1, 4, 8, 8)
    want = F.conv_transpose2d(m * (b + b0) / 2, model.conv.weight, padding=1)
    want = want + F.conv_transpose2d(m * (a + a0) / 2, model.other.weight, padding=1)
    got = ub.attribution.deep_lift(box, x, k)
    assert torch.allclose(got, (want / STD * x).detach(), rtol=1e-9, atol=1e-12)
