"""AttnLRP against the paper's propositions written out in relevance, layer by layer, on one text at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import attn_lrp, lrp
from unboxed.model.lrp import attention_rows

N_IDS, D, HEADS = 20, 12, 3
TEXTS = ["the cat", "a longer text", "go"]
HEAD_SIZE = D // HEADS


def tokenize(text: str) -> list[int]:
    return [1 + ord(c) % (N_IDS - 1) for c in text]


class Norm(nn.Module):
    """LayerNorm, or RMSNorm written out as in Llama."""

    def __init__(self, rms: bool) -> None:
        super().__init__()
        self.rms, self.weight, self.bias = rms, nn.Parameter(torch.rand(D) + 0.5), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        if self.rms:
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        return F.layer_norm(x, (D,), self.weight, self.bias)


class Block(nn.Module):
    """Attention and an MLP: before their norms or after, causal or not, gated or not, with rotary positions or not."""

    def __init__(self, gated: bool, post: bool, causal: bool, fused: bool) -> None:
        super().__init__()
        self.gated, self.post, self.causal, self.fused = gated, post, causal, fused
        self.norm1, self.norm2 = Norm(gated), Norm(gated)
        n_kv = 1 if gated else HEADS
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, n_kv * HEAD_SIZE), nn.Linear(D, n_kv * HEAD_SIZE)
        self.o, self.up, self.down = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.gate = nn.Linear(D, 2 * D) if gated else None

    def split(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2)  # (N, heads, T, d)

    def attend(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.q(h)), self.split(self.k(h)), self.split(self.v(h))
        if self.gated:
            q, k = rotated(q), rotated(k)
            k, v = (t.repeat_interleave(HEADS, 1) for t in (k, v))
        t = h.shape[1]
        allowed = mask[:, None, None, :] & (torch.ones(t, t).tril().bool() if self.causal else torch.ones(t, t).bool())
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        else:
            z = q @ k.mT / math.sqrt(HEAD_SIZE) + torch.zeros(()).double().masked_fill(~allowed, -math.inf)
            out = F.softmax(z, -1) @ v
        return self.o(out.transpose(1, 2).flatten(2))

    def mlp(self, h: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(h)) * self.up(h))
        return self.down(F.gelu(self.up(h)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attend(x, mask))
            return self.norm2(x + self.mlp(x))
        x = x + self.attend(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def rotated(h: Tensor) -> Tensor:
    """Rotary positions, (N, heads, T, d)."""
    t, d = h.shape[-2:]
    angles = torch.arange(t).double()[:, None] / 10 ** (torch.arange(d // 2).double() / d)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    a, b = h.chunk(2, -1)
    return h * cos + torch.cat([-b, a], -1) * sin


KINDS = {
    "bert": {"gated": False, "post": True, "causal": False},
    "gpt2": {"gated": False, "post": False, "causal": True},
    "llama": {"gated": True, "post": False, "causal": True},
}


class Model(nn.Module):
    def __init__(self, kind: str, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        how = KINDS[kind]
        self.embed, self.place = nn.Embedding(N_IDS, D), nn.Embedding(40, D)
        self.rotary = how["gated"]
        self.blocks = nn.ModuleList(Block(**how, fused=fused) for _ in range(2))
        self.norm, self.head = Norm(how["gated"]), nn.Linear(D, 3)
        self.double().eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        if not self.rotary:
            x = x + self.place(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x, mask.bool())
        last = mask.sum(1) - 1
        return self.head(self.norm(x)[torch.arange(len(x)), last])


def open_model(kind: str, fused: bool = True) -> ub.Box:
    return ub.Box(Model(kind, fused), ub.Tokens(tokenize, embedding="embed"), outputs="logits")


# -- the propositions, in relevance, for one text ----------------------------------------------------------------------


def through_linear(layer: nn.Linear, a: Tensor, r: Tensor) -> Tensor:
    """Eq. 8 with epsilon = 0: a (T, J), r (T, K)."""
    parts = a[:, None, :] * layer.weight  # (T, K, J)
    return (parts / layer(a)[..., None] * r[..., None]).sum(1)


def through_sum(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    return a / (a + b) * r, b / (a + b) * r


def through_norm(norm: Norm, x: Tensor, r: Tensor) -> Tensor:
    """Proposition 3.4: the divisor takes nothing; the mean is a sum, and the bias a part of one."""
    if norm.rms:
        return r
    y, centered = norm(x), x - x.mean(-1, keepdim=True)
    r = (y - norm.bias) / y * r
    weights = torch.eye(D).double() - 1 / D  # centered_i = sum_j weights_ij x_j
    parts = weights * x[:, None, :]
    return (parts / centered[..., None] * r[..., None]).sum(1)


def through_matmul(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Proposition 3.3: a (I, J), b (J, K), r (I, K)."""
    parts = a[:, :, None] * b[None]  # (I, J, K)
    shares = parts / (2 * (a @ b))[:, None, :] * r[:, None, :]
    return shares.sum(2), shares.sum(0)


def through_softmax(z: Tensor, r: Tensor) -> Tensor:
    """Proposition 3.1: R_i = z_i (R_i - s_i sum_j R_j)."""
    s = z.softmax(-1)
    return torch.where(s == 0, 0, z.nan_to_num(neginf=0) * (r - s * r.sum(-1, keepdim=True)))


def through_rotation(h: Tensor, r: Tensor) -> Tensor:
    """A linear map of each position: h, r (T, d)."""
    units = torch.eye(h.shape[-1]).double().repeat(len(h), 1, 1).transpose(0, 1)  # (d, T, d): a unit at each position
    matrix = rotated(units[:, None])[:, 0]  # (d in, T, d out)
    parts = h.T[..., None] * matrix
    return (parts / rotated(h[None, None])[0, 0] * r).sum(-1).T


def through_attention(block: Block, h: Tensor, r: Tensor) -> Tensor:
    """One head at a time: h, r (T, D)."""
    q, k, v = block.q(h), block.k(h), block.v(h)
    outs, tokens = [], len(h)
    hidden = torch.ones(tokens, tokens).triu(1).bool() if block.causal else torch.zeros(tokens, tokens).bool()
    heads = []
    for i in range(HEADS):
        own, shared = slice(i * HEAD_SIZE, (i + 1) * HEAD_SIZE), slice(0, HEAD_SIZE)
        kv = shared if block.gated else own
        turn = (lambda t: rotated(t[None, None])[0, 0]) if block.gated else (lambda t: t)
        qi, ki, vi = turn(q[:, own]), turn(k[:, kv]), v[:, kv]
        z = (qi @ ki.T / math.sqrt(HEAD_SIZE)).masked_fill(hidden, -math.inf)
        outs.append(z.softmax(-1) @ vi)
        heads.append((own, kv, qi, ki, vi, z))
    r = through_linear(block.o, torch.cat(outs, 1), r)
    rq, rk, rv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for own, kv, qi, ki, vi, z in heads:
        rs, rvi = through_matmul(z.softmax(-1), vi, r[:, own])
        rz = through_softmax(z, rs)
        rqi, rki = through_matmul(qi, ki.T, rz)
        rki = rki.T
        if block.gated:
            rqi, rki = through_rotation(q[:, own], rqi), through_rotation(k[:, kv], rki)
        rq[:, own] += rqi
        rk[:, kv] += rki
        rv[:, kv] += rvi
    return through_linear(block.q, h, rq) + through_linear(block.k, h, rk) + through_linear(block.v, h, rv)


def through_mlp(block: Block, h: Tensor, r: Tensor) -> Tensor:
    up = block.up(h)
    if block.gate is None:
        return through_linear(block.up, h, through_linear(block.down, F.gelu(up), r))
    gate = block.gate(h)
    r = through_linear(block.down, F.silu(gate) * up, r)  # proposition 3.2: half to each factor
    return through_linear(block.gate, h, r / 2) + through_linear(block.up, h, r / 2)


def through_block(block: Block, x: Tensor, r: Tensor) -> Tensor:
    mask = torch.ones(1, len(x)).bool()
    attended = block.attend((x if block.post else block.norm1(x))[None], mask)[0]
    middle = x + attended
    if block.post:
        h = block.norm1(middle)
        into_h, into_mlp = through_sum(h, block.mlp(h), through_norm(block.norm2, h + block.mlp(h), r))
        r = through_norm(block.norm1, middle, into_h + through_mlp(block, h, into_mlp))
        into_x, into_attention = through_sum(x, attended, r)
        return into_x + through_attention(block, x, into_attention)
    h = block.norm2(middle)
    into_middle, into_mlp = through_sum(middle, block.mlp(h), r)
    r = into_middle + through_norm(block.norm2, middle, through_mlp(block, h, into_mlp))
    into_x, into_attention = through_sum(x, attended, r)
    normed = block.norm1(x)
    return into_x + through_norm(block.norm1, x, through_attention(block, normed, into_attention))


def by_propositions(model: Model, text: str, k: int) -> tuple[Tensor, list[Tensor]]:
    """Relevance (T,) of the tokens, and the sums of relevance at each block's output, from the last down."""
    ids = torch.tensor(tokenize(text))
    embedded = model.embed(ids)
    places = torch.zeros_like(embedded) if model.rotary else model.place(torch.arange(len(ids)))
    states = [embedded + places]
    for block in model.blocks:
        states.append(block(states[-1][None], torch.ones(1, len(ids)).bool())[0])
    normed = model.norm(states[-1])
    r = torch.zeros(1, 3).double()
    r[0, k] = model.head(normed[-1])[k]
    r = torch.cat([torch.zeros(len(ids) - 1, D).double(), through_linear(model.head, normed[-1:], r)])
    r = through_norm(model.norm, states[-1], r)
    sums = [r.sum()]
    for block, x in zip(reversed(model.blocks), reversed(states[:-1]), strict=True):
        r = through_block(block, x, r)
        sums.append(r.sum())
    return through_sum(embedded, places, r)[0].sum(1), sums


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_weights", [attention_rows.MAX_WEIGHTS_AT_ONCE, 1])
def test_it_is_the_propositions(kind: str, fused: bool, max_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_rows, "MAX_WEIGHTS_AT_ONCE", max_weights)  # all queries at once, or one by one
    box = open_model(kind, fused)
    a = attn_lrp(box, TEXTS, 1, epsilon=0)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            want, sums = by_propositions(box.model, text, 1)
        assert torch.allclose(a[row, : len(want)], want, rtol=1e-8, atol=1e-10)
        assert bool((a[row, len(want) :] == 0).all())
        by_layer = dict(zip(a.conservation.layers, a.conservation.received[row], strict=True))
        assert by_layer["blocks.1"].item() == pytest.approx(float(sums[0]), rel=1e-8)
        assert by_layer["blocks.0"].item() == pytest.approx(float(sums[1]), rel=1e-8)
    assert a.conservation.max_error < 1e-10


def test_it_differs_from_constant_attention() -> None:
    """So that the test above can distinguish them."""
    for kind in KINDS:
        box = open_model(kind)
        assert float((attn_lrp(box, TEXTS, 1) - lrp(box, TEXTS, 1)).abs().max()) > 1e-3
