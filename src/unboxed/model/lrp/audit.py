"""Naming the ops that do not pass on what they receive: a second pass that follows each op by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..hooks import tensors_in
from .context import in_layer_text
from .ledger import RelevanceLedger, relevance_of

MAX_NAMED_OPS = 3
MIN_RELATIVE_RELEVANCE_LOSS = 1e-2  # of the largest loss of an op: smaller ones are not named


class RelevanceAudit(RelevanceLedger):
    """A ledger that also compares, for each op, what arrives at its output with what it sends to its variables.

    It keeps every activation, so it is made only where a loss is to be explained.
    """

    follows_each_op = True

    def __init__(self, n: int, n_before: int = 0) -> None:
        super().__init__(n, n_before)
        self._values: dict[tuple[Any, int], Tensor] = {}  # of each edge of the graph
        self._losses = defaultdict[tuple[str, int], list[Tensor]](list)  # by op and order: received, minus passed on

    def follow(self, op: str, variables: list[Tensor], out: Any) -> None:
        """Have an op that gave `out` compared in the backward pass."""
        for v in variables:
            self._remember(v)
        outputs = [t for t in tensors_in(out) if t.requires_grad and self._remember(t)]
        node = outputs[0].grad_fn if outputs else None
        if node is None or any(edge not in self._values for edge in _input_edges(node)):
            return  # made of several nodes, each of which is an op by itself
        node.register_hook(lambda sent, received: self._compare(op, node, sent, received))

    def _remember(self, t: Tensor) -> bool:
        """Keep the value of an edge of the graph; False where it is known: dropout may give what it got."""
        edge = get_gradient_edge(t)
        is_new = (edge.node, edge.output_nr) not in self._values
        if is_new:
            self._values[edge.node, edge.output_nr] = t.detach().clone()
        return is_new

    def _compare(
        self, op: str, node: Any, sent: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]
    ) -> None:
        place = op, node._sequence_nr()
        for i, c in enumerate(received):
            if c is not None and (node, i) in self._values:
                self._losses[place].append(relevance_of(self._values[node, i], c).sum())
        grads = [c for (below, _), c in zip(node.next_functions, sent, strict=False) if below is not None]
        for edge, c in zip(_input_edges(node), grads, strict=False):
            if c is not None:
                self._losses[place].append(-relevance_of(self._values[edge], c).sum())

    def relevance_losing_ops(self, layer_orders: Mapping[str, int]) -> tuple[str, ...]:
        """The ops that lose most of what they receive, with nothing that accounts for it: "gelu in blocks.1".

        `layer_orders` are the sequence numbers of the ends of layers, from the first on.
        """
        held_back = defaultdict[int, float](float)
        for (order, _), relevance in self.held_back.items():
            held_back[order] += float(relevance.sum())
        losses = {
            place: abs(float(torch.stack([p.double() for p in parts]).sum() - held_back[place[1]]))
            for place, parts in self._losses.items()
        }
        largest = sorted(losses, key=lambda place: -losses[place])
        limit = MIN_RELATIVE_RELEVANCE_LOSS * max(losses.values(), default=0.0)
        names = [op + in_layer_text(order, layer_orders) for op, order in largest if losses[op, order] > limit]
        return tuple(dict.fromkeys(names))[:MAX_NAMED_OPS]


def _input_edges(node: Any) -> Iterator[tuple[Any, int]]:
    return iter([(below, output) for below, output in node.next_functions if below is not None])
