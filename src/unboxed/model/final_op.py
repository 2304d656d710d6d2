"""The last op of a model: what its input was, and whether it has bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .incremental import to_dense
from .op_tables import UNBOUNDED_OPS, VIEW_OPS, canonical_op_name


class FinalOpRecorder(TorchFunctionMode):
    """Records the input of each op of one name, to find the input of the model's last op."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.calls: list[tuple[Tensor, Tensor]] = []  # (input, output) of each

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args = (to_dense(args[0]), *args[1:]) if canonical_op_name(func) == self.op and args else args
        if canonical_op_name(func) != self.op or not args or not isinstance(args[0], Tensor):
            return func(*args, **(kwargs or {}))
        z = args[0].clone()
        out = func(z.clone(), *args[1:], **(kwargs or {}))
        out = args[0].copy_(out) if func.__name__.endswith("_") else out
        self.calls.append((z, out))
        return out

    def input_of_op_producing(self, output: Tensor) -> Tensor | None:
        """The input that the op made `output` of (or a view of it), in its layout; None if no such op ran."""
        for z, out in reversed(self.calls):
            if out.data_ptr() == output.data_ptr() and out.numel() == output.numel():
                return _with_memory_layout_of(z, out, output)
        return None


def _with_memory_layout_of(z: Tensor, out: Tensor, output: Tensor) -> Tensor | None:
    if (out.shape, out.stride()) == (output.shape, output.stride()):
        return z
    return z.contiguous().as_strided(output.shape, output.stride(), 0) if out.is_contiguous() else None


class FinalOpNameRecorder(TorchFunctionMode):
    """Records the name and the result of each op but views, to find the op that made the model's output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = canonical_op_name(func)
        if isinstance(out, Tensor) and name not in VIEW_OPS and not name.startswith("__"):
            self.calls.append((name, out))
        return out

    def name_of_op_producing(self, output: Tensor) -> str:
        """The name of the op that made the output, or a view of it; "" where none was seen."""
        return next((name for name, out in reversed(self.calls) if out.data_ptr() == output.data_ptr()), "")

    def is_output_unbounded(self, output: Tensor) -> bool:
        """Whether the last op is linear or a logit: its results have no bounds, and are no probabilities."""
        return self.name_of_op_producing(output) in UNBOUNDED_OPS
