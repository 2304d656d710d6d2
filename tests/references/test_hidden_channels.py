"""Models whose modules depend on one another in ways that their arguments don't show: rewritten runs are right all the
same, whatever the data: also where examples are alike, so that a value of the wrong example is no other value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import awkward
import unboxed as ub
from unboxed.activations import ablate, ablation, rewrite
from unboxed.engine.perturb.windows import run_with_replaced_windows

SHARED: list[Any] = []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(6, 6), nn.Tanh()

    def forward(self, h: Tensor) -> Tensor:
        return self.act(self.lin(h)) * 1.5


class Model(nn.Module):
    """Two blocks, the edited layer `mid`, and a head; `extra` is what else the head reads."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(64, 6), block(), Block()
        self.mid, self.head = nn.Linear(6, 5), nn.Linear(17, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1) * 3)
        h = h + self.second(self.first(h))
        return self.head(torch.cat([self.mid(h), h, self.extra(h)], 1))

    def extra(self, h: Tensor) -> Tensor:
        return h.sin()


class KeepsInside(Block):
    def forward(self, h: Tensor) -> Tensor:
        self.kept = self.act(self.lin(h))
        return self.kept * 1.5


class KeepsOutput(Block):
    def forward(self, h: Tensor) -> Tensor:
        self.kept = super().forward(h)
        return self.kept


class KeepsInAList(Block):
    def forward(self, h: Tensor) -> Tensor:
        SHARED[:] = [self.act(self.lin(h))]
        return SHARED[0] * 1.5


class WritesACache(Block):
    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(256, 6).double()  # no buffer

    def forward(self, h: Tensor) -> Tensor:
        self.cache[: len(h)] = self.act(self.lin(h))
        return self.cache[: len(h)] * 1.5


class ReadsKept(Model):
    def extra(self, h: Tensor) -> Tensor:
        return self.first.kept


class ReadsList(Model):
    def extra(self, h: Tensor) -> Tensor:
        return SHARED[0]


class ReadsCache(Model):
    def extra(self, h: Tensor) -> Tensor:
        return self.first.cache[: len(h)]


class Hooked(Model):
    """A hook inside the first block keeps what its layer gives; `as_array`: out of torch's sight."""

    def __init__(self, as_array: bool) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

        def keep(module: nn.Module, args: Any, h: Tensor) -> None:
            self.kept["h"] = h.numpy().copy() if as_array else h

        self.first.lin.register_forward_hook(keep)

    def extra(self, h: Tensor) -> Tensor:
        return torch.as_tensor(self.kept["h"])


class Counts(Model):
    """Which table it reads depends on how often a block ran."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.table = 0, nn.Parameter(torch.randn(3, 6) * 5)
        self.first.act.register_forward_hook(self.count)

    def count(self, *called: Any) -> None:
        self.steps += 1

    def forward(self, x: Tensor) -> Tensor:
        self.steps = 0
        return super().forward(x)

    def extra(self, h: Tensor) -> Tensor:
        return h * self.table[self.steps]


class Sorts(Model):
    """A block gets its rows in another order, and they are put back."""

    def forward(self, x: Tensor) -> Tensor:
        h, order = self.stem(x.flatten(1)), x.flatten(1).mean(1).argsort()
        h = h + (self.first(h[order]) * 2)[order.argsort()]
        return self.head(torch.cat([self.mid(h), h, h.sin()], 1))


class Ranks(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1).argsort()


class SortsByAModule(Model):
    """A module's output is no function of each row, but the model's is."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks = Ranks()

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        order = self.ranks(h)
        h = self.first(h[order])[order.argsort()] + h
        return self.head(torch.cat([self.mid(h), h, h.sin()], 1))


class TakesByAttribute(Block):
    source: Tensor

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h + self.source)


class GivesByAttribute(Model):
    def __init__(self) -> None:
        super().__init__(TakesByAttribute)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1) * 3)
        order = h.mean(1).argsort()
        self.first.source = h[order]
        h = self.first(torch.zeros_like(h))[order.argsort()] + h
        return self.head(torch.cat([self.mid(h), h, h.sin()], 1))


class Checkpointed(ReadsKept):
    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1) * 3)
        h = h + checkpoint(lambda t: self.second(self.first(t)), h, use_reentrant=False)
        return self.head(torch.cat([self.mid(h), h, self.extra(h)], 1))


MODELS = {
    "plain": Model,
    "keeps inside": lambda: ReadsKept(KeepsInside),
    "keeps its output": lambda: ReadsKept(KeepsOutput),
    "a list": lambda: ReadsList(KeepsInAList),
    "a cache": lambda: ReadsCache(WritesACache),
    "a hook": lambda: Hooked(False),
    "a hook, arrays": lambda: Hooked(True),
    "counts": Counts,
    "sorts": Sorts,
    "sorts by a module": SortsByAModule,
    "takes by attribute": GivesByAttribute,
    "checkpointed": lambda: Checkpointed(KeepsInside),
}


def opened(name: str) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(MODELS[name]().double().eval(), awkward.GRAY_INPUTS)


def data(seed: int) -> Tensor:
    """Nine images in some order of brightness. Of seed 0, the first four are one; of seed 1, they are in order."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(9, 1, 8, 8, generator=draw).double() * torch.rand(9, 1, 1, 1, generator=draw).double()
    if seed == 1:
        x = x[x.mean((1, 2, 3)).argsort()].roll(4, 0)
    return torch.cat([x[:1].expand(4, -1, -1, -1), x[4:]]) if seed == 0 else x


def silenced(box: ub.Box, image: Tensor, unit: int) -> Tensor:
    """Logits of one image (1, 1, 8, 8) where a unit of `mid` is zero, by a hook alone."""
    handle = box.model.mid.register_forward_hook(lambda module, args, h: h * (torch.arange(5) != unit))
    with handle, torch.no_grad():
        return box.model(box.inputs.encode(image))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_ablation_is_what_single_examples_give(name: str) -> None:
    """Each unit of each example silenced by itself, against all of them in shared batches."""
    box = opened(name)
    for seed in range(3):
        x = data(seed)
        want = torch.stack([torch.cat([silenced(box, one, k) for one in x.split(1)]) for k in range(5)], 1)
        for size in {0: ("auto", 7), 1: (9, 7), 2: ("auto",)}[seed]:
            found = ablation(box, x, "mid", target=0, batch_size=size).ablated_logits
            assert torch.allclose(found, want, rtol=0, atol=1e-10), (name, seed, size)


class Gated(Model):
    """Takes a part of its rows another way, where there are bright ones; a shape that no wider batch fits."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1) * 3)
        bright = x.flatten(1).mean(1) > 0.7
        z = self.mid(h)
        if bright.any():
            z = torch.where(bright[:, None], z.cos(), z)
        return self.head(torch.cat([z, torch.zeros(len(z), 12).to(z)], 1))


def test_runs_that_fail_only_for_some_data_are_done_in_full() -> None:
    """A batch grows at the edit until an image is bright."""
    torch.manual_seed(0)
    box, x = ub.Box(Gated().double().eval(), awkward.GRAY_INPUTS), data(1).clamp(max=0.5)
    x[7] = 0.9
    want = torch.stack([rewrite(box, x, {"mid": ablate(k)}).logits_after for k in range(5)], 1)
    assert torch.allclose(ablation(box, x, "mid", target=0, batch_size=10).ablated_logits, want, rtol=0, atol=1e-10)


class Positions(nn.Module):
    """The first axis of what `table` gives are three positions."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.table = nn.Linear(64, 18), nn.Embedding(3, 6)
        self.mid, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(x.flatten(1)).view(-1, 3, 6) + self.table(torch.arange(3))
        return self.head((h + self.mid(h).tanh()).mean(1))


def test_an_axis_of_three_is_not_the_batch() -> None:
    """A box inspects a model with three rows, and at other numbers of them, too."""
    torch.manual_seed(0)
    box, x = ub.Box(Positions().double(), awkward.GRAY_INPUTS), data(0)
    assert not any(map(box.has_batch_axis, ("table", "table:embedding", "table:input")))
    assert all(map(box.has_batch_axis, ("mid", "cut")))
    assert box.layers["table"].shape == (3, 6)
    assert box.read(x, "table", batch_size=2)["table"].shape == (3, 6)
    want = torch.stack([rewrite(box, x, {"mid": ablate(k)}).logits_after for k in range(3)], 1)
    for size in (4, 6, "auto"):
        assert torch.allclose(
            ablation(box, x, "mid", target=0, batch_size=size).ablated_logits, want, rtol=0, atol=1e-10
        )


class LooksAtTypes(nn.Module):
    """Takes what is no tensor another way, which shows where an image is not black."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 3 if isinstance(x, Tensor) else x
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_windows_are_tried_where_they_change_something() -> None:
    """Black hidden in black shows nothing of a model, and what was found for the first image holds for later ones."""
    torch.manual_seed(0)
    box, x = ub.Box(LooksAtTypes().double(), ub.Pixels((1, 24, 24))), torch.zeros(1, 1, 24, 24).double()
    objective, corners = ub.logit(0), torch.tensor([(i, i) for i in range(0, 20, 2)])
    for images in (x, x + 0.7):
        found = run_with_replaced_windows(box, images, objective, torch.zeros_like(x), corners, (4, 4)).score[0]
        hidden = images.repeat(len(corners), 1, 1, 1)
        for row, (top, left) in zip(hidden, corners.tolist(), strict=True):
            row[:, top : top + 4, left : left + 4] = 0
        assert torch.allclose(found, box(hidden)[:, 0], rtol=0, atol=1e-10)
