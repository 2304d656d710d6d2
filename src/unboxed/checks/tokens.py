"""What is wrong with a vision transformer's tokens? Outliers, the neurons that make them, the maps that they spoil."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import Card, cards
from ..engine.read.attention_maps import (
    output_token_weights_of_model,
    recording_attention,
    require_attention_maps,
    rerun_after_finding_head_order,
)
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..errors import DataError, UnboxedError
from ..model.batching import BatchSize, map_in_batches
from ..parameters import InputBatch, NExtraTokens, Seed
from ..settings import Above, AtLeast, Unit, check_settings
from ..validation import valid_seed
from .methods import compute_map
from .outlier_tokens import RegisterNeuron, TokenBlocks, box_with_register, find_register_neurons

N_NEURONS_TRIED = (1, 2, 4, 8, 16, 32, 64)
MOVED_SHARE = 0.9  # of the outliers that the chosen neurons move, at least; with the fewest that do
MIN_MOVED_SHARE = 0.5  # of the outliers of other images, for the verdict
MAX_RUNS_OF_MAP = 8  # model runs of the methods whose maps are compared
MAX_MAPPED_IMAGES = 8
SPOILED_RATIO = 2.0  # of a map at outliers to elsewhere, from which on it is called spoiled
ATTENTION_OF_LAST_BLOCK = "attention of the last block"


@dataclass(frozen=True)
class SpoiledMap:
    """How much more of a map lies at a patch that is an outlier than at another: 1 is as much.

    Attributes:
        before: Of the model as it is.
        after: Of the model with the register, at the same patches; NaN without one.
    """

    before: float
    after: float

    @property
    def is_spoiled(self) -> bool:
        """Twice as much and more."""
        return self.before >= SPOILED_RATIO


@dataclass(frozen=True, eq=False, repr=False)
class TokenCheck(ResultMixin):
    """Outlier tokens of a vision transformer, what makes them, and what a register changes.

    Attributes:
        blocks: (L,) addresses.
        norms: (N, L, P) lengths of the patches' vectors after each block.
        outliers: (N, P) bool: patches that are outliers after `worst_block`.
        size: (h, w) of the patches' grid.
        min_ratio: Of a patch's length to the median one, from which on it is an outlier.
        first_block: The block after which the first outliers are; empty without any.
        worst_block: The block after which most are.
        neurons: Those that make them, the strongest first, found on half of the images.
        moved: The share of the other half's outliers that are gone with the register; NaN without outliers there, as
            where one image alone has some.
        moved_at_random: The same with as many random neurons of the same layers.
        norms_with_register: (N, L, P), or None.
        kept: Share of the images whose predicted class stays; NaN without a register.
        maps: {method: how much of its map lies at outliers}.
        box_with_register: The model with the register, for any method; None where nothing was moved.
    """

    blocks: tuple[str, ...]
    norms: Tensor
    outliers: Tensor
    size: tuple[int, int]
    min_ratio: float
    first_block: str = ""
    worst_block: str = ""
    neurons: tuple[RegisterNeuron, ...] = ()
    moved: float = float("nan")
    moved_at_random: float = float("nan")
    norms_with_register: Tensor | None = None
    kept: float = float("nan")
    maps: Mapping[str, SpoiledMap] = field(default_factory=dict)
    box_with_register: Box | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """One of "no outliers", "moved" (a register takes them), "not moved" and "not tested" (one image has some)."""
        if not bool(self.outliers.any()):
            return "no outliers"
        if self.neurons and math.isnan(self.moved):
            return "not tested"
        return "moved" if self.moved >= MIN_MOVED_SHARE and self.moved > self.moved_at_random else "not moved"

    @property
    def reason(self) -> str:
        """The verdict's reason in one sentence."""
        largest = float((self.norms / _median_norms(self.norms)).max())
        if self.verdict == "no outliers":
            return (
                f"No patch is {self.min_ratio:g} times as long as the median one; the longest is {largest:.1f} times."
            )
        n = int(self.outliers.sum())
        found = f"{n} outlier{'s' * (n > 1)} from {self.first_block} on, up to {largest:.0f} times the median length"
        made = f"{len(self.neurons)} neuron{'s' * (len(self.neurons) != 1)}"
        if not self.neurons:
            return f"{found}; no neuron writes more there than elsewhere."
        if self.verdict == "not tested":
            return (
                f"{found}, in one image alone; moving {made} to a register was not tested, for want of another image."
            )
        gone = f"of those in other images {self.moved:.0%} are gone ({self.moved_at_random:.0%} with random neurons)"
        return f"{found}; with {made} moved to a register, {gone}."

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.reason}"]
        lines += [f"  neuron {n.unit} of {n.layer}: {n.at_outliers:.3g} at outliers, {n.elsewhere:.3g} elsewhere"
                  for n in self.neurons[:8]]  # fmt: skip
        lines += [
            f"  {name}: {m.before:.2g} times as much at outliers, {m.after:.2g} with the register"
            for name, m in self.maps.items()
        ]
        return "\n".join(lines)


def tokens(
    box: Box,
    x: InputBatch,
    *,
    min_ratio: Annotated[float, Above(1), "Length of an outlier's vector, in those of the median patch."] = 3.0,
    max_neurons: Annotated[int, AtLeast(1), Unit("neurons"), "Neurons that are moved at most."] = 64,
    extra_tokens: NExtraTokens = None,
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
) -> TokenCheck:
    """Look for outlier tokens of a vision transformer, and take them away with a register at test time.

    Large vision transformers keep what they know of the whole image in a few patches that say little themselves: their
    vectors become many times as long as others, and maps of attention show them in place of what is seen. Ask this
    before believing such a map.

    Args:
        box: The opened model; its inputs must be images, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. Two or more: half of them find neurons.
        min_ratio: Length of an outlier's vector, in those of the median patch.
        max_neurons: Neurons that are moved at most.
        extra_tokens: Tokens before those of the patches: a class token, registers. None finds it. Of images alone.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `TokenCheck` with its `verdict`: the `norms` after each block, the `outliers`, the `neurons` that make them,
        the `maps` that they spoil, and the `box_with_register`, which any method explains.

    Raises:
        LayerError: for a model without blocks that attend from all tokens to all, or that takes no further token.
        InputError: for a model of other inputs.
        DataError: for one image alone.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.checks.tokens(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Jiang et al. 2025, arXiv:2506.08010, algorithm 1 and section 4: register neurons, and their largest activation
        of the patches moved to a further token of zeros. Deviations: outliers are longer than `min_ratio` medians (the
        paper has a threshold for each model); neurons are ranked by what they write at outliers beyond elsewhere (the
        paper: by their activation there), and as few are moved as take 90 % of the outliers, found on every second
        image and tested on the others, beside as many random neurons.
    """
    check_settings(tokens, locals())
    require_images(box, "the check of tokens")
    x, seed = box.validate_inputs(x), valid_seed(seed)
    if len(x) < 2:
        raise DataError("the check of tokens needs two images or more: half of them find the neurons")
    blocks = TokenBlocks.of(box, x, extra_tokens)
    norms = blocks.norms(box, x, {}, batch_size)
    is_outlier = _outliers(norms, min_ratio)  # (N, L, P)
    by_block = is_outlier.flatten(2).any(2).any(0)  # (L,)
    found = TokenCheck(blocks.addresses, norms, is_outlier[:, -1] & False, blocks.grid.size, min_ratio)
    if not bool(by_block.any()):
        return found
    first, worst = int(by_block.int().argmax()), int(is_outlier.sum((0, 2)).argmax())
    search = _ConceptSearch(box, x, blocks, is_outlier[:, worst], worst, min_ratio, batch_size, seed)
    return search.result(found, first, max_neurons)


def _outliers(norms: Tensor, min_ratio: float) -> Tensor:
    """(N, L, P) bool: longer than this many medians over all images' patches after the block."""
    return norms > min_ratio * _median_norms(norms)


def _median_norms(norms: Tensor) -> Tensor:
    """(L, 1): the median over all images' patches after each block, of (N, L, P)."""
    return norms.transpose(0, 1).flatten(1).median(1, keepdim=True).values


@dataclass(frozen=True, eq=False)
class _ConceptSearch:
    """Finds the neurons on every second image, and tests the register on the others."""

    box: Box
    x: Tensor
    blocks: TokenBlocks
    outliers: Tensor  # (N, P) after the worst block
    worst: int
    min_ratio: float
    batch_size: BatchSize
    seed: int

    def result(self, found: TokenCheck, first: int, max_neurons: int) -> TokenCheck:
        found = replace(
            found, outliers=self.outliers, first_block=self.blocks.addresses[first],
            worst_block=self.blocks.addresses[self.worst],
        )  # fmt: skip
        fit, test = self._halves()
        ranked = find_register_neurons(
            self.box, self.x[fit], self.blocks, self.outliers[fit], first + 1, max_neurons, self.batch_size
        )
        if not ranked:
            return found
        n = self._fewest_that_move(ranked, fit)
        box, random = (
            box_with_register(self.box, self.blocks, k) for k in (ranked[:n], self._random_neurons(ranked[:n]))
        )
        return replace(
            found, neurons=tuple(ranked[:n]), moved=self._moved(box, test), moved_at_random=self._moved(random, test),
            norms_with_register=self._norms(box, self.x), kept=self._kept(box), maps=self._maps(box),
            box_with_register=box,
        )  # fmt: skip

    def _kept(self, box: Box) -> float:
        """The share of the images whose predicted class stays."""
        if self.box.outputs == "regression":
            return float("nan")
        return float((self.box.predict(self.x) == box.predict(self.x)).double().mean())

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Every second image with outliers, and the others with some: none where one image alone has them."""
        rows = self.outliers.any(1).nonzero().flatten()
        return rows[::2], rows[1::2]

    def _fewest_that_move(self, ranked: Sequence[RegisterNeuron], rows: Tensor) -> int:
        moved = dict[int, float]()
        for n in sorted({min(n, len(ranked)) for n in N_NEURONS_TRIED} | {len(ranked)}):
            moved[n] = self._moved(box_with_register(self.box, self.blocks, ranked[:n]), rows)
            if moved[n] >= MOVED_SHARE:
                return n
        return max(moved, key=lambda n: (moved[n], -n))

    def _random_neurons(self, neurons: Sequence[RegisterNeuron]) -> list[RegisterNeuron]:
        """As many neurons of the same layers, drawn at random from the others."""
        generator, drawn = rng.keyed_generator(rng.CPU, "register neurons", self.seed), []
        for layer in dict.fromkeys(n.layer for n in neurons):
            own = {n.unit for n in neurons if n.layer == layer}
            width = int(self.box.modules[layer.rpartition(":")[0]].in_features)  # type: ignore[arg-type]
            others = [int(k) for k in torch.randperm(width, generator=generator) if int(k) not in own]
            drawn += [RegisterNeuron(layer, k, 0.0, 0.0) for k in others[: len(own)]]
        return drawn

    def _norms(self, box: Box, x: Tensor) -> Tensor:
        """(N, L, P) with the register."""
        inner = TokenBlocks(tuple(f"model.{a}" for a in self.blocks.addresses), (), self.blocks.grid)
        return inner.norms(box, x, {}, self.batch_size)

    def _moved(self, box: Box, rows: Tensor) -> float:
        """The share of these images' outliers that the register leaves none of: fewer, wherever they are.

        NaN of no images.
        """
        if not len(rows):
            return float("nan")
        before = float(self.outliers[rows].sum())
        norms = self._norms(box, self.x[rows])[:, self.worst]
        left = float((norms > self.min_ratio * norms.median()).sum())
        return max(0.0, 1 - left / before)

    def _maps(self, box: Box) -> dict[str, SpoiledMap]:
        rows = self.outliers.any(1).nonzero().flatten()[:MAX_MAPPED_IMAGES]
        x, outliers = self.x[rows], self.outliers[rows]
        target = None if self.box.outputs == "regression" else self.box.predict(x)
        maps = dict[str, SpoiledMap]()
        methods = {name: card.method for name, card in _map_cards().items()}
        for name, method in {ATTENTION_OF_LAST_BLOCK: None, **methods}.items():
            before = _map_ratio(self.box, x, target, method, self.blocks, outliers)
            after = None if before is None else _map_ratio(box, x, target, method, self.blocks, outliers)
            if before is not None and after is not None:
                maps[name] = SpoiledMap(before, after)
        return maps


# -- maps --------------------------------------------------------------------------------------------------------------


def _map_cards() -> dict[str, Card]:
    """The methods of attribution that take few model runs and no more than inputs and a target."""
    found = {}
    for card in cards():
        required = [
            p for p in inspect.signature(card.method).parameters.values() if p.default is inspect.Parameter.empty
        ]
        if card.family == "attribution" and len(required) == 2 and card.n_model_runs() <= MAX_RUNS_OF_MAP:
            found[card.key] = card
    return found


def _map_ratio(
    box: Box,
    x: Tensor,
    target: Tensor | None,
    method: Callable[..., Any] | None,
    blocks: TokenBlocks,
    outliers: Tensor,
) -> float | None:
    """The mean magnitude of a map at outliers (n, P), divided by that elsewhere; None where there is no such map.

    Without a method it is the attention of the last block.
    """
    if method is None:
        patches = torch.cat(
            map_in_batches(lambda rows: _last_attention(box, x[rows], outliers.shape[1]), len(x), "auto", 16)
        )
    else:
        takes_target = "target" in inspect.signature(method).parameters
        try:
            values = compute_map(box, method if takes_target else lambda box, x, _: method(box, x), x, target)
        except UnboxedError:
            return None  # the method needs what the model lacks
        patches = F.adaptive_avg_pool2d(values.abs().sum(1, keepdim=True).double(), blocks.grid.size).flatten(1)
    inside, outside = patches[outliers].double().mean(), patches[~outliers].double().mean()
    return float(inside / outside) if float(outside) > 0 else None


def _last_attention(box: Box, x: Tensor, n_patches: int) -> Tensor:
    """(n, P) to the patches, of the tokens from which the answer is read: the class token, or all; mean over heads."""
    read = output_token_weights_of_model(box, x)  # (n, T)
    return (read[:, None] @ _last_attention_weights(box, x).to(read))[:, 0, -n_patches:]


@rerun_after_finding_head_order
def _last_attention_weights(box: Box, x: Tensor) -> Tensor:
    """(n, T, T) of the last block, the mean over heads."""
    with box.isolated(grad=False), recording_attention(box, x) as maps:
        box.forward(x, {"output"})
    return require_attention_maps(maps)[-1].weights[: len(x)].mean(1)
