"""HotFlip: words swapped one after another, by the gradient's estimate of what a swap would do, checked by the model.

Ebrahimi et al. 2018, "HotFlip: White-Box Adversarial Examples for Text Classification", arXiv:1712.06751.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..errors import InputError, warn
from ..inputs.tokens import N_TOKEN_META_COLUMNS, Tokens
from ..model.batching import map_in_batches
from ..model.nan_checks import check_no_nan
from ..objectives import Objective
from ..parameters import AttackTarget, BatchSize, CustomAttackObjective, InputBatch, Labels
from ..settings import AtLeast, AtMost, Unit, check_settings
from .goal import AttackGoal, make_goal
from .result import Adversarial

MAX_PRINTED_TEXTS = 10
N_CANDIDATES_FACTOR, MAX_RETRIED_TEXTS, MIN_ADDED_FRACTION = 4, 16, 0.05  # of the check of `n_candidates`
Swap = tuple[int, str, str]
"""The position of a token in its text, what it was, and what it became."""


@dataclass(frozen=True, repr=False, eq=False)
class WordSwaps(Adversarial):
    """Texts with words swapped, and which of them fool the model; `distance` is the number of swaps."""

    returns: ClassVar[str] = "texts"

    tokens: tuple[tuple[str, ...], ...] = ()  # of each new text
    swaps: tuple[tuple[Swap, ...], ...] = ()  # of each text, in the order of the text

    def __str__(self) -> str:
        lines = [", ".join(f"{old} -> {new}" for _, old, new in row) or "no swap" for row in self.swaps]
        marks = zip(self.success.tolist(), self.tokens, lines, strict=True)
        shown = [f"{'fooled' if ok else 'stands'}: {' '.join(tokens)}  ({line})" for ok, tokens, line in marks]
        rest = [f"and {len(shown) - MAX_PRINTED_TEXTS} more"] if len(shown) > MAX_PRINTED_TEXTS else []
        return "\n".join([*shown[:MAX_PRINTED_TEXTS], *rest])


@card(
    name="HotFlip",
    source="Ebrahimi et al. 2018, arXiv:1712.06751, section 3",
    shows="How few words the answer to a text hangs on, and which.",
    does_not_show="That a reader would still read the text as before: swaps need not keep its meaning.",
    needs=("texts",),
    example=lambda method, box, x, y: method(box, x, y, max_swaps=1, n_candidates=2, check_candidates=False),
    texts=True,
    runs=lambda s: s["max_swaps"] * (s["n_candidates"] + 1),
    order=90,
)
def hotflip(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    max_swaps: Annotated[int, AtLeast(1), Unit("swaps"), "Largest number of tokens that are swapped."] = 3,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    n_candidates: Annotated[
        int, AtLeast(1), "Swaps per step that the model is asked about at most, the most promising."
    ] = 64,
    min_similarity: Annotated[
        float, AtLeast(-1), AtMost(1), "Smallest cosine similarity of a token's embedding with that of its swap."
    ] = -1.0,
    allowed: Annotated[Sequence[str] | None, "Tokens that may be put in. None: all but special ones."] = None,
    check_candidates: Annotated[bool, "Try texts that stand with more candidates, and warn if that fools some."] = True,
    batch_size: BatchSize = "auto",
) -> WordSwaps:
    """Texts that the model misreads after a few of their words were swapped.

    How few words does the answer hang on, and which? The gradient ranks all swaps of all tokens at once; the model is
    asked about the most promising ones until one fools it, else the best is made. Swaps need not keep the meaning: for
    those nearer to it raise `min_similarity`, or give the `allowed` ones.

    Args:
        box: The opened model, of texts (`Tokens`).
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. Here texts.
        y: Correct classes (N,), or one for all. Not needed with `target` or `objective`.
        max_swaps: Largest number of tokens that are swapped.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        n_candidates: Swaps per step that the model is asked about at most, the most promising. Only texts that stand
            take as many.
        min_similarity: Smallest cosine similarity of a token's embedding with that of its swap. -1 allows all; the
            paper's word-level attack takes 0.8.
        allowed: Tokens that may be put in. None: all but special ones.
        check_candidates: Try texts that stand with more candidates, and warn if that fools some. The first 16 of them
            are tried with four times as many, which `queries` does not count; False saves it.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `WordSwaps`: `images` has the new ids and masks, `tokens` and `swaps` what they say; `success`, `distance`
        (swaps), `queries` and `initially_misclassified`, each (N,). Texts that are misclassified already are left.

    Raises:
        InputError: for a model of other inputs, without y, target and objective, and for `allowed` tokens that are
            empty or not in the vocabulary.
        NaNError: where the model gives NaN for a text or one that was tried instead; the error names the rows.

    Example:
        >>> import torch, unboxed as ub
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         torch.manual_seed(0)
        ...         self.embed, self.head = nn.Embedding(128, 8), nn.Linear(8, 2)
        ...     def forward(self, ids, mask):
        ...         h = self.embed(ids) * mask[..., None]
        ...         return self.head(h.sum(1) / mask.sum(1, keepdim=True))
        >>> box = ub.Box(Model(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
        >>> texts = ["some text", "another one"]
        >>> made = ub.adversarial.hotflip(box, texts, box.predict(texts), max_swaps=5)
        >>> made.success.tolist(), bool((made.distance <= 5).all())
        ([True, True], True)

    Source:
        Ebrahimi et al. 2018, arXiv:1712.06751, section 3: a swap changes the loss by (new - old embedding) x gradient,
        to first order (equation 2). Greedy, instead of a beam. The model checks the best estimate of
        each position, then that of each token put in, then the others: where the model is sure, the gradient ranks
        tokens at one position better than positions, and many swaps that it ranks high are alike. A swap is made only
        where it helps.
    """
    check_settings(hotflip, locals())
    if not isinstance(box.inputs, Tokens):
        raise InputError(f"HotFlip needs a model that takes texts (Tokens); this one takes {type(box.inputs).__name__}")
    x = box.validate_inputs(x)
    goal = make_goal(box, len(x), y, target, objective)
    vocabulary = _SwapVocabulary.of(box.inputs, x, allowed)
    plan = box.batch_size_and_max_rows(len(x), batch_size)

    def attack(index: Tensor, n_candidates: int) -> _SwapState:
        return _swap_until_fooled(
            box, x[index], index, goal.rows(index), vocabulary, max_swaps, n_candidates, min_similarity
        )

    numbers = torch.arange(len(x), device=x.device)
    parts = map_in_batches(lambda rows: attack(numbers[rows], n_candidates), len(x), *plan)
    x_new, success, initial, queries = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("x", "success", "initial", "queries")
    )
    n_all = x.shape[1] * len(vocabulary.ids)
    if check_candidates and n_candidates < n_all:
        n_more = min(n_candidates * N_CANDIDATES_FACTOR, n_all)
        _warn_if_more_fool(lambda index: attack(index, n_more), success, initial, n_candidates, n_more, plan)
    return _as_result(box, x, x_new, success, initial, queries, goal)


@dataclass(frozen=True, eq=False)
class _SwapVocabulary:
    """The tokens that may be put in."""

    ids: Tensor  # (V,)
    embeddings: Tensor  # (V, D)

    @classmethod
    def of(cls, inputs: Tokens, x: Tensor, allowed: Sequence[str] | None) -> _SwapVocabulary:
        """Raises InputError for no tokens, and for those that are not in the vocabulary."""
        ids = torch.arange(inputs.n_vocabulary_tokens, device=x.device)
        if allowed is not None and not len(allowed):
            raise InputError("`allowed` has no token; give those that may be put in, or None for all but special ones")
        if allowed is None:
            ids = ids[~torch.isin(ids, ids.new_tensor(sorted(inputs.special_ids())))]
        else:
            names = {name: k for k, name in enumerate(inputs.words(ids.tolist()))}
            if unknown := [word for word in allowed if word not in names]:
                raise InputError(f"the vocabulary has no token {unknown[0]!r}, which `allowed` has")
            ids = ids.new_tensor(sorted({names[word] for word in allowed}))
        packed = inputs.pack({"input_ids": ids[:, None].cpu()}).to(x)  # texts of one token: (V, 1, D + 3)
        return cls(ids, packed[:, 0, :-N_TOKEN_META_COLUMNS])


@dataclass(eq=False)
class _SwapState:
    x: Tensor  # (n, T, D + 3)
    success: Tensor  # (n,) bool
    initial: Tensor  # (n,) bool
    queries: Tensor  # (n,)


def _swap_until_fooled(
    box: Box, x: Tensor, numbers: Tensor, goal: AttackGoal, vocabulary: _SwapVocabulary, max_swaps: int,
    n_candidates: int,
    min_similarity: float,
) -> _SwapState:  # fmt: skip
    """Swap after swap of the texts that still stand; `numbers` (n,) are those of the texts, for errors."""
    original, x = x, x.clone()
    current = check_no_nan(_values(box, x, goal.criterion), numbers)
    initial, is_stuck = current > 0, torch.zeros_like(current, dtype=torch.bool)
    state = _SwapState(x, initial.clone(), initial, torch.ones(len(x), dtype=torch.long, device=x.device))
    for _ in range(max_swaps):
        rows = (~state.success & ~is_stuck).nonzero().flatten()
        if not len(rows):
            break
        goal_of_rows = goal.rows(rows)
        estimate = _estimated_gain(box, x[rows], original[rows], goal_of_rows, vocabulary, min_similarity)
        check_no_nan(estimate, numbers[rows], "the gradient by which swaps are estimated")
        x[rows], values, n_asked = _best_swap(
            box, x[rows], numbers[rows], goal_of_rows, vocabulary, estimate, n_candidates, current[rows]
        )
        is_stuck[rows], state.success[rows] = values <= current[rows], values > 0
        current[rows] = values
        state.queries[rows] += 1 + n_asked
    return state


def _warn_if_more_fool(
    attack: Callable[[Tensor], _SwapState], success: Tensor, initial: Tensor, n_candidates: int, n_more: int,
    plan: tuple[BatchSize, int],
) -> None:  # fmt: skip
    """Warn where `attack`, with `n_more` candidates, fools a notable share of all texts among those that stand."""
    standing = (~success).nonzero().flatten()
    retried = standing[:MAX_RETRIED_TEXTS]
    parts = map_in_batches(lambda rows: attack(retried[rows]), len(retried), *plan)
    n_fooled = sum(int(part.success.sum()) for part in parts)
    added = n_fooled * len(standing) / max(len(retried), 1)  # as estimated by those that were tried
    if added and added >= MIN_ADDED_FRACTION * int((~initial).sum()):
        warn(
            f"n_candidates={n_candidates} limits how many texts are fooled: of the {len(standing)} that stand, "
            f"{len(retried)} were tried with n_candidates={n_more}, and {n_fooled} of these were fooled; "
            "give more candidates to fool more texts (check_candidates=False: no such check)"
        )


def _values(box: Box, x: Tensor, objective: Objective) -> Tensor:
    with box.isolated(grad=False):
        return objective(box.forward(x, objective.layers)).detach()


def _estimated_gain(
    box: Box, x: Tensor, original: Tensor, goal: AttackGoal, vocabulary: _SwapVocabulary, min_similarity: float
) -> Tensor:
    """(n, T, V): what each swap would add to the loss, to first order; -inf where it is not allowed."""
    inputs: Any = box.inputs
    with box.isolated():
        leaf = x.detach().clone().requires_grad_()
        score = goal.ascent_objective(box.forward(leaf, goal.ascent_objective.layers))
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    g, e = gradient[..., :-N_TOKEN_META_COLUMNS], x[..., :-N_TOKEN_META_COLUMNS]  # (n, T, D)
    gain = g @ vocabulary.embeddings.mT - (g * e).sum(-1, keepdim=True)
    barred = (inputs.ids(x)[..., None] == vocabulary.ids) | inputs.is_special(original)[..., None]
    if min_similarity > -1:
        first = torch.nn.functional.normalize(original[..., :-N_TOKEN_META_COLUMNS], dim=-1)
        barred |= first @ torch.nn.functional.normalize(vocabulary.embeddings, dim=-1).mT < min_similarity
    return gain.masked_fill(barred, -math.inf)


def _best_swap(
    box: Box, x: Tensor, numbers: Tensor, goal: AttackGoal, vocabulary: _SwapVocabulary, estimate: Tensor,
    n_candidates: int, current: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The texts with the first swap that fools, else the best, their criterion (n,), how many were asked about (n,)."""
    top = _by_promise(estimate).topk(min(n_candidates, estimate[0].numel()))  # (n, k)
    is_allowed = top.values.isfinite()  # the first of each row
    best_x, best, n_asked = x.clone(), current.clone(), torch.zeros_like(numbers)
    for j in range(top.values.shape[1]):
        rows = (is_allowed[:, j] & (best <= 0)).nonzero().flatten()
        if not len(rows):
            break
        index = top.indices[rows, j]
        tried = _with_swap(x[rows], index // len(vocabulary.ids), vocabulary, index % len(vocabulary.ids))
        value = _values(box, tried, goal.rows(rows).criterion)
        check_no_nan(value, numbers[rows], "a text that was tried instead")
        is_better = value > best[rows]
        best_x[rows[is_better]], best[rows[is_better]] = tried[is_better], value[is_better]
        n_asked[rows] += 1
    return best_x, best, n_asked


def _by_promise(estimate: Tensor) -> Tensor:
    """(n, T * V): estimates (n, T, V), raised so that the best of each position comes first, then that of each token.

    Where a word saturates the score, the gradient at its position says little.
    """
    finite = estimate.masked_fill(estimate.isinf(), 0)
    above_all = (finite.amax((1, 2)) - finite.amin((1, 2)) + 1)[:, None, None]
    n, n_positions, n_tokens = estimate.shape
    promise = estimate.scatter_add(1, estimate.argmax(1, keepdim=True), above_all.expand(n, 1, n_tokens))
    promise.scatter_add_(2, estimate.argmax(2, keepdim=True), (2 * above_all).expand(n, n_positions, 1))
    return promise.flatten(1)


def _with_swap(x: Tensor, position: Tensor, vocabulary: _SwapVocabulary, word: Tensor) -> Tensor:
    """Texts (n, T, D + 3) with another word each, at a position each (n,)."""
    x, rows = x.clone(), torch.arange(len(x), device=x.device)
    x[rows, position, :-N_TOKEN_META_COLUMNS] = vocabulary.embeddings[word]
    x[rows, position, -N_TOKEN_META_COLUMNS] = vocabulary.ids[word].to(x.dtype)
    return x


def _as_result(
    box: Box, x: Tensor, x_new: Tensor, success: Tensor, initial: Tensor, queries: Tensor, goal: AttackGoal
) -> WordSwaps:
    inputs: Any = box.inputs
    old_ids, new_ids = inputs.ids(x), inputs.ids(x_new)
    changed = old_ids != new_ids
    swaps = []
    for row, mask in enumerate(changed):
        places = mask.nonzero().flatten().tolist()
        old, new = (inputs.words(ids[row, places].tolist()) for ids in (old_ids, new_ids))
        swaps.append(tuple(zip(places, old, new, strict=True)))
    return WordSwaps(
        images=inputs.unpack(x_new), success=success, queries=queries, distance=changed.sum(1).to(box.dtype),
        initially_misclassified=initial, norm="l0", input=inputs.unpack(x), classes=box.classes, goal=goal.kind,
        tokens=tuple(map(tuple, inputs.token_texts(x_new))), swaps=tuple(swaps),
    )  # fmt: skip
