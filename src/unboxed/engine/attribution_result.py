"""The result of every attribution method: a tensor that knows what it explains."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..box import Box
from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.features import Features
from ..inputs.multi import MultiInput
from ..inputs.tokens import EmbeddingReduction, Tokens
from ..objectives import Constant, Objective
from .column_units import Slope, slope_and_unit, table_inputs
from .result_views import ResultViewsMixin

COMMON_FIELD_NAMES = ("map", "input", "target", "score", "method", "layer", "classes", "unit", "slope", "columns")
MAX_REPR_VALUES = 5  # targets and scores that a repr lists


def _maps_of_several_inputs(attribution: Attribution) -> Any:
    """As `values` of a dict of maps; of one map torch's method of this name, for sparse tensors."""
    maps = attribution.map
    return maps.values() if isinstance(maps, Mapping) else Tensor.values(attribution)


class Attribution(ResultViewsMixin, Tensor):
    """An attribution map, with what it explains; it is a tensor, and can be used wherever one is wanted.

    Operations on it (`a + 1`, `a[0]`, `a.abs()`) give plain tensors. What a method gives besides the map (LIME's
    `weights`, integrated gradients' `completeness_error`) are attributes, which `extras` lists.

    Attributes:
        map: The map (N, ...) as a plain tensor; for several inputs a dict or tuple of maps, as x was given. The
            attribution itself is then the packed map (N, D): all inputs' values side by side.
        input: The inputs (N, ...) that are explained, in the box's units; a dict or tuple of them as x was given.
        target: What is explained: classes (N,), or the objective; None where the method explains no score.
        score: The score (N,) of x, in the units of the objective; None where the method does not compute it. Of a class
            it is the logit, which of a model of one yes/no logit z is z for class 1 and -z for class 0.
        method: The name of the method, as its card has it.
        layer: The address of the layer that was read; None for methods without one.
        classes: The names of the model's classes.
        unit: What one value means, such as "logit lost when the segment is removed"; "" where it has no other unit than
            an attribution to the score.
        slope: Of slopes of a table, which are per unit of each column, what makes them comparable
            (`per_column_scale`); None of other maps.
        columns: {part: names} of the columns of a table, or of the parts of several inputs that are tables; the part
            of a table by itself is "".
        extras: {name: value} of what the method gives besides. Of texts `tokens`, the words of each row of the map, and
            `special` (N, T), which of them the tokenizer added.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.grad_cam(box, x, y)
        >>> a.method, tuple(a.shape), tuple(a.score.shape), type(a + 1).__name__
        ('Grad-CAM', (2, 1, 28, 28), (2,), 'Tensor')
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    returns = "attribution"

    map: Any
    input: Any
    target: Tensor | Objective | None
    score: Tensor | None
    method: str
    layer: str | None
    classes: tuple[str, ...]
    unit: str
    slope: Slope | None
    columns: Mapping[str, tuple[str, ...]]
    values: Any = _maps_of_several_inputs  # of Shapley values and the like, the extra of this name

    def __new__(
        cls,
        data: Tensor,
        /,
        *,
        map: Any = None,
        input: Any = None,
        target: Tensor | Objective | None = None,
        score: Tensor | None = None,
        method: str = "",
        layer: str | None = None,
        classes: tuple[str, ...] = (),
        unit: str = "",
        slope: Slope | None = None,
        columns: Mapping[str, tuple[str, ...]] | None = None,
        **extras: Any,
    ) -> Self:
        if isinstance(map, Tensor):  # as the inputs came: of signals and volumes, of another shape than `data`
            data = map
        plain = data.detach() if map is None or data.requires_grad else data
        attribution = plain.as_subclass(cls)
        map = plain if map is None else map
        fields = (map, input, target, score, method, layer, classes, unit, slope, columns or {})
        vars(attribution).update(zip(COMMON_FIELD_NAMES, fields, strict=True), **extras)
        return attribution

    @property
    def extras(self) -> Mapping[str, Any]:
        """{name: value} of what the method gives besides the map, its target and its score."""
        return {name: value for name, value in vars(self).items() if name not in COMMON_FIELD_NAMES}

    def per_column_scale(self) -> Attribution:
        """The same with the slopes of a table per standard deviation, or range, of each column: so they can be ranked.

        The checks and figures take slopes like this, as those in the columns' own units depend on these. Other maps
        are returned as they are.
        """
        if self.slope is None:
            return self
        leaves, structure = tree_flatten(self.map)
        scales = self.detach().new_tensor(self.slope.scales)  # (D,)
        parts = torch.split(scales, [math.prod(leaf.shape[1:]) for leaf in leaves])
        scaled = [leaf * part.view(leaf.shape[1:]) for leaf, part in zip(leaves, parts, strict=True)]
        data = torch.cat([part.flatten(1) for part in scaled], 1) if len(scaled) > 1 else scaled[0]
        fields = vars(self) | {"map": tree_unflatten(scaled, structure), "unit": self.slope.unit, "slope": None}
        return self._from_data_and_fields(fields, data)

    def __getitem__(self, index: Any) -> Any:
        """A plain tensor of the map; by the name of an input, of several, the map of that one."""
        if isinstance(index, str):
            if not isinstance(self.map, Mapping) or index not in self.map:
                known = f"one of {', '.join(self.map)}" if isinstance(self.map, Mapping) else "it is one map"
                raise InputError(f"there is no map of {index!r}: {known}")
            return self.map[index]
        return super().__getitem__(index)

    def __getattr__(self, name: str) -> Any:
        """Of several inputs `keys` and `items`, as of a dict of maps: other maps have none, and are no mappings."""
        if name in ("keys", "items") and isinstance(vars(self).get("map"), Mapping):
            return getattr(self.map, name)
        extras = ", ".join(self.extras)
        besides = f"; besides the map it gives {extras}" if extras else ""
        raise AttributeError(f"{vars(self).get('method') or 'an attribution'} gives no {name!r}{besides}")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        fields = {
            "map": tree_map(lambda part: tuple(part.shape), self.map),
            "target": self.target.name if isinstance(self.target, Objective) else self.target,
            "score": self.score,
            "layer": self.layer,
        }
        texts = [f"{name}={_short_repr(value)}" for name, value in fields.items() if value is not None]
        return f"Attribution({', '.join([repr(self.method), *texts, *self.extras])})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if id(self) not in memo:
            memo[id(self)] = self._from_data_and_fields(copy.deepcopy(vars(self), memo), self.detach().clone())
        return memo[id(self)]  # type: ignore[no-any-return]

    def __copy__(self) -> Self:
        return self._from_data_and_fields(vars(self), self.detach())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickle, (type(self), self.detach(), dict(vars(self)))

    @classmethod
    def _from_data_and_fields(cls, fields: Mapping[str, Any], data: Tensor) -> Self:
        return cls(data, **fields)  # the map, where it is one tensor, shares its memory with the attribution


def _unpickle(cls: type[Attribution], data: Tensor, fields: dict[str, Any]) -> Attribution:
    return cls._from_data_and_fields(fields, data)


def _short_repr(value: Any) -> str:
    """A value on part of a line."""
    if not isinstance(value, Tensor):
        return str(value)
    listed = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in value[:MAX_REPR_VALUES].tolist()]
    return f"[{', '.join(listed)}{', ...' if len(value) > MAX_REPR_VALUES else ''}]"


def make_attribution(
    box: Box,
    data: Tensor,
    /,
    *,
    x: Tensor,
    method: str,
    target: Any,
    score: Tensor | None = None,
    over_embedding: EmbeddingReduction = "sum",
    slope: str = "",
    slope_power: int = 1,
    **extras: Any,
) -> Attribution:
    """The result of a method that gives a value (N, ...) for each input value; several inputs get a map each.

    `x` are the checked inputs; `over_embedding` says what a token's number is, of texts. `target` is what the caller
    gave, or where that was None, the predicted classes. `slope` names a map that is per unit of the input, such as
    "slope of the score"; `slope_power` is 2 where it is of squares.
    """
    if slope and table_inputs(box.inputs) is not None:
        extras["slope"], extras["unit"] = slope_and_unit(box.inputs, slope, slope_power)
    return Attribution(
        data,
        map=restore_map(box, data, over_embedding),
        target=resolve_result_target(box, target, data.shape[0]),
        score=score,
        method=method,
        **extras,
        **fields_of_inputs(box, x),
    )


def fields_of_inputs(box: Box, x: Tensor) -> dict[str, Any]:
    """What an attribution says of the checked inputs x, whatever the method."""
    fields = {"input": box.restore_structure(x), "classes": box.classes, "columns": _column_names_by_part(box.inputs)}
    if isinstance(box.inputs, Tokens):
        fields |= {"tokens": box.inputs.token_texts(x), "special": box.inputs.is_special(x)}
    return fields


def _column_names_by_part(inputs: Inputs) -> dict[str, tuple[str, ...]]:
    parts = inputs.keys_and_parts() if isinstance(inputs, MultiInput) else [("", inputs)]
    return {str(key): tuple(map(str, part.names)) for key, part in parts if isinstance(part, Features)}


def restore_map(box: Box, h: Tensor, over_embedding: EmbeddingReduction) -> Any:
    """A packed map (N, ...) in the structure of the inputs; of texts one number per token (N, T)."""
    if isinstance(box.inputs, Tokens):
        return box.inputs.reduce_map_over_embedding(h, over_embedding)
    return box.restore_structure(h)


def resolve_result_target(box: Box, target: Any, n: int) -> Tensor | Objective | None:
    """A target as a result holds it: classes (n,) or the objective. It was checked when its objective was made."""
    if isinstance(target, Tensor) and target.ndim < 2 and not target.is_inference():
        labels = target.to(box.device, torch.long, copy=True)
        return labels if labels.ndim else labels.expand(n)
    if isinstance(target, Integral):
        return torch.full((n,), int(target), device=box.device)
    return target if target is None or isinstance(target, Objective) else box.class_labels(target, n)


def target_or_predicted_classes(objective: Objective, target: Any) -> Any:
    """The target that an objective of `resolve_target` explains: where it was None, the classes predicted."""
    if target is None and objective.call is not None:
        classes = objective.call[1][0]
        return classes.value if isinstance(classes, Constant) else classes
    return target
