"""The figures of tuples and dicts of results, and of plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ...errors import InputError
from ..charts import matrix_plot
from ..compare import side_by_side
from ..draw import filters
from ..figures import Figures, figures
from .activations import layer_maps_figures
from .common import MAX_EXAMPLES_PER_FIGURE, as_images_or_none, numbered_names

if TYPE_CHECKING:
    from ...box import Box


@figures.register(tuple)
@figures.register(list)
def _figures_of_result_sequence(results: Sequence[Any], box: Box | None = None, *, data: Any = None) -> Figures:
    """Of several results, such as one per layer: each one's own figures, with its layer in the name."""
    if joint := layer_maps_figures(results):
        return joint
    names = [str(getattr(result, "path", i)) for i, result in enumerate(results)]
    return _merge_figures_by_name(
        {name: figures(result, box, data=data) for name, result in zip(names, results, strict=True)}
    )


@figures.register(Mapping)
def _figures_of_results_by_name(results: Mapping[Any, Any], box: Box | None = None, *, data: Any = None) -> Figures:
    """{model: result}: maps and images of one shape side by side, else each one's own figures, with its name."""
    if len(results) > 1 and all(_is_map_or_image(result) for result in results.values()):
        with suppress(InputError):  # of several shapes
            some = next(iter(results.values()))
            x = as_images_or_none(getattr(some, "input", None))
            first = {name: _maps_of_first_examples(result) for name, result in results.items()}
            x, title = None if x is None else x[:MAX_EXAMPLES_PER_FIGURE], str(getattr(some, "method", ""))
            return {"side by side": side_by_side(first, x, title=title)}
    return _merge_figures_by_name({str(name): figures(result, box, data=data) for name, result in results.items()})


def _is_map_or_image(result: Any) -> bool:
    return hasattr(result, "images") or (isinstance(result, Tensor) and result.ndim == 4)


def _maps_of_first_examples(result: Any) -> Any:
    """Those of the first examples."""
    return result if hasattr(result, "images") else result[:MAX_EXAMPLES_PER_FIGURE]


def _merge_figures_by_name(parts: Mapping[str, Figures]) -> Figures:
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {f"{kind} of {name}": image for name, images in parts.items() for kind, image in images.items()}


@figures.register(Tensor)
def _tensor_figures(values: Tensor, box: Box | None = None, *, data: Any = None) -> Figures:
    """A plain tensor: filters or maps (N, C, H, W) as signed images; numbers (N,) or (N, K) as a matrix."""
    if values.ndim == 4:
        return {"maps": filters(values, title=" × ".join(map(str, values.shape)))}
    if values.ndim not in (1, 2) or not values.numel():
        return {}
    table = values[:, None] if values.ndim == 1 else values
    shown = table[:32, :32]
    kind: Literal["magnitude", "signed"] = "signed" if bool((shown < 0).any()) else "magnitude"
    return {"values": matrix_plot(shown, numbered_names(len(shown), ""), numbered_names(shown.shape[1], ""), kind=kind)}
