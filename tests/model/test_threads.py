"""Boxes in threads and in forked processes: one thread at a time is inside a model, and no trace is left."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub

pytestmark = pytest.mark.usefixtures("threads_run_models")
PIXELS = ub.Pixels((1, 8, 8))


class Watched(nn.Module):
    """Notes, from inside its forward, which mode each thread finds it in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.final_op = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)
        self.modes: dict[int, set[bool]] = {}
        self.inside: set[int] = set()
        self.together = 0

    def forward(self, x: Tensor) -> Tensor:
        me = threading.get_ident()
        self.inside.add(me)
        self.together += len(self.inside) > 1
        for _ in range(3):
            self.modes.setdefault(me, set()).update({self.norm.training, self.training})
        out: Tensor = self.final_op(self.norm(self.fc(x.flatten(1))).relu())
        self.inside.discard(me)
        return out


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(()) + float(np.random.rand())
        out: Tensor = self.fc(x.flatten(1) * noise)
        return out


def images(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def at_once(*works: Callable[[], object]) -> None:
    """Run in threads at once; the first error is raised here."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]


def times(n: int, work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            work()

    return run


def test_generators_are_as_before_whatever_draws() -> None:
    boxes, x = [ub.Box(Noisy().eval(), PIXELS) for _ in range(4)], images()
    want = [box(x) for box in boxes]
    torch.manual_seed(3)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    wrong: list[int] = []

    def ask(i: int) -> None:
        wrong.extend([i] * (not torch.equal(boxes[i](x), want[i])))

    at_once(*(times(60, lambda i=i: ask(i)) for i in range(4)))
    assert wrong == []
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_other_threads_keep_their_random_stream() -> None:
    box, x = ub.Box(Watched().eval(), PIXELS), images()
    torch.manual_seed(11)
    want = torch.rand(400)
    torch.manual_seed(11)
    got: list[float] = []

    def draw() -> None:
        got.append(float(torch.rand(())))

    at_once(times(60, lambda: ub.attribution.gradient(box, x, 1)), times(400, draw))
    assert torch.equal(torch.tensor(got), want)


def test_two_boxes_of_one_model() -> None:
    model, x = Watched().train(), images()
    a, b = ub.Box(model, PIXELS), ub.Box(model, PIXELS)
    part = ub.Box(nn.Sequential(nn.Flatten(), model.fc, model.norm), PIXELS)  # shares modules
    want, statistics = a(x), model.norm.running_mean.clone()
    model.together = 0
    wrong: list[bool] = []

    def ask(box: ub.Box) -> None:
        wrong.extend([True] * (not torch.equal(box(x), want)))

    at_once(times(80, lambda: ask(a)), times(80, lambda: ask(b)), times(80, lambda: part(x)))
    assert wrong == []
    assert model.together == 0
    assert all(m.training for m in model.modules())
    assert torch.equal(model.norm.running_mean, statistics)


def test_a_model_is_opened_by_several_threads() -> None:
    """Each sees its own forward passes alone, also while another box of the model is at work."""
    model, x = Watched().eval(), images()
    box = ub.Box(model, PIXELS)
    opened = list[ub.Box]()
    at_once(*[times(8, lambda: opened.append(ub.Box(model, PIXELS)))] * 2, times(40, lambda: box(x)))
    assert len(opened) == 16
    assert all([*o.layers] == [*box.layers] and o.flops_per_example == box.flops_per_example for o in opened)


def test_a_training_thread_never_sees_its_model_in_eval() -> None:
    model, x = Watched().train(), images()
    box = ub.Box(model, PIXELS)
    model.modes.clear()
    model.together = 0
    boxed, trained = set[int](), set[int]()

    def look() -> None:
        boxed.add(threading.get_ident())
        ub.attribution.gradient(box, x, 1)

    def train() -> None:
        trained.add(threading.get_ident())
        model(x).sum().backward()

    at_once(times(80, look), times(80, train))
    assert {mode for t in trained for mode in model.modes[t]} == {True}
    assert {mode for t in boxed for mode in model.modes[t]} == {False}
    assert not model._forward_pre_hooks


class Probe(nn.Module):
    """Notes the mode that each thread finds it in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[int, list[bool]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.modes.setdefault(threading.get_ident(), []).append(self.training)
        return x


class Paused(nn.Module):
    """Stops in its forward, in the thread that is to be paused, until it is released or the other thread is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.probe = nn.Linear(64, 4), Probe()
        self.pause: int | None = None
        self.inside, self.go = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        me = threading.get_ident()
        if me == self.pause:
            self.inside.set()
            self.go.wait(20)
        elif self.pause is not None:  # the other has stopped: see what it finds if it goes on now
            self.go.set()
            self.probe(x)
            until(lambda: self.pause in self.probe.modes, 300)
        out: Tensor = self.fc(self.probe(x).flatten(1))
        return out


def test_a_forward_that_comes_while_a_box_is_inside_waits() -> None:
    model, x = Paused().train(), images()
    box = ub.Box(model, PIXELS)
    model.probe.modes.clear()
    trained: list[int] = []

    def look() -> None:
        model.pause = threading.get_ident()
        box(x)
        model.pause = None

    def train() -> None:
        model.inside.wait(20)
        trained.append(threading.get_ident())
        threading.Thread(target=let_go, args=(trained[0],)).start()
        model(x)

    def let_go(me: int) -> None:
        until(lambda: me in model.probe.modes, 300)
        model.go.set()

    at_once(look, train)
    assert {mode for me in trained for mode in model.probe.modes[me]} == {True}


def test_a_forward_that_is_under_way_waits_at_its_next_module() -> None:
    model, x = Paused().train(), images()
    box = ub.Box(model, PIXELS)
    model.probe.modes.clear()
    trained: list[int] = []

    def train() -> None:
        model.pause = threading.get_ident()
        trained.append(model.pause)
        model(x)

    def look() -> None:
        model.inside.wait(20)
        box(x)

    at_once(train, look)
    assert [model.probe.modes[me] for me in trained] == [[True]]


def until(happened: Callable[[], bool], tries: int) -> None:
    """Wait for something that a wrong program does soon."""
    pause = threading.Event()
    for _ in range(tries):
        if happened():
            return
        pause.wait(0.001)


FORK = """
import os, threading, time, torch, unboxed as ub
from unboxed.model import locks
torch.set_num_threads(1)

class Paused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.inside, self.pausing = torch.nn.Linear(64, 4), threading.Event(), False
    def forward(self, x):
        if self.pausing and threading.current_thread() is not threading.main_thread():
            self.inside.set()
            for _ in range(2000):  # until the main thread is about to fork
                if locks._THREAD_REGISTRY.forking: break
                time.sleep(.001)
        return self.fc(x.flatten(1))

model = Paused().train()
box, x = ub.Box(model, ub.Pixels((1, 8, 8))), torch.rand(4, 1, 8, 8)
model.pausing = True
thread = threading.Thread(target=lambda: box(x))
thread.start()
model.inside.wait()
pid = os.fork()
if pid == 0:
    clean = all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())
    os._exit(0 if clean and box(x).shape == (4, 4) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread.join()
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_fork_while_a_thread_is_inside() -> None:
    """A child finds the model as it was before the thread went in, and no lock that is never released."""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "0", ran.stderr[-2000:]
