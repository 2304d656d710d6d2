"""What the law tests share: every card on every awkward net, and the numbers in whatever a method gives back."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import awkward
import unboxed as ub
from unboxed.cards import Card
from unboxed.errors import LayerError, OutputError, RuleError, UnboxedError, UnboxedWarning

CARDS: dict[str, Card] = {c.method.__name__: c for c in ub.cards()}
NETS = tuple(awkward.NETS)
RULED = ("guided_backprop", "deconvnet")
GRADIENTS = ("gradient", *RULED, "morph", "class_image", "pgd", "inversion", "inversions", "silence")

TORCH_WARNS = "ignore:None of the inputs have requires_grad=True"
"""What a reentrant checkpoint says of itself whenever it runs without gradients, boxed or not."""

REFUSED: dict[tuple[str, str], type[UnboxedError]] = {}
"""Which method refuses which net, by which error. Any other refusal is a defect, and so is a result in its place."""


def refuse(methods: tuple[str, ...], nets: tuple[str, ...], error: type[UnboxedError]) -> None:
    REFUSED.update({(m, n): error for m in methods for n in nets if (m, n) not in REFUSED})


refuse(RULED, ("lstm", "parameterless"), RuleError)  # no ReLU at all
refuse(RULED, ("checkpointed_reentrant",), RuleError)
refuse(GRADIENTS, ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
PATHS = ("gradient_x_input", "smoothgrad", "integrated_gradients", "expected_gradients")
refuse(PATHS, ("checkpointed_reentrant",), UnboxedError)  # likewise
refuse(("feature", "channels", "caricature"), ("checkpointed_reentrant",), UnboxedError)
refuse(("maps", "filters"), ("parameterless", "exported_flat"), LayerError)  # no module runs
refuse(("nearest_neighbors",), ("parameterless", "exported_flat"), LayerError)  # no layer to compare in
refuse(("rewrite", "ablation", "patching", "similarity"), ("parameterless", "exported_flat"), LayerError)  # likewise
refuse(("deep_visualization", "deepdream", "texture", "style_transfer"), ("checkpointed_reentrant",), OutputError)
refuse(("filters",), ("lstm",), LayerError)  # no weights on pixels
UNITS = ("statistics", "top_examples", "receptive_field", "projections")
refuse(UNITS, ("parameterless", "exported_flat"), LayerError)  # no module runs
refuse(("projections",), ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
CAMS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "guided_grad_cam")
refuse(("guided_grad_cam",), ("lstm", "parameterless"), RuleError)  # as guided backprop
refuse(CAMS, ("mlp", "clamped_logits", "lstm", "parameterless", "exported_flat"), LayerError)  # no positions
refuse(CAMS, ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
SCRIPTED = ("scripted_part", "scripted_and_optimized")
refuse(("deep_lift",), ("lstm", "checkpointed", "checkpointed_reentrant", *SCRIPTED), RuleError)  # ops out of sight
refuse(("rollout",), tuple(n for n in NETS if n not in ("transformer", "attention")), LayerError)  # no attention

refuse(("lrp",), ("scripted_part", "scripted_and_optimized", "checkpointed_reentrant"), RuleError)  # hidden ops
refuse(("fab", "lbfgs", "ddn", "fmn"), ("checkpointed_reentrant",), OutputError)  # torch refuses autograd.grad there
refuse(("patch", "universal", "fooling"), ("checkpointed_reentrant",), OutputError)  # likewise
refuse(("fgsm", "bim", "mi_fgsm"), ("checkpointed_reentrant",), UnboxedError)  # torch refuses autograd.grad there
refuse(("deepfool", "carlini_wagner"), ("checkpointed_reentrant",), OutputError)  # likewise
refuse(("apgd", "auto_attack"), ("checkpointed_reentrant",), UnboxedError)  # likewise


@dataclass(frozen=True)
class Case:
    """A box with a batch for it: rows 0 and 1 bear the class that the net gives them, row 2 another."""

    box: ub.Box
    x: Tensor
    y: Tensor


def box_of(entry: awkward.Awkward, **more: Any) -> ub.Box:
    return ub.Box(entry.net, entry.inputs, **{**entry.box, **more})


def case(net: str, dtype: torch.dtype | None = None, n: int = 3) -> Case:
    """A fresh case; with `dtype` the net is moved to it first."""
    entry = awkward.get(net, dtype)
    box = box_of(entry)
    x = entry.images(n).to(box.dtype)
    return Case(box, x, labels(net, n).clone())  # those are kept: a test may write over its own


@cache
def labels(net: str, n: int) -> Tensor:
    """From a box of its own, so that making a case leaves no trace in the case's box."""
    entry = awkward.get(net)
    box = box_of(entry)
    y = box.predict(entry.images(n).to(box.dtype))
    y[2:] = (y[2:] + 1) % awkward.CLASSES
    return y


def takes(card: Card, *names: str) -> bool:
    return set(names) <= set(inspect.signature(card.method).parameters)


def call(card: Card, c: Case, **settings: Any) -> Any:
    """The card's example with some settings changed; those that the method doesn't take are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)  # what a reader must know is tested elsewhere
        return call_aloud(card, c, **settings)


def call_aloud(card: Card, c: Case, **settings: Any) -> Any:
    """The same, with its warnings."""
    mine = {k: v for k, v in settings.items() if takes(card, k)}

    def method(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(card.method).bind_partial(*args, **kwargs).arguments
        return card.method(**{**given, **mine})

    return card.example(method, c.box, c.x, c.y)


def pairs(law: str, *, refused: bool = False) -> pytest.MarkDecorator:
    """Every card on every net that it takes; a card exempt from the law is skipped with its reason."""
    found = [
        pytest.param(name, net, id=f"{name}-{net}", marks=_exempt(name, law))
        for name in CARDS for net in NETS if refused == ((name, net) in REFUSED)
    ]  # fmt: skip
    return pytest.mark.parametrize(("name", "net"), found)


def methods(law: str, chosen: Callable[[Card], bool] = lambda card: True) -> pytest.MarkDecorator:
    """Every card that takes a plain net, or the chosen ones of them."""
    chosen_ones = [n for n, c in CARDS.items() if chosen(c) and (n, "plain") not in REFUSED]
    return pytest.mark.parametrize("name", [pytest.param(n, marks=_exempt(n, law)) for n in chosen_ones])


def _exempt(name: str, law: str) -> list[pytest.MarkDecorator]:
    why = CARDS[name].exempt.get(law)
    return [] if why is None else [pytest.mark.skip(reason=f"{name} is exempt from {law}: {why}")]


def tensors(result: Any, at: str = "") -> dict[str, Tensor]:
    """Every tensor and number of a result by where it stands in it; parts that bear a `path` go by that."""
    return dict(_walk(result, at))


def _walk(value: Any, at: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield at, value
    elif isinstance(value, (bool, int, float)):
        yield at, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name), f"{at}.{field.name}")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, f"{at}[{key}]")
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from _walk(part, f"{at}[{getattr(part, 'path', i)}]")


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """What differs between two results, in words: empty where they agree (relative to the largest value)."""
    if a.keys() != b.keys():
        return [f"parts differ: {sorted(a.keys() ^ b.keys())}"]
    return [f"{at}: {said}" for at in a if (said := _differs(a[at], b[at], tolerance))]


def _differs(a: Tensor, b: Tensor, tolerance: float) -> str:
    if a.shape != b.shape:
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if not a.is_floating_point():
        return "" if torch.equal(a, b) else "values differ"
    if not torch.equal(a.isnan(), b.isnan()):
        return "NaN in one of them"
    most = (a.double() - b.double()).abs().nan_to_num().max().item() if a.numel() else 0.0
    bound = tolerance * max(1.0, b.double().abs().nan_to_num().max().item() if b.numel() else 0.0)
    return "" if most <= bound else f"off by {most:.3g}"
