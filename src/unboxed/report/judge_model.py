"""The judge: a second, robust model, which classifies generated images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..inputs.labels import are_default_class_names
from ..synthesis.class_image import RecipeName
from .context import ReportContext
from .finding import CheckNote

JUDGE_IS_WEAK_EVIDENCE_TEXT = "It recognizes so many images of the control that its approval is weak evidence."
# Of the judge's mean probability, by which the class images must beat the control
MIN_JUDGE_PROB_MARGIN_OVER_CONTROL = 0.1
# Recognized control images over recognized class images, from which the judge is weak evidence
MIN_CONTROL_RATIO_OF_WEAK_JUDGE = 0.8


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
        return None, "None: no second model to judge the images was given (--judge)."
    if judge.inputs.shape != box.inputs.shape:
        return None, "None: the second model given as judge takes inputs of another shape."
    if len(judge.classes) != len(box.classes) or not (
        judge.classes == box.classes or are_default_class_names(judge.classes)
    ):
        return None, "None: the second model given as judge has other classes."
    return judge, ""


def classify_by_judge(judge: Box, images: Tensor, classes: Sequence[int]) -> JudgePredictions:
    """Classify images (N, C, H, W), each generated for one of the classes (N,), by the judge."""
    probs = judge.probs(images.to(judge.device, judge.dtype)).cpu()
    predicted, targets = probs.argmax(1), torch.as_tensor(classes)
    return JudgePredictions(predicted, probs[torch.arange(len(targets)), targets], int((predicted == targets).sum()))


def class_images_pass_control(judged: Mapping[RecipeName, JudgePredictions]) -> bool:
    """Whether the judge recognizes most of the class images, and the control with clearly less confidence."""
    robust, control = judged["robust"], judged["noise"]
    return (
        2 * robust.n_recognized > len(robust.predicted)
        and robust.n_recognized >= control.n_recognized
        and robust.mean_target_prob > control.mean_target_prob + MIN_JUDGE_PROB_MARGIN_OVER_CONTROL
    )


def is_judge_approval_weak_evidence(judged: Mapping[RecipeName, JudgePredictions]) -> bool:
    """Whether the judge recognizes most of the control too, or nearly as many of it as of the class images."""
    robust, control = judged["robust"], judged["noise"]
    return (
        2 * control.n_recognized > len(control.predicted)
        or control.n_recognized >= MIN_CONTROL_RATIO_OF_WEAK_JUDGE * robust.n_recognized
    )


def judge_check(judged: Mapping[RecipeName, JudgePredictions], no_judge_reason: str) -> CheckNote:
    """What the judge's classification of class images says of them; the reason where there is none."""
    if not judged:
        return CheckNote(no_judge_reason)
    texts = {
        r: f"{v.n_recognized} of {len(v.predicted)} (mean\u00a0p\u00a0{v.mean_target_prob:.2f})"
        for r, v in judged.items()
    }
    text = (
        f"The judge recognizes {texts['robust']} of these class images, {texts['faithful']} by the published recipe, "
        f"and {texts['noise']} of the control."
    )
    if class_images_pass_control(judged):
        return (
            CheckNote(f"{text} {JUDGE_IS_WEAK_EVIDENCE_TEXT}")
            if is_judge_approval_weak_evidence(judged)
            else CheckNote(text, "good")
        )
    robust = judged["robust"]
    if 2 * robust.n_recognized > len(robust.predicted):
        return CheckNote(f"{text} They are recognized no better than the control: don't trust them.", "bad")
    return CheckNote(f"{text} Most are not recognized: don't trust them.", "bad")
