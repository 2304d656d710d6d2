"""Which activations all relevance passes through: the layers at which its sum can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

PATH_COUNT_MODULUS = 2**61 - 1  # paths of a deep model are too many to count exactly


def edges_on_every_path(
    root: Tensor, leaf: Tensor, edges: Mapping[str, GradientEdge | None]
) -> dict[str, GradientEdge]:
    """The edges through which every path from root to leaf goes, by name, from the leaf up.

    Where a path around an activation exists (a skip connection), its relevance is only a part. Paths are counted: those
    through a cut are all.
    """
    top, bottom = get_gradient_edge(root).node, get_gradient_edge(leaf).node
    order = _topological_order(top)
    n_down = {bottom: 1}  # paths from a node to the leaf
    for node in order:
        if node is not bottom:
            n_down[node] = sum(n_down.get(below, 0) for below, _ in node.next_functions) % PATH_COUNT_MODULUS
    n_up, n_through = {top: 1}, dict[tuple[Any, int], int]()  # paths from the root to a node, and to an edge
    for node in reversed(order):
        for below, output in node.next_functions:
            if below is not None:
                n_up[below] = (n_up.get(below, 0) + n_up[node]) % PATH_COUNT_MODULUS
                n_through[below, output] = (n_through.get((below, output), 0) + n_up[node]) % PATH_COUNT_MODULUS
    n_all = n_down[top]
    name_by_cut: dict[GradientEdge, str] = {}
    for name, edge in edges.items():
        if edge is not None and n_all:
            n_paths = n_through.get((edge.node, edge.output_nr), 0) * n_down.get(edge.node, 0) % PATH_COUNT_MODULUS
            if n_paths == n_all:  # of a stage and its last block, the block
                name_by_cut[edge] = max(name_by_cut.get(edge, ""), name, key=len)
    return {name_by_cut[edge]: edge for edge in sorted(name_by_cut, key=lambda edge: edge.node._sequence_nr())}


def _topological_order(root: Any) -> list[Any]:
    """Every node below one, inputs before what is computed from them."""
    order, seen, stack = list[Any](), {root}, [(root, iter(root.next_functions))]
    while stack:
        node, below_nodes = stack[-1]
        below = next((b for b, _ in below_nodes if b is not None and b not in seen), None)
        if below is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(below)
            stack.append((below, iter(below.next_functions)))
    return order
