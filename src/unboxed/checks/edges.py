"""Edge control: how much of a map does an edge detector explain, which knows the input and nothing of the model?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", arXiv:1810.03292, compare maps with edge detectors, which pass
for explanations to the eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attribution.gradient import gradient
from ..box import Box
from ..engine.read.sizes import require_images
from .methods import Method, Target, compute_map, resolve_target
from .similarity import MapSimilarity, in_unit_range, map_similarity


@dataclass(frozen=True, eq=False)
class EdgeSimilarity:
    """How like the magnitudes of a map are to the input's edges: `map.absolute`, `map.ssim`, `map.hog`, each (N,).

    `gradient` has the same figures for the plain gradient of the same score, which is no edge detector: what a map has
    beyond it, the method brought. (`signed` compares the map's own signs with edges, which have none.)
    """

    map: MapSimilarity
    gradient: MapSimilarity
    edges: Tensor  # (N, 1, H, W) of the input, in [0, 1]

    def mean(self) -> dict[str, float]:
        """Over the images: the map's absolute rank correlation and SSIM, and the gradient's."""
        pairs = {"": self.map.mean(), "gradient_": self.gradient.mean()}
        return {f"{prefix}{figure}": float(m[figure]) for prefix, m in pairs.items() for figure in ("absolute", "ssim")}


def edge_control(box: Box, x: Any, method: Method, target: Target = None) -> EdgeSimilarity:
    """Compare a method's maps of x (N, C, H, W) with the edges that a Sobel filter finds in x.

    An edge detector has 1 in all figures. Near 1 a map says where the input has edges, whatever the model made of them;
    a figure near the gradient's says nothing against the method, for models do look at edges. Figures are NaN where an
    image has no edges or a map is the same everywhere. Raises InputError for a model that doesn't take images.
    """
    require_images(box, "edge control")
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    edges = sobel(x)
    maps, gradient_maps = compute_map(box, method, x, score, show_warnings=True), compute_map(box, gradient, x, score)
    return EdgeSimilarity(map_similarity(maps, edges), map_similarity(gradient_maps, edges), edges)


def sobel(x: Tensor) -> Tensor:
    """The edges (N, 1, H, W) of images (N, C, H, W), averaged over channels, as scikit-image finds them; in [0, 1]."""
    from skimage.filters import sobel as of_image

    gray = x.detach().double().mean(1).cpu().numpy()
    edges = torch.stack([torch.from_numpy(of_image(image)) for image in gray])  # type: ignore[no-untyped-call]
    return in_unit_range(edges)[:, None].to(x.device)
