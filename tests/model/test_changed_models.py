"""A box around a model that is changed after it was opened, copied, pickled, or that writes to itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import unboxed as ub
from unboxed.errors import InputError, UnboxedWarning

PIXELS = ub.Pixels((1, 8, 8), mean=0.4, std=0.5)


class Small(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head: nn.Module = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def small(classes: int = 10) -> Small:
    torch.manual_seed(0)
    return Small(classes).eval()


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# ---- changed after opening -------------------------------------------------------------------------------------------


def new_head() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 10))


def test_a_new_head_runs_in_eval_and_keeps_its_statistics() -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    model.head = new_head()  # in train mode, as in transfer learning
    before = model.head[0].running_mean.clone()
    got = box(x)
    assert model.head.training
    assert torch.equal(model.head[0].running_mean, before)
    assert torch.allclose(got, copy.deepcopy(model).eval()(PIXELS.encode(x)))
    assert "head.2" in [row.path for row in box.layers]


@pytest.mark.parametrize("where", ["module", "nested", "parameter"])
def test_any_part_that_was_exchanged_is_seen(where: str) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    before = box(x)
    if where == "module":
        model.head = nn.Linear(32, 10)
    elif where == "nested":
        model.body[2] = nn.Tanh()
    else:
        model.head.weight = nn.Parameter(torch.ones(10, 32).double())
        model.double()
    after = box(x)
    assert not torch.allclose(before.double(), after.double())
    assert torch.allclose(after, model(PIXELS.encode(x).to(after.dtype)).detach())


def test_a_cast_model_is_opened_again() -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    model.double()
    assert box(x).dtype == torch.float64
    assert ub.attribution.gradient(box, x, 1).dtype == torch.float64
    assert box.dtype == torch.float64
    model.float()
    assert box(x).dtype == torch.float32


def test_another_number_of_classes() -> None:
    model, x = small(), images()
    box, named = ub.Box(model, PIXELS), ub.Box(model, PIXELS, classes=list("abcdefghij"))
    model.head = nn.Linear(32, 5)
    assert box(x).shape == (4, 5)
    assert box.classes == tuple("01234")
    for _ in range(2):  # the second time, too
        with pytest.raises(InputError, match=r"5 outputs; got 10 class names\. It had 10 when"):
            named(x)


def test_train_flags_count_where_the_model_runs_as_it_is() -> None:
    model, x = small(), images()
    model.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 10)).eval()
    box = ub.Box(model, PIXELS, mode="as-is")
    assert not box.batch_dependent
    model.train()
    before = model.head[0].running_mean.clone()
    box(x)
    assert box.batch_dependent
    assert torch.equal(model.head[0].running_mean, before)


def normed() -> Small:
    model = small()
    model.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 10)).eval()
    return model


def test_statistics_that_were_removed() -> None:
    model, x = normed(), images()
    box = ub.Box(model, PIXELS)
    assert not box.batch_dependent
    norm = model.head[0]
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    assert torch.allclose(box(x, batch_size=2), model(PIXELS.encode(x)).detach())
    assert box.batch_dependent


@pytest.mark.parametrize("parts", ["rows", "data"])
def test_weights_of_another_shape(parts: str) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    box(x)
    weight, bias = (p.data[:7] if parts == "rows" else torch.ones(7, *p.shape[1:]) for p in model.head.parameters())
    model.head.weight.data, model.head.bias.data = weight, bias
    assert box(x).shape == (4, 7)
    assert box.n_outputs == len(box.classes) == 7


def center(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out - out.mean(0)


def center_in_place(module: nn.Module, args: Any, out: Tensor) -> None:
    out -= out.mean(0)


def center_first(module: nn.Module, args: Any) -> Any:
    return args[0] - args[0].mean(0)


def center_named(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return (args[0] - args[0].mean(0),), kwargs


def add(module: nn.Module, hook: Any) -> Any:
    if hook is center_first:
        return module.register_forward_pre_hook(hook)
    if hook is center_named:
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    return module.register_forward_hook(hook)


HOOKS = pytest.mark.parametrize("hook", [center, center_in_place, center_first, center_named])


@HOOKS
def test_a_hook_that_couples_rows_is_warned_of_and_counts_from_then_on(hook: Any) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    before = box(x)
    handle = add(model.head, hook)
    with pytest.warns(UnboxedWarning, match="'head'"):
        box(x, batch_size=2)
    assert torch.allclose(box(x, batch_size=2), model(PIXELS.encode(x)).detach())
    assert box.batch_dependent
    handle.remove()
    assert torch.equal(box(x, batch_size=4), before)
    assert not box.batch_dependent


@HOOKS
def test_refresh_sees_new_hooks(hook: Any) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    add(model.head, hook)
    box.refresh()
    assert box.batch_dependent
    assert torch.allclose(box(x, batch_size=2), model(PIXELS.encode(x)).detach())


def test_hooks_that_only_read_see_what_is_asked_alone() -> None:
    """They need no new inspection of the model, and are where they were afterwards."""
    model, x, seen = small(), images(), []
    box = ub.Box(model, PIXELS)
    model.head.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model.head.register_forward_hook(lambda module, args, out: out)
    model.register_forward_pre_hook(lambda module, args: (args[0],))
    before = [*model.head._forward_hooks.items(), *model._forward_pre_hooks.items()]
    box(x)
    assert seen == [4]
    assert [*model.head._forward_hooks.items(), *model._forward_pre_hooks.items()] == before


def test_the_hooks_of_a_box_at_work_are_none_of_the_models() -> None:
    model, x, late = small(), images(), []
    box, other = ub.Box(model, PIXELS), ub.Box(model, PIXELS)

    def ask(h: Tensor) -> Tensor:
        other(x)
        late.append(other._model.late_hooks)
        return h

    with box.isolated(grad=False):
        box.forward(x, ["head"], edits={"body.1": ask})
    assert late == [[]]


def test_new_values_alone_need_no_new_inspection(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    monkeypatch.setattr(ub.Box, "_open_model", lambda self: pytest.fail("opened again"))
    with torch.no_grad():
        model.head.weight.mul_(2)
    model.train()
    assert torch.allclose(box(x), copy.deepcopy(model).eval()(PIXELS.encode(x)))


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda box: pickle.loads(pickle.dumps(box))], ids=["copy", "pickle"])
def test_a_box_can_be_copied(again: Any) -> None:
    box, x = ub.Box(small(), PIXELS, classes=list("abcdefghij")), images()
    other = again(box)
    assert torch.equal(other(x), box(x))
    assert (other.classes, other.inputs, other.outputs) == (box.classes, box.inputs, box.outputs)
    assert other.model is not box.model
    with torch.no_grad():
        other.model.head.weight.zero_()
    assert not torch.equal(other(x), box(x))
    assert box == box
    assert box != other


# ---- what the model writes -------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Writes to a weight and to buffers in every way there is."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.relu, self.fc, self.norm = how, nn.Linear(64, 4), nn.BatchNorm1d(64)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.ones(5000))  # too large to be compared by value

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.relu == "in place":
            with torch.no_grad():
                self.fc.weight.mul_(0.9)
        elif self.relu == "through .data":
            self.fc.weight.data.div_(self.fc.weight.data.norm())
        elif self.relu == "another .data":
            self.fc.weight.data = 0.5 * self.fc.weight.data
        elif self.relu == "buffers":
            self.calls += 1
            self.table[3] += 1
        elif self.relu == "statistics":
            x = nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        elif self.relu == "numpy":
            self.calls.numpy()[...] += 1
        elif self.relu == "foreach":
            torch._foreach_add_([self.calls, self.table], 1)
        out: Tensor = self.fc(x)
        return out


HOWS = ["in place", "through .data", "another .data", "buffers", "statistics", "numpy", "foreach", "nothing"]


@pytest.mark.parametrize("how", HOWS)
def test_what_a_model_writes_is_put_back(how: str) -> None:
    torch.manual_seed(0)
    model = Writes(how).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers = {k: v.data_ptr() for k, v in model.state_dict().items()}
    box, x = ub.Box(model, PIXELS), images()
    for work in (lambda: None, lambda: box(x), lambda: ub.attribution.gradient(box, x, 1)):
        work()
        now = model.state_dict()
        assert {k: torch.equal(v, before[k]) for k, v in now.items()} == dict.fromkeys(before, True)
        assert {k: v.data_ptr() for k, v in now.items()} == pointers


class Copied(TorchDispatchMode):
    """Sees how many numbers an op copies at most."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy"):
            self.most = max(self.most, args[0].numel())
        return func(*args, **(kwargs or {}))


def test_neither_opening_nor_a_call_copies_the_weights() -> None:
    model = small()
    model.register_buffer("table", torch.zeros(300_000))
    model.body[1] = nn.Linear(64, 3000)
    model.head = nn.Linear(3000, 10)
    x = images()
    with Copied() as seen:
        box = ub.Box(model, PIXELS)
        box(x)
        ub.attribution.gradient(box, x, 1)
    assert 0 < seen.most < 30_000


class Late(nn.Module):
    """Writes to its buffer only for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.register_buffer("seen", torch.zeros(5000))

    def forward(self, x: Tensor) -> Tensor:
        if x.min() > 0.9:
            self.seen += 1
        out: Tensor = self.fc(x.flatten(1))
        return out


def test_a_late_write_is_reported_and_put_back_from_then_on() -> None:
    model = Late().eval()
    box = ub.Box(model, ub.Pixels((1, 8, 8)))
    box(images())
    assert not model.seen.any()
    with pytest.warns(UnboxedWarning, match="'seen'"):
        box(torch.ones(2, 1, 8, 8))
    box(torch.ones(2, 1, 8, 8))
    assert torch.equal(model.seen, torch.ones(5000))


# ---- what the model draws --------------------------------------------------------------------------------------------


class Gates(nn.Module):
    """Stochastic depth left on, as timm spells it: a gate per row."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep, self.conv, self.fc = keep, nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        gate = h.new_empty(len(h), 1, 1, 1).bernoulli_(self.keep).div_(self.keep)
        out: Tensor = self.fc((h + self.conv(x).relu() * gate).flatten(1))
        return out


class HostNoise(nn.Module):
    """Noise from NumPy: of each row, or one for all."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows, self.fc = rows, nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        import numpy as np

        noise = torch.as_tensor(np.random.rand(len(x) if self.rows else 1)).to(x)
        out: Tensor = self.fc(x.flatten(1) + noise[:, None])
        return out


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99, 0.9999])
def test_gates_of_rows_are_recognized_however_rarely_they_close(keep: float) -> None:
    torch.manual_seed(0)
    box, x = ub.Box(Gates(keep).eval(), PIXELS), images(16)
    assert box.batch_dependent
    whole, ones = (ub.attribution.gradient(box, x, 0, batch_size=size) for size in (16, 1))
    assert torch.equal(whole, ones)


@pytest.mark.parametrize("rows", [True, False])
def test_noise_of_rows_from_numpy(rows: bool) -> None:
    assert ub.Box(HostNoise(rows).eval(), PIXELS).batch_dependent == rows


def test_a_model_that_draws_nothing_touches_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXELS)
    for name in ("forking_rngs_with_lock", "forking_rngs", "rng_states"):
        monkeypatch.setattr(f"unboxed.model.state.{name}", lambda *args: pytest.fail("a generator was touched"))
    box(x)
    ub.attribution.gradient(box, x, 1)
    ub.adversarial.pgd(box, x, torch.zeros(4, dtype=torch.long), eps=0.1, steps=2)
