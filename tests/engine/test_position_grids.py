"""The default layer and grid of class activation maps on models of tokens: the last grid, laid out right."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.engine.read.position_grids import layers_with_grids

SIDE, PATCH = (32, 16), 2


class Merge(nn.Module):
    """Tokens (N, h * w, C), of a grid, four to one: (N, h * w / 4, 2 C). Swin's normalizes first, Swin V2's last."""

    def __init__(self, c: int, size: tuple[int, int], first: bool) -> None:
        super().__init__()
        self.size, self.first = size, first
        self.norm, self.reduce = nn.LayerNorm(4 * c if first else 2 * c), nn.Linear(4 * c, 2 * c, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        n, _, c = h.shape
        h = h.view(n, *self.size, c)
        h = torch.cat([h[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1).view(n, -1, 4 * c)
        return self.reduce(self.norm(h)) if self.first else self.norm(self.reduce(h))


class Block(nn.Module):
    """Each token by itself: where a map peaks is known."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(self.act(self.up(self.norm(h))))  # type: ignore[no-any-return]


class Stages(nn.Module):
    """A Swin without attention between windows: patches, blocks, and a merge before each further stage."""

    def __init__(self, stages: int, first: bool = True, convolution: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = SIDE[0] // PATCH, SIDE[1] // PATCH
        self.cut = nn.Conv2d(1, 6, PATCH, PATCH) if convolution else nn.Linear(PATCH * PATCH, 6)
        self.convolution, parts, c = convolution, [Block(6)], 6
        for _ in range(stages - 1):
            parts += [Merge(c, size, first), Block(2 * c)]
            size, c = (size[0] // 2, size[1] // 2), 2 * c
        self.parts, self.norm, self.fc = nn.Sequential(*parts), nn.LayerNorm(c), nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(x).flatten(2).mT if self.convolution else self.cut(F.unfold(x, PATCH, stride=PATCH).mT)
        return self.fc(self.norm(self.parts(h)).mean(1))  # type: ignore[no-any-return]


def size(stages: int) -> tuple[int, int]:
    return SIDE[0] // PATCH // 2 ** (stages - 1), SIDE[1] // PATCH // 2 ** (stages - 1)


def literal(model: Stages, x: Tensor, k: int, stages: int) -> Tensor:
    """Grad-CAM of the last tokens, laid out by hand: token i is row i // w, column i % w."""
    h = model.cut(x).flatten(2).mT if model.convolution else model.cut(F.unfold(x, PATCH, stride=PATCH).mT)
    h = model.norm(model.parts(h)).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.fc(h.mean(1))[:, k].sum(), h)
    height, width = size(stages)
    out = torch.zeros(len(x), 1, height, width)
    for n in range(len(x)):
        for i in range(height * width):
            out[n, 0, i // width, i % width] = (g[n].mean(0) * h[n, i]).sum().clamp(min=0)
    return out.detach()


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, *SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_the_last_grid_by_brute_force(stages: int, first: bool, convolution: bool) -> None:
    model, x = Stages(stages, first, convolution).eval(), images()
    box = ub.Box(model, ub.Pixels((1, *SIDE)))
    assert list(layers_with_grids(box))[-1][1].size == size(stages)
    for k in range(3):
        got = ub.attribution.grad_cam(box, x, k, upsample=False)
        assert torch.allclose(got, literal(model, x, k, stages), atol=1e-6)
        assert torch.equal(got, ub.attribution.grad_cam(box, x, k, layer="norm", upsample=False))


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("place", [(0, 0), (1, 1), (3, 0)])
def test_a_map_peaks_where_the_only_informative_patch_is(stages: int, place: tuple[int, int]) -> None:
    box = ub.Box(Stages(stages).eval(), ub.Pixels((1, *SIDE)))
    cell = SIDE[0] // size(stages)[0]
    x = torch.zeros(1, 1, *SIDE)
    rows, columns = (slice(p * cell, (p + 1) * cell) for p in place)
    x[:, :, rows, columns] = torch.rand(cell, cell, generator=torch.Generator().manual_seed(1)) * 3
    x = x.clamp(max=1)
    h = box.read(x, "norm")["norm"]  # (1, L, C): all tokens but one are alike
    grid = next(g for r, g in reversed(list(layers_with_grids(box))) if r.path == "norm")
    apart = grid.to_maps(h - h.mode(1, keepdim=True).values).abs().sum(1)[0]  # (h, w)
    assert divmod(int(apart.argmax()), size(stages)[1]) == place
    assert int((apart > 1e-4).sum()) == 1


def test_a_fourth_of_the_tokens_may_be_queries() -> None:
    """What is not put side by side has no places: it is not laid out as if it had."""

    class Queries(Stages):
        def __init__(self) -> None:
            super().__init__(1)
            self.q, self.mix = nn.Parameter(torch.randn(32, 6)), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.parts(self.cut(x).flatten(2).mT)
            return self.fc(self.mix((self.q @ h.mT).softmax(-1) @ h).mean(1))

    box = ub.Box(Queries().eval(), ub.Pixels((1, *SIDE)))
    assert {g.size for _, g in layers_with_grids(box)} == {size(1)}


FAMILIES = ("vit", "deit", "swin", "swinv2")


def family(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """A small random model of transformers', and the grid of its last tokens."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"image_size": 32, "num_channels": 1, "num_labels": 4}
    if name in ("vit", "deit"):
        kind = {"vit": "ViT", "deit": "Deit"}[name].replace("Deit", "DeiT")
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4, **small
        )
        return getattr(transformers, f"{kind}ForImageClassification")(config).eval(), (8, 8)
    kind = {"swin": "Swin", "swinv2": "Swinv2"}[name]
    config = getattr(transformers, f"{kind}Config")(
        embed_dim=8, depths=[2, 2, 1], num_heads=[2, 2, 2], window_size=4, patch_size=2, **small
    )
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval(), (4, 4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_models_of_transformers(name: str) -> None:
    model, want = family(name)
    box = ub.Box(model, ub.Pixels((1, 32, 32)))
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = torch.cat([ub.attribution.grad_cam(box, x, k, upsample=False) for k in range(4)])
    assert maps.shape[2:] == want
    assert maps.any()


# -- pyramid vision transformers: keys are fewer than queries, and weights of attention pass through dropout -----------


def pyramid(kind: str, side: tuple[int, int]) -> ub.Box:
    """Four stages of two blocks each, of patches of 4, 8, 16 and 32 pixels; keys of the first two are fewer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stages = {"hidden_sizes": [8, 16, 24, 32], "depths": [2] * 4, "num_attention_heads": [1, 2, 3, 4]}
    more: dict[str, object] = {"mlp_ratios": [2] * 4, "num_channels": 1, "num_labels": 4}
    more |= {"image_size": side[0], "sequence_reduction_ratios": [4, 2, 1, 1]} if kind == "Pvt" else {}
    more |= {"image_size": side, "sr_ratios": [4, 2, 1, 1]} if kind == "PvtV2" else {}
    config = getattr(transformers, f"{kind}Config")(**stages, **more)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    return ub.Box(model, ub.Pixels((1, *side)))


PYRAMIDS = [("Pvt", (96, 96)), ("PvtV2", (96, 96)), ("PvtV2", (96, 64))]
STAGE = {"Pvt": r"(?:block|patch_embeddings)\.(\d)\.", "PvtV2": r"layers\.(\d)\."}
FEWER = re.compile(r"sequence_reduction|spatial_reduction|self\.layer_norm|self\.key|self\.value|attention\.layer_norm|"
                   r"attention\.key|attention\.value")  # fmt: skip


@pytest.mark.parametrize(("kind", "side"), PYRAMIDS)
@pytest.mark.filterwarnings("ignore")
def test_each_stage_of_a_pyramid_has_its_grid(kind: str, side: tuple[int, int]) -> None:
    """And what has none, the weights of attention, is no map."""
    box, found = pyramid(kind, side), dict[str, tuple[int, int]]()
    for row, grid in layers_with_grids(box):
        stage = re.search(STAGE[kind], row.path)
        assert not (row.type == "Dropout" and len(row.shape) == 3), f"{row.path} {row.shape}"
        if stage and not FEWER.search(row.path):
            found[row.path] = grid.size
            assert grid.size == tuple(s // 4 // 2 ** int(stage[1]) for s in side), row.path
    blocks = {re.sub(r"\.layer_norm_2$", "", path) for path in found if path.endswith("layer_norm_2")}
    assert len(blocks) == 8  # both norms of all blocks: none is lost after attention
    assert all(f"{block}.layer_norm_1" in found for block in blocks)


@pytest.mark.parametrize(("kind", "side"), PYRAMIDS)
@pytest.mark.filterwarnings("ignore")
def test_grad_cam_of_a_pyramid_by_hand(kind: str, side: tuple[int, int]) -> None:
    """At the last norm that patches have a say in: before the last attention, where only the class token answers."""
    box, kept = pyramid(kind, side), list[Tensor]()
    last = "pvt.encoder.block.3.1.layer_norm_1" if kind == "Pvt" else "pvt_v2.encoder.layers.3.layer_norm"
    x = torch.rand(2, 1, *side, generator=torch.Generator().manual_seed(0))
    handle = box.model.get_submodule(last).register_forward_hook(lambda module, args, out: kept.append(out))
    z = box.model(x).logits
    handle.remove()
    extra, (height, width) = int(kind == "Pvt"), (side[0] // 32, side[1] // 32)
    for k in range(4):
        (g,) = torch.autograd.grad(z[:, k].sum(), kept[0], retain_graph=True)
        patches, slopes = (h.detach()[:, extra:].flatten(1, -2).view(2, height * width, -1) for h in (kept[0], g))
        want = (patches * slopes.mean(1, keepdim=True)).sum(-1).clamp(min=0).view(2, 1, height, width)
        got = ub.attribution.grad_cam(box, x, k, upsample=False)
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-7)
