"""CKA: the similarity of all layers of two models (linear centered kernel alignment), in minibatches.

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edits import require_unit_layer, unit_layer_addresses
from ..engine.results import ResultMixin
from ..errors import DataError, InputError, warn
from ..inputs.examples import input_batches, open_data
from ..inputs.multi import MultiInput
from ..inputs.pixels import Pixels
from ..parameters import BatchSize, Data
from ..settings import AtLeast, Unit, ValueRole, check_settings
from ..validation import address_list

MIN_HSIC_EXAMPLES = 4  # examples that HSIC_1 needs
CONSTANT_FEATURE_TOLERANCE_ULPS = 32  # units in the last place by which a constant feature may seem to vary
MAX_GROUP_ACTIVATION_BYTES = 2**29  # of one minibatch's activations at a time; a larger layer is read alone


@dataclass(frozen=True, eq=False, repr=False)
class CKA(ResultMixin):
    """The similarity of each layer of one model with each layer of another."""

    returns: ClassVar[str] = "table"

    layers_a: tuple[str, ...]  # addresses, the rows of `cka`
    layers_b: tuple[str, ...]  # addresses, the columns of `cka`
    cka: Tensor  # (La, Lb), NaN where a layer is (nearly) constant over the examples
    n_examples: int
    n_minibatches: int


def _flip_left_right(box: Box, x: Tensor) -> Tensor:
    """Images flipped from left to right, other inputs in the opposite order; of several, each in its own shape."""
    if not isinstance(box.inputs, MultiInput):
        return x.flip(-1 if isinstance(box.inputs, Pixels) else 0)
    parts = zip(box.inputs.keys_and_parts(), box.inputs.split(x), strict=True)
    return torch.cat([h.flip(-1 if isinstance(part, Pixels) else 0).flatten(1) for (_, part), h in parts], 1)


def _run_card_example(method: Any, box: Box, x: Tensor) -> Any:
    """CKA of the last two layers with weights, on the examples and their mirror images."""
    weighted = [path for path in unit_layer_addresses(box) if box.layers[path].n_parameters]
    layers = (weighted if len(weighted) > 1 else unit_layer_addresses(box))[-2:]
    x = box.validate_inputs(x)
    return method(box, box, torch.cat([x, _flip_left_right(box, x)]), layers, layers)


@card(
    name="CKA",
    aliases=("centered_kernel_alignment",),
    source="Kornblith et al. 2019, arXiv:1905.00414; in minibatches: Nguyen et al. 2021, arXiv:2010.15327, eq. 3-4",
    shows="Which layers represent these examples alike, up to rotation and scale, in one model or in two.",
    does_not_show="That two layers compute the same: a few large directions dominate, and small ones may differ.",
    example=lambda method, box, x, y: _run_card_example(method, box, x),
    order=9,
)
def cka(
    box_a: Box,
    box_b: Box,
    data: Data,
    layers_a: Annotated[
        Sequence[str] | str | None,
        ValueRole("layers"),
        "Addresses of layers of the first model; None takes all of them.",
    ] = None,
    layers_b: Annotated[
        Sequence[str] | str | None,
        ValueRole("layers"),
        "Addresses of layers of the second model; None takes all of them.",
    ] = None,
    *,
    minibatch_size: Annotated[int, AtLeast(MIN_HSIC_EXAMPLES), Unit("examples"), "Examples per Gram matrix."] = 256,
    unbiased: Annotated[bool, "Use the unbiased estimator of HSIC."] = True,
    batch_size: BatchSize = "auto",
) -> CKA:
    """The similarity (linear CKA) of every layer of one model with every layer of another.

    To compare two models, or the layers of one, whatever their widths. It compares whole layers: for single examples
    use `nearest_neighbors`. `ub.checks.map_similarity` compares attribution maps.

    Args:
        box_a: The first model.
        box_b: The second model, or the first again; its inputs have the same shape.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors.
        layers_a: Addresses of layers of the first model; None takes all of them.
        layers_b: Addresses of layers of the second model; None takes all of them.
        minibatch_size: Examples per Gram matrix. A rest of fewer than 4 (2 for the biased estimator) is left out.
        unbiased: Use the unbiased estimator of HSIC. Its expected value does not depend on minibatch_size. False: the
            biased one; with one minibatch of all data that is CKA as first published, which is in [0, 1] but grows with
            the width of layers where examples are few.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `CKA`: `cka` (La, Lb), 1 for equal representations (up to rotation and scale), NaN for constant ones.

    Raises:
        InputError: for models with inputs of different shapes, or settings out of their range.
        DataError: for fewer examples than a minibatch needs.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(16)
        >>> result = ub.activations.cka(box, box, x, ["relu1", "fc1"], ["relu1", "fc1"])
        >>> result.cka.diagonal().round(decimals=3).tolist()
        [1.0, 1.0]

    Source:
        Kornblith et al. 2019, arXiv:1905.00414; minibatches: Nguyen et al. 2021, arXiv:2010.15327, equations 3 and 4:
        sum_i HSIC(X_i X_i', Y_i Y_i') / sqrt(sum_i HSIC(X_i X_i', X_i X_i') * sum_i HSIC(Y_i Y_i', Y_i Y_i')), with
        HSIC_1 of Song et al. 2012.
    """
    check_settings(cka, locals())
    min_examples = MIN_HSIC_EXAMPLES if unbiased else 2
    if box_a.inputs.shape != box_b.inputs.shape:
        raise InputError(
            f"the models must take inputs of the same shape; got {box_a.inputs.shape} and {box_b.inputs.shape}"
        )
    a, b = _resolve_cka_layers(box_a, layers_a), _resolve_cka_layers(box_b, layers_b)
    hsic_sums, examples, count = _HsicSums(len(a), len(b)), 0, 0
    for x in input_batches(open_data(data, box_a.inputs), minibatch_size):
        if len(x) >= min_examples:
            ka = _gram_matrices(box_a, x, a, batch_size)
            kb = ka if box_a is box_b and a == b else _gram_matrices(box_b, x, b, batch_size)
            hsic_sums.add_minibatch(ka, kb, unbiased_hsic if unbiased else biased_hsic)
            examples, count = examples + len(x), count + 1
    if not count:
        raise DataError(f"cka needs at least {min_examples} examples")
    return CKA(a, b, _warn_if_nan(hsic_sums.cka()).to(box_a.device, box_a.dtype), examples, count)


def _resolve_cka_layers(box: Box, layers: Sequence[str] | str | None) -> tuple[str, ...]:
    if layers is None:
        return unit_layer_addresses(box)
    return tuple(require_unit_layer(box, path) for path in address_list(layers))


def _warn_if_nan(values: Tensor) -> Tensor:
    if n := int(values.isnan().sum()):
        warn(
            f"{n} of {values.numel()} similarities are undefined (NaN): "
            "a layer is constant over the examples, or there are too few of them"
        )
    return values


class _HsicSums:
    """The sums over minibatches."""

    def __init__(self, n_layers_a: int, n_layers_b: int) -> None:
        self.cross, self.self_a, self.self_b = (
            torch.zeros(s, dtype=torch.float64) for s in ((n_layers_a, n_layers_b), (n_layers_a,), (n_layers_b,))
        )

    def add_minibatch(self, grams_a: Tensor, grams_b: Tensor, hsic: Any) -> None:
        self.cross += hsic(grams_a, grams_b)
        self.self_a += hsic(grams_a, grams_a, paired=True)
        self.self_b += hsic(grams_b, grams_b, paired=True)

    def cka(self) -> Tensor:
        norm = self.self_a.clamp_min(0).sqrt()[:, None] * self.self_b.clamp_min(0).sqrt()  # (La, Lb)
        return torch.where(norm > 0, self.cross / norm, math.nan)


def unbiased_hsic(k: Tensor, m: Tensor, paired: bool = False) -> Tensor:
    """HSIC_1 of Gram matrices (A, n, n) and (B, n, n): all pairs (A, B), or row by row (A,).

    [tr(K~ M~) + 1'K~1 1'M~1 / ((n-1)(n-2)) - 2 / (n-2) 1'K~ M~ 1] / (n(n-3)), K~ and M~ without their diagonals.
    """
    n = k.shape[-1]
    off_diagonal = 1 - torch.eye(n, dtype=k.dtype)
    k, m = k * off_diagonal, m * off_diagonal
    rows_k, rows_m = k.sum(2), m.sum(2)  # (A, n), (B, n)
    trace, cross = _row_inner_products(k.flatten(1), m.flatten(1), paired), _row_inner_products(rows_k, rows_m, paired)
    total = _row_inner_products(rows_k.sum(1, keepdim=True), rows_m.sum(1, keepdim=True), paired)
    return (trace + total / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def biased_hsic(k: Tensor, m: Tensor, paired: bool = False) -> Tensor:
    """HSIC_0: tr(K H M H) / (n-1)^2 with the centering matrix H (Gretton et al. 2005). Shapes: `unbiased_hsic`."""
    k, m = (g - g.mean(1, keepdim=True) - g.mean(2, keepdim=True) + g.mean((1, 2), keepdim=True) for g in (k, m))
    return _row_inner_products(k.flatten(1), m.flatten(1), paired) / (k.shape[-1] - 1) ** 2


def _row_inner_products(a: Tensor, b: Tensor, paired: bool) -> Tensor:
    """Inner products of rows (A, d) and (B, d): (A, B), or (A,) row by row."""
    return (a * b).sum(1) if paired else a @ b.T


def _gram_matrices(box: Box, x: Tensor, paths: Sequence[str], batch_size: BatchSize) -> Tensor:
    """The Gram matrices (L, n, n) of a minibatch, of few layers at a time, which bounds the memory."""
    grams: list[Tensor] = []
    for group in _memory_bounded_layer_groups(box, paths, len(x)):
        acts = box.read(x, group, batch_size=batch_size)
        grams += [centered_gram_matrix(acts[path]) for path in group]
    return torch.stack(grams)


def _memory_bounded_layer_groups(box: Box, paths: Sequence[str], n_examples: int) -> Iterator[list[str]]:
    """The layers in groups whose activations of n examples have at most MAX_GROUP_ACTIVATION_BYTES."""
    group: list[str] = []
    group_bytes = 0
    for path in paths:
        size = 0 if ":" in path else 8 * n_examples * math.prod(box.layers[path].shape)
        if group and group_bytes + size > MAX_GROUP_ACTIVATION_BYTES:
            yield group
            group, group_bytes = [], 0
        group, group_bytes = [*group, path], group_bytes + size
    if group:
        yield group


def centered_gram_matrix(h: Tensor) -> Tensor:
    """X X' (n, n) in double precision of activations (n, ...), centered: CKA is the same, and rounding is less."""
    flat = (torch.view_as_real(h) if h.is_complex() else h).flatten(1)
    scale = flat.abs().amax(0)
    flat = flat - flat.mean(0)
    varies = (
        flat.abs().amax(0) > CONSTANT_FEATURE_TOLERANCE_ULPS * torch.finfo(flat.dtype).eps * scale
    )  # by more than rounding
    flat = flat * varies
    return (flat @ flat.T).to("cpu", torch.float64)
