"""What the page says of an example: its prediction, its label, its outputs."""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from .source import ReportData
from .survey import Survey
from .words import format_named_prob, format_number, quoted

MIN_PROB_OF_PRESENT_LABEL = 0.5
MAX_CAPTION_VALUES = 3  # outputs or labels of an example that are named in its caption


class ExampleTextsMixin:
    """The texts about the examples of a survey, by their index in it."""

    box: Box
    data: ReportData
    survey: Survey

    def class_name(self, class_index: int) -> str:
        return self.survey.classes[class_index]

    @property
    def is_regression(self) -> bool:
        """Whether the outputs are numbers, which name no class."""
        return self.box.outputs == "regression"

    def output_text(self, index: int, class_index: int) -> str:
        """The probability of class k, or the outputs where there is none."""
        value = float(self.survey.outputs[index, class_index])
        if self.is_regression:
            return self._format_output_values(self.survey.outputs[index])
        return f"mean {format_named_prob(value)}" if self.box.output_map_shape else format_named_prob(value)

    def label_name(self, index: int) -> str | None:
        """The label of an example: its class, its true values, or the labels that it has; None where it has none."""
        s = self.survey
        if s.targets is not None:
            return (
                self._format_output_values(s.targets[index])
                if self.is_regression
                else self._names_of_present_labels_text(s.targets[index])
            )
        return self.class_name(int(s.labels[index])) if s.labels is not None and s.exclusive_classes else None

    def _format_output_values(self, values: Tensor) -> str:
        """Like "3.2", or of several outputs "a 3.2, b 0.1"."""
        if len(values) == 1:
            return format_number(float(values[0]))
        shown = [f"{self.class_name(k)} {format_number(float(v))}" for k, v in enumerate(values[:MAX_CAPTION_VALUES])]
        return ", ".join([*shown, *["…"] * (len(values) > len(shown))])

    def _names_of_present_labels_text(self, is_on: Tensor) -> str:
        names = [self.class_name(k) for k in is_on.nonzero().flatten().tolist()]
        return ", ".join([*names[:MAX_CAPTION_VALUES], *["…"] * (len(names) > MAX_CAPTION_VALUES)]) or "none"

    def prediction_text(self, index: int, *, quote: bool = False) -> str:
        """The prediction of an example with its probability; `quote` the class in a sentence."""
        text = self.largest_output_text(index, quote=quote)
        return text if self.is_regression else f"{self.predicted_class_text(index, quote=quote)}, {text}"

    def largest_output_text(self, index: int, *, quote: bool = False) -> str:
        """The probability of the predicted class, or the outputs; of yes/no labels the likeliest one and its own."""
        k = int(self.survey.predicted[index])
        name = quoted(self.class_name(k)) if quote else self.class_name(k)
        return f"likeliest: {name}, {self.output_text(index, k)}" if self.has_labels else self.output_text(index, k)

    @property
    def has_labels(self) -> bool:
        """Whether the outputs are yes/no labels, of which an example has any number."""
        return self.box.outputs == "multilabel" and not self.box.output_map_shape

    def predicted_class_text(self, index: int, *, quote: bool = False) -> str:
        """The predicted class, or the labels that are more likely than not; of a map of classes the one of the largest
        mean probability."""
        if self.has_labels:
            return self._names_of_present_labels_text(self.survey.outputs[index] > MIN_PROB_OF_PRESENT_LABEL)
        name = self.class_name(int(self.survey.predicted[index]))
        name = quoted(name) if quote else name
        return f"mostly {name}" if self.box.output_map_shape else name

    def runner_up_text(self, index: int) -> str:
        if len(self.survey.classes) < 2 or self.data.binary or self.is_regression:
            return ""
        k = int(self.survey.runner_up[index])
        return f"{self.class_name(k)}, {self.output_text(index, k)}"
