"""Which maps class activation maps read by default: the last that all of the score passes through, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from models import seeded
from unboxed.errors import InputError, LayerError

pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # that a row's map is blank
COLOR = ub.Pixels((3, 16, 8))


def cam(box: ub.Box, x: Tensor, target: Any = 0, **more: Any) -> Tensor:
    return ub.attribution.layer_cam(box, x, target, upsample=False, **more)  # of the four, the least often blank


def images(n: int = 2) -> Tensor:
    return torch.rand(n, *COLOR.shape, generator=torch.Generator().manual_seed(0))


class Last(nn.Module):
    """A stem, the last maps made of it by `last`, and a linear layer on their mean over positions."""

    channels_last = False

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()), nn.Linear(6, 3)
        self.c1, self.c2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.gate, self.u, self.d = nn.Conv2d(2, 1, 7, padding=3), nn.Linear(6, 12), nn.Linear(12, 6)
        self.norm, self.scale = nn.LayerNorm(6), nn.Parameter(torch.rand(6))

    def last(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.last(x).mean((1, 2) if self.channels_last else (2, 3)))


class Gated(Last):
    def last(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return h * self.gate(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid()


class SummedInline(Last):
    def last(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return h + self.c2(self.c1(h).relu())


class SummedInPlace(Last):
    def last(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        k = self.c2(self.c1(h).relu())
        k += h
        return F.relu_(k)


class SquareConvNeXt(Last):
    """As many channels as rows and columns: shapes alone do not determine which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)

    def last(self, x: Tensor) -> Tensor:
        h = self.stem(F.interpolate(x, (6, 6)))
        k = self.d(F.gelu(self.u(self.norm(self.c1(h).permute(0, 2, 3, 1))))) * self.scale
        return h + k.permute(0, 3, 1, 2)


class ChannelsLast(SquareConvNeXt):
    channels_last = True

    def last(self, x: Tensor) -> Tensor:
        h = self.stem(F.interpolate(x, (6, 6))).permute(0, 2, 3, 1)
        return h + self.d(F.gelu(self.u(self.norm(h))))


class Branches(Last):
    def last(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return torch.cat([self.c1(h)[:, :3], self.c2(h)[:, 3:]], 1)


class TwoHeads(Last):
    """The other head runs after this one."""

    def last(self, x: Tensor) -> Tensor:
        return self.c1(self.stem(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return {"main": super().forward(x), "aux": self.c2(self.stem(x)).relu().relu().mean((2, 3))[:, :3]}


class ManyMore(TwoHeads):
    """More maps of the other head than values are kept of."""

    def forward(self, x: Tensor) -> Any:
        main, h = Last.forward(self, x), self.stem(x)
        for _ in range(12):
            h = self.c2(h).relu()
        return {"main": main, "aux": h.mean((2, 3))[:, :3]}


class WrittenOver(Last):
    """The last maps are written over once they have been used."""

    def forward(self, x: Tensor) -> Any:
        h = self.last(x)
        z = self.fc(h.mean((2, 3)))
        h.detach().zero_()
        return z

    def last(self, x: Tensor) -> Tensor:
        return self.c1(self.stem(x)) + 1


class ByPosition(Last):
    """What is joined over channels after the last maps is no map of them, and masks none."""

    def last(self, x: Tensor) -> Tensor:
        return self.c1(self.stem(x)).relu()

    def forward(self, x: Tensor) -> Any:
        h = self.last(x)
        share = h.detach().sum(1, keepdim=True) * 0 + 1
        return self.fc(h.mean((2, 3))) + 0 * (h.sum(1, keepdim=True) * share).flatten(1).mean(1, keepdim=True)


NETS = (Gated, SummedInline, SummedInPlace, SquareConvNeXt, ChannelsLast, Branches, TwoHeads, ManyMore, WrittenOver,
        ByPosition)  # fmt: skip


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam"])
def test_the_default_is_the_last_map(build: type[Last], name: str) -> None:
    """Against the last maps as the model's own code has them, and the linear layer's weights as their gradient."""
    model, x = seeded(build), images().double()
    box = ub.Box(model, COLOR, outputs="logits", **({"output": "main"} if issubclass(build, TwoHeads) else {}))
    h = model.last(x).detach()
    h = h.movedim(3, 1) if build.channels_last else h
    method, found = getattr(ub.attribution, name), []
    for k in (0, 1, 2):
        g = model.fc.weight[k].detach()[:, None, None].expand_as(h) / h[0, 0].numel()
        want = ((g if name == "grad_cam" else g.clamp(min=0)) * h).sum(1, keepdim=True).clamp(min=0)
        got = method(box, x, k, upsample=False)
        assert got.shape == want.shape
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
        found.append(float(want.max()))
    assert max(found) > 0


def test_a_residual_block_is_read_at_its_sum_in_one_forward() -> None:
    """Values are kept while the model runs, so the layer is found and read in the same forward."""
    model = seeded(SummedInline)
    box, runs = ub.Box(model, COLOR, outputs="logits"), list[int]()
    model.register_forward_pre_hook(lambda module, args: runs.append(len(args[0])))
    cam(box, images())
    assert runs == [2]


class SideBySide(Last):
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.c1(x.repeat(1, 2, 1, 1)).relu().mean((2, 3)) + self.c2(x.repeat(1, 2, 1, 1)).mean((2, 3)))


class Scripted(Last):
    def __init__(self) -> None:
        super().__init__()
        self.script = torch.jit.script(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()))

    def last(self, x: Tensor) -> Tensor:
        return self.script(self.stem(x).relu())


class Windows(Last):
    """Axes are split and joined, so that what they are is out of sight."""

    channels_last = True

    def last(self, x: Tensor) -> Tensor:
        h = self.stem(x).permute(0, 2, 3, 1)
        n, rows, columns, c = h.shape
        w = h.reshape(n, rows // 2, 2, columns // 2, 2, c).transpose(2, 3).flatten(1, 2)
        return self.norm(w).reshape(n, rows // 2, columns // 2, 2, 2, c).transpose(2, 3).reshape(h.shape).relu()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("build", [SideBySide, Scripted, Windows])
def test_where_the_last_maps_are_ambiguous_one_is_asked_for(build: type[Last]) -> None:
    box = ub.Box(seeded(build), COLOR, outputs="logits")
    for _ in range(4):  # scripted code is optimized from the second run on
        with pytest.raises(LayerError, match="layer=, such as '"):
            cam(box, images())
    assert cam(box, images(), layer="c1" if build is SideBySide else "stem").shape[:2] == (2, 1)


def test_a_table_has_no_image() -> None:
    table = ub.Box(seeded(nn.Linear, 3, 2), ub.Features(("a", "b", "c")), outputs="logits")
    with pytest.raises(InputError, match=r"images \(Pixels\); this model takes none"):
        cam(table, images()[:, 0, 0, :3])
