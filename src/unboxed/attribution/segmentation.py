"""From a map to the object: seeds by the map's quantiles, color models of object and background, and a graph cut.

Simonyan et al. 2014, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 3.2 (thresholds at the 95 % and
30 % quantiles, then GraphCut on color models); GrabCut's energy and rounds are of Rother et al. 2004.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, warn
from ..parameters import Seed
from ..settings import Above, AtLeast, Below, Unit, check_settings
from ..validation import valid_seed

HALF_OF_8_NEIGHBOR_OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))  # half of a pixel's eight neighbors
GRAPH_CUT_SMOOTHNESS_NATS = 50.0  # Rother et al.'s weight of a border, in nats
GRAPH_CUT_CAPACITY_PER_NAT = 1000  # of a capacity in one nat: the cut works on whole numbers
Float64Array = NDArray[np.float64]


def segmentation(
    maps: Annotated[Tensor, "Attribution maps (N, C or 1, H, W)."],
    x: Annotated[Tensor, "The images (N, C, H, W) that the maps are of."],
    *,
    foreground: Annotated[float, Above(0), Below(1), "Quantile of the map from which pixels are the object."] = 0.95,
    background: Annotated[float, Above(0), Below(1), "Quantile of the map up to which pixels are background."] = 0.3,
    components: Annotated[int, AtLeast(1), Unit("Gaussians"), "Gaussians in each color model."] = 5,
    rounds: Annotated[int, AtLeast(1), Unit("rounds"), "How often color models and cut are computed."] = 2,
    seed: Seed = 0,
) -> Tensor:
    """A mask of the object that an attribution map points at, by a graph cut on colors.

    For turning a map of scattered pixels (`gradient`) into a region: an object detector without boxes to train on.

    Args:
        maps: Attribution maps (N, C or 1, H, W). A pixel's strength is its largest |map| over channels.
        x: The images (N, C, H, W) that the maps are of.
        foreground: Quantile of the map from which pixels are the object.
        background: Quantile of the map up to which pixels are background.
        components: Gaussians in each color model.
        rounds: How often color models and cut are computed. Each round starts from the mask of the one before.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        Masks (N, H, W), bool, on the maps' device. An UnboxedWarning says for how many maps there are no seeds (they
        are the same everywhere); their masks are empty.

    Raises:
        InputError: for maps and images of different sizes, or `background` not below `foreground`.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.segmentation(ub.attribution.gradient(box, x, y), x).shape
        torch.Size([2, 28, 28])

    Source:
        Simonyan et al. 2014, arXiv:1312.6034, section 3.2; energy and rounds of GrabCut, Rother et al. 2004.
    """
    check_settings(segmentation, locals())
    seed = valid_seed(seed)
    _check_maps_match_images(maps, x)
    if background >= foreground:
        raise InputError(f"background must be a quantile below foreground; got {background:g} and {foreground:g}")
    strength = maps.detach().abs().amax(1).double().cpu()  # (N, H, W)
    colors = x.detach().double().cpu().movedim(1, -1)  # (N, H, W, C)
    masks = [
        _grab_cut_object_mask(s.numpy(), c.numpy(), foreground, background, components, rounds, seed)
        for s, c in zip(strength, colors, strict=True)
    ]
    empty = [i for i, m in enumerate(masks) if m is None]
    if empty:
        message = (
            f"{len(empty)} of {len(masks)} maps are the same everywhere and point at nothing: their masks are empty"
        )
        warn(message)
    filled = [np.zeros(strength.shape[1:], bool) if m is None else m for m in masks]
    return torch.from_numpy(np.stack(filled)).to(maps.device)


def _check_maps_match_images(maps: object, x: object) -> None:
    """Raise InputError unless these are maps and images of one size."""
    for what, value in (("maps", maps), ("images", x)):
        if not isinstance(value, Tensor) or value.ndim != 4 or 0 in value.shape or not value.is_floating_point():
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"wanted {what} (N, C, H, W) of floating point numbers; got {got}")
        if not bool(value.isfinite().all()):
            raise InputError(f"NaN or infinite values in the {what}")
    if isinstance(maps, Tensor) and isinstance(x, Tensor) and (len(maps), maps.shape[2:]) != (len(x), x.shape[2:]):
        raise InputError(f"maps and images are of one size; got {tuple(maps.shape)} and {tuple(x.shape)}")


def _grab_cut_object_mask(
    strength: Float64Array,
    colors: Float64Array,
    foreground: float,
    background: float,
    components: int,
    rounds: int,
    seed: int,
) -> NDArray[np.bool_] | None:
    """The mask (H, W); None where the map has no seeds."""
    low, high = np.quantile(strength, [background, foreground])
    object_seeds, background_seeds = (strength >= high) & (strength > low) & (strength > 0), strength <= low
    if not object_seeds.any() or not background_seeds.any():
        return None
    edges = _pixel_pairs_and_cut_costs(colors)
    inside, outside = object_seeds, background_seeds
    mask: NDArray[np.bool_] = object_seeds
    for _ in range(rounds):
        cost = [
            _gmm_negative_log_likelihood(colors, region, components, seed) for region in (inside, outside)
        ]  # (H, W) each, in nats
        mask = _min_cut_object_mask(cost[0], cost[1], object_seeds, background_seeds, edges)
        inside, outside = mask, ~mask
    return mask


def _gmm_negative_log_likelihood(
    colors: Float64Array, region: NDArray[np.bool_], components: int, seed: int
) -> Float64Array:
    """-log p(color) of each pixel under the colors of a part."""
    from sklearn.mixture import GaussianMixture

    region_colors = colors[region]
    count = min(components, len(np.unique(region_colors, axis=0)))
    model = GaussianMixture(count, reg_covar=1e-4, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mixture that has not converged is still one
        model.fit(region_colors if len(region_colors) > 1 else np.repeat(region_colors, 2, 0))
    nll: Float64Array = -model.score_samples(colors.reshape(-1, colors.shape[-1])).reshape(region.shape)
    return nll


PixelPairsAndCutCosts = tuple[
    NDArray[np.int64], NDArray[np.int64], Float64Array
]  # pixels, their neighbors, the cost of a cut between


def _pixel_pairs_and_cut_costs(colors: Float64Array) -> PixelPairsAndCutCosts:
    """Pairs of neighbors; cutting costs 50 exp(-beta |color difference|^2) / distance."""
    height, width = colors.shape[:2]
    pixel_index = np.arange(height * width).reshape(height, width)
    first, second, color_distances, distances = [], [], [], []
    for down, right in HALF_OF_8_NEIGHBOR_OFFSETS:
        a = pixel_index[: height - down, max(0, -right) : width - max(0, right)]
        b = pixel_index[down:, max(0, right) : width - max(0, -right)]
        first.append(a.ravel())
        second.append(b.ravel())
        flat = colors.reshape(-1, colors.shape[-1])
        color_distances.append(((flat[a.ravel()] - flat[b.ravel()]) ** 2).sum(1))
        distances.append(np.full(a.size, float(np.hypot(down, right))))
    gaps = np.concatenate(color_distances)
    beta = 1 / (2 * max(float(gaps.mean()), 1e-12))
    return (
        np.concatenate(first),
        np.concatenate(second),
        GRAPH_CUT_SMOOTHNESS_NATS * np.exp(-beta * gaps) / np.concatenate(distances),
    )


def _min_cut_object_mask(
    object_cost: Float64Array,
    background_cost: Float64Array,
    object_seeds: NDArray[np.bool_],
    background_seeds: NDArray[np.bool_],
    edges: PixelPairsAndCutCosts,
) -> NDArray[np.bool_]:
    """The mask of least energy: a minimal cut between a source (the object) and a sink."""
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    n = object_cost.size
    source, sink, pixels = n, n + 1, np.arange(n)
    gain = (background_cost - object_cost).ravel().clip(-1e4, 1e4)  # what is saved by belonging to the object
    seed_capacity = 1e5
    to_source = np.where(object_seeds.ravel(), seed_capacity, np.where(background_seeds.ravel(), 0, gain.clip(0)))
    to_sink = np.where(background_seeds.ravel(), seed_capacity, np.where(object_seeds.ravel(), 0, (-gain).clip(0)))
    a, b, cost = edges
    rows = np.concatenate([a, b, np.full(n, source), pixels])
    columns = np.concatenate([b, a, pixels, np.full(n, sink)])
    capacity = np.round(GRAPH_CUT_CAPACITY_PER_NAT * np.concatenate([cost, cost, to_source, to_sink])).astype(np.int32)
    graph = csr_array(coo_array((capacity, (rows, columns)), shape=(n + 2, n + 2)))
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    mask = np.zeros(n + 2, bool)
    mask[reached] = True
    pixel_mask: NDArray[np.bool_] = mask[:n].reshape(object_cost.shape)
    return pixel_mask
