"""Baselines: what an input is compared with, as no input represents "absent" by itself.

Sundararajan et al. 2017, arXiv:1703.01365; Sturmfels et al. 2020, "Visualizing the Impact of Feature Attribution
Baselines" (Distill), compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ... import rng
from ...box import Box
from ...errors import InputError
from ...inputs.base import Inputs, in_order_of_columns
from ...inputs.features import Features
from ...inputs.frames import frame_to_rows, is_data_frame, series_to_array
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels
from ...inputs.tokens import Tokens
from ...model.nan_checks import check_finite_scores
from ...settings import AlsoNamed, ValueRole
from ...validation import check_float, valid_seed

Baseline = Annotated[
    str | float | Tensor | NDArray[Any] | None,
    ValueRole("str"),
    AlsoNamed("baselines"),
    "What x is compared with: a kind, a number, a tensor or an array; None is black for images, for features the mean, "
    "or zeros where it is not known.",
]
"""The kinds are "black", "white", "mean" (of the data, as the normalization gives it), "blurred" (x itself, blurred)
and "random" (one draw per row) for images, "mean" and "random" for features. A number is taken for every value. A
tensor or array is one baseline for all (1, ...) or (...), or one per example (N, ...); so are a pandas Series and a
DataFrame, by the names of the columns. Several inputs take a dict or tuple of these, or one for all.
"""

ATTRIBUTION_UNIT = "attribution to the score"
BLUR_SIGMA_FRACTION = 0.1  # the blur's standard deviation, as a fraction of the shorter side
MAX_BLUR_MATRIX_SIDE = 2048  # of images; a longer signal is convolved, as a matrix of its length would be large


def baseline(box: Box, x: Tensor, kind: Any = None, *, seed: int = 0) -> Tensor:
    """The baseline of x (N, ...), inputs that the box has validated: shaped like x and in its units.

    `kind` is described at `Baseline`. Raises InputError.
    """
    seed = valid_seed(seed)
    if not isinstance(box.inputs, MultiInput):
        return _single_baseline(box.inputs, x, kind, seed)
    parts = _baseline_kind_per_input(box.inputs, kind)
    values = box.inputs.split(x)
    part_values = [
        _single_baseline(part, v, k, seed).flatten(1)
        for part, v, k in zip(_list_of_parts(box.inputs), values, parts, strict=True)
    ]
    return torch.cat(part_values, 1)


def _list_of_parts(multi: MultiInput) -> list[Inputs]:
    return list(multi.parts.values() if isinstance(multi.parts, Mapping) else multi.parts)


def _baseline_kind_per_input(multi: MultiInput, kind: Any) -> list[Any]:
    """One kind for each of several inputs."""
    if isinstance(kind, Mapping) and isinstance(multi.parts, Mapping) and set(kind) == set(multi.parts):
        return [kind[name] for name in multi.parts]
    if isinstance(kind, (Mapping, tuple, list)):
        if isinstance(kind, Mapping) or len(kind) != len(multi.parts):
            raise InputError("a baseline of several inputs is one for all, or one each, structured like the inputs")
        return list(kind)
    return [kind] * len(multi.parts)


def _single_baseline(inputs: Inputs, x: Tensor, kind: Any, seed: int) -> Tensor:
    if isinstance(inputs, Tokens):
        return _text_baseline(inputs, x, kind)
    kinds = IMAGE_BASELINES if isinstance(inputs, Pixels) else FEATURE_BASELINES
    if kind is None:
        return torch.zeros_like(x) if isinstance(inputs, Pixels) else _normalization_mean_baseline(inputs, x)
    kind = _array_to_tensor(inputs, kind)
    if isinstance(kind, str):
        if kind not in kinds:
            raise InputError(f"baseline is {', '.join(map(repr, kinds))}, a number or a tensor here; got {kind!r}")
        return kinds[kind](inputs, x, seed)
    if isinstance(kind, Tensor):
        return _broadcast_baseline(inputs, x, kind)
    return torch.full_like(x, check_float("baseline", kind))


def _array_to_tensor(inputs: Inputs, kind: Any) -> Any:
    """An array, a list of numbers, a Series or a DataFrame as a tensor; other kinds as they are. Raises InputError."""
    if is_data_frame(kind):
        kind = frame_to_rows(kind, inputs)
    elif isinstance(inputs, Features):
        kind = in_order_of_columns(kind, inputs.names)
    kind = series_to_array(kind)
    if not isinstance(kind, (np.ndarray, list, tuple)):
        return kind
    try:
        return torch.from_numpy(np.array(kind, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"a baseline must hold numbers: {error}") from error


def _text_baseline(inputs: Tokens, x: Tensor, kind: Any) -> Tensor:
    """Texts in which every token that is not special is masked, padding, or zero. Raises InputError."""
    kind = inputs.default_fill_kind if kind is None else kind
    if kind not in TEXT_BASELINES:
        raise InputError(f"baseline is {', '.join(map(repr, TEXT_BASELINES))} for texts; got {kind!r}")
    return inputs.fill_tokens(x, kind)


def _broadcast_baseline(inputs: Inputs, x: Tensor, baseline_values: Tensor) -> Tensor:
    """A baseline tensor, one for all or one per example, shaped like x. Raises InputError."""
    baseline_values = (
        baseline_values.detach()
        if tuple(baseline_values.shape) != tuple(inputs.shape)
        else baseline_values.detach()[None]
    )
    if tuple(baseline_values.shape[1:]) != tuple(x.shape[1:]) or len(baseline_values) not in (1, len(x)):
        one, each = tuple(x.shape[1:]), f" for all, or {tuple(x.shape)}" if len(x) > 1 else ""
        raise InputError(f"a baseline of these inputs has shape {one}{each}; got {tuple(baseline_values.shape)}")
    if baseline_values.is_complex() or not bool(baseline_values.isfinite().all()):
        raise InputError(f"a baseline must hold finite real numbers; got {baseline_values.dtype}, NaN or infinity")
    with torch.inference_mode(False):
        return baseline_values.to(x.device, x.dtype, copy=True).expand_as(x).contiguous()


BaselineFn = Callable[[Any, Tensor, int], Tensor]


def _random_baseline(inputs: Inputs, x: Tensor, seed: int) -> Tensor:
    """A random valid input per row."""
    if isinstance(inputs, Features):
        return inputs.clip(inputs.decode(rng.normal(x, seed)))
    return rng.uniform(x, seed)


def _normalization_mean_baseline(inputs: Any, x: Tensor, seed: int = 0) -> Tensor:
    """The input that is zero after normalization."""
    return inputs.decode(torch.zeros_like(x))  # type: ignore[no-any-return]


def _mean_baseline(inputs: Pixels | Features, x: Tensor, seed: int) -> Tensor:
    """The mean that the normalization subtracts. Raises InputError where it subtracts none, as inside of the model."""
    if not has_known_mean(inputs):
        settings = f"{type(inputs).__name__}({'names' if isinstance(inputs, Features) else 'shape'}, mean=..., std=...)"
        raise InputError(
            f'baseline="mean" is not known: these inputs have no mean. Pass that of your data, baseline=x.mean(0), or '
            f"open the model with {settings} if it takes normalized inputs"
        )
    return _normalization_mean_baseline(inputs, x)


def has_known_mean(inputs: Inputs) -> bool:
    """Whether the mean of the data is known from the normalization, for all of several inputs."""
    if isinstance(inputs, MultiInput):
        return all(map(has_known_mean, _list_of_parts(inputs)))
    return (
        inputs.has_mean if isinstance(inputs, Features) else bool(np.any(np.not_equal(getattr(inputs, "mean", 1), 0)))
    )


def baseline_of_row_means(inputs: Inputs, x: Tensor, *, tables_only: bool = False) -> Any:
    """The baseline "mean" of each input, and where that is not known the mean of the rows x (N, ...).

    With `tables_only` images have their default.
    """
    if isinstance(inputs, MultiInput):
        parts = zip(_list_of_parts(inputs), inputs.split(x), strict=True)
        return [baseline_of_row_means(part, values, tables_only=tables_only) for part, values in parts]
    if tables_only and not isinstance(inputs, Features):
        return None
    return "mean" if has_known_mean(inputs) else x.double().mean(0)


def unit_of_contributions(inputs: Inputs, kind: Any, unit: str = "") -> str:
    """The unit of contributions, which says where their default baseline is zeros, as a table has no known mean."""
    parts = _list_of_parts(inputs) if isinstance(inputs, MultiInput) else [inputs]
    is_zeros = kind is None and any(isinstance(part, Features) and not part.has_mean for part in parts)
    return f"{unit or ATTRIBUTION_UNIT} (baseline: zeros)" if is_zeros else unit


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Images (..., H, W), each under a Gaussian blur; the border is replicated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    h = x.reshape(-1, 1, *x.shape[-2:])
    return _blur_rows(_blur_rows(h, kernel).mT, kernel).mT.reshape(x.shape)


def _blur_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """Rows (N, 1, H, W), each convolved with a kernel (2 r + 1,): by a matrix, many times faster where r is large."""
    width, radius = x.shape[-1], len(kernel) // 2
    if width > MAX_BLUR_MATRIX_SIDE:
        return F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    source = (torch.arange(width)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, width - 1)  # (W, 2 r + 1)
    weights = kernel.cpu().expand(source.shape)  # added on the CPU, in one order
    return x @ torch.zeros(width, width, dtype=x.dtype).scatter_add_(1, source, weights).to(x.device).mT


def blur_sigma(x: Tensor) -> float:
    """The standard deviation of a blur of images (..., H, W): a tenth of the shorter side, or of a signal."""
    return BLUR_SIGMA_FRACTION * shorter_side(*x.shape[-2:])


def shorter_side(height: int, width: int) -> int:
    """The shorter side of an image; a signal is one row, and has its length."""
    return min((side for side in (height, width) if side > 1), default=1)


def _blurred_baseline(inputs: Pixels | Features, x: Tensor, seed: int) -> Tensor:
    """Images under a blur; the slices of a volume each by itself."""
    slices = inputs.slices(x) if isinstance(inputs, Pixels) else x
    return gaussian_blur(slices, blur_sigma(slices)).reshape(x.shape)


TEXT_BASELINES = ("mask", "pad", "zero")
IMAGE_BASELINES: Mapping[str, BaselineFn] = {
    "black": lambda inputs, x, seed: torch.zeros_like(x),
    "white": lambda inputs, x, seed: torch.ones_like(x),
    "mean": _mean_baseline,
    "blurred": _blurred_baseline,
    "random": _random_baseline,
}
FEATURE_BASELINES: Mapping[str, BaselineFn] = {"mean": _mean_baseline, "random": _random_baseline}


def score_difference(score: Tensor, baseline_score: Tensor) -> Tensor:
    """The scores of x less those of the baseline, (N,), which contributions sum to. Raises NaNError where it is NaN.

    Any comparison with NaN is false, so a completeness error of NaN would pass unnoticed.
    """
    check_finite_scores(score)
    check_finite_scores(baseline_score, "the baseline (or a reference)")
    return score - baseline_score
