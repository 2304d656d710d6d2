"""What the faithfulness metrics share: maps that fit their inputs, one fixed score, and many perturbed inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..engine.cpu_cache import forward_batch_size_and_max_rows
from ..engine.memory_format import faster_memory_format
from ..engine.perturb.masking import class_probability_objective
from ..engine.results import attribution_map
from ..errors import InputError, OutputError
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..model.batching import BatchSize, run_all_example_variants
from ..objectives import Objective, mean_over_positions
from ..parameters import InputBatch, Seed, Target
from ..validation import valid_seed

ClassScoreKind = Literal["probability", "logit"]
ScoreSetting = Annotated[ClassScoreKind | None, 'What is measured of the class: its "probability" or its "logit".']
PerturbFn = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""(examples (R,), samples (R,)) -> the perturbed inputs (R, ...), and any further numbers (R,) per perturbation."""


# -- maps ------------------------------------------------------------------------------------------------------------


def align_maps(box: Box, x: Tensor, maps: Any, *, per_column_scale: bool = True) -> Tensor:
    """Maps of x (N, ...), or of a result, on its device in double precision: shaped like x, or (N, 1, H, W).

    A result's slopes of a table are taken per scale of each column, unless they are wanted as they are. Raises
    InputError for another shape, and for NaN or infinite values.
    """
    if isinstance(box.inputs, MultiInput) and isinstance(maps, (Mapping, tuple, list)):
        maps = _concatenate_maps(box.inputs, maps)
    packed = box.inputs.pack(attribution_map(maps, per_column_scale=per_column_scale).detach())
    aligned = packed.to(x.device, torch.float64)
    shapes = _allowed_map_shapes(box, x)
    if tuple(aligned.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise InputError(f"wanted maps of shape {wanted}, like the inputs; got {tuple(aligned.shape)}")
    check_finite_maps(aligned)
    return aligned


def _allowed_map_shapes(box: Box, x: Tensor) -> list[tuple[int, ...]]:
    """The shapes that maps of x may have: of images also one channel, of texts a number per token."""
    if isinstance(box.inputs, Tokens):
        return [tuple(x.shape[:2])]
    one_channel_shape = (len(x), 1, *x.shape[2:]) if isinstance(box.inputs, Pixels) else tuple(x.shape)
    return [*dict.fromkeys((tuple(x.shape), one_channel_shape))]


def _concatenate_maps(inputs: MultiInput, maps: Any) -> Tensor:
    """(N, D) of a structure of maps. Raises InputError where it is not structured like the inputs."""
    values, parts = inputs.values_of_parts(maps), [part for _, part in inputs.keys_and_parts()]
    for value, part in zip(values, parts, strict=True):
        if not isinstance(value, Tensor) or tuple(part.pack(value).shape[1:]) != tuple(part.shape):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"wanted a map (N, {', '.join(map(str, part.shape))}) for each input; got {got}")
    return inputs.pack(maps)


def check_finite_maps(maps: Tensor) -> None:
    """Raise InputError for maps (N, ...) with NaN or infinite values."""
    bad_rows = (~torch.isfinite(maps)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad_rows:
        raise InputError(f"NaN or infinite values in {len(bad_rows)} of {len(maps)} maps (first: map {bad_rows[0]})")


def removal_mask_shape(box: Box) -> tuple[int, ...]:
    """The shape of the features that are removed: pixels with all channels (1, H, W), columns (F,), tokens (T, 1)."""
    if isinstance(box.inputs, Tokens):
        return (-1, 1)  # as many as the longest text has
    shape = tuple(box.inputs.shape)
    return (1, *shape[1:]) if isinstance(box.inputs, Pixels) else shape


def pixel_importance(box: Box, x: Tensor, maps: Any, *, signed: bool = True) -> Tensor:
    """(N, P): the map at each pixel, summed over channels with its sign, or (`signed=False`) by its magnitude."""
    aligned = align_maps(box, x, maps)
    aligned = aligned if signed else aligned.abs()
    return (aligned.sum(1) if isinstance(box.inputs, Pixels) else aligned).flatten(1)


def removable_tokens(box: Box, x: Tensor) -> Tensor | None:
    """(N, T) bool: of texts, the tokens that may be removed, which the tokenizer did not add; None of other inputs."""
    return ~box.inputs.is_special(x) if isinstance(box.inputs, Tokens) else None


def n_removable_per_example(box: Box, x: Tensor, n_features: int) -> Tensor:
    """How many of each example's features may be removed (N,)."""
    removable = removable_tokens(box, x)
    return torch.full((len(x),), n_features, device=x.device) if removable is None else removable.sum(1)


def apply_to_removable_tokens(f: Callable[..., Tensor], removable: Tensor | None, *maps: Tensor) -> Tensor:
    """f (N,) of maps (N, ...); of texts, of each one's removable tokens alone. NaN for a text without any."""
    if removable is None:
        return f(*maps)
    rows = [
        f(*(h[i : i + 1, keep] for h in maps)) if bool(keep.any()) else maps[0].new_full((1,), math.nan)
        for i, keep in enumerate(removable)
    ]
    return torch.cat(rows)


def rank_descending(values: Tensor, seed: int, removable: Tensor | None = None) -> Tensor:
    """The rank (N, P) of each value in its row, 0 is the largest; equal values are ordered at random per row.

    What can't be removed comes last.
    """
    values = values if removable is None else values.masked_fill(~removable, -math.inf)
    shuffled = rng.uniform(values, seed).argsort(dim=1, stable=True)
    order: Tensor = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


def random_maps(box: Box, x: InputBatch, *, seed: Seed = 0) -> Any:
    """Maps of uniform noise: the control for `deletion`, `insertion`, `road` and the other metrics.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        seed: Seed of all random draws: same seed, same result. Each example has its own map.

    Returns:
        Maps (N, 1, H, W) in [0, 1); for features shaped like x, for texts (N, T), for several inputs structured like
        them.

    Raises:
        InputError: for inputs that do not fit.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.checks.random_maps(box, x).shape
        torch.Size([2, 1, 28, 28])
    """
    x, seed = box.validate_inputs(x), valid_seed(seed)
    if isinstance(box.inputs, Tokens):
        return rng.uniform(x[..., 0], seed)
    template = x[:, :1] if isinstance(box.inputs, Pixels) else x
    return box.restore_structure(rng.uniform(template, seed))


# -- the score -------------------------------------------------------------------------------------------------------


def fix_score_and_classes(
    box: Box, x: Tensor, target: Target, score: ClassScoreKind | None, default: ClassScoreKind, batch_size: BatchSize
) -> tuple[Objective, Tensor | None]:
    """The score of `target`, fixed for x and all perturbed inputs, and its classes (N,), if it is a score of classes.

    None is the class predicted for x. Raises InputError or OutputError.
    """
    if isinstance(target, Objective):
        if score is not None:
            raise InputError("an objective is the score itself: leave out score=, or give a class as the target")
        return box.check_objective(target, len(x)), None
    if (score or default) == "probability" and box.outputs == "regression":
        raise OutputError(
            'a regression model gives no probabilities: pass score="logit", or an objective as the target'
        )
    classes = (
        mean_over_positions(box(x, batch_size=batch_size)).argmax(1)
        if target is None
        else box.class_labels(target, len(x))
    )
    is_logit = (score or default) == "logit"
    return box.objective(classes, len(x)) if is_logit else class_probability_objective(box, classes), classes


# -- perturbed inputs --------------------------------------------------------------------------------------------------


def perturbed_scores(
    box: Box,
    objective: Objective,
    n_examples: int,
    n_perturbations: int,
    perturb: PerturbFn,
    batch_size: BatchSize,
    *,
    predict: bool = False,
) -> list[Tensor]:
    """The scores (N, K) of n examples under each of K perturbations, and the further numbers that `perturb` returns.

    With `predict` the predicted classes (N, K) come last. Pairs of example and perturbation share bounded batches; of a
    batch-dependent model or objective, a batch is all examples under one perturbation.
    """

    addresses = objective.layers | ({"logits"} if predict else set())
    layout = faster_memory_format(box, addresses, n_examples * n_perturbations)

    def score_rows(examples: Tensor, samples: Tensor) -> list[Tensor]:
        with box.isolated(grad=False):
            x, *extras = perturb(examples, samples)
            acts = box.forward(x.to(memory_format=layout), addresses)
            columns = [objective.rows(examples)(acts).to(torch.float64), *extras]
            return [*columns, mean_over_positions(acts["logits"]).argmax(1)] if predict else columns

    together, plan = (
        box.batch_dependent or objective.batch_dependent,
        forward_batch_size_and_max_rows(box, n_examples * n_perturbations, batch_size),
    )
    return run_all_example_variants(score_rows, n_examples, n_perturbations, plan, together, box.device)


def scores_of_unperturbed_inputs(box: Box, objective: Objective, x: Tensor, batch_size: BatchSize) -> Tensor:
    """The score (N,) of x itself, in double precision."""
    return perturbed_scores(box, objective, len(x), 1, lambda examples, samples: [x[examples]], batch_size)[0][:, 0]


def keyed_noise(
    sampler: Callable[..., Tensor], shape: Sequence[int], like: Tensor, seed: int, rows: Tensor, samples: Tensor
) -> Tensor:
    """(R, *shape): a draw per pair of row and sample, keyed by (seed, row, sample), however they are batched."""
    noise = []
    for row, sample in zip(rows.tolist(), samples.tolist(), strict=True):
        generator = rng.sample_generator(seed, row, sample, like.device)
        noise.append(sampler(tuple(shape), generator=generator, device=like.device, dtype=like.dtype))
    return torch.stack(noise)
