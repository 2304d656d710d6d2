"""The zoo of awkward nets: what people's nets do that the obvious code gets wrong. Tiny, seeded, on the CPU.

Most are `Plain` spelled another way: the same weights compute the same function, so every method must give the same
result on both. `net.twin` names the plain spelling where there is one.
"""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unboxed import Pixels

CLASSES = 4


@dataclass(frozen=True)
class Awkward:
    """A net with what a box needs to know of it; `twin` names the entry that computes the same function plainly."""

    net: nn.Module
    inputs: Pixels
    box: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None

    def images(self, n: int = 3, seed: int = 0) -> Tensor:
        """Images (n, C, H, W) in [0, 1], float32."""
        return torch.rand(n, *self.inputs.shape, generator=torch.Generator().manual_seed(seed))


NETS: dict[str, Callable[[], Awkward]] = {}


def awkward(twin: str | None = None, **box: Any) -> Callable[[Callable[[], Any]], Callable[[], Awkward]]:
    """Enter the zoo: the function gives a net, or a net and its inputs; its weights come from seed 0."""

    def enter(build: Callable[[], Any]) -> Callable[[], Awkward]:
        def seeded() -> Awkward:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # building may use what torch deprecates; running it may not warn
                torch.manual_seed(0)
                made = build()
            net, inputs = made if isinstance(made, tuple) else (made, GRAY)
            return Awkward(net, inputs, box, twin)

        NETS[build.__name__] = seeded
        return seeded

    return enter


def get(name: str, dtype: torch.dtype | None = None) -> Awkward:
    """A fresh copy of an entry, moved to `dtype` if given."""
    entry = NETS[name]()
    return entry if dtype is None else replace(entry, net=entry.net.to(dtype))


GRAY = Pixels((1, 8, 8), mean=0.4, std=0.5)
COLOR = Pixels((3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.5, 0.4, 0.5))


class Plain(nn.Module):
    """Two convolutions, two ReLUs and a linear layer, each a module called once: nothing awkward."""

    def __init__(self, channels: int = 1, height: int = 8, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * ((height + 1) // 2) * ((width + 1) // 2), CLASSES)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self._decide((torch.rand(32, channels, height, width) - 0.4) / 0.5)
        self.eval()

    @torch.no_grad()
    def _decide(self, x: Tensor) -> None:
        """Answers that differ from image to image, as a trained net's do."""
        h = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        self.fc.weight.mul_(2 / self.fc(h).std(0).mean())
        self.fc.bias.sub_(self.fc(h).mean(0))

    def first(self, x: Tensor) -> Tensor:
        return self.relu1(self.conv1(x))

    def second(self, h: Tensor) -> Tensor:
        return self.relu2(self.conv2(h))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.second(self.first(x)).flatten(1))


@awkward()
def plain() -> nn.Module:
    return Plain()


@awkward(twin="plain")
def sequential() -> nn.Module:
    p = Plain()
    layers = OrderedDict(conv1=p.conv1, relu1=p.relu1, conv2=p.conv2, relu2=p.relu2, flat=nn.Flatten(), fc=p.fc)
    return nn.Sequential(layers).eval()


# ---- every spelling of ReLU ------------------------------------------------------------------------------------------


class Spelled(Plain):
    """`Plain` without ReLU modules: `how` is the ReLU."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        del self.relu1, self.relu2
        self.how = how

    def first(self, x: Tensor) -> Tensor:
        return self.how(self.conv1(x))

    def second(self, h: Tensor) -> Tensor:
        return self.how(self.conv2(h))


def _ignoring(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def how(h: Tensor) -> Tensor:
        act(h)
        return h

    return how


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional_relu": F.relu,
    "functional_relu_inplace": lambda h: F.relu(h, inplace=True),
    "torch_relu": torch.relu,
    "tensor_relu": lambda h: h.relu(),
    "aten_relu": torch.ops.aten.relu,
    "aten_relu_default": torch.ops.aten.relu.default,
    "functional_relu_ignored": _ignoring(F.relu_),
    "torch_relu_ignored": _ignoring(torch.relu_),
    "tensor_relu_ignored": _ignoring(lambda h: h.relu_()),
    "aten_relu_ignored": _ignoring(torch.ops.aten.relu_),
}
for _name, _how in SPELLINGS.items():

    def _spelled(how: Callable[[Tensor], Tensor] = _how) -> nn.Module:
        return Spelled(how)

    _spelled.__name__ = _name
    awkward(twin="plain")(_spelled)


@awkward(twin="plain")
def inplace_relu() -> nn.Module:
    net = Plain()
    net.relu1, net.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
    return net.eval()


@awkward(twin="plain")
def relu_called_twice() -> nn.Module:
    net = Plain()
    net.relu2 = net.relu1
    return net


class FakeReLU(Spelled):
    """Computes what `Plain` computes, with an op that rules for ReLU don't know."""


FAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(min=0),
    "clamp_min": lambda h: torch.clamp_min(h, 0),
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "threshold": lambda h: F.threshold(h, 0, 0),
    "relu6": F.relu6,
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "mask": lambda h: h * (h > 0),
}


@awkward(twin="plain")
def clamped_hidden() -> nn.Module:
    return FakeReLU(FAKES["clamp"])


# ---- modules used in odd ways ----------------------------------------------------------------------------------------


@awkward()
def conv_called_twice() -> nn.Module:
    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            return super().second(self.relu2(self.conv3(self.conv3(h))))

    net = Net()
    net.conv3 = nn.Conv2d(4, 4, 3, padding=1)
    return net


@awkward(twin="plain")
def aliased() -> nn.Module:
    net = Plain()
    net.all = nn.ModuleList([net.conv1, net.relu1, net.conv2])
    return net


@awkward()
def out_of_place_first_op() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 2 - 0.5)

    return Net()


@awkward(twin="out_of_place_first_op")
def inplace_first_op() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2).sub_(0.5))

    return Net()


@awkward(twin="plain")
def swallows_exceptions() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:
                return torch.zeros(len(x), CLASSES)

    return Net()


@awkward(twin="plain")
def own_hooks() -> nn.Module:
    net = Plain()
    net.conv1.register_forward_hook(lambda module, args, out: out.clone())
    net.conv2.register_forward_pre_hook(lambda module, args: (args[0] * 1,))
    net.fc.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    net.register_forward_hook(lambda module, args, kwargs, out: None, with_kwargs=True, always_call=True)

    def unasked(grad: Tensor) -> None:
        raise ZeroDivisionError("a gradient in the parameters was computed, though none was asked for")

    net.conv1.weight.register_hook(unasked)
    return net


# ---- outputs ---------------------------------------------------------------------------------------------------------


@awkward(twin="plain")
def dict_output() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.second(self.first(x))
            return {"hidden": h, "logits": self.fc(h.flatten(1))}

    return Net()


@awkward(twin="plain")
def tuple_output() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
            h = self.second(self.first(x))
            return h, self.fc(h.flatten(1)), None

    return Net()


@awkward(twin="plain")
def model_output() -> nn.Module:
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):  # type: ignore[misc]
        loss: Tensor | None = None
        logits: Tensor | None = None
        hidden: Tensor | None = None

    class Net(Plain):
        def forward(self, x: Tensor) -> Output:
            h = self.second(self.first(x))
            return Output(logits=self.fc(h.flatten(1)), hidden=h)

    return Net()


class Ending(Plain):
    """`Plain` with one more op at the end."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(super().forward(x))


@awkward(twin="plain")
def log_softmax() -> nn.Module:
    return Ending(lambda z: F.log_softmax(z, dim=1))


@awkward(twin="plain")
def log_softmax_method() -> nn.Module:
    return Ending(lambda z: z.log_softmax(-1))


@awkward(twin="plain")
def log_softmax_module() -> nn.Module:
    return Ending(nn.LogSoftmax(dim=1)).eval()


@awkward(twin="plain")
def softmax() -> nn.Module:
    return Ending(lambda z: torch.softmax(z, 1))


@awkward(twin="plain")
def softmax_module() -> nn.Module:
    return Ending(nn.Softmax(dim=1)).eval()


@awkward()
def clamped_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.ReLU()).eval()


# ---- modes, buffers, randomness --------------------------------------------------------------------------------------


@awkward(twin="plain")
def frozen() -> nn.Module:
    return Plain().requires_grad_(False)


class Normed(Plain):
    """`Plain` with a BatchNorm before the second ReLU."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, **kwargs)
        if self.norm.running_mean is not None:
            nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(self.norm.running_var, 0.1, 0.5)
        self.eval()

    def second(self, h: Tensor) -> Tensor:
        return self.relu2(self.norm(self.conv2(h)))


@awkward()
def batchnorm() -> nn.Module:
    return Normed()


@awkward(twin="batchnorm")
def batchnorm_in_train_mode() -> nn.Module:
    return Normed().train()


@awkward()
def batchnorm_without_statistics() -> nn.Module:
    return Normed(track_running_stats=False)


@awkward()
def batchnorm_on_batch_statistics() -> nn.Module:
    """Batch statistics in eval too; torch writes the running ones without counting a new version of the buffer."""

    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            return super().second(F.batch_norm(h, self.mean, self.variance, training=True))

    net = Net()
    net.register_buffer("mean", torch.zeros(4))
    net.register_buffer("variance", torch.ones(4))
    return net


@awkward(twin="batchnorm")
def overrides_train() -> nn.Module:
    class Net(Normed):
        def train(self, mode: bool = True) -> Any:
            for m in self.modules():
                m.training = not mode  # nobody who calls train() or eval() gets the flags that stand below
            return self

    net = Net()
    for i, m in enumerate(net.modules()):
        m.training = i % 2 == 0
    return net


@awkward(twin="batchnorm")
def refuses_train() -> nn.Module:
    class Net(Normed):
        ready = False

        def train(self, mode: bool = True) -> Any:
            if self.ready:
                raise NotImplementedError("Calling train() is not supported yet.")
            return super().train(mode)

    net = Net().train()
    net.ready = True
    return net


@awkward(twin="plain")
def dropout_in_train_mode() -> nn.Module:
    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            return self.drop(super().second(self.drop(h)))

    net = Net()
    net.drop = nn.Dropout(0.5)
    return net


@awkward()
def dropout_always_on() -> nn.Module:
    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            return super().second(F.dropout(h, 0.3))

    return Net()


@awkward()
def draws() -> nn.Module:
    class Net(Plain):
        def first(self, x: Tensor) -> Tensor:
            noise = float(torch.rand(())) + float(np.random.rand()) + random.random()
            return super().first(x + 0.2 * noise)

    return Net()


@awkward()
def draws_rows() -> nn.Module:
    """Noise of its own for each row, drawn by no function that is known as noise."""

    class Net(Plain):
        def first(self, x: Tensor) -> Tensor:
            h = super().first(x)
            return h + 0.3 * h.new_empty(h.shape).normal_()

    return Net()


@awkward(twin="plain")
def counts() -> nn.Module:
    class Net(Plain):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    net = Net()
    net.register_buffer("calls", torch.zeros((), dtype=torch.long))
    return net


@awkward(twin="plain")
def reassigns() -> nn.Module:
    class Net(Plain):
        def first(self, x: Tensor) -> Tensor:
            h = super().first(x)
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean((0, 2, 3))
            self.seen = h.detach()
            return h

    net = Net()
    net.register_buffer("mean", torch.zeros(4))
    net.register_buffer("seen", None, persistent=False)
    return net


@awkward(twin="plain")
def registers() -> nn.Module:
    """A buffer made in the first forward, as cached masks are."""

    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            if not hasattr(self, "mask"):
                self.register_buffer("mask", torch.ones_like(h[:1]), persistent=False)
            return super().second(h * self.mask.to(h))

    return Net()


# ---- dtypes and shapes -----------------------------------------------------------------------------------------------


@awkward(twin="plain")
def double() -> nn.Module:
    return Plain().double()


@awkward()
def bfloat16() -> nn.Module:
    return Plain().bfloat16()


@awkward()
def narrow() -> tuple[nn.Module, Pixels]:
    return Plain(height=10, width=7), Pixels((1, 10, 7))


@awkward()
def color() -> tuple[nn.Module, Pixels]:
    return Plain(channels=3), COLOR


@awkward(twin="color")
def channels_last() -> tuple[nn.Module, Pixels]:
    return Plain(channels=3).to(memory_format=torch.channels_last), COLOR


# ---- architectures ---------------------------------------------------------------------------------------------------


@awkward()
def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval()


@awkward()
def lstm() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h, _ = self.lstm(x[:, 0])
            return self.fc(h[:, -1])

    return Net().eval()


class Patches(nn.Module):
    """Four patches of 4x4 pixels as tokens (N, 4, 8), mixed by `mix`, averaged and classified."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.embed, self.mix, self.fc = nn.Conv2d(1, 8, 4, stride=4), mix, nn.Linear(8, CLASSES)
        self.position = nn.Parameter(0.1 * torch.randn(1, 4, 8))
        self.eval()

    def tokens(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).mT + self.position

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mix(self.tokens(x)).mean(1))


@awkward()
def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Patches(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


@awkward()
def attention() -> nn.Module:
    class Net(Patches):
        def forward(self, x: Tensor) -> Tensor:
            h = self.tokens(x)
            a, _ = self.mix(h, h, h, need_weights=False)
            return self.fc((h + a).relu().mean(1))

    return Net(nn.MultiheadAttention(8, 2, batch_first=True))


@awkward()
def residual() -> nn.Module:
    class Net(Plain):
        def second(self, h: Tensor) -> Tensor:
            skip = h
            h = self.norm(self.depthwise(F.relu6(h)))
            h.add_(skip)
            return super().second(F.relu_(h))

    net = Net()
    net.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    net.norm = nn.BatchNorm2d(4)
    return net.eval()


@awkward()
def weight_normed() -> nn.Module:
    net = Plain()
    nn.utils.parametrizations.weight_norm(net.conv1)
    return net


@awkward()
def spectral_normed() -> nn.Module:
    net = Plain()
    nn.utils.parametrizations.spectral_norm(net.conv2)
    return net.train()


@awkward()
def parameterless() -> nn.Module:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 8 * F.adaptive_avg_pool2d(x, 2).flatten(1)

    return Net().eval()


# ---- what torch makes of a net ---------------------------------------------------------------------------------------


class Checkpointed(Plain):
    """`Plain` whose second half is recomputed in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)
        return self.fc(h.flatten(1))


@awkward(twin="plain")
def checkpointed() -> nn.Module:
    return Checkpointed()


@awkward(twin="plain")
def checkpointed_reentrant() -> nn.Module:
    net = Checkpointed()
    net.reentrant = True
    return net


@awkward(twin="plain")
def scripted_part() -> nn.Module:
    class Net(Plain):
        def first(self, x: Tensor) -> Tensor:
            return self.block(x)

    net = Net()
    net.block = torch.jit.script(nn.Sequential(net.conv1, net.relu1).eval())
    return net


@awkward(twin="plain")
def scripted_and_optimized() -> nn.Module:
    net = NETS["scripted_part"]().net
    for _ in range(4):  # the profiling executor optimizes from the second run on
        net(torch.rand(3, 1, 8, 8, requires_grad=True)).sum().backward()
    net.zero_grad()
    return net


@cache
def _exported() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(Plain(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))


@awkward(twin="plain")
def exported() -> nn.Module:
    return torch.export.unflatten(_exported())


@awkward(twin="plain")
def exported_flat() -> nn.Module:
    net = _exported().module()
    for module in net.modules():  # it shares its parameters with the program, which later copies are made from
        for name, p in module._parameters.items():
            module._parameters[name] = nn.Parameter(p.detach().clone())
    return net


@awkward(twin="plain")
def compiled() -> nn.Module:
    net = torch.compile(Plain(), backend="eager")
    net(torch.rand(2, 1, 8, 8))  # hooks added from here on would not fire
    return net


@awkward(twin="plain")
def compiled_part() -> nn.Module:
    class Net(Plain):
        def first(self, x: Tensor) -> Tensor:
            return self.block(x)

    net = Net()
    net.block = torch.compile(nn.Sequential(net.conv1, net.relu1), backend="eager")
    del net.conv1, net.relu1
    net(torch.rand(2, 1, 8, 8))
    return net


def inductor() -> nn.Module:
    """Compiled by the default backend; not in `NETS`, for it takes a C++ compiler and a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.compile(NETS["plain"]().net)
        net(torch.rand(2, 1, 8, 8))
    return net
