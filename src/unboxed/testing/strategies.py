"""Hypothesis strategies: random models, their inputs, and objectives, for property tests of methods.

Needs `pip install "unboxed[testing]"`. A test of a method of your own:

    >>> from hypothesis import given
    >>> from unboxed.attribution import gradient
    >>> from unboxed.testing.strategies import cases, pixels
    >>> @given(cases(pixels()))
    ... def test_gradient(case):
    ...     assert gradient(case.box, case.x).shape == case.x.shape
    >>> test_gradient()

Without `pixels()`, inputs are also tables, and dicts or tuples of several: x, and what a method returns, then is a dict
or tuple, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import objectives as scores
from ..box import Box
from ..errors import MissingPackageError
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..objectives import Objective

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingPackageError('the strategies need Hypothesis: pip install "unboxed[testing]"') from error

MAX_SIDE_PIXELS, MAX_CHANNELS, MAX_COLUMNS, MAX_CLASSES, MAX_ROWS = 9, 3, 5, 4, 4
SEED_STRATEGY = st.integers(0, 2**31 - 1)
RELU_FACTORIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "module": nn.ReLU,
    "in-place module": lambda: nn.ReLU(inplace=True),
    "F.relu": lambda: F.relu,
    "torch.relu": lambda: torch.relu,
    "Tensor.relu": lambda: Tensor.relu,
    "Tensor.relu_": lambda: Tensor.relu_,
}
"""Every spelling of the same ReLU."""


@dataclass(frozen=True)
class RandomCase:
    """An opened model and a batch that it takes: x (N, ...), or a dict or tuple of such tensors."""

    box: Box
    x: Any
    n_rows: int


class RandomModel(nn.Module):
    """Inputs (N, ...), one or several, to logits (N, K): one part per input, then a linear layer.

    `style` of the part of an image: "mlp", "conv", "residual" or "shared" (one module that is called twice).
    `output_wrapper` is how the logits are returned: "tensor", "dict" or "tuple".
    """

    def __init__(self, inputs: Inputs, classes: int, style: str, relu: str, norm: bool, output_wrapper: str) -> None:
        super().__init__()
        parts = inputs.parts if isinstance(inputs, MultiInput) else (inputs,)
        self.input_names = list(parts) if isinstance(parts, Mapping) else None
        kinds: list[Inputs] = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
        self.parts = nn.ModuleList(_make_input_part(kind, style, relu, norm) for kind in kinds)
        self.fc = nn.Linear(N_PART_FEATURES * len(kinds), classes)
        self.output_wrapper = output_wrapper

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        xs = [kwargs[name] for name in self.input_names] if self.input_names and kwargs else list(args)
        z = self.fc(torch.cat([part(x) for part, x in zip(self.parts, xs, strict=True)], 1))
        return (
            {"logits": z} if self.output_wrapper == "dict" else (z, z.detach()) if self.output_wrapper == "tuple" else z
        )


OUTPUT_STRUCTURES = ("tensor", "dict", "tuple")
N_PART_FEATURES = 6  # features that a part of the model gives


class RandomDensePart(nn.Module):
    """(N, ...) -> (N, N_PART_FEATURES)."""

    def __init__(self, size: int, relu: str, norm: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, 8), nn.Linear(8, N_PART_FEATURES)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.relu = RELU_FACTORIES[relu]()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.relu(self.norm(self.first(x.flatten(1))))))


class RandomConvPart(nn.Module):
    """(N, C, H, W) -> (N, N_PART_FEATURES) by two convolutions, with a residual sum or one of them called twice."""

    def __init__(self, channels: int, style: str, relu: str, norm: bool) -> None:
        super().__init__()
        self.style = style
        self.first = nn.Conv2d(channels, N_PART_FEATURES, 3, padding=1, bias=not norm)
        self.second = nn.Conv2d(N_PART_FEATURES, N_PART_FEATURES, 3, padding=1)
        self.norm = nn.BatchNorm2d(N_PART_FEATURES) if norm else nn.Identity()
        self.relu = RELU_FACTORIES[relu]()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        if self.style == "residual":
            h = h + self.relu(self.second(h))
        elif self.style == "shared":
            h = self.second(self.relu(self.second(h)))
        else:
            h = self.relu(self.second(h))
        return h.mean((2, 3))


def _make_input_part(inputs: Inputs, style: str, relu: str, norm: bool) -> nn.Module:
    if isinstance(inputs, Pixels) and style != "mlp":
        return RandomConvPart(inputs.shape[0], style, relu, norm)
    size = 1
    for side in inputs.shape:
        size *= side
    return RandomDensePart(size, relu, norm)


@st.composite
def pixels(draw: st.DrawFn) -> Pixels:
    """Images of 1 to 3 channels and 4 to 9 pixels per side, normalized by one number or per channel."""
    channels = draw(st.integers(1, MAX_CHANNELS))
    shape = channels, draw(st.integers(4, MAX_SIDE_PIXELS)), draw(st.integers(4, MAX_SIDE_PIXELS))
    if draw(st.booleans()):
        return Pixels(shape, mean=draw(st.sampled_from((0.0, 0.5))), std=draw(st.sampled_from((1.0, 0.25))))
    values = st.tuples(st.sampled_from((0.0, 0.4, 0.5)), st.sampled_from((1.0, 0.2, 0.5)))
    means, stds = zip(*(draw(values) for _ in range(channels)), strict=True)
    return Pixels(shape, mean=means, std=stds)


@st.composite
def features(draw: st.DrawFn) -> Features:
    """Tables of 1 to 5 columns, with or without bounds."""
    n = draw(st.integers(1, MAX_COLUMNS))
    names, std = tuple(f"column{i}" for i in range(n)), tuple(draw(st.sampled_from((1.0, 2.0))) for _ in range(n))
    low, high = ((-2.0,) * n, (2.0,) * n) if draw(st.booleans()) else ((), ())
    return Features(names, low=low, high=high, mean=(0.5,) * n, std=std)


def inputs() -> st.SearchStrategy[Inputs]:
    """Images, tables, and two of them side by side, as a tuple or by name."""
    single: st.SearchStrategy[Inputs] = st.one_of(pixels(), features())
    pair = st.tuples(single, single)
    named_pair = pair.map(lambda p: MultiInput({"a": p[0], "b": p[1]}))
    return st.one_of(single, single, pair.map(MultiInput), named_pair)


@st.composite
def models(draw: st.DrawFn, kind: Inputs) -> nn.Module:
    """A model in eval mode for this kind of inputs, with random weights and batch means; the global RNG is not used."""
    classes = draw(st.integers(2, MAX_CLASSES))
    style = draw(st.sampled_from(("mlp", "conv", "residual", "shared")))
    spelling = (
        draw(st.sampled_from(sorted(RELU_FACTORIES))),
        draw(st.booleans()),
        draw(st.sampled_from(OUTPUT_STRUCTURES)),
    )
    seed = draw(SEED_STRATEGY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomModel(kind, classes, style, *spelling)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    return model.eval()


def random_batch(kind: Inputs, n_rows: int, seed: int) -> Any:
    """`rows` random inputs of a kind: a tensor (N, ...), or a dict or tuple of them."""
    if isinstance(kind, MultiInput):
        if isinstance(kind.parts, tuple):
            return tuple(random_batch(part, n_rows, seed + i) for i, part in enumerate(kind.parts))
        return {name: random_batch(part, n_rows, seed + i) for i, (name, part) in enumerate(kind.parts.items())}
    x = torch.rand(n_rows, *kind.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if isinstance(kind, Pixels) else 4 * x - 2


def open_box(model: nn.Module, kind: Inputs) -> Box:
    """A box of a random model, with `output=0` where it returns a tuple."""
    return Box(model, kind, outputs="logits", output=0 if getattr(model, "output_wrapper", "") == "tuple" else None)


@st.composite
def cases(draw: st.DrawFn, kinds: st.SearchStrategy[Inputs] | None = None) -> RandomCase:
    """An opened model in double precision, and 1 to 4 inputs; of `kinds` of inputs, by default all."""
    kind = draw(inputs() if kinds is None else kinds)
    box = open_box(draw(models(kind)).double(), kind)
    rows = draw(st.integers(1, MAX_ROWS))
    return RandomCase(box, random_batch(kind, rows, draw(SEED_STRATEGY)), rows)


HIDDEN_LAYERS_OF_RANDOM_MODEL = (
    "fc",
    "parts.0.first",
)  # layers of every random model that run once: the last, and one near the input


def _random_tensors(shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    """Random numbers of this shape, in double precision."""
    return SEED_STRATEGY.map(
        lambda s: torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
    )


def _index_or_index_per_row(size: int, n_rows: int) -> st.SearchStrategy[Any]:
    """A number below `size`, or one per row."""
    single = st.integers(0, size - 1)
    return st.one_of(single, st.lists(single, min_size=n_rows, max_size=n_rows).map(torch.tensor))


@st.composite
def layer_objectives(draw: st.DrawFn, case: RandomCase) -> Objective:
    """A score of a hidden layer: a channel, neuron, position, direction or all of it, or its similarity to another."""
    layer = draw(st.sampled_from(HIDDEN_LAYERS_OF_RANDOM_MODEL))
    channels, *sides = shape = tuple(case.box.layers[layer].shape)
    k, all_positions = draw(_index_or_index_per_row(channels, case.n_rows)), draw(st.booleans())
    position = () if all_positions else tuple(draw(_index_or_index_per_row(s, case.n_rows)) for s in sides)
    v = draw(_random_tensors(draw(st.sampled_from(((channels,), shape)))))
    h = draw(_random_tensors((draw(st.sampled_from((1, case.n_rows))), *shape)))
    candidates = [
        scores.channel(layer, k),
        scores.neuron(layer, k, *position),
        scores.spatial(layer, *position),
        scores.energy(layer),
        scores.direction(layer, v),
        scores.match(layer, h),
        scores.match(layer, h, relative=True),
        scores.dot(layer, h),
        scores.cosine(layer, h),
    ]
    return draw(st.sampled_from(candidates))


def leaf_objectives(case: RandomCase) -> st.SearchStrategy[Objective]:
    """A score of the logits or of a hidden layer, the same for all rows or one per row."""
    labels = _index_or_index_per_row(len(case.box.classes), case.n_rows)
    output_objectives: tuple[Callable[[Any], Objective], ...] = (
        scores.logit,
        scores.logprob,
        scores.loss,
        scores.margin,
    )
    logit_objectives = st.tuples(st.sampled_from(output_objectives), labels).map(lambda p: p[0](p[1]))
    return st.one_of(logit_objectives, layer_objectives(case))


def objectives(case: RandomCase) -> st.SearchStrategy[Objective]:
    """Any combination of leaves with + - * / and numbers, or numbers per row (N,). No divisor is close to 0."""
    numbers, divisors = st.sampled_from((-2.0, -0.5, 0.0, 0.25, 3.0)), st.sampled_from((-2.0, -0.5, 0.25, 3.0))
    factors = st.one_of(numbers, _number_per_row(numbers, case.n_rows))
    divisors_or_rows = st.one_of(divisors, _number_per_row(divisors, case.n_rows))

    def combine(smaller: st.SearchStrategy[Objective]) -> st.SearchStrategy[Objective]:
        pairs, scaled = st.tuples(smaller, smaller), st.tuples(smaller, factors)
        return st.one_of(
            pairs.map(lambda p: p[0] + p[1]),
            pairs.map(lambda p: p[0] - p[1]),
            pairs.map(lambda p: p[0] * p[1]),
            pairs.map(lambda p: p[0] / (1 + p[1] * p[1])),
            st.tuples(smaller, divisors_or_rows).map(lambda p: p[0] / p[1]),
            scaled.map(lambda p: p[0] * p[1]),
            scaled.map(lambda p: p[0] + p[1]),
            scaled.map(lambda p: p[1] - p[0]),
            scaled.map(lambda p: p[1] / (1 + p[0] * p[0])),
            smaller.map(lambda a: -a),
        )

    return st.recursive(leaf_objectives(case), combine, max_leaves=4)


def _number_per_row(numbers: st.SearchStrategy[float], n_rows: int) -> st.SearchStrategy[Tensor]:
    """A number for each row, (N,)."""
    return st.lists(numbers, min_size=n_rows, max_size=n_rows).map(lambda v: torch.tensor(v, dtype=torch.float64))
