"""Inversion layer by layer: how much of the picture survives at each depth?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.sizes import images_only
from ..errors import LayerError, OutputError
from ..model.batching import BatchSize
from ..model.layers import Layer
from .inversion import Inversion, address, inversion

LAYERS = 6  # where none are named


@dataclass(frozen=True, eq=False)
class Inversions:
    """The same inputs inverted from several layers; the axis L runs over `layers`."""

    layers: tuple[str, ...]
    images: Tensor  # (L, M, C, H, W)
    source: Tensor  # (M,)
    errors: Tensor  # (L, M)
    cosines: Tensor  # (L, M)
    interrupted: bool


@card(
    name="Inversion, layer by layer",
    source="Mahendran & Vedaldi 2015, arXiv:1412.0035, figure 6",
    shows="How much of the picture survives at each depth.",
    does_not_show="That what is lost was useless: two images that a layer can't tell apart may be two classes to a person.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, x, ["logits"], steps=3),
    exempt={
        "draws of rows": "its images have the axis of layers in front; `inversion`, which draws them, keeps the law"
    },
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
    images_only(box, "inversion")
    x = box.validate_inputs(x)
    given = [layers] if isinstance(layers, str) else layers
    chosen = depths(box, x) if given is None else [address(box, a) for a in given]
    if not chosen:
        raise LayerError("no layers to invert: name one, such as 'logits'")
    made: list[Inversion] = []
    for path in chosen:
        n = 0 if any(m.interrupted for m in made) else steps
        made.append(inversion(box, x, path, steps=n, starts=starts, seed=seed, batch_size=batch_size))
    images, errors, cosines = (torch.stack([getattr(m, f) for m in made]) for f in ("images", "errors", "cosines"))
    return Inversions(tuple(chosen), images, made[0].source, errors, cosines, any(m.interrupted for m in made))


def depths(box: Box, x: Tensor, most: int = LAYERS) -> list[str]:
    """Places at different depths: the last layer of each shape, evenly, and the outputs alone."""
    rows = [
        r
        for r in _trunk(box)
        if r.has_batch_axis and r.shape and r.n_calls == 1 and not r.type.startswith(("Dropout", "Flat"))
    ]
    last = [list(group)[-1] for _, group in groupby(rows, key=lambda r: r.shape)]
    while last and last[-1].shape == (box.n_outputs,):
        last.pop()
    n = min(most - 1, len(last))
    at = [round(i * (len(last) - 1) / (n - 1)) for i in range(n)] if n > 1 else [len(last) // 2][:n]
    return [*(last[i].path for i in at), _end(box, x)]


def _trunk(box: Box) -> list[Layer]:
    """The modules that all the work runs through, not what lies inside blocks; all leaves where that leaves one."""
    sequences = {r.path for r in box.layers if r.type == "Sequential"}
    ran = {r.path for r in box.layers}  # not a ModuleList, nor another container whose parts are called by its owner

    def outside(path: str) -> bool:
        parent = path.rpartition(".")[0]
        return not parent or ((parent in sequences or parent not in ran) and outside(parent))

    found = [r for r in box.layers if r.path not in sequences and outside(r.path)]
    return found if len(found) > 1 else list(box.layers.leaves)


def _end(box: Box, x: Tensor) -> str:
    try:
        box(x[:1])
    except OutputError:
        return "output"
    return "logits"
