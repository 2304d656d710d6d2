"""LRP: conserved relevance on the models people have, the same for every spelling, and refused where it can't be
had."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unboxed as ub
from unboxed.attribution import gradient, lrp
from unboxed.errors import InputError, OutputError, RuleError, UnboxedWarning

PIXELS = ub.Pixels((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.5, 0.4, 0.3))
GRAY = ub.Pixels((1, 8, 8), mean=0.4, std=0.5)
ALL = ["composite", "composite-plus", "epsilon", "gamma", "z-plus", "alpha-beta"]
EXACT = 1e-9
"""Relative: what float64 and an epsilon of 1e-12 leave."""


def images(n: int = 3, inputs: ub.Pixels = PIXELS) -> Tensor:
    return torch.rand(n, *inputs.shape, generator=torch.Generator().manual_seed(5)).double()


def seeded(build: Callable[[], nn.Module], bias: bool = True) -> nn.Module:
    torch.manual_seed(4)
    model = build().double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not bias and ("bias" in name or "position" in name or "token" in name):
                p.zero_()
    return model


def box_of(model: nn.Module, inputs: Any = PIXELS) -> ub.Box:
    return ub.Box(model, inputs, outputs="logits")


def lost(box: ub.Box, x: Tensor, k: int = 1, **settings: Any) -> float:
    """How much of the score is on no pixel, relative to the largest score."""
    score = box(x)[:, k]
    return float((lrp(box, x, k, **settings).flatten(1).sum(1) - score).abs().max() / score.abs().max())


# ---- models ----------------------------------------------------------------------------------------------------------


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(8 * 4, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.avg_pool2d(F.relu(self.conv2(h)), 2)
        return self.fc2(F.relu(self.fc1(h.flatten(1))))


class Block(nn.Module):
    def __init__(self, c: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)  # called twice
        self.skip = nn.Identity()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        h += self.skip(x)
        return self.relu(h)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, at a quarter of its width; statistics as training would leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        plan = [(4, 4, 1)] * 3 + [(4, 8, 2), (8, 8, 1), (8, 8, 1)] + [(8, 16, 2), (16, 16, 1), (16, 16, 1)]
        self.blocks, self.fc = nn.Sequential(*(Block(*p) for p in plan)), nn.Linear(16, 4)
        self.train()
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.1)
                m.momentum = None
        with torch.no_grad():
            self(torch.randn(16, 3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(F.relu(self.norm(self.stem(x)))), 1).flatten(1))


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("nhid,nhjd->nhij", q * q.shape[-1] ** -0.5, k).softmax(dim=-1)
    return torch.einsum("nhij,nhjd->nhid", weights, v)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.qkv, self.out, self.column_titles, self.attend = (
            nn.Linear(dim, 3 * dim),
            nn.Linear(dim, dim),
            heads,
            attend,
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.column_titles, d // self.column_titles).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(n, t, d))


class Multihead(nn.Module):
    """`Attention` by torch's own module, on the same weights."""

    def __init__(self, own: Attention, need_weights: bool) -> None:
        super().__init__()
        dim = own.out.in_features
        self.attention, self.need = nn.MultiheadAttention(dim, own.column_titles, batch_first=True), need_weights
        state = {"in_proj_weight": own.qkv.weight, "in_proj_bias": own.qkv.bias}
        self.attention.load_state_dict({**state, "out_proj.weight": own.out.weight, "out_proj.bias": own.out.bias})

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need)[0]


class ViT(nn.Module):
    """Pre-norm, GELU, a class token."""

    def __init__(self, attend: Attend = F.scaled_dot_product_attention, act: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        d = 16
        self.embed, self.token = nn.Conv2d(3, d, 2, 2), nn.Parameter(torch.randn(1, 1, d))
        self.position = nn.Parameter(0.2 * torch.randn(1, 17, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(7))
        self.attentions = nn.ModuleList(Attention(d, 4, attend) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(d, 32) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(32, d) for _ in range(3))
        self.head, self.act = nn.Linear(d, 4), act
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        for i in range(3):
            h = h + self.attentions[i](self.norms[2 * i](h))
            h = h + self.downs[i](self.act(self.ups[i](self.norms[2 * i + 1](h))))
        return self.head(self.norms[6](h)[:, 0])


# ---- conservation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["composite", "composite-plus", "epsilon", "gamma"])
def test_relevance_is_conserved_without_biases(rule: str) -> None:
    for build in (CNN, ViT):
        assert lost(box_of(seeded(build, bias=False)), images(), rule=rule, epsilon=1e-12) < EXACT, build


@pytest.mark.parametrize("rule", ["composite", "epsilon", "gamma"])
def test_relevance_is_conserved_on_residual_models(rule: str) -> None:
    """Batch norm as a scale alone."""
    model = seeded(ResNet20, bias=False)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.zero_()
    assert lost(box_of(model), images(), rule=rule, epsilon=1e-12) < EXACT


@pytest.mark.parametrize("build", [CNN, ResNet20])
def test_what_biases_keep_is_accounted_for(build: Callable[[], nn.Module]) -> None:
    """LRP-0 on a ReLU model: the score less each bias times its gradient; statistics of batch norm are biases too."""
    model, x = seeded(build), images()
    folded = seeded(build)
    for m in folded.modules():
        if isinstance(m, nn.BatchNorm2d):  # (h - mean) / std is h / std with another bias
            with torch.no_grad():
                m.bias -= m.running_mean * m.weight / (m.running_var + m.eps).sqrt()
                m.running_mean.zero_()
    biases = [p for n, p in folded.named_parameters() if "bias" in n]
    box = box_of(model)
    for i in range(3):
        (score,) = folded(PIXELS.encode(x[i : i + 1]))[:, 2]
        kept = sum(
            float((p.detach() * g).sum()) for p, g in zip(biases, torch.autograd.grad(score, biases), strict=True)
        )
        got = float(lrp(box, x[i : i + 1], 2, rule="epsilon", epsilon=0).sum())
        assert abs(kept) > 1e-3
        assert got == pytest.approx(float(score.detach()) - kept, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0, 1e-14])
def test_lrp_0_is_gradient_times_input(epsilon: float) -> None:
    """On ReLU models; the input is the normalized one."""
    x = images()
    for build in (CNN, ResNet20):
        box = box_of(seeded(build))
        mean = torch.tensor(PIXELS.mean, dtype=torch.float64).view(3, 1, 1)
        want = gradient(box, x, 1) * (x - mean)
        assert torch.allclose(lrp(box, x, 1, rule="epsilon", epsilon=epsilon), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rule", ALL)
def test_on_trained_like_models_relevance_is_of_the_scores_size(rule: str) -> None:
    for build in (CNN, ResNet20, ViT):
        box = box_of(seeded(build))
        got = lrp(box, images(), rule=rule)
        assert got.isfinite().all()
        assert float(got.flatten(1).abs().sum(1).min()) > 1e-3 * float(box(images()).max(1).values.min())


def test_hidden_units_and_differences_of_scores() -> None:
    box, x = box_of(seeded(CNN, bias=False)), images()
    unit = lrp(box, x, ub.channel("conv2", 2), rule="epsilon", epsilon=1e-12)
    want = box.read(x, "conv2")["conv2"][:, 2].mean((1, 2))
    assert torch.allclose(unit.flatten(1).sum(1), want, rtol=1e-9, atol=1e-12)
    both = lrp(box, x, ub.logit(1) - ub.logit(0), rule="epsilon")
    assert torch.allclose(both, lrp(box, x, 1, rule="epsilon") - lrp(box, x, 0, rule="epsilon"), atol=1e-9)


# ---- spellings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("attend", [by_hand, by_einsum])
def test_attention_by_hand_is_the_fused_one(rule: str, attend: Attend) -> None:
    x = images()
    want = lrp(box_of(seeded(ViT)), x, 1, rule=rule)
    assert torch.allclose(lrp(box_of(seeded(lambda: ViT(attend))), x, 1, rule=rule), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("need_weights", [True, False])
def test_relevance_goes_through_multihead_attention(need_weights: bool) -> None:
    x, model = images(), seeded(ViT)
    want = lrp(box_of(model), x, 1)
    model.attentions = nn.ModuleList(Multihead(a, need_weights) for a in model.attentions).double()
    assert torch.allclose(lrp(box_of(model.eval()), x, 1), want, rtol=1e-9, atol=1e-10)


def layer_norm(h: Tensor) -> Tensor:
    mean = h.mean(-1, keepdim=True)
    return (h - mean) / ((h - mean) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt()


def layer_norm_by_std(h: Tensor) -> Tensor:
    return (h - h.mean(-1, keepdim=True)) * (h.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()


def layer_norm_by_both(h: Tensor) -> Tensor:
    var, mean = torch.var_mean(h, -1, correction=0, keepdim=True)
    return (h - mean) * (var + 1e-5) ** -0.5


def rms_norm(h: Tensor) -> Tensor:
    return h / (h.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def gelu(h: Tensor) -> Tensor:
    return 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))


def gelu_by_tanh(h: Tensor) -> Tensor:
    return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def softmax(h: Tensor) -> Tensor:
    e = (h - h.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True) * h


def in_place(h: Tensor) -> Tensor:
    h.mul_(h.sigmoid())
    return h


SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer norm": (layer_norm, lambda h: F.layer_norm(h, (10,))),
    "layer norm by std": (layer_norm_by_std, lambda h: F.layer_norm(h, (10,))),
    "layer norm by var_mean": (layer_norm_by_both, lambda h: F.layer_norm(h, (10,))),
    "group norm": (lambda h: F.layer_norm(h.view(-1, 2, 5), (5,)).flatten(1), lambda h: F.group_norm(h, 2)),
    "instance norm": (lambda h: F.layer_norm(h.view(-1, 2, 5), (5,)).flatten(1),
                      lambda h: F.instance_norm(h.view(-1, 2, 5)).flatten(1)),
    "rms norm": (rms_norm, lambda h: F.rms_norm(h, (10,), eps=1e-5)),
    "normalize": (lambda h: h / h.norm(dim=1, keepdim=True), F.normalize),
    "silu": (lambda h: h * torch.sigmoid(h), F.silu),
    "silu in place": (in_place, nn.SiLU(inplace=True)),
    "gelu": (gelu, F.gelu),
    "gelu by tanh": (gelu_by_tanh, lambda h: F.gelu(h, approximate="tanh")),
    "hardswish": (lambda h: h * F.relu6(h + 3) / 6, F.hardswish),
    "mish": (lambda h: h * torch.tanh(F.softplus(h)), F.mish),
    "glu": (lambda h: h[:, :5] * h[:, 5:].sigmoid(), F.glu),
    "relu": (lambda h: h.clamp(min=0), F.relu),
    "relu by a mask": (lambda h: h * (h > 0), F.relu),
    "relu by where": (lambda h: torch.where(h > 0, h, 0.0), F.relu),
    "relu6": (lambda h: h.clamp(0, 6), nn.ReLU6(inplace=True)),
    "leaky": (lambda h: torch.maximum(h, 0.1 * h), lambda h: F.leaky_relu(h, 0.1, inplace=True)),
    "dropout": (lambda h: h, lambda h: F.dropout(h, 0.5, training=False)),
    "softmax": (softmax, lambda h: h.softmax(1) * h),
    "square": (lambda h: h * h, torch.square),
    "squeeze and excite": (lambda h: h * h.mean(1, keepdim=True).sigmoid().detach(),
                           lambda h: h.mul_(h.mean(1, keepdim=True).sigmoid())),
    "matmul": (lambda h: F.linear(h, torch.eye(10).double() + 0.1), lambda h: h @ (torch.eye(10).double() + 0.1).T),
    "addmm": (lambda h: F.linear(h, torch.eye(10).double() + 0.1, torch.ones(10).double()),
              lambda h: torch.addmm(torch.ones(10).double(), h, torch.eye(10).double() + 0.1)),
    "response norm": (lambda h: h, lambda h: F.local_response_norm(h[:, :, None], 3, alpha=1e-12)[:, :, 0]),
}  # fmt: skip


class Middle(nn.Module):
    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.op = nn.Linear(192, 10), op
        self.fc2, self.fc3 = nn.Linear(10, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.op(self.fc1(x.flatten(1)))
        return self.fc2(h) if h.shape[1] == 10 else self.fc3(h)


@pytest.mark.parametrize("op", SPELLINGS)
@pytest.mark.parametrize("rule", ["composite", "gamma"])
def test_spellings_agree(op: str, rule: str) -> None:
    a, b = (lrp(box_of(seeded(lambda how=how: Middle(how))), images(), 1, rule=rule) for how in SPELLINGS[op])
    assert float(a.abs().max()) > 1e-6
    assert torch.allclose(a, b, rtol=1e-4 if "response" in op or "gelu" in op else 1e-6, atol=1e-9), (a - b).abs().max()


PASSES = [
    "silu",
    "gelu",
    "leaky",
    "relu6",
    "glu",
    "normalize",
    "rms norm",
    "layer norm",
    "squeeze and excite",
    "square",
]


@pytest.mark.parametrize("op", PASSES)
def test_what_ops_pass_on_adds_up(op: str) -> None:
    """Without biases, each passes on all that it gets."""
    for how in SPELLINGS[op]:
        box = box_of(seeded(lambda how=how: Middle(how), bias=False))
        assert lost(box, images(), rule="epsilon", epsilon=1e-12) < EXACT


def test_f_of_zero_is_a_bias() -> None:
    """sigmoid(0) = 1/2 is there without any input, and keeps its part."""
    model = seeded(lambda: Middle(torch.sigmoid), bias=False)
    box, x = box_of(model), images()
    base = float(model.fc2.weight[1].detach().sum() / 2)
    got = lrp(box, x, 1, rule="epsilon", epsilon=0).flatten(1).sum(1)
    assert torch.allclose(got, box(x)[:, 1] - base, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ALL)
def test_batch_norm_is_one_with_the_layer_before_it(rule: str) -> None:
    """The same as the model with its batch norms folded into the convolutions."""
    model, x = seeded(ResNet20), images()
    folded = seeded(ResNet20)
    pairs = [(b, c, n) for b in folded.blocks for c, n in (("conv1", "norm1"), ("conv2", "norm2"))]
    pairs += [(b.skip, "0", "1") for b in folded.blocks if isinstance(b.skip, nn.Sequential)]
    for where, conv, norm in [*pairs, (folded, "stem", "norm")]:
        both = torch.nn.utils.fuse_conv_bn_eval(getattr(where, conv), getattr(where, norm))
        setattr(where, conv, both)
        setattr(where, norm, nn.Identity())
    want = lrp(box_of(folded), x, 1, rule=rule)
    assert torch.allclose(lrp(box_of(model), x, 1, rule=rule), want, rtol=1e-6, atol=1e-9)


class Writes(CNN):
    """Writes over what a layer was given, after it: its rule needs what it was."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        h = self.conv2(F.max_pool2d(a.relu(), 2))
        kept = F.avg_pool2d(h, 2).flatten(1)
        h = self.conv2.weight.new_zeros(0).sum() + F.relu(self.fc1(F.avg_pool2d(h.relu_(), 2).flatten(1)))
        a.zero_(), kept.zero_()
        out = self.fc2(h)
        h.zero_()
        return out


@pytest.mark.parametrize("rule", ALL)
def test_what_is_written_over_later_does_no_harm(rule: str) -> None:
    x = images()
    want = lrp(box_of(seeded(CNN)), x, 1, rule=rule)
    assert torch.allclose(lrp(box_of(seeded(Writes)), x, 1, rule=rule), want, rtol=1e-9, atol=1e-12)


class Again(CNN):
    """Pools inside a checkpoint, whose backward pass would run it again, out of the rules' sight."""

    runs = 0

    def second(self, h: Tensor) -> Tensor:
        self.runs += 1
        return F.max_pool2d(F.relu(self.conv2(h)), 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.second, F.max_pool2d(F.relu(self.conv1(x)), 2), use_reentrant=False)
        return self.fc2(F.relu(self.fc1(F.avg_pool2d(h, 2).flatten(1))))


@pytest.mark.parametrize("rule", ["composite", "epsilon"])
def test_checkpoints_are_not_run_again(rule: str) -> None:
    model = seeded(Again, bias=False)
    box, x = box_of(model), images()
    model.runs = 0
    got = lrp(box, x, 1, rule=rule, epsilon=1e-12)
    assert model.runs == 1
    assert torch.allclose(got.flatten(1).sum(1), box(x)[:, 1], rtol=1e-9)


# ---- recurrent layers ------------------------------------------------------------------------------------------------

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, kind: Any, **more: Any) -> None:
        super().__init__()
        self.rnn = kind(24, 6, batch_first=True, **more)
        self.fc = nn.Linear(6 * (1 + self.rnn.bidirectional), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x.flatten(2).reshape(len(x), 8, 24))[0][:, -1])


MORE: list[dict[str, Any]] = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}]


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("more", MORE, ids=["plain", "two layers, both ways", "no bias"])
def test_relevance_goes_through_fused_recurrent_layers(kind: str, more: dict[str, Any]) -> None:
    """The score is what the fused op gives, and without biases relevance is conserved."""
    model, x = seeded(lambda: Rows(RECURRENT[kind], **more), bias=False), images()
    assert lost(box_of(model), x, rule="epsilon", epsilon=1e-12) < EXACT
    assert float(lrp(box_of(model), x).abs().max()) > 1e-6


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALL)
@pytest.mark.parametrize("epsilon", [0, 1e-6])
def test_silence_has_no_nan(rule: str, epsilon: float) -> None:
    """Layers that give exactly zero: no contributions, no sums to divide by."""
    model = seeded(CNN, bias=False)
    with torch.no_grad():
        model.conv2.weight.abs_().neg_()
    x = images()
    with pytest.warns(UnboxedWarning, match="exactly zero for 3 of 3"):
        assert (lrp(box_of(model), x, 0, rule=rule, epsilon=epsilon) == 0).all()


def test_the_box_of_pixels_reaches_the_first_layer() -> None:
    """z-B knows [0, 1]: through the box's normalization and through arithmetic in the model, of either sign."""

    class Flipped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((1 - x) * -2 + 2)

    inner = seeded(CNN)
    twice = box_of(Flipped(inner), ub.Pixels((3, 8, 8)))
    plain = box_of(inner, ub.Pixels((3, 8, 8), mean=0.0, std=0.5))
    for rule in ("composite", "composite-plus"):
        want = lrp(plain, images(), 1, rule=rule)
        got = lrp(twice, images(), 1, rule=rule)
        assert float((want - lrp(plain, images(), 1, rule="gamma")).abs().max()) > 1e-3
        if rule == "composite":  # x itself bears the same; the ends of its range are the same
            assert torch.allclose(got, want, rtol=1e-6, atol=1e-9)


def test_columns_of_a_table_have_no_box() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))
    box, x = box_of(model, ub.Features(tuple("abcde"))), torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lrp(box, x.double(), 1), lrp(box, x.double(), 1, rule="epsilon"))


# ---- refusals --------------------------------------------------------------------------------------------------------


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def scripted(what: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(what)


HIDDEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no rule": (lambda h: torch.fft.fft(h).real, "no rule for the op fft_fft"),
    "cumprod": (lambda h: h.cumprod(1), "no rule for the op cumprod"),
    "own function": (Custom.apply, "custom|Custom"),
    "scripted": (scripted(nn.Tanh()), "TanhBackward0.*scripted"),
    "scripted product": (scripted(nn.SiLU()), "SiluBackward0.*scripted"),
    "setting of the input": (lambda h: h.clamp(max=h.mean()), "settings that depend on the input"),
}


@pytest.mark.parametrize("op", HIDDEN)
def test_what_has_no_rule_is_refused(op: str) -> None:
    how, says = HIDDEN[op]
    with pytest.raises(RuleError, match=says):
        lrp(box_of(seeded(lambda: Middle(how))), images(), 1)


def test_scripted_products_are_seen() -> None:
    """x * x has MulBackward, which is ruled where one factor is constant."""

    def square(h: Tensor) -> Tensor:
        return h * h

    with pytest.raises(RuleError, match=r"MulBackward0.*scripted"):
        lrp(box_of(seeded(lambda: Middle(scripted(square)))), images(), 1)


def test_only_scales_receive_no_relevance() -> None:
    with pytest.raises(OutputError, match="does not depend on the input"):
        lrp(box_of(seeded(lambda: Middle(lambda h: 1 / (2 + h.square())))), images(), 1)


@pytest.mark.parametrize("bad", [{"rule": "best"}, {"rule": 3}, {"epsilon": -1}, {"gamma": "a"}, {"epsilon": None}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        lrp(box_of(seeded(CNN)), images(), **bad)


# ---- planted faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["no gate", "scale bears", "unmerged", "no copies"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the rules above is needed by one of the tests above."""
    from unboxed.model.lrp import autograd_functions, composite_ops, mode, op_rules

    if fault == "no gate":
        monkeypatch.setattr(op_rules, "GATE_OPS", frozenset())
        with pytest.raises(AssertionError):
            test_spellings_agree("silu", "composite")
    if fault == "scale bears":
        monkeypatch.setattr(
            composite_ops, "_normalize_by_constant_std", lambda x, axes, eps, center=True: F.layer_norm(x, x.shape[-1:])
        )
        with pytest.raises((AssertionError, RuleError)):
            test_what_ops_pass_on_adds_up("layer norm")
    if fault == "unmerged":
        monkeypatch.setattr(mode, "activation_annotation_of", lambda h: autograd_functions.ActivationAnnotation(0))
        with pytest.raises(AssertionError):
            test_batch_norm_is_one_with_the_layer_before_it("gamma")
    if fault == "no copies":
        monkeypatch.setattr(Tensor, "clone", lambda self, **more: self)
        with pytest.raises((AssertionError, RuntimeError)):
            test_what_is_written_over_later_does_no_harm("gamma")
