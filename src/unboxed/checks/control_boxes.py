"""The control models of verdicts: made once for all methods that are judged on one model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from ..box import Box
from ..engine.randomized import LayerWithWeights, randomize_layers

MAX_CONTROL_WEIGHTS_BYTES = 2**28  # of the weights of all control models that are held


@dataclass(eq=False)
class _ControlBoxCache:
    """Control models of one box, by what was done to it."""

    box: Box
    boxes: dict[Hashable, Box] = field(default_factory=dict)
    scores: dict[Hashable, Tensor] = field(default_factory=dict)

    def fits_another_control_box(self) -> bool:
        n_bytes = sum(p.numel() * p.element_size() for p in self.box.model.parameters())
        return (len(self.boxes) + 1) * n_bytes <= MAX_CONTROL_WEIGHTS_BYTES


_SHARED_CONTROL_BOXES: ContextVar[_ControlBoxCache | None] = ContextVar("control boxes", default=None)


@contextmanager
def sharing_control_boxes(box: Box) -> Iterator[None]:
    """Within it, control models of this box are made once. Its weights must stay as they are."""
    token = _SHARED_CONTROL_BOXES.set(_ControlBoxCache(box))
    try:
        yield
    finally:
        _SHARED_CONTROL_BOXES.reset(token)


def cached_control_box(box: Box, key: Hashable, make: Callable[[], Box]) -> Box:
    """The control model that `make` makes, from those that are shared where there is one of that key."""
    shared = _SHARED_CONTROL_BOXES.get()
    if shared is None or shared.box is not box:
        return make()
    if key in shared.boxes:
        return shared.boxes[key]
    made = make()
    if shared.fits_another_control_box():
        shared.boxes[key] = made
    return made


def scores_shared_by_methods(box: Box, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    """Scores of the box that do not depend on the method, computed once within `sharing_control_boxes`."""
    shared = _SHARED_CONTROL_BOXES.get()
    if shared is None or shared.box is not box:
        return compute()
    if key not in shared.scores:
        shared.scores[key] = compute()
    return shared.scores[key]


def cached_randomized_box(box: Box, layers: Iterable[LayerWithWeights], seed: int) -> Box:
    """As `randomize_layers`, from the control models that are shared."""
    layers = tuple(layers)
    key = ("randomized", tuple(layer.paths for layer in layers), seed)
    return cached_control_box(box, key, lambda: randomize_layers(box, layers, seed))
