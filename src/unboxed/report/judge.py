"""The judge: another, robust model, which says whether it too sees the class that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.class_labels import is_numbers_only
from .context import ReportContext

JUDGE_DESCRIPTION = (
    "a second network that took no part in drawing; it should be of another architecture, and trained against "
    "adversarial examples"
)


@dataclass(frozen=True, eq=False)
class JudgeReport:
    """What the judge says of images: its answers, the probability of the class meant, and how many it names."""

    answers: Tensor  # (N,)
    target_probs: Tensor  # (N,) probability
    n_recognized: int

    @property
    def mean_target_prob(self) -> float:
        return float(self.target_probs.mean())


def usable_judge(context: ReportContext) -> tuple[Box | None, str]:
    """The judge, or why there is none."""
    judge, box = context.judge, context.box
    if judge is None:
        return None, "None: no judge was given."
    if judge.inputs.shape != box.inputs.shape:
        return None, "None: the judge takes inputs of another shape."
    if len(judge.classes) != len(box.classes) or not (judge.classes == box.classes or is_numbers_only(judge.classes)):
        return None, "None: the judge has other classes."
    return judge, ""


def judge_images(judge: Box, images: Tensor, classes: Sequence[int]) -> JudgeReport:
    """Ask the judge about images (N, C, H, W), each meant to be of its class."""
    probs = judge.probs(images.to(judge.device, judge.dtype)).cpu()
    answers, targets = probs.argmax(1), torch.as_tensor(classes)
    return JudgeReport(answers, probs[torch.arange(len(targets)), targets], int((answers == targets).sum()))
