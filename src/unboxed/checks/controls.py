"""Controls: inputs without evidence, and models that say nothing. What a method draws there, it did not explain.

The constant model is the limit of randomization (Adebayo et al. 2018, arXiv:1810.03292): a model that has nothing to
explain. The shuffled input asks what Nie et al. 2018, "A Theoretical Explanation for Perplexing Behaviors of
Backpropagation-based Visualizations", arXiv:1805.07039, asked of guided backprop and deconvnet: whether a method
recovers the picture rather than the reasons.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..engine.perturb.baselines import baseline
from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.pixels import Pixels
from ..model.outputs import OutputReader
from ..objectives import MODEL_ENDS, Objective
from ..validation import check_seed
from .methods import Method, Target, compute_map, resolve_target
from .similarity import MapSimilarity, map_similarity


@dataclass(frozen=True, eq=False)
class RandomInput:
    """What becomes of maps (N, ...) when the input loses its evidence. Figures are (N,).

    `shuffled`: each image's pixels in another order, and the map of that put back in the old one, against the map of
    the image. A method that copies pixel values has 1; one that reads the model is near 0 where the score has gone.
    `noise`: the map of a noise input against that of the image: 1 where a method draws the same whatever it is shown
    (as the gradient of a linear model rightly does).
    """

    shuffled: MapSimilarity  # NaN for inputs that are not images
    noise: MapSimilarity
    norm_ratio_shuffled: Tensor  # the norm of that map over the norm of the image's
    norm_ratio_noise: Tensor
    score: Tensor  # of the target, at the image
    score_shuffled: Tensor
    score_noise: Tensor


def random_input(box: Box, x: Any, method: Method, target: Target = None, *, seed: int = 0) -> RandomInput:
    """Compare a method's maps of x with those of x's pixels shuffled, and of noise, for the same score.

    All channels of a pixel move together; each image has an order of its own. Noise is uniform for images, and normal
    within bounds for features. Raises InputError.
    """
    seed, x = check_seed(seed), box.validate_inputs(x)
    score = resolve_target(box, x, target)
    noise = baseline(box, x, "random", seed=seed)
    original, noise_maps = (
        compute_map(box, method, x, score, show_warnings=True),
        compute_map(box, method, noise, score),
    )
    shuffled, shuffled_maps = x, torch.full_like(original, torch.nan)
    if isinstance(box.inputs, Pixels):
        order = _random_permutation(x, seed)
        shuffled = _permute_pixels(x, order)
        shuffled_maps = _unpermute_pixels(compute_map(box, method, shuffled, score), order)
    scores = [_target_scores(box, score, h) for h in (x, shuffled, noise)]
    if shuffled is x:
        scores[1] = torch.full_like(scores[0], torch.nan)
    return RandomInput(
        map_similarity(original, shuffled_maps),
        map_similarity(original, noise_maps),
        _norm_ratio(shuffled_maps, original),
        _norm_ratio(noise_maps, original),
        *scores,
    )


def _random_permutation(x: Tensor, seed: int) -> Tensor:
    """A permutation of positions for each image, (N, H W)."""
    return rng.uniform(x[:, :1].flatten(1), seed).argsort(1)


def _permute_pixels(h: Tensor, order: Tensor) -> Tensor:
    """Pixels (N, C, H, W) in another order, all channels alike."""
    flat = h.flatten(2)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(h)


def _unpermute_pixels(h: Tensor, order: Tensor) -> Tensor:
    """The map of shuffled pixels, put back. Raises InputError where it has no pixel for each."""
    if h.ndim != 4 or h.shape[2] * h.shape[3] != order.shape[1]:
        raise InputError(f"a map (N, C, H, W) as large as the image can be put back in order; got {tuple(h.shape)}")
    return _permute_pixels(h, order.argsort(1))


def _norm_ratio(h: Tensor, reference: Tensor) -> Tensor:
    """The ratio of norms (N,); NaN where the image's own map is zero."""
    a, b = (torch.linalg.vector_norm(m.flatten(1).double(), dim=1) for m in (h, reference))
    return torch.where(b > 0, a / b, torch.nan)


def _target_scores(box: Box, target: Any, x: Tensor) -> Tensor:
    """The score (N,) that the target means."""
    objective = box.objective(target, len(x))
    acts = box.read(x, sorted(objective.layers))
    return objective(acts).detach().to(box.dtype)


@dataclass(frozen=True, eq=False)
class ConstantModel:
    """What a method draws where nothing can be explained: the spread of each map (N,), relative to that for the model.

    Exactly 0 (or rounding) is right. The spread is the standard deviation over a map, so that a map that is the same
    everywhere counts as no picture.
    """

    constant_input: Tensor  # the model as it is, but every input reaches it as the same one
    constant_output: (
        Tensor  # the model as it is, but its logits are one number whatever it sees; NaN for targets beside the logits
    )
    maps_constant_input: Tensor  # (N, ...)
    maps_constant_output: Tensor  # (N, ...)


def constant_model(
    box: Box, x: Any, method: Method, target: Target = None, *, map_: Tensor | None = None
) -> ConstantModel:
    """Ask a method for maps of a model whose answer does not depend on x, in two ways; each has the same weights.

    Blind: the inputs are replaced by what normalization takes to zero before they reach the model, so all activations
    are constant; whoever draws something drew it from x, or from chance. Mute: the model sees x, its logits are
    replaced by a constant, all classes alike; whoever draws something drew it from activations, whatever they are good
    for. `map_` is what the method gave for x itself, if it was asked. Raises InputError.
    """
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    original = compute_map(box, method, x, score) if map_ is None else map_
    maps_constant_input, maps_constant_output = (
        compute_map(_constant_input_box(box), method, x, score),
        torch.full_like(original, torch.nan),
    )
    if not isinstance(score, Objective) or score.layers <= MODEL_ENDS - {"input"}:
        maps_constant_output = compute_map(_constant_output_box(box, x), method, x, score)
    return ConstantModel(
        _relative_spread(maps_constant_input, original),
        _relative_spread(maps_constant_output, original),
        maps_constant_input,
        maps_constant_output,
    )


def _relative_spread(h: Tensor, reference: Tensor) -> Tensor:
    """The spread (N,) of maps h relative to the model's own; 0 where neither has any, infinite where only h has."""
    a, b = (m.flatten(1).double().std(1, correction=0) for m in (h, reference))
    return torch.where(a == 0, 0.0, a / b)


def _constant_input_box(box: Box) -> Box:
    """The same box, to which all inputs look alike (and no gradient reaches them)."""
    clone = copy.copy(box)
    clone.inputs = _constant_inputs(box.inputs)
    return clone


def _constant_inputs(inputs: Inputs) -> Inputs:
    """The same inputs, encoded as zeros, in the model's own units, whatever they are."""

    def encode(self: Inputs, x: Tensor) -> Any:
        z = inputs.encode(x)
        if isinstance(z, dict):
            return {name: 0 * value for name, value in z.items()}
        return tuple(0 * value for value in z) if isinstance(z, tuple) else 0 * z

    clone = copy.copy(inputs)
    object.__setattr__(clone, "__class__", type("Blind", (type(inputs),), {"encode": encode}))
    return clone


def _constant_output_box(box: Box, x: Tensor) -> Box:
    """The same box, whose logits are all one number, as large as any that the model gives for x."""
    value = float(box(x).abs().max())
    clone = copy.copy(box)
    clone.output_reader = OutputReader(lambda raw: 0 * box.output_reader.select_tensor(raw) + value, "logits")
    clone.outputs = "logits"
    return clone
