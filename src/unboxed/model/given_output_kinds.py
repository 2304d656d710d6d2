"""What the outputs of a model say against the kind that its user says they are of."""

from __future__ import annotations

from torch import Tensor

from ..errors import OutputError

MAX_SUM_ERROR = 0.05  # of probabilities, also in half precision over many classes
WANTED_TEXTS = {
    "probs": "values from 0 to 1 that sum to 1 over the classes",
    "logprobs": "values of 0 or less, whose exponentials sum to 1 over the classes",
}


def refuse_other_kind(h: Tensor, outputs: str | None) -> None:
    """Raise OutputError for outputs (N, K, ...) that are no (log-)probabilities and were said to be."""
    values = h.detach().double()
    if outputs not in WANTED_TEXTS or not bool(values.isfinite().all()):
        return
    probs = values if outputs == "probs" else values.exp()
    if _in_unit_interval(probs) and (h.shape[1] == 1 or _sums_to_one(probs)):
        return
    sums = probs.sum(1)
    sums_text = f" and sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}" * (outputs == "probs")
    raise OutputError(
        f'outputs="{outputs}" are {WANTED_TEXTS[outputs]}; the model gives values from {float(values.min()):.3g} to '
        f"{float(values.max()):.3g}{sums_text}. Pass {_kind_text(values)}"
    )


def _kind_text(values: Tensor) -> str:
    """The kind that outputs (N, K, ...) look like."""
    if values.shape[1] == 1:
        return 'outputs="binary" for a yes/no logit, or outputs="regression"'
    if _in_unit_interval(values):
        return 'outputs="probs"' if _sums_to_one(values) else 'outputs="multilabel" if each is a probability of its own'
    if _in_unit_interval(values.exp()) and _sums_to_one(values.exp()):
        return 'outputs="logprobs"'
    return 'outputs="logits", which these look like, or leave outputs= out'


def _in_unit_interval(probs: Tensor) -> bool:
    return bool(((probs >= -MAX_SUM_ERROR) & (probs <= 1 + MAX_SUM_ERROR)).all())


def _sums_to_one(probs: Tensor) -> bool:
    return bool(((probs.sum(1) - 1).abs() <= MAX_SUM_ERROR).all())
