"""Rollout, gradient-weighted attention and LeGrad: as by hand from the models' own maps, through fused attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.attribution import gradient_attention, legrad, rollout
from unboxed.errors import InputError, LayerError

transformers = pytest.importorskip("transformers")
from attribution.test_rollout import COLOR, Vision, images  # noqa: E402
from inputs.test_tokens import MAKERS, TEXTS, encoded, open_model  # noqa: E402
from loading.huggingface_models import build  # noqa: E402

METHODS: dict[str, Callable[..., Any]] = {"rollout": rollout, "gradient": gradient_attention, "legrad": legrad}
NAMES = tuple(MAKERS)


def run_eagerly(box: ub.Box, text: str) -> Any:
    """The model's own output for one text, with its maps (1, heads, T, T) in the graph."""
    model = box.model
    model.set_attn_implementation("eager")
    try:
        return model(**encoded(box, [text]), output_attentions=True, output_hidden_states=True)
    finally:
        model.set_attn_implementation("sdpa")


def read_row(name: str, n: int) -> int:
    """The token that the classifier reads: the first of encoders, the last of decoders."""
    return 0 if "bert" in name else n - 1


def end_of(name: str, model: Any) -> Callable[[Tensor], Tensor]:
    """The logits (1, K) of the tokens (1, T, D) that come out of a block."""
    return {
        "bert": lambda h: model.classifier(model.bert.pooler(h)),
        "roberta": lambda h: model.classifier(h),
        "gpt2": lambda h: model.score(model.transformer.ln_f(h))[:, -1],
        "llama": lambda h: model.score(model.model.norm(h))[:, -1],
    }[name]


def block_outputs(name: str, box: ub.Box, text: str) -> tuple[list[Tensor], Any]:
    """What each block gives (1, T, D), and the output."""
    model = box.model
    blocks = {
        "bert": "bert.encoder.layer",
        "roberta": "roberta.encoder.layer",
        "gpt2": "transformer.h",
        "llama": "model.layers",
    }
    out: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda m, args, h: out.append(h if isinstance(h, Tensor) else h[0]))
        for block in model.get_submodule(blocks[name])
    ]
    try:
        return out, run_eagerly(box, text)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", NAMES)
def test_rollout_of_texts_is_the_product(name: str) -> None:
    box = open_model(MAKERS[name])
    a = rollout(box, TEXTS)
    for row, text in enumerate(TEXTS):
        maps = run_eagerly(box, text).attentions
        total = torch.eye(maps[0].shape[-1]).double()
        for w in maps:
            total = (0.5 * w[0].mean(0) + 0.5 * torch.eye(len(total)).double()) @ total
        n = len(total)
        assert torch.allclose(a[row, :n], total[read_row(name, n)], atol=1e-7)
        assert bool((a[row, n:] == 0).all())
        assert float(a[row].sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_weighted_attention_is_the_papers(name: str) -> None:
    box = open_model(MAKERS[name])
    a = gradient_attention(box, TEXTS, 1)
    for row, text in enumerate(TEXTS):
        out = run_eagerly(box, text)
        grads = torch.autograd.grad(out.logits[0, 1], out.attentions)
        relevance = torch.eye(out.attentions[0].shape[-1]).double()
        for w, g in zip(out.attentions, grads, strict=True):
            relevance = relevance + (w * g)[0].detach().clamp(min=0).mean(0) @ relevance
        n = len(relevance)
        want = (relevance - torch.eye(n).double())[read_row(name, n)]
        assert float(want.max()) > 1e-4
        assert torch.allclose(a[row, :n], want, atol=1e-7, rtol=1e-5)
        assert bool((a[row, n:] == 0).all())
        assert float(a.score[row]) == pytest.approx(out.logits[0, 1].item(), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_legrad_is_the_papers(name: str) -> None:
    box = open_model(MAKERS[name])
    a = legrad(box, TEXTS, 1)
    for row, text in enumerate(TEXTS):
        states, out = block_outputs(name, box, text)
        for layer, (h, w) in enumerate(zip(states, out.attentions, strict=True)):
            score = end_of(name, box.model)(h)[0, 1]
            (g,) = torch.autograd.grad(score, w, retain_graph=True)
            want = torch.where(w > 0, g.clamp(min=0), 0)[0].mean((0, 1))
            n = len(want)
            assert torch.allclose(a.layer_maps[row, layer, :n], want, atol=1e-8, rtol=1e-4), layer
            assert bool((a.layer_maps[row, layer, n:] == 0).all())
            assert float(a.layer_scores[row, layer]) == pytest.approx(score.item(), abs=1e-6)
    assert torch.allclose(a.map, a.layer_maps.mean(1))
    assert float(a.map.max()) > 1e-5


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, n) for i, m in enumerate(METHODS) for j, n in enumerate(NAMES) if (i + j) % 2 == 0],
)
def test_padding_and_batches_change_nothing(method: str, name: str) -> None:
    box, run = open_model(MAKERS[name]), METHODS[method]
    whole, split = run(box, TEXTS), run(box, TEXTS, batch_size=1)
    assert torch.allclose(whole.map, split.map, atol=1e-9)
    for row, text in enumerate(TEXTS):
        alone = run(box, [text]).map[0]
        assert torch.allclose(whole.map[row, : len(alone)], alone, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_fused_and_plain_attention_agree(method: str) -> None:
    box = open_model(MAKERS["gpt2"], torch.float32)
    fused = METHODS[method](box, TEXTS)
    box.model.set_attn_implementation("eager")
    plain = METHODS[method](box, TEXTS)
    assert torch.allclose(fused.map, plain.map, atol=1e-5)


@pytest.mark.parametrize("how", ["by hand", "fused", "multi-head", "with weights"])
@pytest.mark.parametrize("method", ["gradient", "legrad"])
def test_every_spelling_gives_the_same_for_images(how: str, method: str) -> None:
    def opened(how: str) -> ub.Box:
        torch.manual_seed(0)
        return ub.Box(Vision(how, class_token=True).double().eval(), COLOR, outputs="logits")

    want, got = METHODS[method](opened("by hand"), images(), 1), METHODS[method](opened(how), images(), 1)
    assert want.shape == (3, 1, 16, 8)
    assert float(want.max()) > 1e-4
    assert torch.allclose(got.map, want.map, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2", "Beit", "Dinov2WithRegisters"])
@pytest.mark.parametrize("method", METHODS)
def test_vision_transformers(name: str, method: str) -> None:
    box = ub.Box(build(name), ub.Pixels((3, 16, 16)), outputs="logits")
    a = METHODS[method](box, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), upsample=False)
    assert a.shape == (2, 1, 4, 4)
    assert float(a.min()) >= 0
    assert float(a.std()) > 0


# -- what cannot be told -----------------------------------------------------------------------------------------------


class Registers(nn.Module):
    """Ten tokens before the patches, more than are looked for; the grid is said by the caller."""

    def __init__(self, n_extra: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.extra = nn.Linear(12, 8), nn.Parameter(torch.randn(1, n_extra, 8))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(F.unfold(x, 2, stride=2).mT)
        h = torch.cat([self.extra.expand(len(x), -1, -1), h], 1)
        for block in self.blocks:
            h = h + block(h, h, h)[0]
        return self.head(h[:, 0])


@pytest.mark.parametrize("method", ["rollout", "gradient"])
def test_the_number_of_extra_tokens_can_be_said(method: str) -> None:
    box = ub.Box(Registers().eval(), ub.Pixels((3, 8, 16)), outputs="logits")
    x = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(LayerError, match="extra_tokens"):
        METHODS[method](box, x)
    assert METHODS[method](box, x, extra_tokens=10, upsample=False).shape == (2, 1, 4, 8)
    with pytest.raises(InputError, match="no grid"):
        METHODS[method](box, x, extra_tokens=9)


def test_blocks_that_attend_twice_are_refused_by_legrad() -> None:
    class Twice(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])
            return F.scaled_dot_product_attention(h, h, h)[:, 0]

    class Blocks(Attends):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.Sequential(Twice(), Twice())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attend(self.patches(F.unfold(x, 2, stride=2).mT)).mean(1))

    box = ub.Box(Blocks().eval(), ub.Pixels((3, 8, 16)), outputs="logits")
    with pytest.raises(LayerError, match="in a block of their own"):
        legrad(box, torch.rand(1, 3, 8, 16))


class Attends(nn.Module):
    """One layer of attention, in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attend, self.head = (
            nn.Linear(12, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(F.unfold(x, 2, stride=2).mT)
        return self.head(self.attend(h, h, h)[0].mean(1))


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As an extension's op, of which nothing but the output is seen."""
    if torch.overrides.has_torch_function((q, k, v)):
        return torch.overrides.handle_torch_function(flash_attention, (q, k, v), q, k, v)  # type: ignore[no-any-return]
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("method", METHODS)
def test_attention_that_is_not_seen_is_never_silently_missing(method: str) -> None:
    class Opaque(Attends):
        def forward(self, x: Tensor) -> Tensor:
            h = self.patches(F.unfold(x, 2, stride=2).mT)
            h = self.attend(h, h, h)[0]
            return self.head(flash_attention(h, h, h).mean(1))

    box = ub.Box(Opaque().eval(), ub.Pixels((3, 8, 16)), outputs="logits")
    with pytest.raises(LayerError, match="shows no weights"):
        METHODS[method](box, torch.rand(1, 3, 8, 16))


@pytest.mark.parametrize("method", METHODS)
def test_tables_are_refused(method: str) -> None:
    box = ub.Box(nn.Linear(2, 3), ub.Features(("a", "b")), outputs="logits")
    with pytest.raises(InputError, match="needs a model that takes images alone"):
        METHODS[method](box, torch.rand(1, 2))


def test_a_text_of_one_token_is_taken() -> None:
    box = ub.Box(open_model(MAKERS["gpt2"]).model, ub.Tokens(lambda text: [7]), outputs="logits")
    for run in METHODS.values():
        assert run(box, ["good"]).shape == (1, 1)
