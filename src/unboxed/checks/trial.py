"""What the planted shortcut is judged on: two models, marked images, and what a method's finding says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..box import Box
from ..errors import InputError
from .methods import Method
from .planting import Mark, false_classes

Verdict = Literal["shows it", "doubtful", "does not", "refused"]
SURE, FAINT, APART = 0.75, 0.25, 0.5  # of the shares that a verdict goes by
LEARNED, CLEAN = 0.8, 0.2  # falsely marked images that must be taken for the mark's class, and by the control may be


@dataclass(frozen=True)
class Answers:
    """How a model answers held-out images, as shares."""

    clean: float  # right, without any mark
    rightly: float  # right, with their own class's mark
    falsely: float  # right, in spite of another class's mark
    fooled: float  # answered as another class's mark says


@dataclass(frozen=True, eq=False)
class Finding:
    """What one method shows of the shortcut: its share `found`, 0 to 1, beside the same on the `control` model."""

    family: str
    method: str
    name: str
    verdict: Verdict
    said: str  # in one sentence
    what: str = ""  # it is the share of
    found: float | None = None
    control: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    shown: tuple[Tensor, Tensor] | None = None  # what it drew of the model with the shortcut, and of the control


@dataclass(frozen=True, eq=False)
class Trial:
    """What a judge is given: both models, and clean held-out images."""

    model: Box
    control: Box
    x: Tensor  # (N, C, H, W)
    y: Tensor  # (N,)
    mark: Mark
    methods: Mapping[str, Method] | None
    examples: int
    seed: int

    @property
    def both(self) -> tuple[Box, Box]:
        return self.model, self.control

    @cached_property
    def false(self) -> tuple[Tensor, Tensor]:
        """The images that can be falsely marked (F,), and with the mark of which class (F,)."""
        says = false_classes(self.y, self.mark)
        rows = (says >= 0).nonzero().flatten()
        return rows, says[rows]

    @cached_property
    def right(self) -> tuple[Tensor, Tensor]:
        """The images whose own class has a mark."""
        rows = torch.isin(self.y, torch.tensor(self.mark.classes)).nonzero().flatten()
        return rows, self.y[rows]

    def marked(self, rows: Tensor, classes: Tensor) -> Tensor:
        return self.mark.on(self.x[rows], classes)

    @cached_property
    def _chosen(self) -> tuple[Tensor, Tensor]:
        """Images to explain and the classes of their marks: falsely marked ones, then as many rightly marked."""
        parts = [(rows[i], k[i]) for rows, k in (self.false, self.right) for i in [spread(len(rows), self.examples)]]
        rows, classes = (torch.cat(p) for p in zip(*parts, strict=True))
        return rows, classes

    @cached_property
    def explained(self) -> tuple[Tensor, Tensor]:
        """The chosen images with their marks (E, C, H, W), and what these say (E,)."""
        return self.marked(*self._chosen), self._chosen[1]

    @property
    def labels(self) -> Tensor:
        """What the explained images are in truth, (E,)."""
        return self.y[self._chosen[0]]

    @property
    def shown(self) -> list[int]:
        """Of the explained images: two that are falsely marked, one that is rightly."""
        n = min(self.examples, len(self.false[0]))
        return [*spread(n, 2).tolist(), n]


def answered(box: Box, trial: Trial) -> Answers:
    """How the model answers, with marks and without."""
    (false, says), (right, own) = trial.false, trial.right
    wrong = box.predict(trial.marked(false, says)).cpu()
    return Answers(
        clean=share(box.predict(trial.x).cpu() == trial.y),
        rightly=share(box.predict(trial.marked(right, own)).cpu() == own),
        falsely=share(wrong == trial.y[false]),
        fooled=share(wrong == says),
    )


def told_apart(model: Answers, control: Answers) -> None:
    """Raise InputError unless the model goes by the mark and the control doesn't."""
    if model.fooled < LEARNED:
        raise InputError(
            f"the shortcut was not learned: it takes {model.fooled:.0%} of falsely marked images for what the mark "
            f"says ({LEARNED:.0%} wanted), so no method can be judged by it. Train it longer, or plant more strays"
        )
    if control.fooled > CLEAN:
        raise InputError(
            f"the control model goes by the mark too: it takes {control.fooled:.0%} of falsely marked images for what "
            f"the mark says (at most {CLEAN:.0%} wanted). It must be trained on images without marks"
        )


def verdict(found: float, control: float) -> Verdict:
    """Of the share of what a method drew that shows the mark, beside the same on the control model."""
    if found >= SURE and found - control >= APART:
        return "shows it"
    return "does not" if found <= FAINT else "doubtful"


def share(hits: Tensor) -> float:
    return float(hits.double().mean())


def spread(n: int, most: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, most)).round().long()
