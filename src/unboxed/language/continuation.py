"""Continuations of texts: which words a causal language model's own or given next words come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card_of
from ..engine.results import ResultMixin
from ..errors import InputError, OutputError
from ..inputs.tokens import Tokens
from ..objectives import Objective, tokens_logprob
from ..settings import AtLeast, Unit, check_settings

MIN_CAUSAL_TOLERANCE_NATS, CAUSAL_TOLERANCE_ROUNDING_ERRORS = 1e-5, 3000
"""Of log-probabilities: by how much, or by how many rounding errors, what comes after a token may change them."""


@dataclass(frozen=True, eq=False, repr=False)
class Continuation(ResultMixin):
    """Texts with a continuation each, and what to ask of a language model about it.

    `x` is what methods take as inputs, `logprob` and `token(j)` are their targets.

    Attributes:
        x: The texts with their continuations, packed (N, T, D + 3).
        tokens: The tokens of each text, its continuation included, as words.
        ids: The tokens (N, C) of the continuations; -1 where a text has fewer.
        positions: The positions (N, C) at which they are predicted, one before their own; -1 where there is none.
        words: The tokens of each continuation, as words.
        logprobs: The log-probability (N, C) of each, given all before it; 0 where there is none.
    """

    x: Tensor
    tokens: tuple[tuple[str, ...], ...]
    ids: Tensor
    positions: Tensor
    words: tuple[tuple[str, ...], ...]
    logprobs: Tensor

    @property
    def logprob(self) -> Objective:
        """The log-probability of the whole continuation, as a target."""
        return tokens_logprob(self.ids, self.positions)

    def token(self, j: int) -> Objective:
        """The log-probability of the j-th token of each continuation, as a target."""
        return tokens_logprob(self.ids[:, j : j + 1], self.positions[:, j : j + 1])

    @property
    def n_tokens(self) -> int:
        """C, the number of tokens of the longest continuation."""
        return int(self.ids.shape[1])


@dataclass(frozen=True, eq=False, repr=False)
class ContinuationAttribution(ResultMixin):
    """What each token of a continuation comes from."""

    map: Tensor  # (N, C, T): of each token of the continuation, over the tokens of its text
    tokens: tuple[tuple[str, ...], ...]  # of each text with its continuation
    words: tuple[tuple[str, ...], ...]  # of each continuation
    logprobs: Tensor  # (N, C)
    special: Tensor  # (N, T) bool: tokens that the tokenizer added, and padding
    method: str


def continuation(
    box: Box,
    texts: Sequence[str],
    continuations: Sequence[str] | None = None,
    *,
    n_tokens: Annotated[int, AtLeast(1), Unit("tokens"), "Tokens that the model adds where none are given."] = 5,
) -> Continuation:
    """Texts continued by given words, or by the model's own, ready to be explained.

    For a next token alone no continuation is needed: a language model's classes are the tokens of its vocabulary, and
    `ub.attribution.lime(box, texts)` explains the one predicted. Here the target is the log-probability of several:

        asked = ub.language.continuation(box, ["The film was"], [" very good"])
        ub.attribution.integrated_gradients(box, asked.x, asked.logprob)

    Args:
        box: The opened model, a causal language model.
        texts: The texts.
        continuations: What follows each of them. None: what the model finds most likely, token by token, until it ends
            the text.
        n_tokens: Tokens that the model adds where none are given.

    Returns:
        A `Continuation`: `x`, the targets `logprob` and `token(j)`, and the log-probability of each token.

    Raises:
        OutputError: for a model that predicts no tokens, or one that looks at what comes after.
        InputError: for other texts than continuations, an empty one, or one longer than the model takes.

    Example:
        >>> import torch, unboxed as ub
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.head = nn.Embedding(128, 8), nn.Linear(8, 128)
        ...     def forward(self, ids):
        ...         return self.head(self.embed(ids).cumsum(1))
        >>> box = ub.Box(Model(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
        >>> asked = ub.language.continuation(box, ["go", "stop"], ["ne", "!"])
        >>> asked.ids.tolist(), asked.positions.tolist()
        ([[110, 101], [33, -1]], [[1, 2], [3, -1]])
    """
    check_settings(continuation, {"n_tokens": n_tokens})
    inputs = _require_causal_language_model(box)
    listed = [texts] if isinstance(texts, str) else list(texts)
    starts = [_strip_trailing_special_tokens(inputs, inputs.token_ids(text)) for text in listed]
    if continuations is None:
        added = _greedy_continuations(box, starts, n_tokens)
    else:
        given = [continuations] if isinstance(continuations, str) else list(continuations)
        if len(given) != len(starts):
            raise InputError(f"there are {len(starts)} texts and {len(given)} continuations; wanted one for each")
        added = [_continuation_ids(inputs, *pair) for pair in zip(listed, starts, given, strict=True)]
    x, ids, positions = _pack_with_continuations(inputs, starts, added)
    x = box.validate_inputs(x)
    logprobs = _continuation_logprobs(box, x, ids, positions)
    _check_causal(box, x, ids, starts, logprobs)
    words = tuple(tuple(inputs.words(row)) for row in added)
    return Continuation(x, tuple(map(tuple, inputs.token_texts(x))), ids, positions, words, logprobs)


def attribute_continuation(
    method: Callable[..., Any],
    box: Box,
    texts: Sequence[str],
    continuations: Sequence[str] | None = None,
    *,
    n_tokens: Annotated[int, AtLeast(1), Unit("tokens"), "Tokens that the model adds where none are given."] = 5,
    **settings: Any,
) -> ContinuationAttribution:
    """What each token of a continuation comes from, token by token: one map over all tokens before it for each.

    Args:
        method: A method of `ub.attribution` that takes texts, such as `ub.attribution.attn_lrp`.
        box: The opened model, a causal language model.
        texts: The texts.
        continuations: What follows each of them. None: what the model finds most likely, token by token, until it ends
            the text.
        n_tokens: Tokens that the model adds where none are given.
        settings: Settings of the method.

    Returns:
        A `ContinuationAttribution`: `map` (N, C, T), in units of the log-probability of each token.

    Raises:
        OutputError: for a model that predicts no tokens, or one that looks at what comes after.
        InputError: for other texts than continuations, or a method that does not take texts.

    Example:
        >>> import torch, unboxed as ub
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.head = nn.Embedding(128, 8), nn.Linear(8, 128)
        ...     def forward(self, ids):
        ...         return self.head(self.embed(ids).cumsum(1))
        >>> box = ub.Box(Model(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
        >>> a = ub.language.attribute_continuation(ub.attribution.feature_ablation, box, ["stop"], ["ped"])
        >>> tuple(a.map.shape), bool((a.map[0, 0, 4:] == 0).all())  # nothing comes from what follows
        ((1, 3, 7), True)
    """
    asked = continuation(box, texts, continuations, n_tokens=n_tokens)
    card = card_of(method)
    if card is not None and not card.texts:
        raise InputError(f"{card.key} takes no texts")
    maps = torch.zeros(*asked.ids.shape, asked.x.shape[1], dtype=box.dtype, device=box.device)  # (N, C, T)
    name = card.name if card is not None else getattr(method, "__name__", "")
    for j in range(asked.n_tokens):
        rows = (asked.positions[:, j] >= 0).nonzero()[:, 0]  # texts may have fewer
        maps[rows, j] = method(box, asked.x[rows], asked.token(j).rows(rows), **settings).map
    special = box.inputs.is_special(asked.x)  # type: ignore[attr-defined]
    return ContinuationAttribution(maps, asked.tokens, asked.words, asked.logprobs, special, name)


def _require_causal_language_model(box: Box) -> Tokens:
    if not isinstance(box.inputs, Tokens) or not box.predicts_tokens:
        raise OutputError(
            f"a continuation needs a language model of texts, which scores each token of its vocabulary; this model "
            f"gives {box.n_outputs} scores for {type(box.inputs).__name__}"
        )
    return box.inputs


def _strip_trailing_special_tokens(inputs: Tokens, ids: list[int]) -> list[int]:
    """The tokens of a text without those that the tokenizer puts at its end."""
    special = set(getattr(inputs.tokenizer, "all_special_ids", ()))
    while len(ids) > 1 and ids[-1] in special:
        ids = ids[:-1]
    return ids


def _continuation_ids(inputs: Tokens, text: str, start: list[int], added: str) -> list[int]:
    """The tokens of a continuation: as the tokenizer splits both together where that begins as the text alone does."""
    if not added:
        raise InputError("a continuation is empty")
    together = _strip_trailing_special_tokens(inputs, inputs.token_ids(text + added))
    if together[: len(start)] == start and len(together) > len(start):
        return together[len(start) :]
    alone = _strip_trailing_special_tokens(inputs, inputs.token_ids(added))
    special = set(getattr(inputs.tokenizer, "all_special_ids", ()))
    return [k for k in alone if k not in special] or alone


def _greedy_continuations(box: Box, starts: list[list[int]], n_tokens: int) -> list[list[int]]:
    """The most likely tokens after each text, one at a time, until the model ends it."""
    inputs: Tokens = box.inputs  # type: ignore[assignment]
    end, added = getattr(inputs.tokenizer, "eos_token_id", None), [list[int]() for _ in starts]
    for _ in range(n_tokens):
        alive = [i for i, ids in enumerate(added) if not ids or ids[-1] != end]
        if not alive:
            break
        rows = [starts[i] + added[i] for i in alive]
        x, _, _ = _pack_with_continuations(inputs, rows, [[] for _ in rows])
        for i, k in zip(alive, box.predict(x).tolist(), strict=True):
            added[i].append(int(k))
    return added


def _pack_with_continuations(
    inputs: Tokens, starts: list[list[int]], added: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, T, D + 3), and the ids and positions (N, C) of what was added."""
    rows = [a + b for a, b in zip(starts, added, strict=True)]
    n, most = max(map(len, rows)), max(map(len, added))
    ids, mask = torch.full((len(rows), n), inputs.pad_id or 0), torch.zeros(len(rows), n, dtype=torch.long)
    wanted, positions = torch.full((len(rows), most), -1), torch.full((len(rows), most), -1)
    for i, (start, row) in enumerate(zip(starts, rows, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        c = len(row) - len(start)
        wanted[i, :c], positions[i, :c] = ids[i, len(start) : len(row)], torch.arange(len(start) - 1, len(row) - 1)
    return inputs.pack({"input_ids": ids, "attention_mask": mask}), wanted, positions


def _continuation_logprobs(box: Box, x: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """The log-probability (N, C) of each token."""
    output, columns = box.read(x, ["output"]), [slice(j, j + 1) for j in range(ids.shape[1])]
    return torch.stack([tokens_logprob(ids[:, c], positions[:, c])(output) for c in columns], 1)


def _check_causal(box: Box, x: Tensor, ids: Tensor, starts: list[list[int]], logprobs: Tensor) -> None:
    """Raise OutputError where the first token's probability depends on what follows it."""
    inputs: Tokens = box.inputs  # type: ignore[assignment]
    alone, _, _ = _pack_with_continuations(inputs, starts, [[] for _ in starts])
    first = box(alone).log_softmax(1).gather(1, ids[:, :1].to(box.device))[:, 0]
    tolerance = max(MIN_CAUSAL_TOLERANCE_NATS, CAUSAL_TOLERANCE_ROUNDING_ERRORS * torch.finfo(box.model_dtype).eps)
    if not torch.allclose(first, logprobs[:, 0], atol=tolerance):
        raise OutputError(
            "the model sees what comes after a token when it predicts it: it is no causal language model; ask it for "
            "the token at a [MASK] instead"
        )
