"""How far a model's outputs are from what they were, one number per example."""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box

NATS_UNIT_TEXT, VARIANCE_SHARE_UNIT_TEXT = "nats", "share of the outputs' variance"


def output_change(box: Box, before: Tensor, after: Tensor) -> Tensor:
    """The change (N, P) from logits (N, K) to (N, P, K).

    The Kullback-Leibler divergence of the new from the old probabilities in nats, of labels that do not exclude one
    another their sum; of numbers the squared change over their variance among the examples.
    """
    before, after = before.double()[:, None], after.double()
    if box.outputs == "regression":
        variance = before.var(0, correction=0).clamp_min(torch.finfo(torch.float32).tiny)
        return ((after - before).square() / variance).mean(2)
    if box.outputs == "multilabel":
        before, after = (torch.stack([z, torch.zeros_like(z)], -1) for z in (before, after))
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    p = log_p.exp()
    divergence = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1).clamp_min(0)
    return divergence.sum(-1) if divergence.ndim > 2 else divergence


def output_change_unit_text(box: Box) -> str:
    """The unit of `output_change`."""
    return VARIANCE_SHARE_UNIT_TEXT if box.outputs == "regression" else NATS_UNIT_TEXT
