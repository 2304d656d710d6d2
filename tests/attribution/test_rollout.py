"""Attention rollout: against a loop, in every spelling of attention, and on Hugging Face's ViT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from unboxed.errors import InputError, LayerError

COLOR = ub.Pixels((3, 16, 8))
SPELLINGS = ("by hand", "softmax module", "fused", "causal", "multi-head", "with weights", "masked")


def images(n: int = 3) -> Tensor:
    return torch.rand(n, *COLOR.shape, generator=torch.Generator().manual_seed(0)).double()


class Block(nn.Module):
    """One layer of attention with two heads, spelled in one way; `seen` are its maps, (N, heads, T, T)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.relu, self.mha, self.softmax = how, nn.MultiheadAttention(8, 2, batch_first=True), nn.Softmax(dim=-1)
        self.seen = torch.empty(0)

    def forward(self, h: Tensor) -> Tensor:
        n, t, _ = h.shape
        q, k, v = F.linear(h, self.mha.in_proj_weight, self.mha.in_proj_bias).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = torch.zeros(t, t).bool()
        if self.relu == "causal":
            mask = torch.ones(t, t).bool().triu(1)
        if self.relu == "masked":
            mask[:, 2] = True
        z = (q @ k.mT / 2).masked_fill(mask, -torch.inf)
        self.seen = torch.exp(z - z.logsumexp(-1, keepdim=True)).detach()
        if self.relu == "by hand":
            a = z.softmax(-1) @ v
        elif self.relu == "softmax module":
            a = (self.softmax(z.flatten(0, 1)) @ v.flatten(0, 1)).unflatten(0, (n, 2))
        elif self.relu in ("fused", "causal"):
            a = F.scaled_dot_product_attention(q, k, v, is_causal=self.relu == "causal")
        else:
            given = {"attn_mask": mask} if self.relu == "masked" else {}
            return h + self.mha(h, h, h, need_weights=self.relu == "with weights", **given)[0]
        return h + self.mha.out_proj(a.transpose(1, 2).flatten(2))


class Vision(nn.Module):
    def __init__(self, how: str, class_token: bool) -> None:
        super().__init__()
        self.class_token, self.embed = class_token, nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 8, 8))
        self.blocks, self.fc = nn.Sequential(Block(how), Block(how), Block(how)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).mT + self.place
        if self.class_token:
            h = torch.cat([self.token.expand(len(x), -1, -1), h], 1)
        h = self.blocks(h)
        return self.fc(h[:, 0] if self.class_token else h.mean(1))


def opened(how: str, class_token: bool = True) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(Vision(how, class_token).double().eval(), COLOR, outputs="logits")


def by_hand(maps: list[Tensor]) -> Tensor:
    """Abnar & Zuidema 2020: A = 0.5 W + 0.5 I, and the product over layers, the last on the left."""
    total = torch.eye(maps[0].shape[-1]).double().expand(len(maps[0]), -1, -1)
    for w in maps:
        total = (0.5 * w.mean(1) + 0.5 * torch.eye(w.shape[-1]).double()) @ total
    return total


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("class_token", [True, False])
def test_in_every_spelling(how: str, class_token: bool) -> None:
    box, x = opened(how, class_token), images()
    made = ub.attribution.rollout(box, x)
    with torch.no_grad():
        box.model(box.inputs.encode(x))
    want = by_hand([block.seen for block in box.model.blocks])
    assert made.n_layers == 3
    assert torch.allclose(made.attention, want, rtol=1e-9, atol=1e-12)
    row = want[:, 0, 1:] if class_token else want.mean(1)
    grid = row.view(3, 1, 4, 2)
    assert torch.allclose(ub.attribution.rollout(box, x, upsample=False).map, grid)
    assert torch.allclose(made.map, F.interpolate(grid, (16, 8), mode="bilinear"))
    assert torch.allclose(made.attention.sum(-1), torch.ones(3, want.shape[-1]).double())


@pytest.mark.parametrize("how", ["by hand", "fused", "multi-head"])
def test_splitting_changes_nothing(how: str) -> None:
    box, x = opened(how), images()
    whole = ub.attribution.rollout(box, x)
    rows: list[int] = []
    box.model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    part = ub.attribution.rollout(box, x, batch_size=1)
    assert rows == [1, 1, 1]
    assert torch.allclose(part.map, whole.map, rtol=1e-9)
    assert torch.allclose(part.attention, whole.attention, rtol=1e-9)


@pytest.mark.parametrize("heads", ["max", "min"])
def test_heads(heads: Any) -> None:
    box, x = opened("by hand"), images()
    made = ub.attribution.rollout(box, x, heads=heads)
    assert torch.allclose(made.attention.sum(-1), torch.ones(3, 9).double())
    assert not torch.allclose(made.attention, ub.attribution.rollout(box, x).attention)
    with pytest.raises(InputError, match="heads"):
        ub.attribution.rollout(box, x, heads="median")


def test_no_attention_no_rollout() -> None:
    c = make_case("plain")
    with pytest.raises(LayerError, match="nothing to roll out"):
        ub.attribution.rollout(c.box, c.x)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).mT.reshape(-1, 2, 4, 4).transpose(1, 2)  # (N * windows, heads, 4, 4)
        h = F.scaled_dot_product_attention(h, h, h)
        return self.fc(h.reshape(len(x), -1, 8).mean(1))


def test_windows_are_refused() -> None:
    torch.manual_seed(0)
    box = ub.Box(Windows().double().eval(), COLOR, outputs="logits")
    with pytest.raises(LayerError, match="windows"):
        ub.attribution.rollout(box, images())


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_hugging_face(how: str) -> None:
    """Its own attentions, multiplied."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4,
        num_channels=3, num_labels=4, attn_implementation=how,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).double().eval()
    box = ub.Box(model, ub.Pixels((3, 16, 16)))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    made = ub.attribution.rollout(box, x)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        want = by_hand(list(model(x, output_attentions=True).attentions))
    assert made.n_layers == 2
    assert torch.allclose(made.attention, want, rtol=1e-6)  # its softmax is in single precision
    assert made.map.shape == (2, 1, 16, 16)
    assert ub.attribution.layer_cam(box, x, 0).shape == (2, 1, 16, 16)
    found = ub.attribution.deep_lift(box, x, 0, baseline=0.5).flatten(1).sum(1)
    assert torch.allclose(found, (box(x) - box(torch.full_like(x, 0.5)))[:, 0], rtol=1e-5, atol=1e-7)
