"""Accuracy, or metrics of other outputs, under common corruptions, for each kind and severity.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv:1903.12261.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..adversarial.predictions import nan_checked_logits
from ..box import Box
from ..cards import card
from ..engine.cpu_cache import MAX_CPU_DATA_BATCH_ROWS
from ..engine.read.class_labels import has_class_labels
from ..engine.read.examples import labeled_examples
from ..engine.read.output_values import indexed_examples_with_output_values
from ..engine.read.sizes import require_images
from ..engine.results import ResultMixin
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..model.batching import map_in_batches
from ..parameters import BatchSize, Data, MaxExamples, Seed
from ..settings import check_settings
from ..validation import valid_seed
from .corruption_functions import CORRUPTION_FN_AND_AMOUNTS, CORRUPTION_KINDS_OF_ANY_INPUT, corrupted
from .output_corruptions import MOVING_KINDS, OutputCorruptions
from .output_metrics import output_metrics, output_statistics

CORRUPTIONS = tuple(CORRUPTION_FN_AND_AMOUNTS)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, repr=False, eq=False)
class Corruptions(ResultMixin):
    """Accuracy under K kinds of corruption in S severities."""

    returns: ClassVar[str] = "table"

    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    accuracy: Tensor  # (K, S)
    confidence: Tensor  # (K, S) the mean probability of the right class
    clean_accuracy: float  # without corruption
    clean_confidence: float
    n_examples: int  # that were used
    interrupted: bool = False  # by Ctrl-C

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over all kinds and severities."""
        return float(self.accuracy.double().mean())

    @property
    def accuracy_by_kind(self) -> dict[str, float]:
        """Mean accuracy of each kind over its severities, the worst kind first."""
        mean_accuracies = self.accuracy.double().mean(1).tolist()
        return dict(sorted(zip(self.kinds, mean_accuracies, strict=True), key=lambda item: item[1]))

    @property
    def worst_kind(self) -> str:
        """The kind of the lowest mean accuracy, also where no kind lowers it."""
        return next(iter(self.accuracy_by_kind))

    def __str__(self) -> str:
        message = f"accuracy {self.clean_accuracy:.1%}, {self.mean_accuracy:.1%} when corrupted"
        worst = self.accuracy_by_kind[self.worst_kind]
        if worst >= self.clean_accuracy:
            return f"{message}; no kind of corruption lowers it"
        return f"{message}; worst: {self.worst_kind.replace('_', ' ')}, {worst:.1%}"


@card(
    name="Common corruptions",
    source="Hendrycks & Dietterich 2019, arXiv:1903.12261; rotation is ours",
    shows="Accuracy (of other outputs their metrics) under noise, blur, poor light, JPEG and rotation, mild to severe.",
    does_not_show="The worst case: these images are random, and none was searched for to fool the model.",
    needs=("pixels",),
    example=lambda method, box, x, y: method(box, (x, y), ("gaussian_noise", "contrast"), severities=(1, 5)),
    runs=lambda s: 1 + len(s["kinds"] or CORRUPTIONS) * len(s["severities"]),
    order=11,
)
def corruptions(
    box: Box,
    data: Data,
    kinds: Annotated[Sequence[str] | None, "Kinds of corruption, of `CORRUPTIONS`; None is all that apply."] = None,
    *,
    severities: Annotated[Sequence[int], "Severities, from 1 (mild) to 5 (severe)."] = SEVERITIES,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Corruptions | OutputCorruptions:
    """Accuracy under common corruptions: noise, blur, contrast, JPEG and others, in five severities.

    How the model fares on poor images. Numbers, several labels and label maps have the metrics of `evaluate_outputs`.
    For the worst case within a bound, which these random images are not, use `evaluate`. Ctrl-C keeps
    the examples done until then.

    Args:
        box: The model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. With labels: (x, y) tensors, or items (input,
            class).
        kinds: Kinds of corruption, of `CORRUPTIONS`; None is all that apply. To signals and volumes noise and
            contrast do: blur, brightness, JPEG, pixelation and rotation are of pictures alone. Rotation moves the
            positions that a label map is of, so that it does not apply to one.
        severities: Severities, from 1 (mild) to 5 (severe). All by default.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Corruptions`: `accuracy` and `confidence` (kinds, severities), and `clean_accuracy`. Of numbers, several
        labels and label maps an `OutputCorruptions`: `metrics` {name: (kinds, severities)} and `clean` {name: value}.

    Raises:
        InputError: for settings out of their range, a box of other inputs than images, or kinds that do not apply to
            its inputs or outputs.
        DataError: for data without labels or without examples.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> data = ub.data.digits("test").first(50)
        >>> result = ub.robustness.corruptions(box, data, ["contrast"], severities=[1, 5])
        >>> result.accuracy.shape
        torch.Size([1, 2])

    Source:
        Hendrycks & Dietterich 2019, arXiv:1903.12261, with the constants of ImageNet-C. Deviations: blur scales with
        the image, since the constants are for 224 pixels; rotation is added; kinds that need files (frost) or fixed
        sizes are left out.
    """
    check_settings(corruptions, locals())
    allowed = _applicable_kinds(box, require_images(box, "a test by corruptions"), kinds)
    kinds, severities = (
        _check_choices("kinds", allowed if kinds is None else kinds, allowed),
        _check_choices("severities", severities, SEVERITIES),
    )
    if has_class_labels(box):
        x, y = labeled_examples(box, data, max_examples)
        tally = _CorruptionSums(box, x, y, kinds, severities, valid_seed(seed), _correct_and_probability)
        return tally.to_result(tally.run(batch_size))
    x, y, _ = indexed_examples_with_output_values(box, data, max_examples)
    tally = _CorruptionSums(box, x, y, kinds, severities, valid_seed(seed), partial(output_statistics, box))
    return tally.to_output_result(tally.run(batch_size))


def _correct_and_probability(logits: Tensor, y: Tensor) -> Tensor:
    """(n, 2) whether the prediction is correct, and the probability of the correct class."""
    probability = logits.double().softmax(1).gather(1, y[:, None])[:, 0]
    return torch.stack([(logits.argmax(1) == y).double(), probability], 1)


def _applicable_kinds(box: Box, inputs: Pixels, kinds: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds that such inputs and outputs can have. Raises InputError where others are asked for."""
    named = (kinds,) if isinstance(kinds, str) else kinds or ()
    if inputs.n_axes == 2 and not box.output_map_shape:
        return CORRUPTIONS
    if moving := [kind for kind in named if kind in MOVING_KINDS]:
        raise InputError(f"{moving[0]} moves the positions that the model's output map is of; leave it out")
    if inputs.n_axes == 2:
        return tuple(kind for kind in CORRUPTIONS if kind not in MOVING_KINDS)
    if of_pictures := [kind for kind in named if kind in CORRUPTIONS and kind not in CORRUPTION_KINDS_OF_ANY_INPUT]:
        what = "signals" if inputs.n_axes == 1 else "volumes"
        problem = f"{', '.join(of_pictures)} {'is' if len(of_pictures) == 1 else 'are'} of pictures (C, H, W) alone"
        raise InputError(
            f"{problem}, and this model takes {what}; kinds={CORRUPTION_KINDS_OF_ANY_INPUT} apply to these"
        )
    return CORRUPTION_KINDS_OF_ANY_INPUT


def _check_choices(name: str, value: Any, allowed: tuple[Any, ...]) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values or [v for v in values if v not in allowed or isinstance(v, bool)]:
        raise InputError(f"{name} must be of {', '.join(map(str, allowed))}; got {value!r}")
    return tuple(dict.fromkeys(values))


class _CorruptionSums:
    """Sums over the examples so far."""

    def __init__(
        self, box: Box, x: Tensor, y: Tensor, kinds: tuple[str, ...], severities: tuple[int, ...], seed: int,
        statistics: Callable[[Tensor, Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.box, self.x, self.y, self.kinds, self.severities, self.seed = box, x, y, kinds, severities, seed
        self.statistics = statistics  # (logits (n, K, ...), y) -> (n, S)
        self.sums, self.n_seen = torch.zeros((), dtype=torch.float64, device=x.device), 0  # (cells, S), the clean first

    def run(self, batch_size: BatchSize) -> bool:
        """Returns whether Ctrl-C ended it."""
        size, max_rows = self.box.batch_size_and_max_rows(len(self.x), batch_size)
        max_rows = (
            max_rows
            if self.box.batch_dependent or self.x.device.type != "cpu"
            else min(max_rows, MAX_CPU_DATA_BATCH_ROWS)
        )
        try:
            map_in_batches(self._add_corrupted_rows, len(self.x), size, max_rows)
        except KeyboardInterrupt:
            if not self.n_seen:
                raise
            return True
        return False

    def _add_corrupted_rows(self, rows: slice) -> None:
        x, y, row_numbers = self.x[rows], self.y[rows], torch.arange(rows.start, rows.stop)
        settings = [(kind, severity) for kind in self.kinds for severity in self.severities]
        sums_by_setting = [
            self._sum(corrupted(x, kind, severity_level, self.seed, row_numbers), y)
            for kind, severity_level in settings
        ]
        self.sums, self.n_seen = (
            self.sums + torch.stack([self._sum(x, y), *sums_by_setting]),
            self.n_seen + len(x),
        )

    def _sum(self, x: Tensor, y: Tensor) -> Tensor:
        """(S,) of the statistics of some examples."""
        return self.statistics(nan_checked_logits(self.box, x), y).sum(0)

    def to_result(self, interrupted: bool) -> Corruptions:
        means = self.sums / self.n_seen
        cells = means[1:].view(len(self.kinds), len(self.severities), 2).to(self.box.dtype)
        return Corruptions(
            self.kinds, self.severities, cells[..., 0].clone(), cells[..., 1].clone(), float(means[0, 0]),
            float(means[0, 1]), self.n_seen, interrupted,
        )  # fmt: skip

    def to_output_result(self, interrupted: bool) -> OutputCorruptions:
        shape = len(self.kinds), len(self.severities)
        values = {name: metric(self.sums) for name, metric in output_metrics(self.box).items()}  # (1 + K S,)
        return OutputCorruptions(
            self.kinds, self.severities, {name: v[1:].view(shape).to(self.box.dtype) for name, v in values.items()},
            {name: float(v[0]) for name, v in values.items()}, self.n_seen, interrupted,
        )  # fmt: skip
