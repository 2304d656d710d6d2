"""Network dissection: which unit of a layer detects which concept, and whether that is more than chance.

Bau et al. 2017, "Network Dissection: Quantifying Interpretability of Deep Visual Representations", arXiv:1704.05796;
of generators: Bau et al. 2019, "GAN Dissection: Visualizing and Understanding Generative Adversarial Networks",
arXiv:1811.10597.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.randomized import randomize_all_layers
from ..engine.read.examples import first_inputs
from ..errors import ModelError
from ..parameters import BatchSize, Data, LayerAddresses, MaxExamples, Seed
from ..settings import Above, AtLeast, Below, Unit, check_settings
from ..validation import valid_seed
from ._classes import random_card_examples
from ._detector_scan import UnitScan, above, scan_layers
from ._image_source import (
    DecodeImages,
    ImageSource,
    LayerWithAnchors,
    default_addresses,
    image_source,
    layers_with_anchors,
)
from ._segmenting import PackedMasks, Segmentation, Segmenter, bright_and_left_masks
from .detectors import DetectorExamples, Dissection, LayerDissection, Twins

N_SHOWN_UNITS, N_SHOWN_EXAMPLES = 6, 4


@card(
    name="Network dissection",
    aliases=("network_dissection",),
    source="Bau et al. 2017, arXiv:1704.05796; of generators Bau et al. 2019, arXiv:1811.10597",
    shows="Which unit of a layer is active where a concept is, and whether more units are than in a random model.",
    does_not_show="Whether the model uses the unit for anything (of generators, causal units do), or concepts that "
    "several units share, or that the segmenter does not know.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(
        box, random_card_examples(box, 6), segmenter=bright_and_left_masks, n_random=0, n_rotations=1
    ),
    exempt={
        "awkward": "its rotations are drawn by the address of the layer, which differs between spellings of a model"
    },
    runs=lambda s: 2 * (1 + s["n_random"] + bool(s["n_rotations"])),
    order=41,
)
def dissect(
    box: Box,
    data: Data,
    segmenter: Segmenter = None,
    layers: LayerAddresses = None,
    *,
    quantile: Annotated[float, Above(0), Below(1), "Share of a unit's values that is above its threshold."] = 0.005,
    min_iou: Annotated[float, AtLeast(0), Below(1), "IoU above which a unit is a detector."] = 0.04,
    n_random: Annotated[int, AtLeast(0), Unit("models"), "Twins with random weights."] = 19,
    n_rotations: Annotated[int, AtLeast(0), Unit("bases"), "Randomly rotated bases of each layer."] = 19,
    decode: DecodeImages = None,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Dissection:  # fmt: skip
    """Which unit detects which concept, beside twins that must detect none.

    To name the units of a layer by what they respond to. Each unit's map is brought to the size of the image, and where
    it is above its threshold is compared with the masks of concepts. Random models and rotated bases are dissected in
    the same way: where they have as many detectors, the names mean nothing. Whether a generator *uses* a unit to draw
    the concept is tested by `causal_units`.

    Args:
        box: The opened model: of images, or a generator, whose output is an image (N, 1 or 3, H, W).
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. Of a generator they are its latents.
        segmenter: Function from images (N, C, H, W) in [0, 1] to masks (K, N, H, W); its `names` name the concepts.
            Masks are bool, or numbers of which half or more is inside. None: `digit_concepts`, for images of one
            channel.
        layers: Addresses of the layers, as `box.layers` lists them. None: the last layer of each size, at most four.
        quantile: Share of a unit's values that is above its threshold. A concept that covers another share of the
            pixels than this cannot reach an IoU of 1: see `reachable_iou`.
        min_iou: IoU above which a unit is a detector.
        n_random: Twins with random weights. 19 allow a level of 5 %; 0 leaves them out.
        n_rotations: Randomly rotated bases of each layer. 19 allow a level of 5 %; 0 leaves them out.
        decode: Of a generator, the function from its output to images in [0, 1]. None: the output itself.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Dissection`: of each layer the `iou` of its units with the concepts, the `detectors`, those of its twins, and
        the units `beyond_chance`; and a `verdict` with its `reason`. "pass" where a unit's IoU, in multiples of what is
        usual for its concept, is beyond that of the best unit of every twin (p = 1/20 with 19, for all units together).

    Raises:
        InputError: for a model without images, a segmenter whose masks do not fit, or settings out of range.
        LayerError: for an unknown layer, or one without positions on the image.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, _ = ub.data.digits("test").first(24)
        >>> result = ub.concepts.dissect(box, x, layers="relu1")
        >>> len(result.layers[0].detectors) > 8, result.verdict  # edges are detected by random filters, too
        (True, 'fail')

    Source:
        Bau et al. 2017, section 2.3: the mask of a unit is where its bilinearly upsampled map, anchored at the centers
        of its receptive fields, is at least T; detectors have an IoU above .04, and its concept is the one with the
        largest. Deviations: T is the exact quantile of the upsampled values, as in the authors' code of 2020, which
        gives each unit's mask the same area (over the positions alone, coarse maps have almost empty masks); a unit
        that is not active at as many pixels has its active ones as its mask; all images count for all concepts. The
        rotations of section 3.2 are Haar-distributed. Random twins and both tests are our own.
    """
    check_settings(dissect, locals())
    source, seed = image_source(box, decode, "dissect"), valid_seed(seed)
    x = first_inputs(box, data, max_examples)
    segmentation = Segmentation.of(segmenter, source.images(x[:4], batch_size))
    mapped = layers_with_anchors(source, layers, x, batch_size)
    masks = _segment_examples(source, segmentation, x, batch_size)
    scans = scan_layers(source, x, masks, mapped, [None] * len(mapped), quantile, batch_size)
    random = _scan_random_twins(source, segmentation, x, masks, mapped, quantile, n_random, seed, batch_size)
    rotated = _scan_rotated_bases(source, x, masks, mapped, quantile, n_rotations, seed, batch_size)
    n_concepts, found = len(segmentation.names), list[LayerDissection]()
    for i, (layer, scan) in enumerate(zip(mapped, scans, strict=True)):
        by_chance, by_direction = (
            Twins.of([twin[i].iou.to(box.dtype) for twin in twins], min_iou, n_concepts, box.dtype)
            for twins in (random, rotated)
        )
        iou, names = scan.iou.to(box.dtype), segmentation.names
        result = LayerDissection(layer.address, iou, scan.threshold, names, float(min_iou), by_chance, by_direction)
        found.append(replace(result, shown=_examples(source, x, masks, layer, scan, result, batch_size)))
    areas = (masks.areas.double() / (len(x) * masks.size[0] * masks.size[1])).to(box.dtype)
    return Dissection(tuple(found), segmentation.names, areas, len(x), float(quantile), source.is_generator)


def default_dissected_layers(box: Box, max_layers: int) -> list[str]:
    """Addresses of layers with positions, the last of each size, evenly spaced in depth. Raises LayerError."""
    return default_addresses(image_source(box, None, "dissect"), max_layers)


def _segment_examples(source: ImageSource, segmentation: Segmentation, x: Tensor, batch_size: BatchSize) -> PackedMasks:
    return PackedMasks.joined(
        source.apply_to_image_batches(x, lambda i: PackedMasks.of(segmentation.masks(i)), batch_size)
    )


def _scan_random_twins(
    source: ImageSource, segmentation: Segmentation, x: Tensor, masks: PackedMasks, layers: Sequence[LayerWithAnchors],
    quantile: float, n: int, seed: int, batch_size: BatchSize,
) -> list[list[UnitScan]]:  # fmt: skip
    """The scans of models with random weights, per model and layer; a generator's own images are segmented."""
    scans = list[list[UnitScan]]()
    for i in range(n):
        try:
            twin = source.reopen(randomize_all_layers(source.box, rng.derive_seed("dissection", seed, i)))
        except ModelError:  # it cannot be copied: the verdict is then "not tested"
            return []
        twin_masks = _segment_examples(twin, segmentation, x, batch_size) if twin.is_generator else masks
        scans.append(scan_layers(twin, x, twin_masks, layers, [None] * len(layers), quantile, batch_size))
    return scans


def _scan_rotated_bases(
    source: ImageSource, x: Tensor, masks: PackedMasks, layers: Sequence[LayerWithAnchors], quantile: float, n: int,
    seed: int, batch_size: BatchSize,
) -> list[list[UnitScan]]:  # fmt: skip
    """The scans in random bases, per basis and layer: all in the same passes."""
    generators = [rng.keyed_generator(rng.CPU, "rotations", seed, i) for i in range(n)]
    bases = [random_orthogonal_matrix(layer.n_units, generator) for generator in generators for layer in layers]
    scans = scan_layers(source, x, masks, [*layers] * n, bases, quantile, batch_size)
    return [scans[i : i + len(layers)] for i in range(0, len(scans), len(layers))]


def random_orthogonal_matrix(n: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix (n, n), Haar-distributed: Mezzadri 2007, arXiv:math-ph/0609050."""
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def _examples(
    source: ImageSource, x: Tensor, masks: PackedMasks, layer: LayerWithAnchors, scan: UnitScan,
    result: LayerDissection,
    batch_size: BatchSize,
) -> tuple[DetectorExamples, ...]:  # fmt: skip
    """Examples of the units beyond chance, and of those with the largest IoU."""
    by_iou = scan.iou.amax(1).argsort(descending=True, stable=True).tolist()
    units = list(dict.fromkeys([*result.beyond_chance.tolist(), *by_iou]))[:N_SHOWN_UNITS]
    concept = result.concept
    return tuple(_unit_examples(source, x, masks, layer, scan, u, int(concept[u]), batch_size) for u in units)


def _unit_examples(
    source: ImageSource, x: Tensor, masks: PackedMasks, layer: LayerWithAnchors, scan: UnitScan, unit: int,
    concept: int,
    batch_size: BatchSize,
) -> DetectorExamples:  # fmt: skip
    rows = scan.largest[:, unit].argsort(descending=True, stable=True)[:N_SHOWN_EXAMPLES]
    some = x[rows.to(x.device)]
    box, address = source.box, layer.address
    h = box.read(box.restore_structure(some), [address], batch_size=batch_size)[address]
    maps = layer.anchors.upsample(layer.grid.to_maps(h)[:, unit : unit + 1], masks.size)
    inside = above(maps, *(v[unit : unit + 1].to(maps.device) for v in (scan.threshold, scan.is_strict)))
    images = source.images(some, batch_size)
    concept_masks = masks.rows(rows)[:, concept].view(-1, *masks.size)
    return DetectorExamples(unit, images.cpu(), inside[:, 0].cpu(), concept_masks)
