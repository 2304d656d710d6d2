"""Passes over examples that give their gradients at the labels of a Fisher: as products of layers, or as rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.batching import map_in_batches
from ..cpu_cache import gradient_batch_size_and_max_rows
from .fisher_labels import FisherKind, WeightedLabels, fisher_labels
from .gradients import ExampleGradients, check_finite_losses_per_example
from .matrix_layers import MatrixLayer, matrix_layers
from .routes import ClosedFormRoute, GradientsByParameter, LayerCall

LayerFactorsCallback = Callable[
    [MatrixLayer, Tensor, Tensor], None
]  # layer, inputs (N, T, G, I), gradients (N, T, G, O)
GradientRowsCallback = Callable[[Tensor], object]


@dataclass(frozen=True, eq=False)
class FisherPasses:
    """Passes over the same examples in one or several states of a model.

    Gradients come multiplied by the square roots of their labels' weights, so that the mean of their squares is the
    Fisher.
    """

    states: Iterable[ExampleGradients]  # is iterated once per pass
    x: Tensor
    y: Tensor
    fisher: FisherKind
    seed: int

    def first_state_gradients(self) -> ExampleGradients:
        return next(iter(self.states))

    def matrix_layers(self) -> list[MatrixLayer]:
        """The layers that products are right for."""
        return matrix_layers(self.first_state_gradients().closed_form_route(self.x, self.y))

    def for_each_layer_factors(self, weights: Collection[str], callback: LayerFactorsCallback) -> int:
        """Call back with each layer whose weight is named, batch by batch. Returns the number of rows."""
        return sum(self._for_each_layer_factors_in_state(gradients, weights, callback) for gradients in self.states)

    def for_each_gradient_rows(self, names: Sequence[str], callback: GradientRowsCallback) -> int:
        """Call back with gradients as rows (N, P) over these parameters, batch by batch. Returns the number of rows."""
        return sum(self._for_each_gradient_rows_in_state(gradients, names, callback) for gradients in self.states)

    def _for_each_layer_factors_in_state(
        self, gradients: ExampleGradients, weights: Collection[str], callback: LayerFactorsCallback
    ) -> int:
        forms = gradients.closed_form_route(self.x, self.y)
        layers = [layer for layer in matrix_layers(forms) if layer.weight in weights]
        map_in_batches(
            lambda part: self._for_each_layer_factors_in_batch(gradients, forms, layers, part, callback),
            len(self.x), *gradient_batch_size_and_max_rows(gradients.box, len(self.x), "auto"),
        )  # fmt: skip
        return len(self.x)

    def _for_each_layer_factors_in_batch(
        self, gradients: ExampleGradients, forms: ClosedFormRoute, layers: Sequence[MatrixLayer], part: slice,
        callback: LayerFactorsCallback,
    ) -> None:  # fmt: skip
        x = self.x[part]
        with gradients.box.isolated():
            z, calls = forms.record_layer_calls(len(x), lambda leaves: gradients.outputs(x, leaves))
            for labels, weight in self._weighted_labels(gradients, z, part):
                losses = gradients.loss(z, labels)
                check_finite_losses_per_example(losses, part.start)
                for layer, a, s in _inputs_and_output_gradients(forms, layers, calls, losses):
                    callback(layer, a, s * weight.sqrt().to(s).reshape(-1, 1, 1, 1))

    def _for_each_gradient_rows_in_state(
        self, gradients: ExampleGradients, names: Sequence[str], callback: GradientRowsCallback
    ) -> int:
        for labels, weight in self._weighted_labels(
            gradients, self._outputs_of_all_examples(gradients), slice(0, len(self.x))
        ):
            roots, start = weight.sqrt().expand(len(self.x)), 0

            def scale_rows_and_call_back(terms: GradientsByParameter, roots: Tensor = roots) -> None:
                nonlocal start
                rows = torch.cat([terms[name].rows() for name in names], 1)
                callback(rows * roots[start : start + len(rows), None].to(rows))
                start += len(rows)

            gradients.map_gradients_in_parts(scale_rows_and_call_back, self.x, labels)
        return len(self.x)

    def _outputs_of_all_examples(self, gradients: ExampleGradients) -> Tensor:
        """What the loss is of, for all examples."""

        def outputs_of_part(part: slice) -> Tensor:
            with gradients.box.isolated(grad=False):
                return gradients.outputs(self.x[part])

        return torch.cat(
            map_in_batches(
                outputs_of_part, len(self.x), *gradient_batch_size_and_max_rows(gradients.box, len(self.x), "auto")
            )
        )

    def _weighted_labels(self, gradients: ExampleGradients, z: Tensor, part: slice) -> Iterator[WeightedLabels]:
        rows = torch.arange(len(self.x))[part]
        return fisher_labels(gradients.box, z, self.y[part], rows, self.fisher, self.seed)


def _inputs_and_output_gradients(
    forms: ClosedFormRoute, layers: Sequence[MatrixLayer], calls: Sequence[LayerCall], losses: Tensor
) -> Iterator[tuple[MatrixLayer, Tensor, Tensor]]:
    """Each layer with its inputs (N, T, G, I) and the losses' gradients (N, T, G, O) with respect to its outputs."""
    n, modules = len(losses), {layer.module for layer in layers}
    calls = [call for call in calls if call.layer.module in modules]
    grads = torch.autograd.grad(losses.sum(), [c.output for c in calls], retain_graph=True, allow_unused=True)
    used = [(call, forms.drop_padding_rows(d, n)) for call, d in zip(calls, grads, strict=True) if d is not None]
    for layer in layers:
        own = [(call.multiplied, d) for call, d in used if call.layer.module is layer.module]
        if own:
            inputs, outputs = zip(*own, strict=True)
            yield layer, layer.input_rows(n, inputs), layer.output_gradient_rows(n, outputs)
