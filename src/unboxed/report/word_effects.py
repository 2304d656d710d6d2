"""How much the words of a text count for its answer: all of them replaced, and one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError
from ..inputs.tokens import Tokens
from .words import format_named_prob

MIN_RELEVANT_SHARE_OF_LEAD = 0.01  # of the score's lead over the next class, below which words do not count
TEXTS_PER_BATCH = 32


@dataclass(frozen=True, eq=False)
class WordEffects:
    """What the words change in the score of each text."""

    fill: str  # what takes the place of a word, in words
    scores: Tensor  # (N,)
    filled_scores: Tensor  # (N,) with all words replaced
    filled_classes: list[str]  # the answer then
    filled_probs: Tensor  # (N,) of that answer
    is_same_answer: list[bool]
    single_changes: Tensor  # (N,) the largest magnitude of the changes by one word replaced
    leads: Tensor  # (N,) of the score over that of the next class; between two classes, of one over the other

    def is_negligible(self, i: int) -> bool:
        """Whether neither all words nor any single one change the score by 1% of its lead."""
        largest = max(abs(float(self.scores[i] - self.filled_scores[i])), float(self.single_changes[i]))
        return largest < MIN_RELEVANT_SHARE_OF_LEAD * float(self.leads[i])

    @property
    def clearness(self) -> Tensor:
        """(N,) the largest change by one word as a share of the lead, at most 1: a flip is a flip."""
        return (self.single_changes / self.leads.clamp_min(1e-12)).clamp_max(1)

    def sentence(self, i: int) -> str:
        """What is left of the answer to text i without its words."""
        change = float(self.scores[i] - self.filled_scores[i])
        answer = f"{self.filled_classes[i]} ({_named_prob_text(self.filled_probs[i])})"
        answers = f"{'still ' * self.is_same_answer[i]}answers {answer}"
        filled = f"with all of them replaced by {self.fill} the model {answers}"
        if not self.is_negligible(i):
            return (f"What its words do: {filled}; the score changes by {change:+.2g}, from "
                    f"{float(self.filled_scores[i]):.3g} without them to {float(self.scores[i]):.3g}.")  # fmt: skip
        return (
            f"This answer does not need the words of the text: {filled}, and the score changes by {abs(change):.2g} "
            f"(one word alone: at most {float(self.single_changes[i]):.2g}), less than "
            f"{MIN_RELEVANT_SHARE_OF_LEAD:.0%} of its lead of {float(self.leads[i]):.2g} over the next class. So no "
            "word is colored. Another word in the place of one may still change the answer."
        )

    def to_dict(self, i: int) -> dict[str, Any]:
        """For JSON, of text i."""
        return {
            "replaced_by": self.fill, "score": float(self.scores[i]), "score_replaced": float(self.filled_scores[i]),
            "answer_replaced": self.filled_classes[i], "p_replaced": float(self.filled_probs[i]),
            "largest_change_of_one_word": float(self.single_changes[i]), "lead": float(self.leads[i]),
            "words_count": not self.is_negligible(i),
        }  # fmt: skip


def word_effects(box: Box, inputs: Tokens, x: Tensor, targets: Tensor, versus: int | None = None) -> WordEffects:
    """The effects of the words of texts (N, T, D + 3) on the score of a class each (N,), or on its lead over another.

    Words are replaced as the methods do it by default: by [MASK] where the tokenizer has it, else by zeros.
    """
    filled = inputs.fill_tokens(x, inputs.default_fill_kind)
    logits, filled_logits = _logits(box, x), _logits(box, filled)
    scores, leads = _scores_and_leads(logits, targets, versus)
    filled_scores, _ = _scores_and_leads(filled_logits, targets, versus)
    top = box.probs(filled).max(1)
    return WordEffects(
        _fill_name(inputs), scores, filled_scores, [box.classes[k] for k in top.indices.tolist()], top.values,
        (top.indices == logits.argmax(1)).tolist(), _largest_single_word_changes(box, inputs, x, filled, scores,
        targets, versus),
        leads,
    )  # fmt: skip


def require_text_inputs(box: Box) -> Tokens:
    """Raises InputError for a model of something else."""
    if not isinstance(box.inputs, Tokens):
        raise InputError("--text needs a model of texts, such as a folder with a tokenizer in it; this one takes "
                         f"{type(box.inputs).__name__}: give it a file")  # fmt: skip
    return box.inputs


def _largest_single_word_changes(
    box: Box, inputs: Tokens, x: Tensor, filled: Tensor, scores: Tensor, targets: Tensor, versus: int | None
) -> Tensor:
    """(N,): the largest magnitude of the change by one word replaced."""
    largest = torch.zeros_like(scores)
    for i in range(len(x)):
        places = (~inputs.is_special(x[i : i + 1])[0]).nonzero()[:, 0]  # (P,)
        for start in range(0, len(places), TEXTS_PER_BATCH):
            some = places[start : start + TEXTS_PER_BATCH]
            rows = x[i].repeat(len(some), 1, 1)
            index = torch.arange(len(some), device=x.device)
            rows[index, some] = filled[i, some]
            changed, _ = _scores_and_leads(_logits(box, rows), targets[i].expand(len(some)), versus)
            largest[i] = torch.maximum(largest[i], (changed - scores[i]).abs().max())
    return largest


def _logits(box: Box, x: Tensor) -> Tensor:
    """(N, K); of a yes/no model, whose two are half of its logit each, the logit and its negative."""
    return box(x).detach() * (2 if box.outputs == "binary" else 1)


def _scores_and_leads(logits: Tensor, targets: Tensor, versus: int | None) -> tuple[Tensor, Tensor]:
    """The scores (N,), and the magnitudes of their differences to the next class (N,), or to another one."""
    own = logits.gather(1, targets[:, None])[:, 0]
    if versus is not None:
        difference = own - logits[:, versus]
        return difference, difference.abs()
    if logits.shape[1] == 1:
        return own, own.abs()
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    return own, (own - others).abs()


def _fill_name(inputs: Tokens) -> str:
    return str(getattr(inputs.tokenizer, "mask_token", "[MASK]")) if inputs.default_fill_kind == "mask" else "zeros"


def _named_prob_text(p: Tensor) -> str:
    return format_named_prob(float(p))
