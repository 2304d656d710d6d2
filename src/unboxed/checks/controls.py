"""Controls: random inputs and constant models. A map that is still there explains nothing.

The constant model is the limit of randomization (Adebayo et al. 2018, arXiv:1810.03292): a model that has nothing to
explain. The shuffled input asks what Nie et al. 2018, "A Theoretical Explanation for Perplexing Behaviors of
Backpropagation-based Visualizations", arXiv:1805.07039, asked of guided backprop and deconvnet: whether a method
recovers the image rather than the reasons.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import rng
from ..box import Box
from ..checkpointing import tensor_digest
from ..engine.perturb.baselines import baseline
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.base import Inputs
from ..inputs.pixels import Pixels
from ..inputs.tokens import Tokens
from ..model.outputs import OutputReader
from ..objectives import INPUT_OUTPUT_ADDRESSES, Objective
from ..parameters import InputBatch, Seed, Target
from ..validation import valid_seed
from .control_boxes import cached_control_box
from .methods import OptionalPrecomputedMap, TestedMethod, compute_map, resolve_target
from .perturbing import apply_to_removable_tokens, removable_tokens
from .similarity import MapSimilarity, map_similarity


@dataclass(frozen=True, repr=False, eq=False)
class RandomInput(ResultMixin):
    """How similar maps (N, ...) of inputs without evidence are to those of the inputs. Figures are (N,).

    `shuffled`: the pixels of each image in random order, and the map put back into the original order. A method that
    copies pixel values has 1; one that depends on the model is near 0 where the score is lost. `noise`: the map of a
    noise input, 1 where a method gives the same map for every input (as the gradient of a linear model rightly does).
    """

    shuffled: MapSimilarity  # NaN for inputs that are not images
    noise: MapSimilarity
    norm_ratio_shuffled: Tensor  # the norm of that map, divided by the norm of the input's map
    norm_ratio_noise: Tensor
    score: Tensor  # of the target, at the input
    score_shuffled: Tensor
    score_noise: Tensor


def random_input(
    box: Box, x: InputBatch, method: TestedMethod, target: Target = None, *, seed: Seed = 0
) -> RandomInput:
    """Compare a method's maps of x with those of shuffled pixels and of noise, for the same score.

    Does the method show evidence, or the image? `constant_model` takes the evidence from the model instead.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        seed: Seed of all random draws: same seed, same result. All channels of a pixel move together; noise is uniform
            for images, normal within the bounds for features.

    Returns:
        A `RandomInput`: `shuffled` and `noise` (a `MapSimilarity` each), the ratios of norms, and the scores.

    Raises:
        InputError: for a method without a map, or one whose map is not as large as the image.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> copies = ub.checks.random_input(box, x, lambda box, x, target: x)
        >>> real = ub.checks.random_input(box, x, ub.attribution.gradient)
        >>> [round(r.shuffled.signed.mean().item(), 1) for r in (copies, real)]
        [1.0, 0.0]

    Source:
        Nie et al. 2018, arXiv:1805.07039, for the question; the shuffled input as a control is our own.
    """
    seed, x = valid_seed(seed), box.validate_inputs(x)
    score = resolve_target(box, x, target)
    noise = baseline(box, x, "random", seed=seed)
    original = compute_map(box, method, x, score, show_warnings=True)
    noise_maps = compute_map(box, method, noise, score)
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
        _map_norm_ratio(shuffled_maps, original),
        _map_norm_ratio(noise_maps, original),
        *scores,
    )


def _random_permutation(x: Tensor, seed: int) -> Tensor:
    """A random permutation of positions per image, (N, H W)."""
    return rng.uniform(x[:, :1].flatten(1), seed).argsort(1)


def _permute_pixels(images: Tensor, order: Tensor) -> Tensor:
    """Pixels (N, C, H, W) in another order, the same for all channels."""
    flat = images.flatten(2)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(images)


def _unpermute_pixels(maps: Tensor, order: Tensor) -> Tensor:
    """The map of shuffled pixels in the original order. Raises InputError where it is not as large as the image."""
    if maps.ndim != 4 or maps.shape[2] * maps.shape[3] != order.shape[1]:
        raise InputError(
            f"wanted a map (N, C, H, W) as large as the image, to restore its order; got {tuple(maps.shape)}"
        )
    return _permute_pixels(maps, order.argsort(1))


def _map_norm_ratio(maps: Tensor, reference: Tensor) -> Tensor:
    """The ratio of norms (N,); NaN where the reference is zero."""
    a, b = (torch.linalg.vector_norm(m.flatten(1).double(), dim=1) for m in (maps, reference))
    return torch.where(b > 0, a / b, torch.nan)


def _target_scores(box: Box, target: Any, x: Tensor) -> Tensor:
    """The score (N,) of the target."""
    objective = box.objective(target, len(x))
    acts = box.read(x, sorted(objective.layers))
    return objective(acts).detach().to(box.dtype)


@dataclass(frozen=True, repr=False, eq=False)
class ConstantModel(ResultMixin):
    """The spread of the maps of two constant models, relative to that of the model's own map, (N,).

    0 (up to rounding) is right. The spread is the standard deviation over a map: a map that is the same everywhere has
    none.
    """

    constant_input: Tensor  # the model receives the same input whatever x is
    constant_output: Tensor  # the model receives x, but its logits are constant; NaN for targets inside the model
    maps_constant_input: Tensor  # (N, ...)
    maps_constant_output: Tensor  # (N, ...)


def constant_model(
    box: Box, x: InputBatch, method: TestedMethod, target: Target = None, *, map_: OptionalPrecomputedMap = None
) -> ConstantModel:
    """Compute a method's maps of two models whose output does not depend on x; both keep the weights.

    Constant input: x is replaced by what normalization maps to zero before it reaches the model, so that all
    activations are constant; a map that is there comes from x, or from chance. Constant output: the model receives x,
    and its logits are replaced by a constant, the same for all classes; a map that is there comes from activations,
    whatever they are used for.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        method: The method to test: a function (box, x, target) that returns a map.
        target: The score: a class, one per example (N,), or an objective. None is the class predicted for x.
        map_: The method's map of x, where it is known already; None computes it.

    Returns:
        A `ConstantModel`: the relative spreads `constant_input` and `constant_output` (N,), and the maps.

    Raises:
        InputError: for a method without a map, or inputs and targets that do not fit.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.checks.constant_model(box, x, ub.attribution.gradient).constant_input.tolist()
        [0.0, 0.0]
        >>> ub.checks.constant_model(box, x, lambda box, x, target: x).constant_input.tolist()
        [1.0, 1.0]

    Source:
        The limit of the randomization test of Adebayo et al. 2018, arXiv:1810.03292; our own.
    """
    x = box.validate_inputs(x)
    score = resolve_target(box, x, target)
    original = compute_map(box, method, x, score) if map_ is None else map_
    removable = removable_tokens(box, x)
    constant_input_box = cached_control_box(box, "constant input", lambda: _constant_input_box(box))
    maps_constant_input = compute_map(constant_input_box, method, x, score)
    maps_constant_output = torch.full_like(original, torch.nan)
    if not isinstance(score, Objective) or score.layers <= INPUT_OUTPUT_ADDRESSES - {"input"}:
        key = ("constant output", tensor_digest(x))
        constant_output_box = cached_control_box(box, key, lambda: _constant_output_box(box, x))
        maps_constant_output = compute_map(constant_output_box, method, x, score)
    return ConstantModel(
        apply_to_removable_tokens(_relative_map_spread, removable, maps_constant_input, original),
        apply_to_removable_tokens(_relative_map_spread, removable, maps_constant_output, original),
        maps_constant_input,
        maps_constant_output,
    )


def _relative_map_spread(maps: Tensor, reference: Tensor) -> Tensor:
    """The spread (N,) of maps relative to that of the reference; 0 without spread, infinite if only they have any."""
    a, b = (m.flatten(1).double().std(1, correction=0) for m in (maps, reference))
    return torch.where(a == 0, 0.0, a / b)


def _constant_input_box(box: Box) -> Box:
    """The same box, whose model receives the same for all inputs (and no gradient reaches them)."""
    clone = copy.copy(box)
    clone.inputs = _inputs_that_encode_to_zeros(box.inputs)
    return clone


def _inputs_that_encode_to_zeros(inputs: Inputs) -> Inputs:
    """The same inputs, encoded as zeros in the model's units, whatever they are; words of texts are [MASK] or zero."""

    def encode(self: Inputs, x: Tensor) -> Any:
        return tree_map(lambda z: 0 * z, inputs.encode(x))

    def fed_embeddings(self: Tokens, x: Tensor) -> Tensor:
        return self.fill_tokens(x.detach(), self.default_fill_kind) + 0 * x

    changed = {"fed_embeddings": fed_embeddings} if isinstance(inputs, Tokens) else {"encode": encode}
    clone = copy.copy(inputs)
    object.__setattr__(clone, "__class__", type("ConstantInputs", (type(inputs),), changed))
    return clone


def _constant_output_box(box: Box, x: Tensor) -> Box:
    """The same box, whose logits are all one number: the largest magnitude that the model gives for x."""
    value = float(box(x).abs().max())
    clone = copy.copy(box)
    clone.outputs = "binary" if box.outputs == "binary" else "logits"
    clone.output_reader = OutputReader(lambda raw: 0 * box.output_reader.select_tensor(raw) + value, clone.outputs)
    clone.output_reader.has_final_op = False
    return clone
