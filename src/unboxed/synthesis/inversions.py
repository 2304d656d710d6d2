"""Inversion layer by layer: how much of the image is represented at each depth."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.features import resolve_address
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..engine.rows import evenly_spaced_indices
from ..errors import LayerError, OutputError
from ..model.layers import Layer
from ..parameters import BatchSize, InputBatch, LayerAddresses, NStartsPerInput, Seed, Steps
from ..settings import check_settings
from ..validation import address_list
from .inversion import Inversion, inversion

MAX_DEFAULT_INVERTED_LAYERS = 6  # where none are named


@dataclass(frozen=True, eq=False, repr=False)
class Inversions(ResultMixin):
    """The same inputs inverted from several layers; the axis L runs over `layers`."""

    returns: ClassVar[str] = "images"

    layers: tuple[str, ...]  # L addresses
    images: Tensor  # (L, M, C, H, W), M = N * n_starts
    source_rows: Tensor  # (M,) the row of x that was inverted
    errors: Tensor  # (L, M) |h(z) - h(x)|^2 / |h(x)|^2
    cosines: Tensor  # (L, M) between h(z) and h(x)
    names: tuple[str, ...]  # (M,) of the inputs: "example 0" and so on
    interrupted: bool  # by Ctrl-C: layers that were not begun have their start
    method: str = "Inversion, layer by layer"


@card(
    name="Inversion, layer by layer",
    source="Mahendran & Vedaldi 2015, arXiv:1412.0035, figure 6",
    shows="How much of the image is still represented at each depth.",
    does_not_show="That what is lost was useless: two images with equal activations may be two classes to a person.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, ["logits"], steps=3),
    exempt={"row seeds": "its images have the axis of layers in front; `inversion` keeps the contract"},
    runs=lambda s: MAX_DEFAULT_INVERTED_LAYERS * s["n_starts"] * (s["steps"] + 2),
    order=8,
)
def inversions(
    box: Box,
    x: InputBatch,
    layers: LayerAddresses = None,
    *,
    steps: Steps = 200,
    n_starts: NStartsPerInput = 1,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Inversions:
    """`inversion` of the same images from several layers: how much of them is represented at each depth.

    An overview of the depth of a model; for the settings of one inversion, frames or other metrics use `inversion`.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        layers: Addresses of the layers, as `box.layers` lists them. None: up to 6, the last layer of each shape, evenly
            over the depth, and the logits.
        steps: Number of iterations. For each layer.
        n_starts: Images per input, each from another random start.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `Inversions`: `images` (L, M, C, H, W) of M = N * n_starts, `errors` (L, M), `cosines` (L, M).

    Raises:
        InputError: for inputs that are not images, or settings out of their range.
        LayerError: for an unknown layer, or an empty list of layers.
        NaNError: where the score of an image that it makes is NaN.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(1)
        >>> result = ub.synthesis.inversions(box, x, ["relu1", "logits"], steps=2)
        >>> result.layers, tuple(result.images.shape), tuple(result.errors.shape)
        (('relu1', 'logits'), (2, 1, 1, 28, 28), (2, 1))

    Source:
        Mahendran & Vedaldi 2015, arXiv:1412.0035, figure 6; deviations as for `inversion`.
    """
    check_settings(inversions, locals())
    require_images(box, "inversion")
    x = box.validate_inputs(x)
    requested = layers_across_depth(box, x) if layers is None else address_list(layers)
    addresses = [resolve_address(box, a) for a in requested]
    if not addresses:
        raise LayerError("no layers to invert: name one, such as 'logits'")
    results: list[Inversion] = []
    for path in addresses:
        n = 0 if any(m.interrupted for m in results) else steps
        results.append(inversion(box, x, path, steps=n, n_starts=n_starts, seed=seed, batch_size=batch_size))
    return Inversions(
        layers=tuple(addresses),
        images=torch.stack([m.images for m in results]),
        source_rows=results[0].source_rows,
        errors=torch.stack([m.errors for m in results]),
        cosines=torch.stack([m.cosines for m in results]),
        names=results[0].names,
        interrupted=any(m.interrupted for m in results),
    )


def layers_across_depth(box: Box, x: Tensor, max_layers: int = MAX_DEFAULT_INVERTED_LAYERS) -> list[str]:
    """Layers at different depths: the last one of each shape, evenly, and the outputs."""
    rows = [
        r
        for r in _layers_outside_blocks(box)
        if r.has_batch_axis and r.shape and r.n_calls == 1 and not r.type.startswith(("Dropout", "Flat"))
    ]
    last_of_shape = [list(group)[-1] for _, group in groupby(rows, key=lambda r: r.shape)]
    while last_of_shape and last_of_shape[-1].shape == (box.n_outputs,):
        last_of_shape.pop()
    n = min(max_layers - 1, len(last_of_shape))
    indices = evenly_spaced_indices(len(last_of_shape), n) if n > 1 else [len(last_of_shape) // 2][:n]
    return [*(last_of_shape[i].path for i in indices), _logits_or_output_address(box, x)]


def _layers_outside_blocks(box: Box) -> list[Layer]:
    """The modules outside of blocks, one after another; all leaves where that leaves one."""
    sequences = {r.path for r in box.layers if r.type == "Sequential"}
    run_paths = {r.path for r in box.layers}  # not containers whose parts are called by their owner (ModuleList)

    def is_outside_blocks(path: str) -> bool:
        parent = path.rpartition(".")[0]
        return not parent or ((parent in sequences or parent not in run_paths) and is_outside_blocks(parent))

    trunk = [r for r in box.layers if r.path not in sequences and is_outside_blocks(r.path)]
    return trunk if len(trunk) > 1 else list(box.layers.leaves)


def _logits_or_output_address(box: Box, x: Tensor) -> str:
    try:
        box(x[:1])
    except OutputError:
        return "output"
    return "logits"
