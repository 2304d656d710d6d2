"""Around a ruled forward: parameters stand still, and afterwards nothing may have escaped its rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...errors import RuleError
from ..op_tables import OPAQUE_NODES
from ..relu_rules import graph_nodes
from . import op_rules as names


@contextmanager
def constant(model: nn.Module) -> Iterator[None]:
    """While open, no parameter has a gradient: what has one depends on the input."""
    own = [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    try:
        for p in own:
            p.requires_grad_(False)
        yield
    finally:
        for p in own:
            p.requires_grad_(True)


def all_ruled(root: Tensor) -> None:
    """Raise RuleError if an op below `root` ran where the mode does not see it: its plain gradient is no relevance."""
    for node in graph_nodes(root):
        name: str = node.name()
        advice = next(
            (a for start, a in OPAQUE_NODES.items() if name.startswith(start) and start != "CopySlices"), None
        )
        if advice is not None:
            raise RuleError(f"LRP can't see into {advice}")
        product = name.startswith(("MulBackward", "DivBackward"))
        both = product and all(below is not None for below, _ in node.next_functions[:2])
        if both or not name.startswith(names.NODES):
            raise RuleError(
                f"LRP has no rule for {name}: the op ran out of sight, in scripted code or a function of its own with "
                "its own gradient. Run the original module, or use a method without rules, such as gradient"
            )
