"""Sentences as vectors: by a function, by the mean of word vectors, or by the layers of a model of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..box import Box
from ..engine.linear.erasure import Eraser
from ..engine.read.attention_maps import attending_blocks
from ..engine.read.features import hidden_layer_input_addresses
from ..engine.rows import evenly_spaced_indices
from ..errors import InputError, LayerError, NaNError
from ..inputs.tokens import Tokens
from ..model.batching import BatchSize, map_in_batches
from ..model.nan_checks import check_no_nan, row_numbers_text
from ..objectives import mean_over_positions
from ._lookup import vectors_of_texts
from .vectors import WordVectors

Pooling = Annotated[
    Literal["mean", "first", "last"], "Which vector of a layer is a sentence's: the mean of its tokens, or one token."
]
MAX_DEFAULT_LAYERS = 12
MAX_SENTENCES_PER_BATCH = 128
MAX_OUTPUTS_OF_ERASER = 256  # of a model with more classes those that vary most


@dataclass(frozen=True, eq=False)
class SentenceFeatures:
    """Vectors of sentences by layer, with what a model answers.

    Attributes:
        by_layer: {layer: (N, D)}.
        outputs: (N, K) of a model, of more than 256 those that vary most; None of another encoder.
        note: What the encoder left out; empty where it is nothing.
    """

    by_layer: dict[str, Tensor]
    outputs: Tensor | None = None
    note: str = ""


def features_by_function(encoder: Any, sentences: Sequence[str], batch_size: BatchSize) -> SentenceFeatures:
    """Vectors (N, D) by a function from texts to vectors.

    Raises InputError where it returns something else, and NaNError that names the sentences whose vectors are NaN.
    """
    limit = MAX_SENTENCES_PER_BATCH
    parts = map_in_batches(
        lambda rows: vectors_of_texts(encoder, list(sentences[rows])), len(sentences), batch_size, limit
    )
    if len(sizes := {part.shape[1] for part in parts}) > 1:
        raise InputError(
            f"the encoder gives vectors of {' and '.join(map(str, sorted(sizes)))} values; wanted one size"
        )
    return SentenceFeatures({"encoder": _check_finite_vectors(torch.cat(parts))})


def _check_finite_vectors(h: Tensor) -> Tensor:
    """The vectors (N, D) themselves. Raises NaNError that names the rows that hold NaN or infinite values."""
    if rows := (~h.isfinite().all(1)).nonzero()[:, 0].tolist():
        raise NaNError(
            f"the encoder gives NaN or infinite values for {row_numbers_text(rows)}: nothing can be read from them; "
            "repair it, or leave these sentences out",
            rows, "the encoder",
        )  # fmt: skip
    return h


def features_by_word_vectors(vectors: WordVectors, sentences: Sequence[str]) -> SentenceFeatures:
    """The mean (N, D) of the vectors of each sentence's words; those that are unknown are counted in the note."""
    means, n_words, n_unknown, n_empty = [], 0, 0, 0
    for sentence in sentences:
        found = [vectors.find(word) for word in sentence.split()]
        known = [i for i in found if i is not None]
        n_words, n_unknown, n_empty = n_words + len(found), n_unknown + len(found) - len(known), n_empty + (not known)
        means.append(vectors.vectors[known].double().mean(0) if known else vectors.vectors.new_zeros(1).double())
    if n_unknown == n_words:
        raise InputError(
            f"{vectors.name} has none of the words of these sentences; ignore_case=True looks up lower case"
        )
    size = vectors.vectors.shape[1]
    note = f"{n_unknown / n_words:.1%} of the words have no vector, and {n_empty} sentences none that has"
    return SentenceFeatures(
        {"mean of word vectors": torch.stack([m.cpu().expand(size) for m in means])}, note=note * bool(n_unknown)
    )


@dataclass(frozen=True, eq=False)
class TokenReader:
    """Layers of a model of texts, each pooled to one vector per sentence."""

    box: Box
    pooling: str

    def default_layers(self, sentence: str) -> list[str]:
        """What goes into the first block of a transformer, and its blocks; else what layers of the model receive."""
        x = self.box.validate_inputs([sentence])
        try:
            blocks = attending_blocks(self.box, x)
        except LayerError:
            return self._hidden_layers_of_tokens(x)
        return [f"{blocks[0]}:input", *(blocks[i] for i in evenly_spaced_indices(len(blocks), MAX_DEFAULT_LAYERS))]

    def _hidden_layers_of_tokens(self, x: Tensor) -> list[str]:
        addresses = hidden_layer_input_addresses(self.box, MAX_DEFAULT_LAYERS)
        acts = self.box.read(x, addresses) if addresses else {}
        fitting = [a for a in addresses if _is_poolable(acts[a], x)]
        if not fitting:
            raise LayerError("no layer of this model gives a vector per token or per text; name layers that do")
        return fitting

    def read(self, sentences: Sequence[str], layers: Sequence[str], batch_size: BatchSize) -> SentenceFeatures:
        """Each layer's vectors, and the model's outputs, in batches of sentences of about one length."""
        box, order = self.box, sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        columns: Tensor | None = None

        def read_rows(rows: slice) -> tuple[dict[str, Tensor], Tensor]:
            nonlocal columns
            x = box.validate_inputs([sentences[i] for i in order[rows]])
            with box.isolated(grad=False):
                acts = box.forward(x, {*layers, "logits"})
                logits = mean_over_positions(acts["logits"]).detach()
                columns = _most_variable_columns(logits) if columns is None else columns
                pooled = {a: self._pool(a, acts[a], x).detach().to(box.dtype).cpu() for a in layers}
                return pooled, logits[:, columns].double().cpu()

        parts = map_in_batches(read_rows, len(sentences), *self.batch_plan(sentences, batch_size))
        back = torch.tensor(order).argsort()
        by_layer = {a: check_no_nan(torch.cat([h[a] for h, _ in parts])[back], what=repr(a)) for a in layers}
        return SentenceFeatures(by_layer, check_no_nan(torch.cat([outputs for _, outputs in parts])[back]))

    def batch_plan(self, sentences: Sequence[str], batch_size: BatchSize) -> tuple[BatchSize, int]:
        """As `Box.batch_size_and_max_rows`, of sentences that are longer than the text by which the box counts."""
        size, limit = self.box.batch_size_and_max_rows(len(sentences), batch_size)
        longest = max(len(sentence.split()) for sentence in sentences)
        fitting = limit * self.box.inputs.shape[0] // max(longest, self.box.inputs.shape[0])
        return size, limit if self.box.batch_dependent else max(1, min(MAX_SENTENCES_PER_BATCH, fitting))

    def _pool(self, address: str, h: Tensor, x: Tensor) -> Tensor:
        """Vectors (n, D) of activations (n, T, D), or (n, D). Raises LayerError."""
        if not _is_poolable(h, x):
            raise LayerError(
                f"{address!r} gives {tuple(h.shape)} for {len(x)} texts of {x.shape[1]} tokens: wanted a vector per "
                "token, (N, T, D), or per text, (N, D)"
            )
        if h.ndim == 2:
            return h
        if self.pooling == "mean":
            weights = tokens_of(self.box).mask(x).to(h)[..., None]
            return (h * weights).sum(1) / weights.sum(1)
        return h[torch.arange(len(h), device=h.device), self._positions(x).to(h.device)]

    def _positions(self, x: Tensor) -> Tensor:
        """(n,): the position of the token that is read."""
        mask = tokens_of(self.box).mask(x).long()
        return (
            mask.argmax(1) if self.pooling == "first" else (mask * torch.arange(x.shape[1], device=x.device)).argmax(1)
        )

    def view(self, address: str, x: Tensor) -> PooledTokensView:
        """How the vectors of texts x (M, T, ...) lie in a layer."""
        return PooledTokensView(address, None if self.pooling == "mean" else self._positions(x))


def tokens_of(box: Box) -> Tokens:
    """The inputs of a model of texts. Raises InputError for another model."""
    if not isinstance(box.inputs, Tokens):
        raise InputError(f"wanted a model of texts, ub.Box(model, ub.Tokens(tokenizer)); this one takes {box.inputs!r}")
    return box.inputs


def _is_poolable(h: Tensor, x: Tensor) -> bool:
    is_real = h.is_floating_point()
    return is_real and len(h) == len(x) and (h.ndim == 2 or (h.ndim == 3 and h.shape[1] == x.shape[1]))


def _most_variable_columns(logits: Tensor) -> Tensor:
    """The indices of the outputs (n, K) that vary most, of up to 256 all."""
    if logits.shape[1] <= MAX_OUTPUTS_OF_ERASER:
        return torch.arange(logits.shape[1], device=logits.device)
    return logits.double().var(0, correction=0).topk(MAX_OUTPUTS_OF_ERASER).indices.sort().values


@dataclass(frozen=True, eq=False)
class PooledTokensView:
    """A layer's activations (R, T, D) as vectors: the means of tokens, which are edited at each one, or one token's."""

    address: str
    positions: Tensor | None  # (R,) of the token that is read; None: the mean

    def edit(self, h: Tensor, eraser: Eraser) -> Tensor:
        """Activations with features erased: those of all tokens alike, or of the one that is read."""
        values = h.to(eraser.mean.dtype)
        if self.positions is None or h.ndim == 2:
            return eraser(values).to(h)
        rows, at = torch.arange(len(h), device=h.device), self.positions.to(h.device)
        edited = values.clone()
        edited[rows, at] = eraser(values[rows, at])
        return edited.to(h)

    def of_rows(self, rows: Tensor) -> PooledTokensView:
        """The view of these texts (R,)."""
        return (
            self if self.positions is None else replace(self, positions=self.positions[rows.to(self.positions.device)])
        )
