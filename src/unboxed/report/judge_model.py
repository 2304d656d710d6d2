"""The judge: a second, robust model, which classifies generated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..inputs.labels import are_default_class_names
from .context import ReportContext

JUDGE_DESCRIPTION_TEXT = "A second model (the judge: a robust model of another architecture)"


@dataclass(frozen=True, eq=False)
class JudgePredictions:
    """What the judge predicts of images: its classes, the probability of the target class, how many it recognizes."""

    predicted: Tensor  # (N,)
    target_probs: Tensor  # (N,) probability
    n_recognized: int

    @property
    def mean_target_prob(self) -> float:
        return float(self.target_probs.mean())


def judge_or_missing_reason(context: ReportContext) -> tuple[Box | None, str]:
    """The judge, or why there is none."""
    judge, box = context.judge, context.box
    if judge is None:
        return None, "None: there is no judge (--judge)."
    if judge.inputs.shape != box.inputs.shape:
        return None, "None: the judge takes inputs of another shape."
    if len(judge.classes) != len(box.classes) or not (
        judge.classes == box.classes or are_default_class_names(judge.classes)
    ):
        return None, "None: the judge has other classes."
    return judge, ""


def classify_by_judge(judge: Box, images: Tensor, classes: Sequence[int]) -> JudgePredictions:
    """Classify images (N, C, H, W), each generated for one of the classes (N,), by the judge."""
    probs = judge.probs(images.to(judge.device, judge.dtype)).cpu()
    predicted, targets = probs.argmax(1), torch.as_tensor(classes)
    return JudgePredictions(predicted, probs[torch.arange(len(targets)), targets], int((predicted == targets).sum()))
