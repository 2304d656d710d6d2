"""Modules before an edit answer from one run of each example: the same numbers as whole runs, and no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from check_each import each
from unboxed.activations import ablation, patching
from unboxed.engine.read import edited_runs
from unboxed.engine.read.edited_runs import ReplaceWhereEdit
from unboxed.engine.read.edits import unit_layer_addresses
from unboxed.engine.read.prefix_replay import PrefixReplay
from unboxed.objectives import logit


@contextmanager
def only(*ways: str) -> Iterator[list[str]]:
    """Rewritten runs are tried in these ways alone; the list names those that were found to give what whole runs do."""
    own, taken = edited_runs._VariantRunner.matches_full_run, []

    def gives(self: Any, whole: Any, examples: Tensor, numbers: Tensor, how: Any) -> bool:
        fits = how in (*ways, "checked") and own(self, whole, examples, numbers, how)
        taken.extend([how] * (fits and how in ways))
        return fits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edited_runs._VariantRunner, "matches_full_run", gives)
        yield taken


def forwards(box: ub.Box) -> list[Any]:
    """Each module's own entries, and whether `forward` is one of them."""
    return [(list(m.__dict__), m.__dict__.get("forward")) for m in dict.fromkeys(box.modules.values())]


WITHOUT_MODULES = {"parameterless", "exported_flat"}


@each(name for name in awkward.MODELS if name not in WITHOUT_MODULES)
def test_as_whole_runs(name: str) -> None:
    """Ablation and patching of awkward models; also in batches that part an example's ways."""
    entry = awkward.get_model(name, torch.float64)
    box = ub.Box(entry.model, entry.inputs, **entry.box_settings)
    x, other = entry.images(3).to(box.dtype), entry.images(3, seed=1).to(box.dtype)
    paths = unit_layer_addresses(box)
    before, share = forwards(box), 1e-9 if box.model_dtype == torch.float64 else 1e-5
    for path, size in {paths[-1]: "auto", paths[len(paths) // 2]: 5}.items():  # of one path the parted batch
        with only("replayed"):
            found = ablation(box, x, path, target=0, batch_size=size).ablated_logits
            back = patching(box, x, other, [path], 0, part="channel", batch_size=size).layers[0].score
        with only():
            want = ablation(box, x, path, target=0, batch_size=size).ablated_logits
            score = patching(box, x, other, [path], 0, part="channel", batch_size=size).layers[0].score
        assert torch.allclose(found, want, rtol=share, atol=share * float(want.abs().max()), equal_nan=True)
        assert torch.allclose(back, score, rtol=share, atol=share * float(score.abs().max()), equal_nan=True)
    assert forwards(box) == before


class Seen(nn.Module):
    """How many rows went through it."""

    rows = 0

    def forward(self, h: Tensor) -> Tensor:
        self.rows += len(h)
        return h * 1


class Residual(nn.Module):
    """A shortcut around each block, so that no batch can grow in the middle; `relu` runs in place, `shared` twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.seen = nn.Linear(64, 6), Seen()
        self.block, self.shared = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), nn.Linear(6, 6)
        self.norm, self.relu = nn.LayerNorm(6), nn.ReLU(inplace=True)
        self.mid, self.top = nn.Linear(6, 5), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.seen(self.stem(x.flatten(1)))
        h = h + self.block(h)
        h = self.shared(h) + self.shared(h.cos())
        z = self.norm(h)
        self.relu(z)  # what it gives back is not looked at
        z += 1
        return self.top(torch.cat([self.mid(z), z], 1))


def residual() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(Residual().double(), awkward.GRAY_INPUTS)


def images(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exchanged(rows: int) -> ReplaceWhereEdit:
    return ReplaceWhereEdit(torch.eye(5)[torch.arange(rows) % 5].bool(), torch.zeros(()))


def by_hand(box: ub.Box, x: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """Logits of rows edited at `path`, answered and run in full: straight, no probe between."""
    examples = torch.arange(len(x)).repeat_interleave(5)
    before, edit = (
        PrefixReplay(box, x, logit(0)),
        {path: exchanged(len(examples)) if path == "mid" else lambda h: h * 2},
    )
    before.record_prefix(examples, edit)
    with box.isolated(grad=False), before.replaying_prefix(examples):
        found = box.forward(x[examples], ["logits"], edit)["logits"]
    with box.isolated(grad=False):
        return found, box.forward(x[examples], ["logits"], edit)["logits"]


@each(["mid", "mid:input", "shared#0", "shared#1", "block.1", "block.0", "norm", ":cat#0"])
def test_a_module_answers_for_its_own_call(path: str) -> None:
    """Of two calls each with its own output, and with what it gave before an op in place wrote over that."""
    found, want = by_hand(residual(), images(3), path)
    assert torch.allclose(found, want, rtol=0, atol=1e-12)
    assert want.abs().max() > 0.1


def test_what_comes_before_runs_once_an_example() -> None:
    """Not once a unit: 7 images, 5 units, and the few that try it out."""
    box, x = residual(), images(7)
    box.model.seen.rows = 0
    with only("replayed") as taken:
        found = ablation(box, x, "mid", target=0, batch_size=10)
    assert taken == ["replayed"]
    assert (
        box.model.seen.rows <= 1 + 7 + 7 + 2 * 2 + 2 * 3
    )  # shape, unedited, recorded; trial: recorded twice, whole, checked
    with only():
        assert torch.allclose(found.ablated_logits, ablation(box, x, "mid", target=0).ablated_logits, atol=1e-12)
    assert box.model.seen.rows > 7 * 5


def test_a_model_whose_batch_can_not_grow_is_replayed() -> None:
    with only("thin", "replayed") as taken:
        ablation(residual(), images(3), "mid")
    assert taken == ["replayed"]


def test_what_is_read_before_the_edit_is_still_read() -> None:
    """An objective of a layer inside a module that would else be replayed whole."""
    box, x = residual(), images(3)
    target = ub.channel("block.0", 1) + ub.logit(0)
    with only("replayed") as taken:
        found = ablation(box, x, "mid", target=target)
    with only():
        want = ablation(box, x, "mid", target=target)
    assert taken == ["replayed"]
    assert torch.allclose(found.ablated_scores, want.ablated_scores, atol=1e-12)


class Stashing(Residual):
    """Hands a tensor on through an attribute of a module inside one that answers whole."""

    def __init__(self) -> None:
        super().__init__()
        self.block[1].register_forward_hook(lambda module, args, h: setattr(self, "kept", h.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.kept[:, :4]


@each([1, 4, 5])
def test_a_module_that_hands_tensors_on_by_itself_does_not_answer(n: int) -> None:
    torch.manual_seed(0)
    box = ub.Box(Stashing().double(), awkward.GRAY_INPUTS)
    with only("replayed") as taken:
        found = ablation(box, images(n), "mid", target=0).ablated_logits
    assert taken == ["replayed"]  # all but that module answer
    with only():
        assert torch.allclose(found, ablation(box, images(n), "mid", target=0).ablated_logits, atol=1e-12)


@each([KeyboardInterrupt, ValueError])
def test_nothing_is_left_where_a_run_breaks_off(error: type[BaseException]) -> None:
    """In every forward: the recording, the answered one, the whole ones; a `forward` of the user's own stays."""
    box, x, calls = residual(), images(3), [0, 0]
    own = box.model.norm.forward
    box.model.norm.forward = lambda h: own(h)  # type: ignore[method-assign]
    before = forwards(box)

    def breaks(module: nn.Module, args: Any) -> None:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise error

    box.model.shared.register_forward_pre_hook(breaks)
    for k in range(1, 40):
        calls[:] = [0, k]
        with suppress(error):
            ablation(box, x, "mid", target=0)
        assert forwards(box) == before
    assert calls[0] < 39  # each forward was broken off once


def test_another_branch_of_the_model_is_run_for_real() -> None:
    """A later run that calls modules in another order gets no answers of the recorded one."""
    box, x = residual(), images(3)
    before, rows = PrefixReplay(box, x, logit(0)), torch.arange(3)
    before.record_prefix(rows, ["mid"])
    with box.isolated(grad=False), before.replaying_prefix(rows):
        h = box.model.shared(torch.ones(3, 6).double())  # the recorded run begins with the stem
        again = box.model.stem(torch.ones(3, 64).double())
    assert torch.equal(h, box.model.shared(torch.ones(3, 6).double()))
    assert torch.equal(again, box.model.stem(torch.ones(3, 64).double()))
