"""Inversion layer by layer: how much of the picture survives at each depth?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.sizes import require_images
from ..errors import LayerError, OutputError
from ..model.batching import BatchSize
from ..model.layers import Layer
from .inversion import Inversion, inversion, resolve_address

MAX_DEFAULT_LAYERS = 6  # where none are named


@dataclass(frozen=True, eq=False)
class Inversions:
    """The same inputs inverted from several layers; the axis L runs over `layers`."""

    layers: tuple[str, ...]
    images: Tensor  # (L, M, C, H, W)
    source_rows: Tensor  # (M,)
    errors: Tensor  # (L, M)
    cosines: Tensor  # (L, M)
    interrupted: bool


@card(
    name="Inversion, layer by layer",
    source="Mahendran & Vedaldi 2015, arXiv:1412.0035, figure 6",
    shows="How much of the picture survives at each depth.",
    does_not_show="That what is lost was useless: two images that a layer "
    "can't tell apart may be two classes to a person.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, ["logits"], steps=3),
    exempt={"row seeds": "its images have the axis of layers in front; `inversion`, which draws them, keeps the law"},
)
def inversions(
    box: Box,
    x: Tensor,
    layers: Sequence[str] | None = None,
    *,
    steps: int = 200,
    starts: int = 1,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Inversions:
    """`inversion` of the same images x (N, C, H, W) from each of some layers.

    By default from up to 6: the last layer of a shape, evenly over the depth, and the outputs alone. After Ctrl-C the
    layers not begun hold their start. Raises InputError, LayerError.
    """
    require_images(box, "inversion")
    x = box.validate_inputs(x)
    requested = [layers] if isinstance(layers, str) else layers
    addresses = layers_by_depth(box, x) if requested is None else [resolve_address(box, a) for a in requested]
    if not addresses:
        raise LayerError("no layers to invert: name one, such as 'logits'")
    results: list[Inversion] = []
    for path in addresses:
        n = 0 if any(m.interrupted for m in results) else steps
        results.append(inversion(box, x, path, steps=n, starts=starts, seed=seed, batch_size=batch_size))
    images, errors, cosines = (torch.stack([getattr(m, f) for m in results]) for f in ("images", "errors", "cosines"))
    return Inversions(
        tuple(addresses), images, results[0].source_rows, errors, cosines, any(m.interrupted for m in results)
    )


def layers_by_depth(box: Box, x: Tensor, max_layers: int = MAX_DEFAULT_LAYERS) -> list[str]:
    """Places at different depths: the last layer of each shape, evenly, and the outputs alone."""
    rows = [
        r
        for r in _trunk_layers(box)
        if r.has_batch_axis and r.shape and r.n_calls == 1 and not r.type.startswith(("Dropout", "Flat"))
    ]
    last_of_shape = [list(group)[-1] for _, group in groupby(rows, key=lambda r: r.shape)]
    while last_of_shape and last_of_shape[-1].shape == (box.n_outputs,):
        last_of_shape.pop()
    n = min(max_layers - 1, len(last_of_shape))
    indices = (
        [round(i * (len(last_of_shape) - 1) / (n - 1)) for i in range(n)] if n > 1 else [len(last_of_shape) // 2][:n]
    )
    return [*(last_of_shape[i].path for i in indices), _output_address(box, x)]


def _trunk_layers(box: Box) -> list[Layer]:
    """The modules that all the work runs through, not what lies inside blocks; all leaves where that leaves one."""
    sequences = {r.path for r in box.layers if r.type == "Sequential"}
    run_paths = {
        r.path for r in box.layers
    }  # not a ModuleList, nor another container whose parts are called by its owner

    def is_outside_blocks(path: str) -> bool:
        parent = path.rpartition(".")[0]
        return not parent or ((parent in sequences or parent not in run_paths) and is_outside_blocks(parent))

    trunk = [r for r in box.layers if r.path not in sequences and is_outside_blocks(r.path)]
    return trunk if len(trunk) > 1 else list(box.layers.leaves)


def _output_address(box: Box, x: Tensor) -> str:
    try:
        box(x[:1])
    except OutputError:
        return "output"
    return "logits"
