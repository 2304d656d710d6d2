"""Tokens: texts for a model of tokens, packed as embeddings, so that every method that takes numbers takes texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, NaNError
from .text_models import (
    ID_ARGUMENT_NAMES,
    MASK_ARGUMENT_NAMES,
    TOKEN_TYPE_ARGUMENT_NAMES,
    find_embedding_layer,
    id_mask_and_type_argument_names,
    n_embeddings,
    n_positions,
    pad_id_of,
    vocabulary_size,
)

N_TOKEN_META_COLUMNS = 3  # columns behind the embedding: the token's id, whether it is one (1) or padding (0), its type
MAX_ROWS_IN_ERROR = 5
N_RANDOM_TEXT_TOKENS = 8  # of a random text
ADDED_TOKEN_KINDS = ("bos", "eos", "sep", "cls", "pad", "mask")  # of a tokenizer's special tokens
EmbeddingReduction = Literal["sum", "length", "same"]
"""What a token's number is: the sum of contributions, the length of slopes, or what is the same for all its values."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Texts: a tokenizer, and how many tokens the model takes.

    x is then a list of texts, of pairs of texts, or a tokenizer's dict of tensors. Inside, a batch is one tensor
    (N, T, D + 3): each token's embedding, as the model's own embedding layer gives it, then its id, whether it is a
    token or padding, and its type. The model gets ids and mask as it always does; what its embedding layer returns is
    replaced by the embeddings, so that gradients and masks act on them, whatever the model does with ids besides. A
    model without an argument for the mask, and whose answers padding changes, is run on texts of one length at a time;
    its layers are read of texts of one length only.

    Args:
        tokenizer: A Hugging Face tokenizer, or a function of a text that returns its ids (a list of ints). Maps name
            ids; where it has a method `convert_ids_to_tokens(ids)`, which returns their words, they name words.
        max_length: Largest number of tokens; longer texts are refused. None takes what tokenizer and model say.
        truncate: Cut longer texts instead.
        embedding: Address of the embedding layer. None finds it.
        pad_id: Id that fills shorter texts. None takes the tokenizer's, else 0.

    Raises:
        InputError: when the tokenizer gives ids that the model has no embedding of, or no embedding layer is found.

    Example:
        >>> import torch, unboxed as ub
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.head = nn.Embedding(128, 8), nn.Linear(8, 2)
        ...     def forward(self, ids, mask):
        ...         h = self.embed(ids) * mask[..., None]
        ...         return self.head(h.sum(1) / mask.sum(1, keepdim=True))
        >>> box = ub.Box(Model(), ub.Tokens(lambda text: [ord(c) for c in text]), outputs="logits")
        >>> box.predict(["good", "not so good"]).shape
        torch.Size([2])
    """

    tokenizer: Callable[..., Any]
    max_length: int | None = None
    truncate: bool = False
    embedding: str | None = None
    pad_id: int | None = None
    _layer: nn.Module | None = None  # the embedding layer of the model that these inputs were bound to
    _arguments: tuple[str | None, ...] = ()  # names of the model's arguments: ids, mask, types
    _has_pad_id: bool = False  # that pad_id was given, or is the tokenizer's: no token of a text

    is_text: ClassVar[bool] = True

    def __repr__(self) -> str:
        name = getattr(self.tokenizer, "__name__", type(self.tokenizer).__name__)
        limit = "" if self.max_length is None else f", max_length={self.max_length}"
        return f"Tokens({name}{limit}{', truncate=True' * self.truncate})"

    # -- the model -----------------------------------------------------------------------------------------------------

    def bind_to_model(self, model: nn.Module) -> Tokens:
        """These inputs for one model: its embedding layer and the names of its arguments. Raises InputError."""
        path, layer = find_embedding_layer(model, self.embedding)
        n_known, n_ids = n_embeddings(layer), vocabulary_size(self.tokenizer)
        if n_ids is not None and n_known is not None and n_ids > n_known:
            raise InputError(
                f"the tokenizer does not fit the model: it has {n_ids:,} tokens, and {path!r} has embeddings of "
                f"{n_known:,}"
            )
        limit = n_positions(model, self.tokenizer) if self.max_length is None else self.max_length
        own_pad_id = getattr(self.tokenizer, "pad_token_id", None) if self.pad_id is None else self.pad_id
        has_pad_id = self._has_pad_id if self._layer is not None else own_pad_id is not None
        return replace(
            self, max_length=limit, embedding=path, pad_id=pad_id_of(self.tokenizer, self.pad_id), _layer=layer,
            _arguments=id_mask_and_type_argument_names(model), _has_pad_id=has_pad_id,
        )  # fmt: skip

    @property
    def layer(self) -> nn.Module:
        """The embedding layer."""
        if self._layer is None:
            raise InputError("these Tokens belong to no model yet: open one with them, Box(model, Tokens(tokenizer))")
        return self._layer

    @property
    def width(self) -> int:
        """D, the values of an embedding."""
        return int(self._embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1])

    @property
    def n_vocabulary_tokens(self) -> int:
        """Number of tokens of the vocabulary, as the tokenizer or else the embedding layer says; 0 where none does."""
        return vocabulary_size(self.tokenizer) or n_embeddings(self.layer) or 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, D + 3) of a short text: T is that of the longest text of a batch."""
        return min(N_RANDOM_TEXT_TOKENS, self.max_length or N_RANDOM_TEXT_TOKENS), self.width + N_TOKEN_META_COLUMNS

    @property
    def takes_mask(self) -> bool:
        """Whether the model has an argument for the mask, and so can know padding."""
        return any(self._arguments[1:2])

    # -- texts to tensors ----------------------------------------------------------------------------------------------

    def pack(self, x: Any) -> Tensor:
        """(N, T, D + 3) of texts, pairs of texts or a tokenizer's dict; a packed tensor is returned as it is."""
        if isinstance(x, Tensor) and x.is_floating_point():
            return x
        ids, mask, types = self._tokenize_or_check(x)
        with torch.no_grad():
            h = self._embed(ids)  # (N, T, D)
            h = h if h.dtype == torch.float64 else h.float()
        roles = torch.stack([ids, mask, types], -1).to(h)
        return torch.cat([h, roles], -1)

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings (N, T, D) by the layer itself, without its hooks."""
        device = next((p.device for p in self.layer.parameters()), torch.device("cpu"))
        with torch.no_grad():
            return self.layer.forward(ids.to(device))  # type: ignore[no-any-return]

    def _tokenize_or_check(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and types (N, T) each. Raises InputError."""
        if isinstance(x, Mapping):
            return self._ids_mask_types_from_mapping(x)
        if isinstance(x, Tensor):
            return self._ids_mask_types_from_mapping({ID_ARGUMENT_NAMES[0]: x})
        texts = [x] if isinstance(x, str) else list(x)
        if not texts:
            raise InputError("wanted texts, a list of str; got an empty list")
        rows = [self._ids_and_types_of_text(text, i) for i, text in enumerate(texts)]
        n = max(len(ids) for ids, _ in rows)
        ids, mask, types = (torch.zeros(len(rows), n, dtype=torch.long) for _ in range(3))
        ids.fill_(self.pad_id or 0)
        for i, (row, row_types) in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            types[i, : len(row)] = torch.tensor(row_types)
        return self._check_ids_mask_types(ids, mask, types)

    def _ids_and_types_of_text(self, text: Any, index: int) -> tuple[list[int], list[int]]:
        """Ids and types of one text or pair of texts. Raises InputError."""
        is_pair = isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(t, str) for t in text)
        if not (isinstance(text, str) or is_pair):
            raise InputError(f"wanted a text (str) or a pair of texts; example {index} is {type(text).__name__}")
        if not any(t.strip() for t in (text if is_pair else [text])):
            raise InputError(f"text {index} is empty")
        found = self.tokenizer(*text) if is_pair else self.tokenizer(text)
        ids, types = (
            (found[ID_ARGUMENT_NAMES[0]], found.get(TOKEN_TYPE_ARGUMENT_NAMES[0]))
            if isinstance(found, Mapping)
            else (found, None)
        )
        ids = [int(k) for k in ids]
        types = [0] * len(ids) if types is None else [int(k) for k in types]
        if not ids:
            raise InputError(f"text {index} has no tokens")
        if self.max_length is not None and len(ids) > self.max_length:
            if not self.truncate:
                shown = text if isinstance(text, str) else text[0]
                raise InputError(
                    f"text {index} has {len(ids)} tokens, and the model takes {self.max_length}: {shown[:40]!r}...; "
                    "shorten it, or cut texts by Tokens(..., truncate=True)"
                )
            ids, types = ids[: self.max_length], types[: self.max_length]
        return ids, types

    def _ids_mask_types_from_mapping(self, x: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and types of a tokenizer's dict. Raises InputError."""
        ids = next((x[name] for name in ID_ARGUMENT_NAMES if name in x), None)
        ids = None if ids is None else torch.as_tensor(ids)
        if ids is None or ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
            got = sorted(map(str, x)) if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
            raise InputError(f"wanted a tokenizer's dict with 'input_ids' (N, T) of whole numbers; got {got}")
        mask = next((torch.as_tensor(x[name]) for name in MASK_ARGUMENT_NAMES if name in x), torch.ones_like(ids))
        types = next(
            (torch.as_tensor(x[name]) for name in TOKEN_TYPE_ARGUMENT_NAMES if name in x), torch.zeros_like(ids)
        )
        if mask.shape != ids.shape or types.shape != ids.shape:
            raise InputError(f"input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} differ in shape")
        return self._check_ids_mask_types(ids.long(), mask.long(), types.long())

    def _check_ids_mask_types(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = n_embeddings(self.layer)
        if int(ids.min()) < 0 or (n is not None and int(ids.max()) >= n):
            raise InputError(
                f"the model has embeddings of {n:,} tokens; got the ids {int(ids.min())} to {int(ids.max()):,}"
            )
        if self.max_length is not None and ids.shape[1] > self.max_length:
            raise InputError(f"the model takes {self.max_length} tokens; got {ids.shape[1]}")
        if not bool(mask.any(1).all()):
            raise InputError("a text without tokens: its attention_mask is zero everywhere")
        return ids, mask, types

    # -- what a box needs of its inputs --------------------------------------------------------------------------------

    def check(self, x: Any) -> Any:
        """x itself, if it holds texts, or is packed; else InputError. Raises NaNError for packed ones that hold NaN."""
        if isinstance(x, Tensor) and x.is_floating_point():
            if x.ndim != 3 or x.shape[2] != self.width + N_TOKEN_META_COLUMNS:
                raise InputError(
                    f"wanted packed texts (N, T, {self.width + N_TOKEN_META_COLUMNS}); got {tuple(x.shape)}"
                )
            if rows := (~x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist():
                listed = ", ".join(map(str, rows[:MAX_ROWS_IN_ERROR]))
                raise NaNError(
                    f"embeddings of {len(rows)} of {len(x)} texts are NaN or infinite (rows {listed}); look for NaN in "
                    "the model's embedding, or leave these texts out",
                    rows, "the input",
                )  # fmt: skip
            return x
        if isinstance(x, (str, Mapping, Tensor, Sequence)):
            return x
        raise InputError(f"wanted texts: a list of str, of pairs, or a tokenizer's dict; got {type(x).__name__}")

    def encode(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """What the model takes: ids, and mask and types where it takes them."""
        types = x.detach()[..., -1].round().long()
        roles = [self.ids(x), self.mask(x).long(), types if bool(types.any()) else None]  # models fill in zeros
        if self._arguments[0] is None:
            return (self.ids(x),)
        named = zip(self._arguments, roles, strict=True)
        return {name: value for name, value in named if name is not None and value is not None}

    def fed_embeddings(self, x: Tensor) -> Tensor:
        """What takes the place of the embedding layer's output: packed x (N, T, D + 3) itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself: embeddings are as the model takes them, and zeros stand for nothing."""
        return z

    def clip(self, x: Tensor) -> Tensor:
        """x itself: embeddings have no bounds."""
        return x

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n random token_texts, packed: no words, but ids of any token."""
        n_ids = n_embeddings(self.layer) or 2
        ids = torch.randint(n_ids, (n, self.shape[0]), generator=generator, device=generator.device)
        return self._pack_ids_without_padding(ids)

    def from_unit_interval(self, u: Tensor) -> Tensor:
        """Texts for levels u (N, T, D + 3) in [0, 1] of their ids."""
        n_ids = n_embeddings(self.layer) or 2
        return self._pack_ids_without_padding((u[..., 0] * (n_ids - 1)).round().long())

    def _pack_ids_without_padding(self, ids: Tensor) -> Tensor:
        """Ids (N, T) packed; what means padding is another token."""
        n_ids, pad = n_embeddings(self.layer) or 2, self.pad_id or 0
        ids = torch.where(ids == pad, (ids + 1) % n_ids, ids)
        return self.pack({ID_ARGUMENT_NAMES[0]: ids.cpu()}).to(ids.device)

    def unpack(self, h: Tensor) -> dict[str, Tensor]:
        """The ids and masks (N, T) of packed texts, as a tokenizer's dict; of pairs their types, too."""
        types = h.detach()[..., -1].round().long()
        named = {ID_ARGUMENT_NAMES[0]: self.ids(h), MASK_ARGUMENT_NAMES[0]: self.mask(h).long()}
        return named | ({TOKEN_TYPE_ARGUMENT_NAMES[0]: types} if bool(types.any()) else {})

    def reduce_map_over_embedding(self, h: Tensor, over_embedding: EmbeddingReduction = "sum") -> Tensor:
        """Maps (..., T) of packed maps (..., T, D + 3), each token's numbers made one."""
        if over_embedding == "same":
            return h[..., 0]
        return h.norm(dim=-1) if over_embedding == "length" else h.sum(-1)

    # -- what texts are made of ----------------------------------------------------------------------------------------

    def ids(self, x: Tensor) -> Tensor:
        """The ids (N, T) of packed texts."""
        return x.detach()[..., -N_TOKEN_META_COLUMNS].round().long()

    def mask(self, x: Tensor) -> Tensor:
        """(N, T) bool: tokens, not padding."""
        return x.detach()[..., -N_TOKEN_META_COLUMNS + 1] > 0.5

    def token_ids(self, text: str) -> list[int]:
        """The ids of one text, as the tokenizer gives them. Raises InputError for an empty or a long one."""
        return self._ids_and_types_of_text(text, 0)[0]

    def words(self, ids: Sequence[int]) -> list[str]:
        """The names of tokens."""
        to_words = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return list(map(str, to_words(list(ids)) if to_words else ids))

    def answer_positions(self, x: Tensor) -> Tensor:
        """(N,): where a language model is asked for a token: at the first [MASK], else at the last token."""
        mask, index = self.mask(x), torch.arange(x.shape[1], device=x.device)
        last = (mask * index).argmax(1)
        mask_id = getattr(self.tokenizer, "mask_token_id", None)
        if mask_id is None:
            return last
        is_asked = (self.ids(x) == int(mask_id)) & mask
        return torch.where(is_asked.any(1), is_asked.int().argmax(1), last)

    def vocabulary_token_names(self, n: int) -> tuple[str, ...] | None:
        """The names of the first n tokens of the vocabulary; None where the tokenizer has none."""
        to_words = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        known = min(n, vocabulary_size(self.tokenizer) or 0)
        if to_words is None or not known:
            return None
        return (*map(str, to_words(list(range(known)))), *(f"<{k}>" for k in range(known, n)))

    def is_special(self, x: Tensor) -> Tensor:
        """(N, T) bool: tokens that the tokenizer adds, such as [CLS], and padding."""
        special = set(getattr(self.tokenizer, "all_special_ids", ())) - self._ids_of_unknown_words()
        ids = self.ids(x)
        return torch.isin(ids, ids.new_tensor(list(special))) | ~self.mask(x) if special else ~self.mask(x)

    def special_ids(self) -> set[int]:
        """Ids that are no word of a text: the tokenizer's special ones, and padding.

        An id that fills shorter texts for want of another is a word, unless the model can know padding by it alone.
        """
        is_padding = self._has_pad_id or not self.takes_mask
        special = {int(k) for k in getattr(self.tokenizer, "all_special_ids", ())}
        return special | ({self.pad_id} if is_padding and self.pad_id is not None else set())

    def _ids_of_unknown_words(self) -> set[int]:
        """What stands for a word of the text, unless the tokenizer adds the same token, as that of GPT-2 does."""
        added = {getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ADDED_TOKEN_KINDS}
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return set() if unknown is None or unknown in added else {int(unknown)}

    def token_texts(self, x: Tensor) -> list[list[str]]:
        """The tokens of each packed text as words, without padding."""
        return [self.words(ids[keep].tolist()) for ids, keep in zip(self.ids(x), self.mask(x), strict=True)]

    @property
    def default_fill_kind(self) -> str:
        """What stands for no token: [MASK] where the tokenizer has it, else zeros."""
        return "zero" if getattr(self.tokenizer, "mask_token_id", None) is None else "mask"

    def noise_scale(self, x: Tensor) -> Tensor:
        """max - min of each text's embeddings, (N, 1, D + 3); special tokens and the columns behind get no noise."""
        h = x[..., :-N_TOKEN_META_COLUMNS].flatten(1)
        scale = (h.amax(1) - h.amin(1))[:, None, None].expand_as(x).clone()
        scale[..., -N_TOKEN_META_COLUMNS:] = 0
        return scale.masked_fill(self.is_special(x)[..., None], 0)

    def fill_tokens(self, x: Tensor, kind: str) -> Tensor:
        """x with the embedding of each token that is not special replaced by that of [MASK], of padding, or zeros."""
        if kind == "zero":
            fill = x.new_zeros(x.shape[-1] - N_TOKEN_META_COLUMNS)
        else:
            token = getattr(self.tokenizer, "mask_token_id", None) if kind == "mask" else self.pad_id
            if token is None:
                raise InputError(f"the tokenizer has no {kind} token; take baseline='pad' or 'zero'")
            fill = self._embed(torch.tensor([[int(token)]]))[0, 0].to(x)
        changed = torch.cat([fill.expand(*x.shape[:-1], -1), x[..., -N_TOKEN_META_COLUMNS:]], -1)
        return torch.where(self.is_special(x)[..., None], x, changed)
