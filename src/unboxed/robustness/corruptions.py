"""How a model stands common corruptions: accuracy for each kind and severity.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adversarial.answers import logits_of
from ..box import Box
from ..cards import card
from ..engine.read.examples import AT_ONCE, labeled
from ..engine.read.sizes import images_only
from ..errors import InputError, OutputError
from ..model.batching import BatchSize, in_batches
from ..validation import check_seed, whole
from .corrupting import KINDS, corrupted

CORRUPTIONS = tuple(KINDS)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, eq=False)
class Corruptions:
    """Of K kinds and S severities, over the first `n` examples."""

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    accuracy: Tensor  # (K, S)
    confidence: Tensor  # (K, S) the mean probability of the right class
    clean: float  # accuracy
    clean_confidence: float
    n: int
    interrupted: bool = False

    @property
    def mean(self) -> float:
        """The accuracy over all kinds and severities."""
        return float(self.accuracy.double().mean())

    @property
    def by_kind(self) -> dict[str, float]:
        """The accuracy of each kind over its severities, the worst one first."""
        means = self.accuracy.double().mean(1).tolist()
        return dict(sorted(zip(self.kinds, means, strict=True), key=lambda pair: pair[1]))

    @property
    def worst(self) -> str:
        return next(iter(self.by_kind))

    def __str__(self) -> str:
        said = f"{self.clean:.1%} right, {self.mean:.1%} when corrupted"
        return f"{said}; worst: {self.worst.replace('_', ' ')}, {self.by_kind[self.worst]:.1%}"


@card(
    name="Common corruptions",
    source="Hendrycks & Dietterich 2019, arXiv:1903.12261; rotation is ours",
    tells="How many answers stay right under noise, blur, bad light, JPEG files and turned images, mild to severe.",
    not_tells="How the model stands a worst case: these images are drawn, and nobody looked for one that fools it.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, (x, y), ("gaussian_noise", "contrast"), severities=(1, 5)),
)
def corruptions(
    box: Box,
    data: Any,
    kinds: Sequence[str] = CORRUPTIONS,
    *,
    severities: Sequence[int] = SEVERITIES,
    most: int | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> Corruptions:
    """Accuracy under each of `kinds` at each severity, on `data`: (x, y) tensors or a Dataset of (image, class).

    Of the first `most` examples, or all. On Ctrl-C the examples seen so far are counted.
    Raises InputError, DataError and OutputError.
    """
    images_only(box, "a test by corruptions")
    box.one_class_each("a test by corruptions")
    if box.outputs == "multilabel":
        raise OutputError("corruptions are judged by one class an example; the box's outputs are multilabel")
    kinds, severities = _listed("kinds", kinds, CORRUPTIONS), _listed("severities", severities, SEVERITIES)
    x, y = labeled(box, data, None if most is None else whole("most", most, least=1))
    counted = _Counted(box, x, y, kinds, severities, check_seed(seed))
    interrupted = counted.run(batch_size)
    return counted.table(interrupted)


def _listed(name: str, chosen: Any, known: tuple[Any, ...]) -> tuple[Any, ...]:
    values = tuple(chosen) if isinstance(chosen, Sequence) and not isinstance(chosen, str) else (chosen,)
    if not values or [v for v in values if v not in known or isinstance(v, bool)]:
        raise InputError(f"{name} are some of {', '.join(map(str, known))}; got {chosen!r}")
    return tuple(dict.fromkeys(values))


class _Counted:
    """The sums over the examples seen so far."""

    def __init__(
        self, box: Box, x: Tensor, y: Tensor, kinds: tuple[str, ...], severities: tuple[int, ...], seed: int
    ) -> None:
        self.box, self.x, self.y, self.kinds, self.severities, self.seed = box, x, y, kinds, severities, seed
        cells = 1 + len(kinds) * len(severities)  # the first is the clean one
        self.sums, self.n = torch.zeros(cells, 2, dtype=torch.float64, device=x.device), 0  # right, probability

    def run(self, batch_size: BatchSize) -> bool:
        """Whether it was interrupted."""
        size, most = self.box.splits(len(self.x), batch_size)
        most = most if self.box.coupled or self.x.device.type != "cpu" else min(most, AT_ONCE)
        try:
            in_batches(self._part, len(self.x), size, most)
        except KeyboardInterrupt:
            if not self.n:
                raise
            return True
        return False

    def _part(self, rows: slice) -> None:
        x, y, places = self.x[rows], self.y[rows], torch.arange(rows.start, rows.stop)
        cells = [(kind, severity) for kind in self.kinds for severity in self.severities]
        found = [self._judged(corrupted(x, kind, s, self.seed, places), y) for kind, s in cells]
        self.sums, self.n = self.sums + torch.stack([self._judged(x, y), *found]), self.n + len(x)

    def _judged(self, x: Tensor, y: Tensor) -> Tensor:
        """How many are right, and the sum of their classes' probabilities, (2,)."""
        logits = logits_of(self.box, x).double()
        right = logits.softmax(1).gather(1, y[:, None]).sum()
        return torch.stack([(logits.argmax(1) == y).sum().double(), right])

    def table(self, interrupted: bool) -> Corruptions:
        means = self.sums / self.n
        cells = means[1:].view(len(self.kinds), len(self.severities), 2).to(self.box.dtype)
        return Corruptions(
            self.kinds, self.severities, cells[..., 0].clone(), cells[..., 1].clone(), float(means[0, 0]),
            float(means[0, 1]), self.n, interrupted,
        )  # fmt: skip
