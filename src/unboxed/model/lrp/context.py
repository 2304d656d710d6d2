"""The context of a forward pass under rules: parameters are constant, and no op may escape its rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ...errors import RuleError
from ..op_tables import ADVICE_BY_OPAQUE_NODE_NAME
from ..relu_rules import graph_nodes
from . import op_rules


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """While open, no parameter has a gradient: what has one depends on the input."""
    trainable = [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def in_layer_text(order: int, layer_orders: Mapping[str, int]) -> str:
    """ " in 'blocks.1'" of an op by when it ran and when layers ended; empty after the last."""
    return next((f" in {layer!r}" for layer, end in layer_orders.items() if order <= end), "")


def check_every_node_has_rule(root: Tensor, layer_orders: Mapping[str, int] | None = None) -> None:
    """Raise RuleError if an op below `root` ran outside the mode: its plain gradient is not relevance.

    `layer_orders` are the sequence numbers of the ends of layers, from the first on: they name the layer of the op.
    """
    for node in graph_nodes(root):
        name: str = node.name()
        opaque_reason = next(
            (
                a
                for prefix, a in ADVICE_BY_OPAQUE_NODE_NAME.items()
                if name.startswith(prefix) and prefix != "CopySlices"
            ),
            None,
        )
        if opaque_reason is not None:
            raise RuleError(f"LRP can't see into {opaque_reason}")
        is_product = name.startswith(("MulBackward", "DivBackward"))
        is_bilinear = is_product and all(input_node is not None for input_node, _ in node.next_functions[:2])
        if is_bilinear or not name.startswith(op_rules.NODE_NAMES_WITH_RULES):
            layer = in_layer_text(node._sequence_nr(), layer_orders or {})
            raise RuleError(
                f"LRP has no rule for {name}{layer}: the op ran out of sight, in scripted code or a function of "
                "its own with its own gradient. Run the original module, or use a method without rules, such as "
                "gradient"
            )
