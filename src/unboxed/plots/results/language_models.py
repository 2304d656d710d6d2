"""The figures of what a transformer does inside: attention by head, heads taken away, the answer after each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...language import AttentionByHead, HeadAblation, Lens
from .. import colors
from ..charts import line_chart, matrix_plot
from ..figures import Figures, figures
from ..sheet import ColorBar, Tile, contact_sheet
from .common import numbered_names

if TYPE_CHECKING:
    from ...box import Box

MAX_DRAWN_EXAMPLES, MAX_DRAWN_LAYERS, MAX_DRAWN_HEADS = 3, 12, 12
N_LENS_CLASSES = 3


@figures.register(AttentionByHead)
def _attention_figures(result: AttentionByHead, box: Box | None = None, *, data: Any = None) -> Figures:
    """A sheet per example: layers down, heads across; each cell from each token (down) to each (across)."""
    drawn: dict[str, Any] = {}
    shown = list(result.weights.items())[:MAX_DRAWN_LAYERS]
    n_heads = min(MAX_DRAWN_HEADS, max((w.shape[1] for _, w in shown), default=0))
    n = len(next(iter(result.weights.values()))) if shown else 0
    for i in range(min(n, MAX_DRAWN_EXAMPLES)):
        size = len(result.tokens[i]) if result.tokens else None
        rows = [
            [Tile(colors.magnitude_to_rgb(w[i, h, :size, :size], 1.0)) for h in range(min(n_heads, w.shape[1]))]
            for _, w in shown
        ]
        title = f"Attention: {' '.join(result.tokens[i])}" if result.tokens else f"Attention, example {i}"
        drawn[f"attention {i}"] = contact_sheet(
            rows, title=title, columns=numbered_names(n_heads, "head"), names=numbered_names(len(shown), "layer"),
            bars=[ColorBar("magnitude", 1.0, "weight, from each token (down) to each (across)")], side=96,
        )  # fmt: skip
    return drawn


@figures.register(HeadAblation)
def _head_ablation_figures(result: HeadAblation, box: Box | None = None, *, data: Any = None) -> Figures:
    """How much the score falls without each head, averaged over the examples."""
    heads = numbered_names(result.drop.shape[2], "head")
    mean = result.drop.nanmean(0)
    title = f"Score without each head, mean over {len(result.drop)} examples"
    return {
        "heads": matrix_plot(
            mean, result.layers, heads, ("layer", ""), title=title, unit="fall of the score", kind="signed"
        )
    }


@figures.register(Lens)
def _lens_figures(result: Lens, box: Box | None = None, *, data: Any = None) -> Figures:
    """The probability of the answer after each layer, and how far it is from the model's own."""
    drawn: dict[str, Any] = {}
    kl = {"this lens": result.kl.mean(0)}
    if result.kl_untuned is not None:
        kl = {"tuned lens": result.kl.mean(0), "logit lens": result.kl_untuned.mean(0)}
    steps = torch.arange(len(result.layers))
    drawn["kl"] = line_chart(
        {name: (steps, values) for name, values in kl.items()}, title="How far each layer is from the answer",
        x_label="block (0: what goes into the first)", y_label="KL from the model's answer (nats)",
    )  # fmt: skip
    for i in range(min(len(result.probs), MAX_DRAWN_EXAMPLES)):
        best = result.probs[i, -1].topk(min(N_LENS_CLASSES, result.probs.shape[-1])).indices
        names = [result.classes[int(k)] for k in best]
        drawn[f"lens {i}"] = matrix_plot(
            result.probs[i][:, best], result.layers, names, ("layer", ""), vmax=1.0, unit="probability",
            title=f"The answer after each layer, example {i}",
        )  # fmt: skip
    return drawn
