"""The last maps that all of a score passes through, found in the autograd graph of one forward.

A layer's place in the code says little of what it is to the score: the last convolution may make a gate, a branch of
a residual sum, or another head. The graph tells: a map's node that lies on every path from the score down to the
model's maps is one that the score sees all else through, and of those the nearest to the score is the last.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ...box import Box
from ...errors import LayerError
from ...model.hooks import following
from ...model.layers import Layer
from ...model.op_tables import OPAQUE
from ...model.relu_rules import graph
from ..read.position_grids import Grid, grids

HELD = 8  # maps whose values are kept while the model runs; an earlier one takes a second run
DEEP = 8  # nodes of a composite op that are looked through for what it was given

ASIDE = ("pool", "dropout", "identity", "clone")  # the same values, or ones that no one means by the last layer
MOVING = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
ENDING = ("mean", "sum", "amax", "amin", "max", "min", "norm", "logsumexp", "std", "var", "view", "reshape", "einsum",
          "unflatten", "matmul", "bmm", "fold", "pixel_shuffle", "__get__", "__matmul__")  # fmt: skip
"""Ops after which axes are no longer what they were."""
FIRST, LAST = ("conv", "batch_norm", "group_norm", "instance_norm"), ("linear",)
SHAPING = ("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Bmm", "Mm", "Mean", "Sum",
           "Expand", "Amax", "Max", "Convolution")  # fmt: skip
"""Autograd nodes, by the start of their names, below which axes are not what they are above."""

FITTING = "name a functional op by its address, such as ':relu#0'"


@dataclass(frozen=True, eq=False)
class Met:
    """A map that was met: `wanted` where it may be the last one. `value` is its own as long as no op wrote over it."""

    address: str
    edge: GradientEdge
    grid: Grid
    channels: int
    wanted: bool
    value: Tensor
    version: int


class Trace:
    """Which maps and tokens a forward gives, and where they stand in its graph."""

    def __init__(self, box: Box, rows: int) -> None:
        self.box, self.rows = box, rows
        self.known = {row.path: (row, grid) for row, grid in grids(box)}
        self.output = (box.n_outputs, *box.output_map_shape)
        self.met: dict[Any, Met | None] = {}
        self.untold: dict[Any, tuple[int, ...]] = {}  # what may be maps, whose axes can't be told
        self.leaves: dict[str, Any] = {}  # the nodes of leaves with positions, as they last ran
        self.held: deque[Met] = deque(maxlen=HELD)
        self.calls: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with following(self.box.modules, lambda path, op: True, self._op, self._module):
            yield

    def _op(self, path: str, op: str | None, h: Tensor) -> None:
        place = f"{path}:{op}"
        self.calls[place] += 1
        if h.requires_grad and h.grad_fn is not None and self.known:
            self._record(f"{place}#{self.calls[place] - 1}", op or "", h, None)

    def _module(self, path: str, h: Tensor) -> None:
        row = self.box.layers.by_path.get(path)
        k = self.calls[path]
        self.calls[path] += 1
        if row is None or not h.requires_grad or h.grad_fn is None:
            return
        grid = self.known[path][1] if path in self.known else None
        if grid is not None and not _aside(row.type) and row.shape != self.output:
            self.leaves.pop(path, None)
            self.leaves[path] = get_gradient_edge(h).node
        self._record(row.addresses[min(k, row.calls - 1)], row.type if row.leaf else "", h, grid)

    def _record(self, address: str, name: str, h: Tensor, told: Grid | None) -> None:
        edge = get_gradient_edge(h)
        if self.met.get(edge.node) is not None or (edge.node in self.met and told is None):
            return
        self.met[edge.node] = None
        if h.ndim != 4 or len(h) != self.rows:
            return
        if (grid := self._grid(name, edge.node, h, told)) is None:
            self.untold[edge.node] = tuple(h.shape[1:])
            return
        channels = h.shape[3] if grid.last else h.shape[1]
        shape = tuple(h.shape[1:])
        wanted = self._apt(name, edge.node, grid, told) and shape != self.output
        found = Met(address, edge, grid, channels, wanted, h.detach() if wanted else h.new_empty(0), h._version)
        self.met[edge.node] = found if not wanted else self._hold(found)

    def _hold(self, found: Met) -> Met:
        """With its value, if it is among the latest; they are let go of in turn."""
        if len(self.held) == HELD:
            old = self.held[0]
            self.met[old.edge.node] = Met(old.address, old.edge, old.grid, old.channels, True, old.value[:0], -1)
        self.held.append(found)
        return found

    def _grid(self, name: str, node: Any, h: Tensor, told: Grid | None) -> Grid | None:
        """Whether channels come first or last: as for what went in, unless the op says so itself."""
        given = next(self._given(node), None)
        if told is not None and (given is None or name.lower() in MOVING):
            return told
        if name.startswith(FIRST):
            last = False
        elif name.startswith(LAST):
            last = True
        elif given is None or name in ENDING:
            return None
        else:
            last = given.grid.last is not (name in MOVING)
        return Grid((h.shape[1], h.shape[2]) if last else (h.shape[2], h.shape[3]), last=last)

    def _apt(self, name: str, node: Any, grid: Grid, told: Grid | None) -> bool:
        """Whether these may be the last maps: of more than one position, and not pooled, moved or resized ones."""
        if math.prod(grid.size) < 2 or _aside(name) or name in MOVING:
            return False
        return (
            told is not None
            or name.startswith(FIRST + LAST)
            or any(m.grid.size == grid.size for m in self._given(node))
        )

    def _given(self, node: Any) -> Iterator[Met]:
        """The maps that went into an op, through the nodes that it is made of."""
        todo, seen = [(below, 0) for below, _ in node.next_functions], set()
        while todo:
            node, depth = todo.pop(0)
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.met:
                found = self.met[node]
                if found is not None:
                    yield found
            elif depth < DEEP and not node.name().startswith(SHAPING):
                todo += [(below, depth + 1) for below, _ in node.next_functions]

    # -- what was found ------------------------------------------------------------------------------------------------

    def tokens(self, score: Tensor, own: set[Any]) -> tuple[Sequence[Layer], Grid] | None:
        """The layers of the last tokens below a score, the last first, if no map comes after them."""
        below = set(graph(score)) - own
        rows = [self.known[path] for path, node in self.leaves.items() if node in below]
        if not rows or not rows[-1][1].tokens:
            return None
        row, grid = rows[-1]
        return [r for r, g in reversed(rows) if g == grid and r.shape == row.shape], grid

    def last(self, score: Tensor, own: set[Any]) -> Met:
        """The last maps that all of a score passes through, other than those it is made of. Raises LayerError."""
        maps = {node for node, met in self.met.items() if met is not None and met.wanted}
        passed = list(_passed(score, maps - own)) or list(_passed(score, maps))  # of a first layer: that itself
        if not passed:
            raise LayerError(
                "no layer below this score has positions on the image: its maps have rows and columns, or are tokens "
                f"of a patch grid. Methods on the input need none; {FITTING}"
            )
        through = [i for i, (node, all_of_it) in enumerate(passed) if all_of_it and node in maps]
        through = [i for i in through if passed[i][0] not in own] or through
        several = [i for i in through if self._at(passed[i][0]).channels > 1]  # a single one is most often a gate
        if not through:
            raise LayerError(
                f"the score takes several maps side by side, and none that all of it passes through: name one with "
                f"layer=, such as {' or '.join(repr(a) for a in self._names(passed, maps))}"
            )
        i = (several or through)[0]
        self._in_sight([node for node, _ in passed[:i]], self._at(passed[i][0]))
        return self._at(passed[i][0])

    def _at(self, node: Any) -> Met:
        found = self.met[node]
        if found is None:
            raise LayerError(f"no maps are known at {node.name()}")
        return found

    def _names(self, passed: Sequence[tuple[Any, bool]], maps: set[Any]) -> list[str]:
        return [self._at(node).address for node, _ in passed if node in maps][:2]

    def _in_sight(self, above: Sequence[Any], found: Met) -> None:
        """Refuse where maps are made above these by code that can't be seen into."""
        for node in above:
            if self._like_maps(node) or (node not in self.met and _hides(node) and _has_positions(node)):
                raise LayerError(
                    f"the last maps can't be told: after {found.address!r} some are made out of sight, by "
                    f"{node.name()} (scripted or compiled code, a custom function, a write into a part of a map, "
                    f"axes split and joined). Name a layer with layer=, such as {found.address!r}"
                )

    def _like_maps(self, node: Any) -> bool:
        """Whether what can't be told has the positions of maps that were met."""
        shape = self.untold.get(node, ())
        if self.met.get(node) is not None or 1 in shape:  # told of by then; or means over channels, or over positions
            return False
        sizes = {met.grid.size for met in self.met.values() if met is not None}
        return any(size in sizes and math.prod(size) > 1 for size in (shape[:2], shape[1:]))


def _aside(name: str) -> bool:
    return any(part in name.lower() for part in ASIDE)


def _hides(node: Any) -> bool:
    name: str = node.name()
    if name.startswith("BackwardHookFunction"):  # what a module's own full backward hooks put in
        return False
    own = isinstance(node, torch.autograd.function.BackwardCFunction)
    return own or "Convolution" in name or name.startswith(tuple(OPAQUE))


def _has_positions(node: Any) -> bool:
    """Whether a node gives maps; where its shape can't be known, it may."""
    shapes = [tuple(m.shape) for m in getattr(node, "_input_metadata", ())]
    return not shapes or any(len(s) == 4 and sorted(s[1:])[1] > 1 for s in shapes)


def _passed(score: Tensor, maps: set[Any]) -> Iterator[tuple[Any, bool]]:
    """The nodes from a score down to these maps, each after all above it, and whether every path leads through it.

    One does where no edge out of the nodes before it leads past it; a path that has ended stays open for good.
    """
    leads = _leading_to(score, maps)
    into = Counter(below for node in leads for below in _below(node) if below in leads)
    left, ready, open_edges = Counter(into), [n for n in leads if not into[n]], 0
    while ready:
        node = ready.pop()
        open_edges -= into[node]
        yield node, open_edges == 0 and not ready
        further = [below for below in _below(node) if below in leads]
        open_edges += max(1, len(further))
        for below in further:
            left[below] -= 1
            if not left[below]:
                ready.append(below)


def _leading_to(score: Tensor, maps: set[Any]) -> dict[Any, None]:
    """The nodes of a score's graph from which one of the maps is reached, themselves included."""
    above: dict[Any, list[Any]] = {}
    nodes = list(graph(score))
    for node in nodes:
        for below in _below(node):
            above.setdefault(below, []).append(node)
    found = dict.fromkeys(node for node in nodes if node in maps)
    todo = list(found)
    while todo:
        for node in above.get(todo.pop(), ()):
            if node not in found:
                found[node] = None
                todo.append(node)
    return found


def _below(node: Any) -> list[Any]:
    return [below for below, _ in node.next_functions if below is not None]
