"""Which of the tensors that a model returns is its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..errors import OutputError
from ..inputs.base import Inputs
from ..inputs.multi import MultiInput
from .class_axis import spatial_shape_of_model_input
from .hooks import tensors_in
from .incremental import to_dense

MAIN_OUTPUT_KEYS = ("logits", "out")  # of transformers, and of torchvision's segmentation models
SIDE_OUTPUT_WORDS = ("aux", "loss", "hidden")  # in the keys of what is returned beside the output
MAX_OUTPUT_CHOICES_SHOWN = 5  # in a message


def find_output_key(raw: Any, inputs: Inputs) -> object:
    """The key or index of the output in what a model returned: by its name, else the only one that can be it.

    That is a tensor (N, K), or a map with as many axes as a batch of inputs, beside losses, auxiliary outputs and
    hidden states. None where the output is no dict, list or tuple, or that does not determine it.
    """
    choices = dict(_choices(raw))
    if named := [key for key in MAIN_OUTPUT_KEYS if key in choices]:
        return named[0]
    main = [key for key in choices if not any(word in str(key).lower() for word in SIDE_OUTPUT_WORDS)]
    return main[0] if len(main) == 1 and choices[main[0]].ndim in _output_ndims(inputs) else None


def infer_output_tensor(raw: Any) -> Any:
    """The output by its name, else the only tensor (N, K). Raises OutputError."""
    if isinstance(raw := to_dense(raw), Tensor):
        return raw
    logits = to_dense(raw.get("logits") if isinstance(raw, Mapping) else getattr(raw, "logits", None))
    if isinstance(logits, Tensor):
        return logits
    candidates = [h for h in tensors_in(raw) if h.ndim == 2 and h.is_floating_point()]
    if len(candidates) != 1:
        raise OutputError(
            f"the model gives {describe_output(raw)}: which of its tensors is the output? Name it by a key, an index "
            f"or a function: {_output_choices_text(raw)}"
        )
    return candidates[0]


def describe_output(raw: Any) -> str:
    if isinstance(raw, Tensor):
        return f"a tensor {tuple(raw.shape)}"
    if isinstance(raw, Mapping):
        return f"{type(raw).__name__} with {', '.join(map(str, raw))}"
    return f"a {type(raw).__name__}" + (f" of {len(raw)}" if isinstance(raw, (tuple, list)) else "")


def _choices(raw: Any) -> Iterator[tuple[object, Tensor]]:
    """The tensors with a row per example in a dict, list or tuple, by key or index."""
    items = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, (tuple, list)) else ()
    for key, value in items:
        if isinstance(h := to_dense(value), Tensor) and h.is_floating_point() and h.ndim > 1:
            yield key, h


def _output_ndims(inputs: Inputs) -> set[int]:
    parts = [part for _, part in inputs.keys_and_parts()] if isinstance(inputs, MultiInput) else [inputs]
    return {2, *(2 + len(spatial_shape_of_model_input(part)) for part in parts)}


def _output_choices_text(raw: Any) -> str:
    """The code that picks a tensor of what the model returned, each with its shape; those (N, K) if there are."""
    tensors = dict(_choices(raw))
    choices = {key: h for key, h in tensors.items() if h.ndim == 2} or tensors
    shown = [f"Box(..., output={key!r}) is {tuple(h.shape)}" for key, h in choices.items()][:MAX_OUTPUT_CHOICES_SHOWN]
    return ", ".join(shown) or "Box(..., output=lambda out: ...)"
