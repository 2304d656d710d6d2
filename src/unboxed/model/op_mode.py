"""Replace single ops of a model while it runs, whatever module or spelling calls them; the base of what observes ops.

For backward rules that need an op's input and weights (LRP, DeepLIFT): the replacement computes the same values, with
another backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .op_tables import canonical_op_name

ReplaceOpFn = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(plain name, func, args, kwargs) -> the op's output, or NotImplemented to run the op itself.

It is called outside of the mode: ops that it calls are not replaced.
"""

IN_PLACE_OPERATORS = {
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__", "__imatmul__",
    "__iand__", "__ior__", "__ixor__",
}  # fmt: skip


class DispatchMode(TorchDispatchMode):
    """A `TorchDispatchMode` that does not import torch's compiler at its first op, which takes over a second.

    Torch imports it to exempt the mode from compilation; a box runs compiled models eagerly
    (`state.EAGER_MODE_CONTEXT`).
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class OpReplacementMode(TorchFunctionMode):
    """While open, `replace` is called in place of each op; outputs of in-place ops are written back."""

    def __init__(self, replace: ReplaceOpFn) -> None:
        super().__init__()
        self.replace = replace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = canonical_op_name(func)
        in_place = is_in_place(func, args, kwargs)
        op_args = (self.copy_in_place_input(args[0]), *args[1:]) if in_place else args
        out = self.replace(name, func, op_args, {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs)
        if out is NotImplemented:
            return func(*args, **kwargs)
        return self.write_in_place(args[0], out) if in_place and isinstance(args[0], Tensor) else out

    def copy_in_place_input(self, tensor: Tensor) -> Tensor:
        """The copy that an in-place op works on."""
        return tensor.clone()

    def write_in_place(self, target: Tensor, out: Tensor) -> Tensor:
        """Write the output of an in-place op into its argument."""
        return target.copy_(out)


def is_in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an op works in place on its first argument."""
    if not args or not isinstance(args[0], Tensor):
        return False
    name: str = getattr(func, "__name__", "").partition(".")[0]
    return (
        bool(kwargs.get("inplace")) or (name.endswith("_") and not name.startswith("__")) or name in IN_PLACE_OPERATORS
    )
