"""The tests of a verdict: what each measures, per example and draw, and the bound that separates pass from fail.

Each is one function of a `VerdictSubject` and a draw that returns figures (N,), NaN where it does not apply. How often
the bounds decide rightly is measured by `benchmarks/verdict_roc.py` on planted models whose reasons are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.rank_correlation import spearman
from ..errors import UnboxedError
from ..inputs.pixels import Pixels
from ..objectives import Objective, mean_over_positions
from .control_boxes import cached_randomized_box
from .controls import constant_model
from .edges import r2_of_linear_fit, sobel
from .methods import copy_in_user_structure
from .perturbing import apply_to_removable_tokens
from .similarity import is_constant_or_nan
from .verdict_subject import VerdictSubject

MAX_CONSTANT_MODEL_EXAMPLES = 4  # examples that are asked of the constant models: their maps differ little
# Of the largest possible confidence, from which on that of randomized models says nothing
SATURATED_CONFIDENCE_FRACTION_OF_MAX = 0.5
MIN_INFORMATION_GAIN_FRACTION_OF_MAX = 0.1  # of the most possible


@dataclass(frozen=True, eq=False)
class VerdictTest:
    """One test: its figures, its bound, and what passing and failing it means."""

    name: str
    figure: str  # what its figure is called
    values: Callable[[Any, int], Tensor]  # (subject, draw) -> (N,) or (N, D), NaN where it does not apply
    _: KW_ONLY
    bound: float
    passes_above: bool
    spread: float  # standard deviation between examples, as measured: of few examples, the interval is as wide
    limits: tuple[float, float] = (-1, 1)  # of the figure
    n_draws: int = 1  # at first
    max_draws: int = 1  # while it is undecided
    failed: str  # in a few words
    fails: str  # a sentence, with {value} in it
    passes: str  # the same
    question: str = ""  # what it asks of a map, for legends
    shares_draws: bool = True  # a draw is the same for all examples; else it is averaged within each, not resampled
    skip_when_failed: bool = False  # not needed, and expensive, where another test has failed


# -- figures -----------------------------------------------------------------------------------------------------------


def _is_map_constant(s: VerdictSubject, draw: int) -> Tensor:
    return apply_to_removable_tokens(is_constant_or_nan, s.removable, s.map_)


def _correlation_with_randomized(s: VerdictSubject, draw: int) -> Tensor:
    """Rank correlation with the map of the model whose upper half of the layers is randomized."""
    upper = s.layers[len(s.layers) // 2 :]
    if not upper:
        return _nan_per_example(s)
    maps = s.map_for_box_and_target(cached_randomized_box(s.box, upper, s.seed + draw), s.target)
    s.control_maps.setdefault("upper half randomized", maps)
    return _rank_correlation(s, s.map_, maps)


def _correlation_with_shuffled_label_model(s: VerdictSubject, draw: int) -> Tensor:
    """Rank correlation with the map of a model that was trained on shuffled labels."""
    if s.shuffled_box is None:
        return _nan_per_example(s)
    maps = s.map_for_box_and_target(s.shuffled_box, s.target)
    s.control_maps.setdefault("shuffled labels", maps)
    return _rank_correlation(s, s.map_, maps)


def _correlation_with_other_class(s: VerdictSubject, draw: int) -> Tensor:
    """Rank correlation with the map of another class: the most likely one, then the next."""
    if not s.has_class_target or s.logits.shape[1] < 2 + draw:
        return _nan_per_example(s)
    others = s.logits.scatter(1, s.target[:, None], -math.inf).argsort(1, descending=True)
    maps = s.map_for_box_and_target(s.box, others[:, draw])
    s.control_maps.setdefault("another class", maps)
    return _rank_correlation(s, s.map_, maps)


def _map_variance_explained_by_edges(s: VerdictSubject, draw: int) -> Tensor:
    """The share of a map's variance that a fit of the input's edges and brightness explains, scaled for each example.

    The scale per example makes it the baseline "edges x confidence", whatever the confidence.
    """
    if not isinstance(s.box.inputs, Pixels) or s.x.ndim != 4:
        return _nan_per_example(s)
    x = s.x.double()
    inputs = torch.cat([sobel(s.x).to(x), x.mean(1, keepdim=True), torch.ones_like(x[:, :1])], 1).flatten(2).mT
    summed = s.map_.double().sum(1)
    return torch.stack([r2_of_linear_fit(inputs, h.flatten(1)) for h in (summed, summed.abs())]).amax(0)


def _map_spread_of_constant_models(s: VerdictSubject, draw: int) -> Tensor:
    """The larger spread of the maps of both constant models, relative to that of the model's own map."""
    n = min(len(s.x), MAX_CONSTANT_MODEL_EXAMPLES)
    some = s.target.rows(slice(0, n)) if isinstance(s.target, Objective) else s.target[:n]
    s.n_maps += 2 * n
    try:
        controls = constant_model(s.box, s.x[:n], s.method, some, map_=s.map_[:n])
    except UnboxedError:  # nothing there depends on the input, and the method says so
        return torch.zeros(n, dtype=torch.float64)
    spreads = torch.stack([controls.constant_input, controls.constant_output]).double()
    return spreads.nan_to_num(-math.inf).amax(0).clamp(max=1).masked_fill(spreads.isnan().all(0), math.nan)


def _relevance_gain(s: VerdictSubject, draw: int) -> Tensor:
    """The relevance gain by each fill and grid, as draws (N, F): which fill is right nobody knows."""
    return s.removal.gain


def _relevance_gain_over_other_maps(s: VerdictSubject, draw: int) -> Tensor:
    """How much more the own map gains than that of another example, of another class where there is one, by one of
    the fills in turn."""
    if len(s.x) < 2:
        return _nan_per_example(s)
    name, fill = [*s.fill_by_name.items()][draw % len(s.fill_by_name)]
    own = s.removal.gain[:, [fill_name == name for fill_name in s.removal.fill_names]]
    return (own - s.removal_curves_of(s.map_[_other_example_indices(s, draw)], {name: fill}).gain).nanmean(1)


def _other_example_indices(s: VerdictSubject, draw: int) -> Tensor:
    """An example (N,) for each, the k-th after it for draw k: the same class may have the same reasons in images that
    are alike, so that others are taken first."""
    n = len(s.x)
    after = (torch.arange(n, device=s.x.device)[:, None] + torch.arange(1, n, device=s.x.device)) % n  # (N, N - 1)
    if s.has_class_target:
        same = s.target[after] == s.target[:, None]
        after = after.gather(1, same.long().argsort(dim=1, stable=True))
    return after[:, draw % (n - 1)]


def _confidence_gain_over_randomized(s: VerdictSubject, draw: int) -> Tensor:
    """How much more confident the model is than a copy with all layers randomized, as a fraction of the most possible.

    Copies that are confident of everything say nothing; then it is how much more its answers tell examples apart, and
    only where they do: it does not fail by this.
    """
    if s.box.outputs == "regression" or not s.layers:
        return _nan_per_example(s)
    randomized = cached_randomized_box(s.box, s.layers, s.seed + draw)
    again = randomized(copy_in_user_structure(s.box, s.x), batch_size=s.batch_size)  # texts: by its own embeddings
    own, copy = _log_probs(s, s.logits), _log_probs(s, mean_over_positions(again))
    largest = math.log(own.shape[1])
    if _confidence_nats(copy).mean() < SATURATED_CONFIDENCE_FRACTION_OF_MAX * largest:
        return (_confidence_nats(own) - _confidence_nats(copy)) / largest
    gained = (_kl_from_mean_probs(own) - _kl_from_mean_probs(copy)) / largest
    return gained if gained.mean() > MIN_INFORMATION_GAIN_FRACTION_OF_MAX else _nan_per_example(s)


def _log_probs(s: VerdictSubject, logits: Tensor) -> Tensor:
    """Log probabilities (N, K) of the classes; of yes/no outputs those of the two answers of the target's output."""
    z = logits.double()
    if s.box.outputs == "multilabel" or z.shape[1] == 1:
        yes = z.gather(1, s.target[:, None]) if s.has_class_target else z.mean(1, keepdim=True)
        z = torch.cat([yes, torch.zeros_like(yes)], 1)
    return z.log_softmax(1)


def _confidence_nats(log_probs: Tensor) -> Tensor:
    """How far the largest probability is above 1 / K, (N,) in nats."""
    return log_probs.amax(1) + math.log(log_probs.shape[1])


def _kl_from_mean_probs(log_probs: Tensor) -> Tensor:
    """The Kullback-Leibler divergence (N,) of each example's probabilities from their mean, in nats."""
    mean = log_probs.exp().mean(0).clamp(min=1e-12).log()
    return (log_probs.exp() * (log_probs - mean)).sum(1)


def _rank_correlation(s: VerdictSubject, a: Tensor, b: Tensor) -> Tensor:
    a, b = (h.double().sum(1) if h.ndim == 4 else h.double() for h in (a, b))
    return apply_to_removable_tokens(spearman, s.removable, a, b)


def _nan_per_example(s: VerdictSubject) -> Tensor:
    return torch.full((len(s.x),), math.nan, dtype=torch.float64)


# -- the tests ---------------------------------------------------------------------------------------------------------

VERDICT_TESTS = (
    VerdictTest(
        "map", "fraction of maps that are the same everywhere", _is_map_constant,
        bound=0.5, passes_above=False, spread=0.0, limits=(0, 1),
        question="is it not the same everywhere?",
        failed="constant map",
        fails="Its map is the same everywhere for {value:.0%} of the examples: it says nothing about this model.",
        passes="Its maps are not constant",
    ),
    VerdictTest(
        "learned", "confidence above that of a randomized model", _confidence_gain_over_randomized,
        bound=0.1, passes_above=True, spread=0.05, n_draws=2, max_draws=4,
        question="is the model more confident than with random weights?",
        failed="the model has learned nothing",
        fails="The model is no more confident than with random weights ({value:+.0%} of the most possible): there is "
        "nothing to explain.",
        passes="the model has learned something to explain ({value:+.0%} of the most possible confidence)",
    ),
    VerdictTest(
        "randomization", "rank correlation after randomization", _correlation_with_randomized,
        bound=0.85, passes_above=False, spread=0.15, n_draws=2, max_draws=8,
        question="does it change when the model's weights are randomized?",
        failed="same map for random weights",
        fails="Its map is nearly the same (rank correlation {value:.2f}) when the weights of the model's upper half "
        "are randomized: it shows the input, not why this model predicts so.",
        passes="it changes when the model's upper half is randomized (rank correlation {value:.2f})",
    ),
    VerdictTest(
        "shuffled labels", "rank correlation with the map for shuffled labels", _correlation_with_shuffled_label_model,
        bound=0.85, passes_above=False, spread=0.15,
        question="does it differ from that of a model trained on shuffled labels?",
        failed="same map for shuffled labels",
        fails="Its map is nearly the same (rank correlation {value:.2f}) for a model trained on shuffled labels: it "
        "shows the data, not what was learned from it.",
        passes="it differs from the map of a model trained on shuffled labels (rank correlation {value:.2f})",
    ),
    VerdictTest(
        "other class", "rank correlation with another class's map", _correlation_with_other_class,
        bound=0.95, passes_above=False, spread=0.25, max_draws=2,
        question="does it differ from another class's?",
        failed="same map for another class",
        fails="Its map is the same for another class (rank correlation {value:.2f}): it does not say why this one.",
        passes="its map differs from another class's (rank correlation {value:.2f})",
    ),
    VerdictTest(
        "constant model", "spread for a constant model", _map_spread_of_constant_models,
        bound=0.7, passes_above=False, spread=0.1, limits=(0, 1),
        question="is it weaker for a model that ignores its input?",
        failed="map for a constant model",
        fails="Its map is there ({value:.0%} as strong) for a model that ignores its input, too.",
        passes="it is weaker for a constant model ({value:.0%} of its strength)",
    ),
    VerdictTest(
        "edges", "share explained by edges and brightness", _map_variance_explained_by_edges,
        bound=0.7, passes_above=False, spread=0.1, limits=(0, 1),
        question="is it more than edges and brightness?",
        failed="edges of the input",
        fails="Edges and brightness of the input, scaled by any confidence, explain {value:.0%} of its map.",
        passes="it is no edge detector ({value:.0%} explained)",
    ),
    VerdictTest(
        "removal", "relevance gain", _relevance_gain,
        bound=0.05, passes_above=True, spread=0.4,
        question="does removing what it marks cost the score more than removing the rest?",
        failed="no better than random",
        fails="Removing what it marks costs the score hardly more than removing what it does not (relevance gain "
        "{value:.2f}, 0 is a random order).",
        passes="removing what it marks costs the score more than removing the rest (relevance gain {value:.2f})",
    ),
    VerdictTest(
        "own example", "gain over another example's map", _relevance_gain_over_other_maps,
        bound=0.01, passes_above=True, spread=0.2, n_draws=4, max_draws=8,
        question="does it mark more of what matters than another example's map?",
        failed="no better than another example's map",
        fails="Another example's map marks what matters as well (relevance gain {value:+.2f} beyond it).",
        passes="it marks more of what matters than another example's map ({value:+.2f})",
        shares_draws=False,  # another example for each, and each fill as often
        skip_when_failed=True,
    ),
)  # fmt: skip
REQUIRED_TEST_NAMES = ("randomization", "removal")  # a verdict that lacks one of these does not pass
