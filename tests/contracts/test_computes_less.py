"""Contract 5: compute only what is asked: no deeper, no more examples, no larger batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import awkward
import unboxed as ub
from check_each import each
from contracts.common import (
    CARDS,
    MethodCase,
    call_example,
    each_method,
    has_parameters,
    make_case,
    result_difference_texts,
    result_tensors,
    shared_case,
)
from unboxed.engine.gradients.score import ReluBypass, gradients
from unboxed.engine.optimize.colors import Palette
from unboxed.engine.optimize.generators import CPPN
from unboxed.engine.optimize.loop import SYNC_INTERVAL_STEPS, OptimizationConfig, optimize
from unboxed.engine.optimize.optimizers import NormalizedGradient
from unboxed.engine.optimize.parameterizations import Canvas, FourierCanvas, RawCanvas
from unboxed.engine.optimize.transforms import random_affine, random_roll
from unboxed.objectives import Constant, color_distance, logprob, match, total_variation

DEPTH = 8


class Counting(nn.Conv2d):
    """Counts how often it ran and on how many rows."""

    ran: Counter[str]
    name: str

    def forward(self, x: Tensor) -> Tensor:
        self.ran[self.name] += 1
        return super().forward(x)


def deep() -> tuple[ub.Box, Tensor, Counter[str]]:
    """A model of DEPTH convolutions with a ReLU each, and which of them have run since the box was opened."""
    torch.manual_seed(0)
    ran: Counter[str] = Counter()
    blocks = []
    for i in range(DEPTH):
        conv = Counting(1 if i == 0 else 3, 3, 3, padding=1)
        conv.ran, conv.name = ran, f"conv{i}"
        blocks += [(f"conv{i}", conv), (f"relu{i}", nn.ReLU(inplace=True))]
    from collections import OrderedDict

    model = nn.Sequential(OrderedDict([*blocks, ("pool", nn.Flatten()), ("fc", nn.Linear(3 * 64, 4))])).eval()
    box = ub.Box(model, awkward.GRAY_INPUTS)
    ran.clear()
    return box, torch.rand(3, 1, 8, 8), ran


SHALLOW: dict[str, Callable[[ub.Box, Tensor], Any]] = {
    "read": lambda box, x: box.read(x, ["conv1"]),
    "read two": lambda box, x: box.read(x, ["conv1", "conv0"]),
    "read what it receives": lambda box, x: box.read(x, ["conv1:input"]),
    "maps": lambda box, x: ub.activations.maps(box, x, ["conv1"]),
    "gradients": lambda box, x: gradients(box, ub.channel("conv1", 0), x),
    "gradient": lambda box, x: ub.attribution.gradient(box, x, ub.channel("conv1", 0)),
    "guided backprop": lambda box, x: ub.attribution.guided_backprop(box, x, ub.neuron("conv1", 1)),
    "deconvnet": lambda box, x: ub.attribution.deconvnet(box, x, ub.channel("conv1", 0)),
    "layer cam": lambda box, x: ub.attribution.layer_cam(box, x, ub.channel("conv1", 0)),
    "deep lift": lambda box, x: ub.attribution.deep_lift(box, x, ub.channel("conv1", 0)),
    "pgd": lambda box, x: ub.adversarial.pgd(box, x, eps=0.1, steps=2, objective=ub.channel("conv1", 0)),
}


@each(SHALLOW)
def test_a_quarter_of_the_depth(work: str) -> None:
    box, x, ran = deep()
    SHALLOW[work](box, x)
    assert set(ran) <= {"conv0", "conv1"}
    assert ran["conv0"] >= 1


def test_the_model_runs_in_full_where_it_must() -> None:
    """The counter can count: the logits take every layer, once."""
    box, x, ran = deep()
    box(x)
    assert ran == {f"conv{i}": 1 for i in range(DEPTH)}


def test_a_parameters_only_method_runs_nothing() -> None:
    box, _, ran = deep()
    ub.activations.filters(box)
    assert not ran


class Rows:
    """A hook of the user's own: how many rows each forward of the model had; more than `most` exhaust the memory."""

    def __init__(self, model: nn.Module, most: int = 10**9) -> None:
        self.seen: list[int] = []
        self.most = most
        self.handle = model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.seen.append(len(args[0]))
        if self.seen[-1] > self.most:
            raise torch.OutOfMemoryError("planted: out of memory")


@contextmanager
def counting_rows(c: MethodCase, most: int = 10**9) -> Iterator[Rows]:
    """Of a box that tests share."""
    rows = Rows(c.box.model, most)
    try:
        yield rows
    finally:
        rows.handle.remove()


HALVE_ANY_SIZE = ("corruptions", "self_influence")
"""The size is that of their passes over the data; a forward inside one chooses its own, and halves it."""


@each_method("computes less", lambda card: has_parameters(card, "batch_size"))
def test_bounded_batches(name: str) -> None:
    """No more rows at a time than were asked for or fit, fewer when the memory is exhausted: the same numbers as in
    one batch. With a size of the caller's own, and of one row, which can't be split, exhausted memory is reported.
    """
    c, card = shared_case("plain", torch.float64, n=5), CARDS[name]
    call = partial(call_example, card, c, control=False)  # whose copy of the model would be opened with the hook
    want = result_tensors(call())
    with counting_rows(c) as rows:
        found = result_tensors(call(batch_size=2))
    assert rows.seen
    assert max(rows.seen) <= 2
    assert result_difference_texts(found, want, 1e-9) == [], "of two at a time"
    with pytest.MonkeyPatch.context() as patch, counting_rows(c, most=1) as rows:
        patch.setattr("unboxed.box.MAX_AUTO_BATCH_ACTIVATION_BYTES", 3 * c.box.profile.bytes_per_example)
        assert (c.box.batch_limit, c.box.forward_batch_limit) == (3, 3)
        found = result_tensors(call())
    assert result_difference_texts(found, want, 1e-9) == [], "of automatic batches"
    assert max(rows.seen) in (2, 3), "not what fits, halved"
    with counting_rows(c, most=0 if name in HALVE_ANY_SIZE else 2), pytest.raises(torch.OutOfMemoryError):
        call(batch_size=5)
    with counting_rows(c, most=0) as rows, pytest.raises(torch.OutOfMemoryError):
        call()
    assert rows.seen[-1] == 1


def test_pgd_drops_the_examples_that_are_done() -> None:
    c = make_case("plain")  # row 2 is misclassified from the start
    rows = Rows(c.box.model)
    made = ub.adversarial.pgd(c.box, c.x, c.y, eps=1e-3, steps=4, random_start=False)
    assert made.queries.tolist() == [5, 5, 1]
    assert rows.seen == [3, 2, 2, 2, 2]
    assert torch.equal(made.images[2], c.x[2])


def test_morph_drops_the_examples_that_are_done() -> None:
    c = make_case("plain")
    rows = Rows(c.box.model)
    target = c.box.predict(c.x)
    target[0] = (target[0] + 1) % 4
    rows.seen.clear()
    made = ub.synthesis.morph(c.box, c.x, target, confidence=0.3, step=1e-4, steps=4)
    assert made.steps.tolist() == [4, 0, 0]
    assert rows.seen[:5] == [3, 1, 1, 1, 1]
    assert torch.equal(made.frames[-1, 1:], c.x[1:])


@each([1, 5])
def test_queries_are_counted(steps: int) -> None:
    """One row alone: as many queries as there were forwards."""
    c = make_case("plain")
    for i in range(3):
        rows = Rows(c.box.model)
        made = ub.adversarial.pgd(c.box, c.x[i : i + 1], c.y[i : i + 1], eps=0.05, steps=steps)
        assert made.queries.tolist() == [len(rows.seen)]


@each_method("one forward", lambda card: has_parameters(card, "x"))
def test_one_evaluation_per_gradient(name: str) -> None:
    """A method without steps runs the model once a batch."""
    if has_parameters(CARDS[name], "steps"):
        return
    c = shared_case("plain")
    with counting_rows(c) as rows:
        call_example(CARDS[name], c)
    assert rows.seen[:1] == [3]
    assert len(rows.seen) == 1 + has_parameters(CARDS[name], "data")  # which are passed over once


def test_case_is_what_the_docstring_says() -> None:
    c: MethodCase = make_case("plain")
    assert (c.box.predict(c.x) == c.y).tolist() == [True, True, False]


# ---- an accelerator is asked seldom ----------------------------------------------------------------------------------

STEPS = 32
LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}


class HostSyncs(TorchDispatchMode):
    """Counts the ops after which a host waits for its device; `at` is the step, by how often the model ran."""

    def __init__(self, at: Callable[[], int]) -> None:
        super().__init__()
        self.at, self.seen = at, list[tuple[int, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)
            for a in args
            if isinstance(a, list)
            for i in a
        )
        if (name in LOOKS or by_mask) and self.at():  # not before the first step
            self.seen.append((self.at(), name))
        return func(*args, **(kwargs or {}))

    @property
    def meetings(self) -> set[int]:
        return {step for step, _ in self.seen}


def n_host_syncs(c: MethodCase, plan: OptimizationConfig, canvas: Canvas, monkeypatch: pytest.MonkeyPatch) -> HostSyncs:
    """How often an optimization reads values if its device is slow to ask."""
    monkeypatch.setattr("unboxed.engine.optimize.loop.waits_for_device_on_read", lambda device: True)
    monkeypatch.setattr("unboxed.model.outputs.waits_for_device_on_read", lambda device: True)
    monkeypatch.setattr(Constant, "value_range", lambda self: None)  # as it is for what lies on an accelerator
    rows = Rows(c.box.model)
    with HostSyncs(lambda: len(rows.seen)) as found:
        climb = optimize(c.box, logprob(c.y) + 0.1 * ub.logit(0), canvas, plan)
    assert len(rows.seen) > 8
    assert climb.history.isfinite().all()
    return found


def climbing(c: MethodCase, unclamp: ReluBypass = "last", keep_going: bool = False, **more: Any) -> OptimizationConfig:
    """Towards each row's class, until one is surer than half; rows are there at different steps, one never."""
    until = logprob(c.y) - torch.tensor([-0.05, -1e-9, -0.6])
    settings: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.02), **more}
    return OptimizationConfig(STEPS, stop_when=until, relu_bypass=unclamp, continue_finished=keep_going, **settings)


def dead() -> MethodCase:
    """Row 0 has no gradient but before the clamps: no unit of the first layer answers to black."""
    c = make_case("plain")
    with torch.no_grad():
        c.box.model.conv1.bias.fill_(-0.05)
        c.box.model.conv1.weight.abs_()
    c.x[0] = 0
    return c


CLIMBED = ("plain", "relu_logits", "log_softmax", "softmax", "batchnorm_in_train_mode", "dead")
BYPASSES: tuple[ReluBypass, ...] = ("no", "last", "all")


@each((model, (i + j) % 2 == 0, unclamp) for i, model in enumerate(CLIMBED) for j, unclamp in enumerate(BYPASSES))
def test_a_slow_device_is_synchronized_every_eighth_step(model: str, keep_going: bool, unclamp: ReluBypass) -> None:
    """Every two of the three settings meet."""
    c = dead() if model == "dead" else make_case(model)
    with pytest.MonkeyPatch.context() as patch:
        found = n_host_syncs(c, climbing(c, unclamp, keep_going), RawCanvas(c.x), patch)
    assert len(found.meetings - {STEPS + 1}) <= STEPS // SYNC_INTERVAL_STEPS, found.seen  # the last asks for NaN
    assert len(found.seen) <= 2 * (STEPS // SYNC_INTERVAL_STEPS) + 1, found.seen


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    return random_roll(2)(random_affine(noise=0.1)(x, generator), generator)


@each([(FourierCanvas, NormalizedGradient), (CPPN, torch.optim.SGD)])
def test_so_it_is_through_transforms_and_priors(kind: Any, rule: Any) -> None:
    c = make_case("color")
    plan = climbing(
        c,
        optimizer=partial(rule, lr=0.01),
        transform=turned,
        prior=-0.1 * total_variation(kind="anisotropic"),
        sum_abs_grads=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        meetings = n_host_syncs(c, plan, kind.noise(c.x, 0), patch).meetings - {STEPS + 1}  # the last asks for NaN
    assert len(meetings) <= STEPS // SYNC_INTERVAL_STEPS


def test_evaluations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter can count: one evaluation per step, and an optimization on a device that is quick to ask."""
    c = make_case("plain")
    monkeypatch.setattr("unboxed.engine.optimize.loop.SYNC_INTERVAL_STEPS", 1)
    assert len(n_host_syncs(c, climbing(c), RawCanvas(c.x), monkeypatch).meetings) > STEPS // 2
    monkeypatch.undo()
    plan = climbing(c, keep_going=True, post_step=lambda p, grad, step: p if p.sum() > -torch.inf else grad)
    assert len(n_host_syncs(c, plan, RawCanvas(c.x), monkeypatch).meetings) >= STEPS


def test_what_an_optimization_holds_is_copied_to_the_device_once() -> None:
    """Tensors made of numbers: means, targets, palettes. Each is a copy to the device, so none is made at a step."""
    c = make_case("color")
    made = list[int]()

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ in ("lift_fresh", "_to_copy") and args[0].dtype != torch.bool:
                made.append(len(rows.seen))
            return func(*args, **(kwargs or {}))

    there = c.box.read(c.x, "conv1")["conv1"].double()
    goal = 0.1 * match("conv1", there) + logprob(c.y.int()) * torch.ones(3).double()
    canvas = FourierCanvas.noise(c.x, 0, Palette(torch.full((3,), 0.4).double(), torch.eye(3).double()))
    rows = Rows(c.box.model)
    plan = OptimizationConfig(4, partial(torch.optim.SGD, lr=0.1), prior=-color_distance(torch.zeros(3).double()))
    with Made():
        optimize(c.box, goal, canvas, plan)
    assert made
    assert max(made) <= 1
