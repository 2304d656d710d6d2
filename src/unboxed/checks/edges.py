"""Edge control: how similar a map is to an edge detector, which knows the input and nothing about the model.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, compare maps with edge detectors, which look
like explanations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attribution.gradient import gradient
from ..box import Box
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..parameters import InputBatch, Target
from .methods import TestedMethod, compute_map, resolve_target
from .similarity import MapSimilarity, map_similarity, rescale_to_unit_range


@dataclass(frozen=True, repr=False, eq=False)
class EdgeSimilarity(ResultMixin):
    """How similar the magnitudes of a map are to the input's edges: `map.absolute`, `map.ssim`, `map.hog`, each (N,).

    `gradient` has the same figures for the plain gradient of the same score, which is no edge detector: the control.
    (`signed` compares the map's signs with edges, which have none.)
    """

    map: MapSimilarity
    gradient: MapSimilarity
    edges: Tensor  # (N, 1, H, W) of the input, in [0, 1]

    def mean(self) -> dict[str, float]:
        """The means over the images: absolute rank correlation and SSIM of the map, and of the gradient."""
        pairs = {"": self.map.mean(), "gradient_": self.gradient.mean()}
        return {f"{prefix}{figure}": float(m[figure]) for prefix, m in pairs.items() for figure in ("absolute", "ssim")}


def edge_control(box: Box, x: InputBatch, method: TestedMethod, target: Target = None) -> EdgeSimilarity:
    """Compare a method's maps with the edges that a Sobel filter detects in the input.

    Near 1 a map shows where the input has edges, whatever the model does with them. A figure near the gradient's says
    nothing against the method: models do use edges.

    Args:
        box: The opened model; its inputs must be images.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.

    Returns:
        An `EdgeSimilarity`: `map` and `gradient`, each a `MapSimilarity` to the edges, and `edges` (N, 1, H, W). An
        edge detector has 1 in all figures; they are NaN where an image has no edges or a map is the same everywhere.

    Raises:
        InputError: for inputs that are not images, or a method without a map.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> m = ub.checks.edge_control(box, x, ub.attribution.guided_backprop).mean()
        >>> m["absolute"] > m["gradient_absolute"]
        True

    Source:
        Adebayo et al. 2018, arXiv:1810.03292, section 5; the Sobel filter is scikit-image's.
    """
    require_images(box, "edge control")
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    edges = sobel(x)
    maps, gradient_maps = compute_map(box, method, x, score, show_warnings=True), compute_map(box, gradient, x, score)
    return EdgeSimilarity(map_similarity(maps, edges), map_similarity(gradient_maps, edges), edges)


def sobel(x: Tensor) -> Tensor:
    """The edges (N, 1, H, W) of images (N, C, H, W), averaged over channels, in [0, 1], by scikit-image."""
    from skimage.filters import sobel as of_image

    gray = x.detach().double().mean(1).cpu().numpy()
    edges = torch.stack([torch.from_numpy(of_image(image)) for image in gray])  # type: ignore[no-untyped-call]
    return rescale_to_unit_range(edges)[:, None].to(x.device)


def r2_of_linear_fit(inputs: Tensor, values: Tensor) -> Tensor:
    """R^2 (N,) of a least-squares fit of values (N, P) by inputs (N, P, K); NaN for constant values."""
    fit = (inputs @ (torch.linalg.pinv(inputs) @ values[..., None])).squeeze(-1)
    total = (values - values.mean(1, keepdim=True)).square().sum(1)
    return torch.where(total > 0, 1 - (values - fit).square().sum(1) / total, torch.nan)
