"""How each op can be spelled: one table from every spelling to the op's plain name.

A TorchFunctionMode sees `F.relu`, `torch.relu_`, `Tensor.relu_` and `torch.ops.aten.relu.default` as four functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ALIASES = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "special_expit": "sigmoid",
    "expit": "sigmoid",
}

DROPOUTS = frozenset({"dropout", "native_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"})
NOISES = frozenset({"rand_like", "randn_like"})
FINAL = {"logprobs": "log_softmax", "probs": "softmax", "multilabel": "sigmoid"}
"""Which op a net that gives such outputs ends in; its input is the logit."""


def name_of(func: Callable[..., Any]) -> str:
    """The op's plain name: `relu` for every spelling of a ReLU."""
    name: str = getattr(func, "__name__", "")
    name = name.partition(".")[0]  # aten.relu_.default
    if not name.startswith("__"):
        name = name.removesuffix("_")
    return ALIASES.get(name, name)


SHAPE_ONLY = ("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "Alias", "Clone", "Transpose", "Permute",
              "TBackward", "Slice", "Select", "ToCopy", "Flatten", "Contiguous")  # fmt: skip
"""Autograd nodes that move numbers without changing them, by the start of their names."""

RULED = ("ReluBackward",)
OPAQUE = {
    "torch::jit": "optimized scripted code; call the original module instead",
    "CheckpointFunctionBackward": "a reentrant checkpoint; use torch.utils.checkpoint with use_reentrant=False",
    "CompiledFunctionBackward": "a compiled function; open the module before torch.compile",
    "CopySlices": "an op in place on a view of a tensor; write it out of place",
}
"""Autograd nodes that may hide a ReLU, by the start of their names, and what to do about them."""


GATES = {
    "ClampMinBackward": ("_saved_min",),
    "ClampMaxBackward": ("_saved_max",),
    "ClampBackward": ("_saved_min", "_saved_max"),
    "HardtanhBackward": ("_saved_min_val",),
    "ThresholdBackward": ("_saved_threshold",),
    "LeakyReluBackward": ("_saved_negative_slope",),
    "PreluKernelBackward": ("_saved_weight",),
    "RreluWithNoiseBackward": ("_saved_lower",),
    "MaximumBackward": ("_saved_other", "_saved_self"),
    "MinimumBackward": ("_saved_other", "_saved_self"),
    "FmaxBackward": ("_saved_other", "_saved_self"),
    "FminBackward": ("_saved_other", "_saved_self"),
}
"""Autograd nodes that are a ReLU in disguise where one of these saved values is zero."""


def looks_like_relu(node: Any) -> bool:
    """Whether an autograd node is a ReLU spelled as a clamp: its backward is a gate, but no rule is defined for it."""
    corners = next((saved for start, saved in GATES.items() if node.name().startswith(start)), ())
    return any(_zero(node, saved) for saved in corners)


def may_gate(node: Any) -> bool:
    """Whether an autograd node multiplies by a mask, or chooses by one: it may be a ReLU, and can't be told."""
    if node.name().startswith(("WhereBackward", "MaskedFillBackward")):
        return True
    saved = (getattr(node, name, None) for name in ("_saved_self", "_saved_other"))
    return node.name().startswith("MulBackward") and any(isinstance(v, Tensor) and v.dtype == torch.bool for v in saved)


def _zero(node: Any, attribute: str) -> bool:
    value = getattr(node, attribute, None)
    return bool((value == 0).all()) if isinstance(value, Tensor) else value == 0
