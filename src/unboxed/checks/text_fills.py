"""What takes the place of a token that is removed: no word, an average one, or a word of the other texts."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng
from ..inputs.tokens import N_TOKEN_META_COLUMNS, Tokens


def text_fills(inputs: Tokens, x: Tensor, seed: int) -> dict[str, Tensor]:
    """{fill: packed texts (N, T, D + 3) in which each token that may be removed is replaced}.

    [MASK] (zeros where the tokenizer has none), the mean embedding of the texts' tokens, and tokens that are drawn from
    all texts, where there are several. What the tokenizer added stays, and so do ids, masks and types.
    """
    removable = ~inputs.is_special(x)
    words = x[removable][:, :-N_TOKEN_META_COLUMNS]  # (M, D)
    kind = inputs.default_fill_kind
    fills = {kind: inputs.fill_tokens(x, kind)}
    if len(words):
        fills["mean"] = _with_embeddings(x, removable, words.mean(0).expand(*x.shape[:2], -1))
    if len(words) and len(x) > 1:
        drawn = (rng.uniform(x[..., 0], seed) * len(words)).long().clamp(max=len(words) - 1)  # (N, T)
        fills["other tokens"] = _with_embeddings(x, removable, words[drawn])
    return fills


def _with_embeddings(x: Tensor, removable: Tensor, embeddings: Tensor) -> Tensor:
    changed = torch.cat([embeddings, x[..., -N_TOKEN_META_COLUMNS:]], -1)
    return torch.where(removable[..., None], changed, x)
