"""Where a dissected model's images come from: they are its inputs, or a generator's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.channel_axes import is_channels_first_type
from ..engine.read.features import resolve_address
from ..engine.read.position_grids import PositionGrid, grid_of_layer, layers_with_grids
from ..engine.rows import evenly_spaced_indices
from ..errors import InputError, LayerError
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize, map_in_batches
from ..objectives import INPUT_OUTPUT_ADDRESSES
from ..settings import ValueRole
from ..validation import address_list
from ._anchors import Anchors, generator_layer_anchors, receptive_anchors

DecodeImages = Annotated[
    Callable[[Tensor], Tensor] | None,
    ValueRole("object"),
    "Of a generator, the function from its output to images in [0, 1].",
]
PartT = TypeVar("PartT")
UNIT_RANGE_TOLERANCE = 1e-3
MAX_DEFAULT_LAYERS = 4


@dataclass(frozen=True, eq=False)
class ImageSource:
    """A box with the images that its layers' positions lie on."""

    box: Box
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def is_generator(self) -> bool:
        return not isinstance(self.box.inputs, Pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        shape = self.box.output_map_shape if self.is_generator else self.box.inputs.shape
        return shape[-2], shape[-1]

    def reopen(self, box: Box) -> ImageSource:
        """The same of another model."""
        return ImageSource(box, self.decode)

    def apply_to_image_batches(
        self, x: Tensor, read: Callable[[Tensor], PartT], batch_size: BatchSize = "auto"
    ) -> list[PartT]:
        """`read` of the images (n, C, H, W) of validated inputs x (N, ...), part by part. Raises InputError."""

        def run(rows: slice) -> PartT:
            if not self.is_generator:
                return read(x[rows])
            with self.box.isolated(grad=False):
                output = self.box.forward(x[rows], ["output"])["output"].to(self.box.dtype)
            return read(self.decoded(output))

        return map_in_batches(run, len(x), *self.box.batch_size_and_max_rows(len(x), batch_size))

    def images(self, x: Tensor, batch_size: BatchSize = "auto") -> Tensor:
        """The images (N, C, H, W) of a few validated inputs."""
        return torch.cat(self.apply_to_image_batches(x, lambda images: images, batch_size))

    def decoded(self, output: Tensor) -> Tensor:
        """Images of a generator's output (n, C, H, W). Raises InputError where they are none."""
        images = output if self.decode is None else self.decode(output)
        if not isinstance(images, Tensor) or images.shape != output.shape:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"decode must give images of shape {tuple(output.shape)}; got {got}")
        low, high = float(images.min()), float(images.max())
        if not (low >= -UNIT_RANGE_TOLERANCE and high <= 1 + UNIT_RANGE_TOLERANCE):
            raise InputError(
                f"the generator's images have values from {low:.3g} to {high:.3g}; wanted [0, 1]: give decode=, such "
                "as lambda h: (h + 1) / 2"
            )
        return images.clamp(0, 1)


def image_source(box: Box, decode: Callable[[Tensor], Tensor] | None, caller: str) -> ImageSource:
    """Where the images of a box are. Raises InputError where it has none."""
    if decode is not None and not callable(decode):
        raise InputError(f"decode must be a function from the model's output to images; got {type(decode).__name__}")
    source = ImageSource(box, decode)
    if not source.is_generator:
        return source
    n_channels = 1 if box.outputs == "binary" else box.n_outputs
    if len(box.output_map_shape) != 2 or n_channels not in (1, 3):
        raise InputError(
            f"{caller} needs a model that takes images alone (Pixels); this one takes {type(box.inputs).__name__}, and "
            "gives no images either, as a generator does: (N, 1 or 3, H, W)"
        )
    if box.outputs != "regression":
        raise InputError(
            f"{caller} takes a generator's output as it is, and this box has outputs={box.outputs!r}; open it with "
            'outputs="regression"'
        )
    return source


@dataclass(frozen=True, eq=False)
class LayerWithAnchors:
    """A layer with its positions on the images."""

    address: str
    n_units: int
    grid: PositionGrid
    anchors: Anchors


def layers_with_anchors(
    source: ImageSource, layers: Any, x: Tensor, batch_size: BatchSize = "auto"
) -> list[LayerWithAnchors]:
    """The named layers, or by default the last one of each size. Raises LayerError for one without positions."""
    if layers is None:
        addresses = default_addresses(source)
    else:
        addresses = [resolve_address(source.box, a) for a in address_list(layers)]
    return [_layer_with_anchors(source, address, x, batch_size) for address in dict.fromkeys(addresses)]


def _layer_with_anchors(source: ImageSource, address: str, x: Tensor, batch_size: BatchSize) -> LayerWithAnchors:
    box = source.box
    h = box.read(box.restore_structure(x[:2]), [address], batch_size=batch_size)[address]
    if not box.has_batch_axis(address) or h.ndim < 2 or h.is_complex():
        raise LayerError(f"{address!r} gives {tuple(h.shape)} for {len(x[:2])} inputs, which are no maps of units")
    shape = tuple(h.shape[1:])
    grid = _generator_grid(source, address, shape) if source.is_generator else grid_of_layer(box, address, shape)
    if address in INPUT_OUTPUT_ADDRESSES:
        anchors = Anchors.stretched(grid.size, source.size)
    elif source.is_generator:
        anchors = generator_layer_anchors(box, address, grid.size, x, batch_size)
    else:
        anchors = receptive_anchors(box, address, grid.size, grid.channels_last, batch_size)
    return LayerWithAnchors(address, grid.to_maps(h).shape[1], grid, anchors)


def _generator_grid(source: ImageSource, address: str, shape: tuple[int, ...]) -> PositionGrid:
    """The positions of a generator's layer. Raises LayerError where it has none."""
    if len(shape) == 3 and shape[1] * shape[2] > 1:
        return PositionGrid((shape[1], shape[2]))
    names = [row.path for row in source.box.layers.leaves if _is_map_shape(row.shape)]
    others = f"these layers have: {', '.join(map(repr, names[-4:]))}" if names else "no layer of this model has"
    raise LayerError(f"{address!r} gives {shape}, which has no positions on the image; {others}")


def _is_map_shape(shape: tuple[int, ...] | None) -> bool:
    return shape is not None and len(shape) == 3 and shape[1] * shape[2] > 1


def default_addresses(source: ImageSource, max_layers: int = MAX_DEFAULT_LAYERS) -> list[str]:
    """The last layer of each run of leaves with maps of one shape; of more than the limit some, evenly spaced in depth.

    Not a generator's last: it is the image itself.
    """
    box = source.box
    leaves = [row for row in box.layers.leaves if row.runs_per_example]
    with_maps = (
        {row.path: _is_map_shape(row.shape) and is_channels_first_type(row.type) is not False for row in leaves}
        if source.is_generator
        else {row.path: True for row, _ in layers_with_grids(box)}
    )
    shown = [row for row in leaves if with_maps.get(row.path)]
    last = [a for a, b in pairwise([*shown, None]) if a is not None and (b is None or a.shape != b.shape)]
    if source.is_generator and last and last[-1].shape[1:] == box.output_map_shape:
        last = [row for row in last if row.shape[0] not in (1, 3)] or last
    if not last:
        raise LayerError("no layer of this model has positions on the image; name one, such as ':relu#0'")
    return [last[i].addresses[-1] for i in evenly_spaced_indices(len(last), max_layers)]
