"""The last maps that all of a score passes through, found in the autograd graph of one forward.

A layer's position in the code says little about its role for the score: the last convolution may compute a gate, a
branch of a residual sum, or another head. The graph decides: a map whose node is on every path from the score to the
model's maps is one that the score depends on all others through, and of those the nearest to the score is the last.
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
from ...model.hooks import hooking_functional_ops
from ...model.layers import Layer
from ...model.op_tables import ADVICE_BY_OPAQUE_NODE_NAME
from ...model.relu_rules import graph_nodes
from ..read.position_grids import PositionGrid, as_image_grid, layers_with_grids

MAX_MAPS_WITH_STORED_VALUES = 8  # maps whose values are stored while the model runs; an earlier one takes a second run
MAX_INPUT_SEARCH_DEPTH = 8  # nodes of a composite op that are searched for its inputs

NON_CANDIDATE_OP_NAME_PARTS = (
    "pool",
    "dropout",
    "identity",
    "clone",
)  # the same values, or none that is meant by "the last layer"
AXIS_MOVING_OPS = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
AXIS_CHANGING_OPS = (
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "norm",
    "logsumexp",
    "std",
    "var",
    "view",
    "reshape",
    "einsum",
    "unflatten",
    "matmul",
    "bmm",
    "fold",
    "pixel_shuffle",
    "__get__",
    "__matmul__",
)
"""Ops that may change the meaning of axes."""
CHANNELS_FIRST_OPS, CHANNELS_LAST_OPS = ("conv", "batch_norm", "group_norm", "instance_norm"), ("linear",)
AXIS_CHANGING_NODES = (
    "View",
    "Reshape",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Permute",
    "Bmm",
    "Mm",
    "Mean",
    "Sum",
    "Expand",
    "Amax",
    "Max",
    "Convolution",
)
"""Autograd nodes, by the start of their names, that may change the meaning of axes."""

FUNCTIONAL_OP_ADDRESS_HINT = "name a functional op by its address, such as ':relu#0'"


@dataclass(frozen=True, eq=False)
class RecordedMap:
    """A recorded map: a candidate if it may be the last one. `value` is valid as long as no op wrote over it."""

    address: str
    edge: GradientEdge
    grid: PositionGrid
    channels: int
    is_candidate: bool
    value: Tensor
    version: int


class MapRecorder:
    """Which maps and tokens a forward computes, and their nodes in its graph."""

    def __init__(self, box: Box, n_rows: int) -> None:
        self.box, self.n_rows = box, n_rows
        self.layer_grids = {row.path: (row, grid) for row, grid in layers_with_grids(box)}
        self.output_shape = (box.n_outputs, *box.output_map_shape)
        self.n_dims = 2 + getattr(box.inputs, "n_axes", 2)  # of the maps of signals and volumes, N and C included
        self.recorded: dict[Any, RecordedMap | None] = {}
        self.ambiguous_shapes: dict[Any, tuple[int, ...]] = {}  # possible maps whose axes cannot be determined
        self.leaf_nodes: dict[str, Any] = {}  # the nodes of leaves with positions, as they last ran
        self.saved: deque[RecordedMap] = deque(maxlen=MAX_MAPS_WITH_STORED_VALUES)
        self.call_counts: Counter[str] = Counter()

    @contextmanager
    def recording_maps(self) -> Iterator[None]:
        with hooking_functional_ops(self.box.modules, lambda path, op: True, self._on_op, self._on_module):
            yield

    def _on_op(self, path: str, op: str | None, h: Tensor) -> None:
        address = f"{path}:{op}"
        self.call_counts[address] += 1
        if h.requires_grad and h.grad_fn is not None and self.layer_grids:
            self._record(f"{address}#{self.call_counts[address] - 1}", op or "", h, None)

    def _on_module(self, path: str, h: Tensor) -> None:
        row = self.box.layers.by_path.get(path)
        k = self.call_counts[path]
        self.call_counts[path] += 1
        if row is None or not h.requires_grad or h.grad_fn is None:
            return
        grid = self.layer_grids[path][1] if path in self.layer_grids else None
        if grid is not None and not _is_non_candidate_op(row.type) and row.shape != self.output_shape:
            self.leaf_nodes.pop(path, None)
            self.leaf_nodes[path] = get_gradient_edge(h).node
        self._record(row.addresses[min(k, row.n_calls - 1)], row.type if row.is_leaf else "", h, grid)

    def _record(self, address: str, name: str, h: Tensor, known_grid: PositionGrid | None) -> None:
        edge = get_gradient_edge(h)
        if self.recorded.get(edge.node) is not None or (edge.node in self.recorded and known_grid is None):
            return
        self.recorded[edge.node] = None
        if h.ndim not in (4, self.n_dims) or len(h) != self.n_rows:
            return
        if (grid := self._infer_grid(name, edge.node, h, known_grid)) is None:
            self.ambiguous_shapes[edge.node] = tuple(h.shape[1:])
            return
        channels = h.shape[3] if grid.channels_last else h.shape[1]
        shape = tuple(h.shape[1:])
        is_candidate = self._is_candidate(name, edge.node, grid, known_grid) and shape != self.output_shape
        recorded_map = RecordedMap(
            address, edge, grid, channels, is_candidate, h.detach() if is_candidate else h.new_empty(0), h._version
        )
        self.recorded[edge.node] = recorded_map if not is_candidate else self._save_value(recorded_map)

    def _save_value(self, recorded_map: RecordedMap) -> RecordedMap:
        """Store its value; the oldest stored one is freed."""
        if len(self.saved) == MAX_MAPS_WITH_STORED_VALUES:
            oldest = self.saved[0]
            self.recorded[oldest.edge.node] = RecordedMap(
                oldest.address, oldest.edge, oldest.grid, oldest.channels, True, oldest.value[:0], -1
            )
        self.saved.append(recorded_map)
        return recorded_map

    def _infer_grid(self, name: str, node: Any, h: Tensor, known_grid: PositionGrid | None) -> PositionGrid | None:
        """Whether channels are first or last: as for the input, unless the op determines it."""
        input_map = next(self._input_maps(node), None)
        if known_grid is not None and (input_map is None or name.lower() in AXIS_MOVING_OPS):
            return known_grid
        if name.startswith(CHANNELS_FIRST_OPS):
            channels_last = False
        elif name.startswith(CHANNELS_LAST_OPS):
            channels_last = True
        elif input_map is None or name in AXIS_CHANGING_OPS:
            return None
        else:
            channels_last = input_map.grid.channels_last is not (name in AXIS_MOVING_OPS)
        if h.ndim != 4:
            return None if channels_last else as_image_grid(tuple(h.shape[1:]))
        return PositionGrid(
            (h.shape[1], h.shape[2]) if channels_last else (h.shape[2], h.shape[3]), channels_last=channels_last
        )

    def _is_candidate(self, name: str, node: Any, grid: PositionGrid, known_grid: PositionGrid | None) -> bool:
        """Whether these may be the last maps: of more than one position, and not pooled, moved or resized ones."""
        if math.prod(grid.size) < 2 or _is_non_candidate_op(name) or name in AXIS_MOVING_OPS:
            return False
        return (
            known_grid is not None
            or name.startswith(CHANNELS_FIRST_OPS + CHANNELS_LAST_OPS)
            or any(m.grid.size == grid.size for m in self._input_maps(node))
        )

    def _input_maps(self, node: Any) -> Iterator[RecordedMap]:
        """The maps that an op takes, through the nodes that it consists of."""
        pending, seen = [(below, 0) for below, _ in node.next_functions], set()
        while pending:
            node, depth = pending.pop(0)
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.recorded:
                recorded_map = self.recorded[node]
                if recorded_map is not None:
                    yield recorded_map
            elif depth < MAX_INPUT_SEARCH_DEPTH and not node.name().startswith(AXIS_CHANGING_NODES):
                pending += [(below, depth + 1) for below, _ in node.next_functions]

    # -- results ------------------------------------------------------------------------------------------------

    def last_token_layers_and_grid(
        self, score: Tensor, objective_nodes: set[Any]
    ) -> tuple[Sequence[Layer], PositionGrid] | None:
        """The layers of the last tokens below a score, the last first, if no map comes after them."""
        nodes_below = set(graph_nodes(score)) - objective_nodes
        rows = [self.layer_grids[path] for path, node in self.leaf_nodes.items() if node in nodes_below]
        if not rows or not rows[-1][1].is_tokens:
            return None
        row, grid = rows[-1]
        return [r for r, g in reversed(rows) if g == grid and r.shape == row.shape], grid

    def last_map_on_all_paths(self, score: Tensor, objective_nodes: set[Any]) -> RecordedMap:
        """The last maps that all of a score passes through, other than its own layers. Raises LayerError."""
        maps = {node for node, recorded in self.recorded.items() if recorded is not None and recorded.is_candidate}
        ordered_nodes = list(_ordered_nodes_and_dominance(score, maps - objective_nodes))
        ordered_nodes = ordered_nodes or list(
            _ordered_nodes_and_dominance(score, maps)
        )  # of a first layer: the layer itself
        if not ordered_nodes:
            raise LayerError(
                "no layer below this score has positions on the image: its maps have rows and columns, or are tokens "
                f"of a patch grid. Methods on the input need none; {FUNCTIONAL_OP_ADDRESS_HINT}"
            )
        bottlenecks = [i for i, (node, all_of_it) in enumerate(ordered_nodes) if all_of_it and node in maps]
        bottlenecks = [i for i in bottlenecks if ordered_nodes[i][0] not in objective_nodes] or bottlenecks
        multi_channel = [
            i for i in bottlenecks if self._recorded_map_at(ordered_nodes[i][0]).channels > 1
        ]  # a single channel is most often a gate
        if not bottlenecks:
            raise LayerError(
                f"the score takes several maps in parallel, and passes through no single one: name one with "
                f"layer=, such as {' or '.join(repr(a) for a in self._map_addresses_for_error(ordered_nodes, maps))}"
            )
        i = (multi_channel or bottlenecks)[0]
        self._check_no_later_opaque_maps(
            [node for node, _ in ordered_nodes[:i]], self._recorded_map_at(ordered_nodes[i][0])
        )
        return self._recorded_map_at(ordered_nodes[i][0])

    def _recorded_map_at(self, node: Any) -> RecordedMap:
        recorded_map = self.recorded[node]
        if recorded_map is None:
            raise LayerError(f"no maps are known at {node.name()}")
        return recorded_map

    def _map_addresses_for_error(self, ordered_nodes: Sequence[tuple[Any, bool]], maps: set[Any]) -> list[str]:
        return [self._recorded_map_at(node).address for node, _ in ordered_nodes if node in maps][:2]

    def _check_no_later_opaque_maps(self, above: Sequence[Any], recorded_map: RecordedMap) -> None:
        """Raise LayerError where later maps are computed by code that cannot be seen into."""
        for node in above:
            if self._may_match_recorded_map_size(node) or (
                node not in self.recorded and _is_opaque_node(node) and _may_compute_map(node)
            ):
                raise LayerError(
                    f"the last maps are ambiguous: after {recorded_map.address!r} some are computed out of sight, "
                    f"by {node.name()} (scripted or compiled code, a custom function, a write into a part of a map, "
                    f"axes split and joined). Name a layer with layer=, such as {recorded_map.address!r}"
                )

    def _may_match_recorded_map_size(self, node: Any) -> bool:
        """Whether an undetermined node has the positions of recorded maps."""
        shape = self.ambiguous_shapes.get(node, ())
        if (
            self.recorded.get(node) is not None or 1 in shape
        ):  # already recorded; or means over channels, or over positions
            return False
        sizes = {met.grid.size for met in self.recorded.values() if met is not None}
        return any(size in sizes and math.prod(size) > 1 for size in (shape[:2], shape[1:]))


def _is_non_candidate_op(name: str) -> bool:
    return any(part in name.lower() for part in NON_CANDIDATE_OP_NAME_PARTS)


def _is_opaque_node(node: Any) -> bool:
    name: str = node.name()
    if name.startswith("BackwardHookFunction"):  # inserted by a module's full backward hooks
        return False
    is_custom = isinstance(node, torch.autograd.function.BackwardCFunction)
    return is_custom or "Convolution" in name or name.startswith(tuple(ADVICE_BY_OPAQUE_NODE_NAME))


def _may_compute_map(node: Any) -> bool:
    """Whether a node computes maps; where its shape is unknown, it may."""
    shapes = [tuple(m.shape) for m in getattr(node, "_input_metadata", ())]
    return not shapes or any(len(s) == 4 and sorted(s[1:])[1] > 1 for s in shapes)


def _ordered_nodes_and_dominance(score: Tensor, maps: set[Any]) -> Iterator[tuple[Any, bool]]:
    """The nodes from a score to these maps in topological order, and whether every path leads through each.

    One does where no edge of the nodes before it bypasses it; a path that has ended counts as bypassing.
    """
    reaching = _nodes_reaching(score, maps)
    n_incoming = Counter(below for node in reaching for below in _input_nodes(node) if below in reaching)
    n_remaining, ready, open_edges = Counter(n_incoming), [n for n in reaching if not n_incoming[n]], 0
    while ready:
        node = ready.pop()
        open_edges -= n_incoming[node]
        yield node, open_edges == 0 and not ready
        next_nodes = [below for below in _input_nodes(node) if below in reaching]
        open_edges += max(1, len(next_nodes))
        for below in next_nodes:
            n_remaining[below] -= 1
            if not n_remaining[below]:
                ready.append(below)


def _nodes_reaching(score: Tensor, maps: set[Any]) -> dict[Any, None]:
    """The nodes of a score's graph from which one of the maps is reached, themselves included."""
    consumers: dict[Any, list[Any]] = {}
    nodes = list(graph_nodes(score))
    for node in nodes:
        for input_node in _input_nodes(node):
            consumers.setdefault(input_node, []).append(node)
    reaching = dict.fromkeys(node for node in nodes if node in maps)
    pending = list(reaching)
    while pending:
        for node in consumers.get(pending.pop(), ()):
            if node not in reaching:
                reaching[node] = None
                pending.append(node)
    return reaching


def _input_nodes(node: Any) -> list[Any]:
    return [below for below, _ in node.next_functions if below is not None]
