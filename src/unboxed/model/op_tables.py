"""How each op can be spelled: one table from every spelling to the op's plain name.

A TorchFunctionMode sees `F.relu`, `torch.relu_`, `Tensor.relu_` and `torch.ops.aten.relu.default` as four functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

CANONICAL_NAME_BY_OP_ALIAS = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "special_expit": "sigmoid",
    "expit": "sigmoid",
}

DROPOUT_OPS = frozenset({"dropout", "native_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"})
NOISE_OPS = frozenset({"rand_like", "randn_like"})
FINAL_OP_NAME_BY_OUTPUT_KIND = {
    "logprobs": "log_softmax",
    "probs": "softmax",
    "binary": "sigmoid",
    "multilabel": "sigmoid",
}
"""The last op of a model with such outputs; its input is the logit."""
UNBOUNDED_OPS = frozenset({"linear", "addmm", "mm", "matmul", "bilinear", "conv1d", "conv2d", "conv3d", "convolution",
                        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "logit"})  # fmt: skip
"""Ops that end a model of logits: what they give is no probability, whatever it is on a few inputs."""
SYMMETRIC_BOUNDED_OPS = frozenset({"tanh", "hardtanh", "softsign"})
"""Ops whose values are in [-1, 1]: at the end of a model neither logits nor probabilities."""
VIEW_OPS = frozenset({"view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose",
                      "permute", "movedim", "t", "contiguous", "expand", "select", "detach", "alias"})  # fmt: skip
"""Ops that only move values, by their plain names."""


def canonical_op_name(func: Callable[..., Any]) -> str:
    """The op's plain name: `relu` for every spelling of a ReLU."""
    return _canonical_name(getattr(func, "__name__", ""))


@lru_cache(maxsize=1024)
def _canonical_name(name: str) -> str:
    name = name.partition(".")[0]  # aten.relu_.default
    if not name.startswith("__"):
        name = name.removesuffix("_")
    return CANONICAL_NAME_BY_OP_ALIAS.get(name, name)


SHAPE_NODE_NAME_PREFIXES = (
    "View",
    "Reshape",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Alias",
    "Clone",
    "Transpose",
    "Permute",
    "TBackward",
    "Slice",
    "Select",
    "ToCopy",
    "Flatten",
    "Contiguous",
)
"""Autograd nodes that only move values, by the start of their names."""

ADVICE_BY_OPAQUE_NODE_NAME = {
    "torch::jit": "optimized scripted code; call the original module instead",
    "CheckpointFunctionBackward": "a reentrant checkpoint; use torch.utils.checkpoint with use_reentrant=False",
    "CompiledFunctionBackward": "a compiled function; open the module before torch.compile",
    "CopySlices": "an op in place on a view of a tensor; write it out of place",
}
"""Autograd nodes that may contain a ReLU, by the start of their names, and what to do about them."""


RELU_NODES = ("ReluBackward",)
RECTIFIER_NODES = (*RELU_NODES, "HardtanhBackward", "ThresholdBackward", "LeakyReluBackward", "PreluKernelBackward",
              "RreluWithNoiseBackward")  # fmt: skip
"""Autograd nodes of ReLU and its variants, by the start of their names; ReLU6 is a hardtanh from 0 to 6."""
CLAMP_NODES = ("ClampBackward", "ClampMinBackward")
MAXIMUM_NODES = ("MaximumBackward", "FmaxBackward")
SAVED_ATTRIBUTES_BY_NEGATED_RELU_NODE = {
    "ClampMaxBackward": ("_saved_max",),
    "ClampBackward": ("_saved_max",),
    "MinimumBackward": ("_saved_other", "_saved_self"),
    "FminBackward": ("_saved_other", "_saved_self"),
}
"""Autograd nodes that are a ReLU of the negated input where one of these saved values is zero."""


def rectified_input_index(node: Any) -> int | None:
    """Which input of an autograd node is rectified, by a ReLU, ReLU6, hardtanh or leaky ReLU in any spelling; or None.

    A clamp is a ReLU if its lower bound is 0, a maximum if its other operand is a constant 0. A hard sigmoid is not.
    """
    name = node.name()
    if name.startswith(MAXIMUM_NODES):
        return next((i for i in (0, 1) if _is_maximum_with_zero(node, i)), None)
    is_rectifier = name.startswith(RECTIFIER_NODES) or (
        name.startswith(CLAMP_NODES) and _is_saved_attribute_zero(node, "_saved_min")
    )
    return 0 if is_rectifier else None


def _is_maximum_with_zero(node: Any, input_index: int) -> bool:
    """Whether a maximum compares its input i, without broadcasting it, with a constant 0."""
    signal, constant = ("_saved_self", "_saved_other")[:: 1 - 2 * input_index]
    if node.next_functions[1 - input_index][0] is not None or not _is_saved_attribute_zero(node, constant):
        return False
    shapes = getattr(node, signal).shape, getattr(node, constant).shape
    return torch.broadcast_shapes(*shapes) == shapes[0]  # type: ignore[no-untyped-call, no-any-return]


def is_hard_sigmoid(node: Any, consumers: Sequence[Any]) -> bool:
    """Whether a two-sided clamp is a hard sigmoid written out, as in h * relu6(h + 3) / 6: shift, clamp, scale.

    `consumers` are the nodes that use its output.
    """
    if not node.name().startswith(("HardtanhBackward", "ClampBackward")) or not consumers:
        return False
    input_node = node.next_functions[0][0]
    if input_node is None or not input_node.name().startswith("AddBackward"):
        return False
    is_shifted = None in (addend for addend, _ in input_node.next_functions)
    return is_shifted and all(n.name().startswith(("MulBackward", "DivBackward")) for n in consumers)


def is_negated_relu(node: Any) -> bool:
    """Whether an autograd node is a ReLU written as a minimum or an upper bound, for which there is no rule."""
    saved = next(
        (names for start, names in SAVED_ATTRIBUTES_BY_NEGATED_RELU_NODE.items() if node.name().startswith(start)), ()
    )
    return rectified_input_index(node) is None and any(_is_saved_attribute_zero(node, name) for name in saved)


def may_be_masked_relu(node: Any) -> bool:
    """Whether an autograd node multiplies or selects by a mask: it may be a ReLU, which cannot be determined."""
    name = node.name()
    if name.startswith(("WhereBackward", "MaskedFillBackward", "AbsBackward")):
        return True
    if name.startswith(MAXIMUM_NODES):
        return None not in (operand for operand, _ in node.next_functions)
    if name.startswith("ClampBackward"):
        return None not in (node._saved_min, node._saved_max) and rectified_input_index(node) is None
    return name.startswith("MulBackward") and any(_multiplies_by_mask(node, i) for i in (0, 1))


def _multiplies_by_mask(node: Any, factor_index: int) -> bool:
    """Whether a product multiplies its factor i, not a parameter, by a constant mask of 0 and 1 in any dtype."""
    input_node, mask = (
        node.next_functions[factor_index][0],
        getattr(node, ("_saved_other", "_saved_self")[factor_index], None),
    )
    if input_node is None or "AccumulateGrad" in input_node.name() or not isinstance(mask, Tensor):
        return False
    if node.next_functions[1 - factor_index][0] is not None:
        return False
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all() and mask.min() < mask.max())


def _is_saved_attribute_zero(node: Any, attribute: str) -> bool:
    value = getattr(node, attribute, None)
    return bool((value == 0).all()) if isinstance(value, Tensor) else value == 0
