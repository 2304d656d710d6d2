"""Contracts between runs on different inputs and targets: each input has its own row, and each target its own map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cards import Card
from ..errors import UnboxedError
from . import models
from .cases import Case, call, case, close, name_of, named, takes, tensors
from .contracts import IMAGES, Broken

Parts = dict[str, Tensor]


def check_rows(card: Card, model: str, c: Case | None = None) -> None:
    """Contract 2 in double precision: each input alone gets the row that it gets among others.

    What has a row per input has 1 where there were 3. A method with a seed draws for each row by its index, so that
    only the first row draws alone as among others. Nothing is looked at where the card is exempt from "rows" or
    "splitting" (with a seed, from "draws of rows"), where the method refuses a single input, or where the model itself
    answers otherwise for an input alone.
    """
    if card.exempt.keys() & {"rows", "splitting", *(["draws of rows"] if takes(card, "seed") else [])}:
        return
    broken = Broken(card)
    c = c or case(model, torch.float64)
    if not _same(torch.cat([c.box(row[None]) for row in c.x]), c.box(c.x)):
        return
    together = tensors(call(card, c))
    try:
        alone = [_on(card, c, [i]) for i in range(1 if takes(card, "seed") else len(c.x))]
    except UnboxedError:
        return
    for i, parts in enumerate(alone):
        broken.add("rows", [f"input {i} alone, {message}" for message in _differing(parts, together, i)])
    broken.add("rows", _ignored(card, c, together, alone[0]))
    broken.tell(f"{name_of(card)} on {model}")


def _on(card: Card, c: Case, index: Sequence[int]) -> Parts:
    """The parts of the result for some of the inputs, with their classes."""
    return tensors(call(card, Case(c.box, c.x[list(index)], c.y[list(index)])))


def _differing(alone: Parts, together: Parts, i: int) -> list[str]:
    """How the result for one input differs from its row among all."""
    pairs = {at: _row(together[at], h, i) for at, h in alone.items() if at in together}
    rows = {at: pair for at, pair in pairs.items() if pair is not None}
    return close({at: mine for at, (mine, _) in rows.items()}, {at: row for at, (_, row) in rows.items()}, 1e-9)


def _row(together: Tensor, alone: Tensor, i: int) -> tuple[Tensor, Tensor] | None:
    """What is to be compared for input i; None where no axis, or more than one, has a row per input."""
    sizes = list(zip(together.shape, alone.shape, strict=False))
    axes = [axis for axis, pair in enumerate(sizes) if pair == (3, 1)]
    if together.ndim != alone.ndim or len(axes) != 1:
        return None
    row = together.narrow(axes[0], i, 1)
    if axes[0] == 1 and len(row) != len(alone):  # frames (T, N, ...): an input alone may be done sooner
        return alone[-1], row[-1]
    return alone, row


def _ignored(card: Card, c: Case, together: Parts, first: Parts) -> list[str]:
    """Parts that are the rows of inputs at some positions, whatever these inputs are, and leave out the others."""
    short = [at for at, h in together.items() if at in first and _is_short(h, first[at])]
    if not short or together.keys() != first.keys():
        return []
    alone, moved = [first, _on(card, c, [1]), _on(card, c, [2])], _on(card, c, [2, 0, 1])

    def stays(at: str, j: int) -> bool:
        """Whether row j belongs to the input at one position, before and after the inputs changed theirs."""
        now, then = together[at][j], moved[at][j]
        kept = [_same(alone[p][at][0], now) and _same(alone[p - 1][at][0], then) for p in range(3)]
        return any(kept) and not _same(now, then)

    wrong = [at for at in short if all(stays(at, j) for j in range(len(together[at])))]
    return [f"{named(at)} has the rows of {len(together[at])} of 3 inputs" for at in wrong]


def _is_short(together: Tensor, alone: Tensor) -> bool:
    shapes = together.shape[1:] == alone.shape[1:]
    return together.ndim > 0 and alone.ndim > 0 and shapes and len(alone) == 1 and 0 < len(together) < 3


def _same(a: Tensor, b: Tensor) -> bool:
    return not close({"": a}, {"": b}, 1e-9)


def check_target(card: Card, model: str = "plain") -> None:
    """Maps of different classes differ on a model where all logits depend on the input by weights of their own.

    Looked at are real numbers of at least two axes that are no images: the `target` of an attack is what it tries to
    reach, and it may fail for all. A method is left alone that takes no class as `target`.
    """
    if not takes(card, "target"):
        return
    broken = Broken(card)
    c = case(model, torch.float64)
    try:
        maps = [_maps(tensors(call(card, c, target=k))) for k in range(models.CLASSES)]
    except (UnboxedError, TypeError, ValueError, LookupError, AttributeError):  # its target is no class
        return
    if maps[0] and all(not close(other, maps[0], 0) for other in maps[1:]):
        broken.add("target", ["the result is the same for every class"])
    broken.tell(f"{name_of(card)} on {model}")


def _maps(found: Parts) -> Parts:
    real = {at: h for at, h in found.items() if h.is_floating_point() and h.ndim > 1}
    return {at: h for at, h in real.items() if at.rpartition(".")[2] not in IMAGES}
