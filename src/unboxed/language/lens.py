"""What the model would answer after each of its layers: the rest of it applied to what a layer has made so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..box import Box
from ..cards import card
from ..engine.read.attention_maps import attending_blocks
from ..engine.read.sizes import require_images_or_texts
from ..engine.results import ResultMixin
from ..errors import InputError
from ..model.batching import map_in_batches
from ..model.nan_checks import check_no_nan
from ..objectives import mean_over_positions
from ..parameters import BatchSize, InputBatch, Seed
from ..settings import Above, AtLeast, Unit, ValueRole, check_settings
from ..validation import valid_seed

MAX_TUNING_EXAMPLES_PER_STEP = 64


@dataclass(frozen=True, eq=False, repr=False)
class Lens(ResultMixin):
    """The answer after each layer: logits (N, L, K), the last layer's being the model's own."""

    logits: Tensor  # (N, L, K)
    layers: tuple[str, ...]  # (L,): what goes into the first block, then each block
    classes: tuple[str, ...]
    probs: Tensor  # (N, L, K)
    kl: Tensor  # (N, L) in nats: KL(model's answer || answer after the layer)
    kl_untuned: Tensor | None = None  # of a tuned lens: (N, L) of the same inputs through the plain lens

    def top(self, k: int = 3) -> list[list[list[tuple[str, float]]]]:
        """The k likeliest classes (or tokens) and their probabilities, of each example and layer."""
        best = self.probs.topk(min(k, self.probs.shape[-1]))
        return [
            [
                [(self.classes[i], p) for i, p in zip(ids, ps, strict=True)]
                for ids, ps in zip(layer_ids, layer_ps, strict=True)
            ]
            for layer_ids, layer_ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@card(
    name="Logit lens",
    source="nostalgebraist 2020, interpreting GPT: the logit lens",
    shows="What the model would answer if its remaining blocks added nothing: after which layer the answer is there.",
    does_not_show="What a layer knows in a form of its own: the rest of the model may not be able to read it "
    "(`tuned_lens` learns to).",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x),
    texts=True,
    order=21,
)
def logit_lens(box: Box, x: InputBatch, *, batch_size: BatchSize = "auto") -> Lens:
    """The answer after each layer of a transformer: what its last block would give is replaced by what a layer gave.

    For classifiers of texts, vision transformers and language models (the next token of each text, or that of the
    first [MASK]): all that comes after the last block (normalization, pooling, head) is the model's own, whatever it
    is.

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Lens`: `logits` and `probs` (N, L, K) after each of the `layers`: what goes into the first block, and each
        block; `kl` (N, L), how far the answer still is from the model's. `lens.top(k)` names the likeliest.

    Raises:
        LayerError: for a model whose attention layers are not each in a block of its own, or whose blocks are not all
            that the answer goes through.
        InputError: for a model of other inputs.
        NaNError: where an answer is NaN; the error names the rows.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.language.logit_lens(box, x)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        nostalgebraist 2020, "interpreting GPT: the logit lens"; here for any transformer, as the path from the last
        block to the logits.
    """
    check_settings(logit_lens, locals())
    require_images_or_texts(box, "the logit lens")
    x = box.validate_inputs(x)
    layers = _lens_layers(box, x)
    plan = box.batch_size_and_max_rows(len(x), batch_size)
    logits = torch.cat(map_in_batches(lambda rows: _lens_logits_of_batch(box, x[rows], layers, {}), len(x), *plan))
    return _as_lens(box, logits, layers)


@card(
    name="Tuned lens",
    source="Belrose et al. 2023, arXiv:2303.08112, section 2",
    shows="What can be read of the answer after each layer by a linear map that was learned for it.",
    does_not_show="That the model reads it this way: the map was trained, `logit_lens` is the model's own.",
    needs=("tokens", "attention"),
    example=lambda method, box, x, y: method(box, x, x, n_steps=2),
    texts=True,
    exempt={
        "rows": "its maps are trained on all examples",
        "splitting": "its maps are trained on all examples",
    },
    order=22,
)
def tuned_lens(
    box: Box,
    x: InputBatch,
    train_x: Annotated[Any, ValueRole("inputs"), "Inputs that each layer's map is trained on, other than x."],
    *,
    n_steps: Annotated[int, AtLeast(1), Unit("steps"), "Training steps per layer."] = 100,
    learning_rate: Annotated[float, Above(0), "Learning rate of Adam; falls to zero."] = 1e-2,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Lens:
    """As `logit_lens`, with a linear map after each layer that was trained to give the model's own answer.

    Layers write in forms of their own, which the end of the model cannot read; the map translates. Where even the
    translated layer does not have the answer, it is not there yet (linearly).

    Args:
        box: The opened model; its inputs must be images or texts, and it must have attention layers.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        train_x: Inputs that each layer's map is trained on, other than x.
        n_steps: Training steps per layer.
        learning_rate: Learning rate of Adam; falls to zero.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Lens` of x; `kl_untuned` (N, L) is what the plain lens has.

    Raises:
        LayerError: for a model whose attention layers are not each in a block of its own, or whose blocks are not all
            that the answer goes through.
        InputError: for a model of other inputs, or one of regression.
        NaNError: where an answer is NaN; the error names the rows.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> ub.language.tuned_lens(box, x[:2], x[2:])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        unboxed.errors.LayerError: no layer of this model attends from all tokens to all, ...

    Source:
        Belrose et al. 2023, arXiv:2303.08112, section 2: h + A h + b, from A = 0 and b = 0, by the KL divergence from
        the model's answer. Trained with Adam at the answer's own positions, instead of by SGD at every position.
    """
    check_settings(tuned_lens, locals())
    require_images_or_texts(box, "the tuned lens")
    if box.outputs == "regression":
        raise InputError("a tuned lens is trained on the model's probabilities, and a regression model gives none")
    x, train_x, seed = box.validate_inputs(x), box.validate_inputs(train_x), valid_seed(seed)
    layers = _lens_layers(box, x)
    translators = {a: _train_translator(box, train_x, layers, a, n_steps, learning_rate, seed) for a in layers[:-1]}
    plan = box.batch_size_and_max_rows(len(x), batch_size)
    tuned, plain = (
        torch.cat(map_in_batches(lambda rows, t=t: _lens_logits_of_batch(box, x[rows], layers, t), len(x), *plan))  # type: ignore[misc]
        for t in (translators, {})
    )
    return _as_lens(box, tuned, layers, kl_untuned=_kl_from_last(box, plain))


def _lens_layers(box: Box, x: Tensor) -> list[str]:
    """What goes into the first block, and each block. Raises LayerError."""
    blocks = attending_blocks(box, x)
    return [f"{blocks[0]}:input", *blocks]


def _lens_logits_of_batch(box: Box, x: Tensor, layers: Sequence[str], translators: dict[str, nn.Module]) -> Tensor:
    """Logits (n, L, K) after each layer."""
    with box.isolated(grad=False):
        acts = box.forward(x, {*layers, "logits"})
    early = [
        _logits_from_last_block_output(box, x, layers[-1], _translated(acts[a], translators.get(a)))
        for a in layers[:-1]
    ]
    return torch.stack([*early, mean_over_positions(acts["logits"]).to(box.dtype)], 1)


def _translated(h: Tensor, translator: nn.Module | None) -> Tensor:
    if translator is None:
        return h
    with torch.no_grad():
        return h + translator(h)  # type: ignore[no-any-return]


def _logits_from_last_block_output(box: Box, x: Tensor, last: str, h: Tensor, *, grad: bool = False) -> Tensor:
    """The logits (n, K) with the last block's output replaced by h (n, ..., D)."""
    with box.isolated(grad=grad):
        logits = box.forward(x, {"logits"}, edits={last: lambda own: h.to(own.dtype)})["logits"]
        return mean_over_positions(logits).to(box.dtype)


def _train_translator(
    box: Box, x: Tensor, layers: Sequence[str], layer: str, n_steps: int, learning_rate: float, seed: int
) -> nn.Module:
    """A linear map whose h + A h + b gives the model's answer after the last block."""
    generator = torch.Generator().manual_seed(seed)
    with box.isolated(grad=False):
        acts = box.forward(x, {layer, "logits"})
    check_no_nan(acts["logits"], what="the training input")
    h, goal = acts[layer].detach(), _log_probs(box, mean_over_positions(acts["logits"]).to(box.dtype))
    with torch.inference_mode(False), torch.enable_grad():
        translator: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, h.shape[-1], h.shape[-1], device=h.device, dtype=h.dtype
        )
        for p in translator.parameters():
            nn.init.zeros_(p)
        optimizer = torch.optim.Adam(translator.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
        for _ in range(n_steps):
            rows = torch.randperm(len(x), generator=generator)[:MAX_TUNING_EXAMPLES_PER_STEP].to(x.device)
            rows = torch.arange(len(x), device=x.device) if box.batch_dependent else rows
            moved = h[rows] + translator(h[rows])
            own = _log_probs(box, _logits_from_last_block_output(box, x[rows], layers[-1], moved, grad=True))
            loss = F.kl_div(own, goal[rows], log_target=True, reduction="batchmean")
            grads = torch.autograd.grad(loss, [*translator.parameters()])
            for p, g in zip(translator.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()
            schedule.step()
    return translator


def _log_probs(box: Box, logits: Tensor) -> Tensor:
    """Log probabilities of the classes; of yes/no outputs those of both answers to each, in one axis."""
    if box.outputs != "multilabel":
        return logits.log_softmax(-1)
    return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)


def _kl_from_last(box: Box, logits: Tensor) -> Tensor:
    """KL(the last layer's answer || each layer's), (N, L)."""
    if box.outputs == "regression":
        return torch.full(logits.shape[:2], torch.nan, dtype=logits.dtype, device=logits.device)
    log_probs = _log_probs(box, logits)
    own = log_probs[:, -1:]
    return (own.exp() * (own - log_probs)).sum(-1).clamp(min=0)


def _as_lens(box: Box, logits: Tensor, layers: Sequence[str], **more: Tensor) -> Lens:
    check_no_nan(logits[:, -1])
    check_no_nan(logits, what="the answer after a layer")
    n = logits.shape[:2]
    flat = logits.flatten(0, 1)
    probs: Tensor = flat if box.outputs == "regression" else box.probs_from_logits(flat)
    return Lens(logits, tuple(layers), box.classes, probs.view(*n, -1), _kl_from_last(box, logits), **more)
