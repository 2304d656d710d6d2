"""What is in a result: its tensors, a summary for JSON, the map of an attribution; and warnings about maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, warn
from ..objectives import Objective
from .attribution_result import Attribution
from .result_views import ResultViewsMixin


def attribution_map(result: Any, *, per_column_scale: bool = False) -> Tensor:
    """The map (N, ...) of what an attribution method gave, as a plain tensor; of several inputs the packed map (N, D).

    `per_column_scale` is for what compares the columns of a table, see `Attribution.per_column_scale`. A method of a
    user's own may give a tensor, or a result with the map as its `map`. Raises InputError where there is no map.
    """
    result = result.per_column_scale() if per_column_scale and isinstance(result, Attribution) else result
    attribution = result.detach() if isinstance(result, Attribution) else getattr(result, "map", result)
    if not isinstance(attribution, Tensor):
        raise InputError(f"wanted a map, or a result with one; got {type(result).__name__}")
    return attribution


MAX_REPR_ITEMS = 3  # of a tuple or mapping that a repr lists


MAX_SUMMARY_LINES = 8  # of a result's text


class ResultMixin(ResultViewsMixin):
    """A result: what it says in a few lines, the first as its repr; else its fields on one line; and its views.

    For dataclasses with `repr=False`.
    """

    def summary_lines(self) -> Iterator[str]:
        """What the result says, line by line: by default its verdict, if it has one."""
        if isinstance(verdict := getattr(self, "verdict", None), str):
            yield f"{verdict}: {getattr(self, 'reason', '')}"

    def __str__(self) -> str:
        lines = list(self.summary_lines())
        rest = [f"... and {len(lines) - MAX_SUMMARY_LINES} more"] if len(lines) > MAX_SUMMARY_LINES else []
        return "\n".join([*lines[:MAX_SUMMARY_LINES], *rest]) or self._fields_text()

    def __repr__(self) -> str:
        fields, text = self._fields_text(), str(self)
        return fields if text == fields else f"{type(self).__name__}: {text.splitlines()[0]}"  # a line, as all reprs

    def _fields_text(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}  # type: ignore[arg-type]
        shown = {name: value for name, value in values.items() if value is not None and value is not False}
        return f"{type(self).__name__}({', '.join(f'{name}={_short_repr(value)}' for name, value in shown.items())})"


def class_name(k: Any, classes: Sequence[str]) -> str:
    """The name of class k, or its number where no names are known."""
    return str(classes[int(k)]) if 0 <= int(k) < len(classes) else str(int(k))


def _short_repr(value: Any) -> str:
    """A value on part of a line."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        texts = _first_texts_with_ellipsis(f"{name}: {_short_repr(part)}" for name, part in value.items())
        return f"{{{', '.join(texts)}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_first_texts_with_ellipsis(map(_short_repr, value)))}]"
    if isinstance(value, ResultMixin) or dataclasses.is_dataclass(value):
        return type(value).__name__
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


def _first_texts_with_ellipsis(texts: Iterable[str]) -> list[str]:
    """The first texts, and "..." for more."""
    listed = list(islice(texts, MAX_REPR_ITEMS + 1))
    return listed if len(listed) <= MAX_REPR_ITEMS else [*listed[:-1], "..."]


def warn_with_row_count(message: str, rows: Tensor, suffix: str = "") -> None:
    """Warn of the rows (N,) bool for which something holds, if there are any."""
    if n := int(rows.sum()):
        warn(f"{message} {n} of {len(rows)} inputs{suffix}")


def warn_not_finite(subject: str, maps: Tensor) -> None:
    """Warn of maps (N, ...) that hold NaN or infinite values though their scores are numbers."""
    warn_with_row_count(f"{subject} is NaN or infinite for", ~maps.isfinite().flatten(1).all(1))


# -- what is in a result -----------------------------------------------------------------------------------------------

MAX_SUMMARY_TENSOR_VALUES = 64  # of a tensor that a summary lists in full


def result_tensors(result: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor and number of a result by where it is in it; parts that have a `path` go by that."""
    return dict(_iter_tensors(result, path))


def _iter_tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Attribution):
        for name, part in vars(value).items():
            yield from _iter_tensors(part, f"{path}.{name}")
    elif isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (bool, int, float)):
        yield path, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _iter_tensors(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _iter_tensors(part, f"{path}[{key}]")
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            yield from _iter_tensors(part, f"{path}[{getattr(part, 'path', i)}]")


def json_summary(result: Any, max_values: int = MAX_SUMMARY_TENSOR_VALUES) -> Any:
    """A result for JSON: words and numbers as they are, tensors in full, of larger ones shape, range and mean."""
    if isinstance(result, Attribution):  # a tensor with fields
        return json_summary(vars(result), max_values)
    if isinstance(result, Tensor):
        return _tensor_summary(result, max_values)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = dataclasses.fields(result)
        named = [f.name for f in fields if not f.name.startswith("_") and f.metadata.get("in_summary", True)]
        return {name: json_summary(getattr(result, name), max_values) for name in named}
    if isinstance(result, Mapping):
        return {str(key): json_summary(value, max_values) for key, value in result.items()}
    if isinstance(result, (tuple, list)):
        return [json_summary(value, max_values) for value in result]
    if isinstance(result, Objective):
        return result.name
    return result if isinstance(result, (bool, int, float, str, type(None))) else repr(result)


def _tensor_summary(tensor: Tensor, max_values: int) -> Any:
    if tensor.numel() <= max_values:
        return tensor.detach().cpu().tolist()
    figures: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_floating_point():
        finite = tensor.detach().double()[tensor.isfinite()]
        figures |= {"finite": len(finite) / tensor.numel()}
        figures |= {name: float(f(finite)) for name, f in (("min", torch.min), ("mean", torch.mean), ("max", torch.max))
                    if len(finite)}  # fmt: skip
    return figures


def nonfinite_to_none(value: Any) -> Any:
    """The same with NaN and infinite numbers, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {k: nonfinite_to_none(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [nonfinite_to_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
