"""Texts explained by several methods, and which of the maps to trust: for the report and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..checks.methods import resolve_target
from ..checks.verdict import NOT_APPLICABLE, Verdict
from ..checks.verdict_cache import VerdictCache
from ..errors import InputError
from ..explaining import MethodChoice, MethodRun, resolve_methods
from ..objectives import Objective
from ..plots.text_map import TextWithValues
from ..validation import valid_seed
from .example_texts import MIN_PROB_OF_PRESENT_LABEL
from .word_effects import WordEffects, require_text_inputs, word_effects
from .words import format_named_prob

N_NAMED_CLASSES = 3  # of a prediction


@dataclass(frozen=True, eq=False)
class TextExplanations:
    """The maps of texts by each method, and the verdicts on the methods, the most trustworthy first."""

    tokens: list[list[str]]
    special: Tensor  # (N, T)
    predictions: list[str]  # of each text, in words
    targets: list[str]  # the class that is explained, of each text
    verdicts: dict[str, Verdict]
    maps: Mapping[str, Tensor]  # (N, T), of the methods that gave one
    effects: WordEffects
    versus: str | None = None  # the class in whose place the others are
    interrupted: bool = False

    @property
    def drawn(self) -> list[str]:
        """The methods that gave maps, the most trustworthy first."""
        return [name for name in self.verdicts if name in self.maps]

    def question(self, i: int) -> str:
        """ "Why cat?", "Why cat and not dog?"."""
        return f"Why {self.targets[i]}{f' and not {self.versus}' if self.versus else ''}?"

    def scale(self, method: str, i: int) -> str:
        """The range of text i's colors by a method."""
        return f"±{self._largest(method, i):.2g}"

    def _largest(self, method: str, i: int) -> float:
        n = len(self.tokens[i])
        return float(self.maps[method][i, :n].double().masked_fill(self.special[i, :n], 0).abs().max())

    def values(self, method: str, i: int) -> TextWithValues:
        """Text i by a method, on a scale of -1 to 1; all 0 where its words do not count."""
        n = len(self.tokens[i])
        row, special = self.maps[method][i, :n].double(), self.special[i, :n]
        scaled = 0 * row if self.effects.is_negligible(i) else row / max(self._largest(method, i), 1e-30)
        verdict, scale = self.verdicts[method], self.scale(method, i)
        judged = f"{verdict.badge} ({verdict.reason}), " if verdict.grade != NOT_APPLICABLE else ""
        return TextWithValues(
            self.tokens[i], scaled.tolist(), special.tolist(), f"{verdict.method}: {judged}scale {scale}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        named = zip(self.tokens, self.predictions, self.targets, strict=True)
        listed = [
            {"tokens": tokens, "prediction": prediction, "of": target, "versus": self.versus,
             "words": self.effects.to_dict(i),
             "maps": {name: m[i, : len(tokens)].tolist() for name, m in self.maps.items()}}
            for i, (tokens, prediction, target) in enumerate(named)
        ]  # fmt: skip
        verdicts = {name: v.to_dict() for name, v in self.verdicts.items()}
        return {"texts": listed, "interrupted": self.interrupted, "methods": verdicts}


def explain_texts(
    box: Box,
    texts: Sequence[str],
    methods: MethodChoice = None,
    target: int | None = None,
    *,
    versus: int | None = None,
    seed: int = 0,
    verdict_cache: VerdictCache | None = None,
    quiet: bool = True,
) -> TextExplanations:
    """Explain the answers to texts by each method, and rank the methods by their verdicts on all of these texts.

    `methods` as in `unboxed.explain`; `target` is a class, by default the predicted one; `versus` another one: what
    speaks for the target and against it. Ctrl-C keeps the methods so far. Raises InputError.
    """
    x, seed = box.validate_inputs(list(texts)), valid_seed(seed)
    classes = resolve_target(box, x, target)
    score = classes if versus is None else _class_score_difference(box, classes, versus)
    run = MethodRun(box, x, score, resolve_methods(box, methods), seed, verdict_cache or VerdictCache())
    effects = word_effects(box, require_text_inputs(box), x, classes, versus)
    run.run(quiet=quiet)
    verdicts = {name: run.verdicts[name] for name in run.judged}
    return make_text_explanations(box, x, classes, verdicts, run.maps, effects, versus, interrupted=run.interrupted)


def make_text_explanations(
    box: Box, x: Tensor, classes: Tensor, verdicts: dict[str, Verdict], maps: Mapping[str, Tensor],
    effects: WordEffects, versus: int | None = None, *, interrupted: bool = False,
) -> TextExplanations:  # fmt: skip
    """The maps (N, T) of packed texts x for a class each (N,), with the verdicts, the most trustworthy first."""
    return TextExplanations(
        require_text_inputs(box).token_texts(x), require_text_inputs(box).is_special(x), _prediction_texts(box, x),
        [box.classes[k] for k in classes.tolist()], verdicts, maps, effects,
        None if versus is None else box.classes[versus], interrupted,
    )  # fmt: skip


def _class_score_difference(box: Box, classes: Tensor, versus: int) -> Objective:
    """The score of each text's class (N,) less that of another. Raises InputError where they are the same."""
    if bool((classes == versus).any()):
        i = int((classes == versus).int().argmax())
        raise InputError(f"target and versus of text {i} are both {box.classes[versus]!r}: give another class")
    return box.objective(classes, len(classes)) - box.objective(versus, len(classes))


def _prediction_texts(box: Box, x: Tensor) -> list[str]:
    """The most likely classes of each text, in words; of yes/no labels behind those that are predicted."""
    probs = box.probs(x)
    top = torch.topk(probs, min(N_NAMED_CLASSES, box.n_outputs))
    likeliest = [
        ", ".join(f"{box.classes[k]} ({format_named_prob(v)})" for v, k in zip(values, indices, strict=True))
        for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    if box.outputs != "multilabel":
        return likeliest
    present = [[box.classes[k] for k in row.nonzero().flatten().tolist()] for row in probs > MIN_PROB_OF_PRESENT_LABEL]
    texts = zip(present, likeliest, strict=True)
    return [f"{', '.join(names[:N_NAMED_CLASSES]) or 'no label'}; likeliest: {text}" for names, text in texts]
