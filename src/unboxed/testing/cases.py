"""A box with a batch for it, a method's example called on it, and the tensors in its result."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import Card
from ..engine.results import result_tensors as result_tensors
from ..errors import UnboxedWarning
from . import models


@dataclass(frozen=True, eq=False)
class MethodCase:
    """A box with a batch for it: rows 0 and 1 are labeled with their predicted class, row 2 with another."""

    box: Box
    x: Tensor
    y: Tensor


def open_box(awkward_model: models.AwkwardModel, **overrides: Any) -> Box:
    """A model of the zoo, opened."""
    return Box(awkward_model.model, awkward_model.inputs, **{**awkward_model.box_settings, **overrides})


def make_case(model: str, dtype: torch.dtype | None = None, n: int = 3) -> MethodCase:
    """A fresh model of the zoo, moved to `dtype` if given, opened, with n images and classes."""
    entry = models.get_model(model, dtype)
    box = open_box(entry)
    return MethodCase(
        box, entry.images(n).to(box.dtype), case_labels(model, n).clone()
    )  # kept: a test may write over its own


@cache
def case_labels(model: str, n_images: int) -> Tensor:
    """Labels for a model's images, by a separate box, so that making a case leaves no trace in its box."""
    entry = models.get_model(model)
    box = open_box(entry)
    y = box.predict(entry.images(n_images).to(box.dtype))
    y[2:] = (y[2:] + 1) % models.N_CLASSES
    return y


def has_parameters(card: Card, *names: str) -> bool:
    """Whether the method has all of these parameters."""
    return set(names) <= set(inspect.signature(card.method).parameters)


def method_name(card: Card) -> str:
    """The method's name; the card's for methods without one, such as a `functools.partial`."""
    return getattr(card.method, "__name__", card.name)


def call_example(card: Card, method_case: MethodCase, **settings: Any) -> Any:
    """Call the card's example with some settings changed; those that the method does not have are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        return call_example_with_warnings(card, method_case, **settings)


def call_example_with_warnings(card: Card, method_case: MethodCase, **settings: Any) -> Any:
    """As `call_example`, with its warnings."""
    overrides = {k: v for k, v in settings.items() if has_parameters(card, k)}

    def method(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(card.method).bind_partial(*args, **kwargs).arguments
        return card.method(**{**bound, **overrides})

    return card.example(method, method_case.box, method_case.x, method_case.y)


def result_difference_texts(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """The differences between two results in words; empty where they agree, relative to the largest value."""
    if a.keys() != b.keys():
        return [f"other parts: {', '.join(map(result_part_code, sorted(a.keys() ^ b.keys())))}"]
    return [f"{result_part_code(at)} {message}" for at in a if (message := _difference_text(a[at], b[at], tolerance))]


def result_part_code(path: str) -> str:
    """A part of a result as it is written in code: "result.images", "result[0]"."""
    return f"result{path}"


def _difference_text(a: Tensor, b: Tensor, tolerance: float) -> str:
    if a.shape != b.shape:
        return f"has shape {tuple(a.shape)}, not {tuple(b.shape)}"
    if not a.is_floating_point():
        return "" if torch.equal(a, b) else "has other values"
    if not torch.equal(a.isnan(), b.isnan()):
        return "is NaN at other positions"
    if tolerance == 0 and torch.equal(a.nan_to_num(), b.nan_to_num()):
        return ""
    max_difference = (a.double() - b.double()).abs().nan_to_num().max().item() if a.numel() else 0.0
    allowed = tolerance * max(1.0, b.double().abs().nan_to_num().max().item() if b.numel() else 0.0)
    return "" if max_difference <= allowed else f"differs by up to {max_difference:.3g}"
