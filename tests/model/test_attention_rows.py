"""Attention whose weights are computed again in the backward pass: the relevance of attention in plain ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import attn_lrp, lrp
from unboxed.errors import RuleError
from unboxed.model.lrp import attention_rows
from unboxed.model.op_mode import DispatchMode

N, HEADS, SIZE = 3, 4, 2
LENGTHS = {"cross": (5, 9), "causal, fewer keys": (9, 5), "causal, more keys": (5, 9)}  # queries, keys; else 7 and 7
KINDS = ("plain", "causal", "causal, fewer keys", "causal, more keys", "cross", "boolean mask", "mask of keys",
         "padding on the left", "additive mask", "scale", "grouped", "grouped, causal", "constant keys",
         "keys that are gates")  # fmt: skip


def in_plain_ops(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, is_causal: bool = False, **how: Any) -> Tensor:
    if how.get("enable_gqa"):
        k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in (k, v))
    z = (q * how.get("scale", 1 / math.sqrt(SIZE))) @ k.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(z.shape[-2:]).tril().bool()
    if attn_mask is not None and attn_mask.dtype == torch.bool and not attn_mask.any(-1).all():
        sees_one = attn_mask.any(-1, keepdim=True)  # a query that sees no key has the output zero
        return (torch.softmax(z.masked_fill(~attn_mask & sees_one, -math.inf), -1) @ v).masked_fill(~sees_one, 0)
    if attn_mask is not None:
        z = z.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else z + attn_mask
    return torch.softmax(z, -1) @ v


class Attention(nn.Module):
    """Queries, keys and values made of columns, and their attention's sum over queries."""

    def __init__(self, kind: str, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.attend = kind, attend
        self.n_queries, self.n_keys = LENGTHS.get(kind, (7, 7))
        self.n_kv = 2 if "grouped" in kind else HEADS
        self.q, self.k, self.v = (
            nn.Linear(6, heads * n * SIZE)
            for heads, n in ((HEADS, self.n_queries), (self.n_kv, self.n_keys), (self.n_kv, self.n_keys))
        )
        self.head = nn.Linear(HEADS * self.n_queries * SIZE, 2)
        self.double().eval()

    def settings(self, n_examples: int = N) -> dict[str, Any]:
        shape, generator = (self.n_queries, self.n_keys), torch.Generator().manual_seed(2)
        how: dict[str, Any] = {"is_causal": "causal" in self.kind, "enable_gqa": "grouped" in self.kind}
        if self.kind == "boolean mask":
            how["attn_mask"] = (torch.rand(HEADS, *shape, generator=generator) < 0.6) | torch.eye(*shape).bool()
        elif self.kind == "mask of keys":
            how["attn_mask"] = (torch.arange(self.n_keys) < 5).view(1, 1, 1, self.n_keys)
        elif self.kind == "padding on the left":
            padding = torch.arange(N).view(N, 1, 1, 1)
            how["attn_mask"] = torch.ones(*shape).tril().bool() & (torch.arange(self.n_keys) >= padding)[:n_examples]
        elif self.kind == "additive mask":  # as of relative positions: these are constants, which are counted
            how["attn_mask"] = torch.randn(HEADS, *shape, generator=generator).double()
        elif self.kind == "scale":
            how["scale"] = 0.3
        return how

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(len(x), HEADS, self.n_queries, SIZE)
        k, v = (f(x).view(len(x), self.n_kv, self.n_keys, SIZE) for f in (self.k, self.v))
        if self.kind == "constant keys":
            k = torch.linspace(-1, 1, k[0].numel()).double().view(1, *k.shape[1:]).expand_as(k).clone()
        if self.kind == "keys that are gates":
            k = k.sigmoid()
        return self.head(self.attend(q, k, v, **self.settings(len(x))).flatten(1))


COLUMNS = ub.Features(tuple("abcdef"))


def columns() -> Tensor:
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(3)).double()


def open_model(kind: str, attend: Callable[..., Tensor]) -> ub.Box:
    return ub.Box(Attention(kind, attend), COLUMNS, outputs="logits")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_weights", [1, 200, 2**20])  # one query at a time, a few, all
def test_it_is_attention_in_plain_ops(kind: str, max_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = (open_model(kind, f) for f in (F.scaled_dot_product_attention, in_plain_ops))
    want, want_lrp = attn_lrp(plain, columns(), 1), lrp(plain, columns(), 1, rule="epsilon")
    monkeypatch.setattr(attention_rows, "MAX_WEIGHTS_AT_ONCE", max_weights)
    made = attn_lrp(fused, columns(), 1)
    assert torch.allclose(made.map, want.map, rtol=1e-12, atol=1e-12)
    for part, values in want.conservation.held_back.items():
        assert torch.allclose(made.conservation.held_back[part], values, rtol=1e-12, atol=1e-12), part
    assert made.conservation.max_error <= 1e-12
    assert torch.allclose(lrp(fused, columns(), 1, rule="epsilon").map, want_lrp.map, rtol=1e-12, atol=1e-12)


def test_the_masks_above_matter() -> None:
    """So that the test above can distinguish them."""
    maps = {kind: attn_lrp(open_model(kind, in_plain_ops), columns(), 1).map for kind in KINDS}
    for kind in (
        "causal",
        "boolean mask",
        "mask of keys",
        "padding on the left",
        "additive mask",
        "scale",
        "constant keys",
    ):
        assert float((maps[kind] - maps["plain"]).abs().max()) > 1e-3, kind
    held_back = attn_lrp(open_model("additive mask", in_plain_ops), columns(), 1).conservation.held_back
    assert float(held_back["constants"].abs().max()) > 1e-3


class LargestTensor(DispatchMode):
    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.values = max(
            [self.values, *(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))]
        )
        return out


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("kind", ["plain", "causal"])
def test_no_matrix_of_all_tokens_is_made(kind: str, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_rows, "MAX_WEIGHTS_AT_ONCE", 64)
    monkeypatch.setitem(LENGTHS, kind, (60, 60))
    largest = {}
    for name, attend in {"fused": F.scaled_dot_product_attention, "plain": in_plain_ops}.items():
        box = open_model(kind, attend)
        with LargestTensor() as seen:
            attn_lrp(box, columns()[:1], 1, check=check)
        largest[name] = seen.values
    assert largest["fused"] < HEADS * 60 * 60 <= largest["plain"]


class MaskWrittenOver(Attention):
    def forward(self, x: Tensor) -> Tensor:
        mask = self.settings()["attn_mask"]
        h = self.attend_with(mask, x)
        mask.fill_(True)
        return h

    def attend_with(self, mask: Tensor, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(len(x), HEADS, 7, SIZE) for f in (self.q, self.k, self.v))
        return self.head(self.attend(q, k, v, attn_mask=mask).flatten(1))


def test_a_mask_that_is_written_over_is_refused() -> None:
    model = MaskWrittenOver("boolean mask", F.scaled_dot_product_attention)
    with pytest.raises(RuleError, match="mask is written over after it was used"):
        attn_lrp(ub.Box(model, COLUMNS, outputs="logits"), columns(), 1)


class MaskOfInference(MaskWrittenOver):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            mask = self.settings()["attn_mask"]
        return self.attend_with(mask, x)


def test_a_mask_may_be_made_in_inference_mode() -> None:
    boxes = [ub.Box(m("boolean mask", F.scaled_dot_product_attention), COLUMNS) for m in (MaskOfInference, Attention)]
    found, wanted = (attn_lrp(box, columns(), 1).map for box in boxes)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
