"""Three ways to the gradients of each example: closed forms, vmap of grad, and one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import grad_and_value, vmap

from ...box import Box
from ...errors import OutputError
from ...model.hooks import hookable_modules
from ...model.layer_calls import observing_layer_calls
from .parameters import LossesAsFunctionOfParameters, Parameters
from .rules import ClosedFormRule, closed_form_rule_of
from .terms import DenseGradients, PerExampleGradients, sum_gradients_of_parameter_uses

GradientsByParameter = dict[str, PerExampleGradients]  # by parameter


class GradientRoute(Protocol):
    """A way to the gradients with respect to some parameters."""

    names: tuple[str, ...]

    def losses_and_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, GradientsByParameter]:
        """Losses (N,) and gradients of a batch, in the box's dtype. Inside `box.isolated()`."""


def gradients_of_summed_losses(
    losses: Tensor, leaves: Sequence[Any], *, retain_graph: bool = False
) -> list[Tensor | None]:
    """Gradients of the sum of losses; None where there is no path. Raises OutputError where torch gives none."""
    if not losses.requires_grad:
        raise OutputError("the loss does not depend on the model's parameters by any path with a gradient")
    try:
        grads = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, retain_graph=retain_graph)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise OutputError(
                "the model runs a reentrant checkpoint, through which torch gives no gradient of chosen parameters; "
                "call torch.utils.checkpoint with use_reentrant=False"
            ) from error
        raise
    return [None if g is None else g.to_dense() for g in grads]


class LayerWithClosedForm(NamedTuple):
    module: nn.Module
    rule: ClosedFormRule
    names: dict[str, str]  # {"weight": the name of the parameter}


class LayerCall(NamedTuple):
    layer: LayerWithClosedForm
    multiplied: Tensor  # what the layer multiplies by its weights
    output: GradientEdge


class ClosedFormRoute:
    """From the inputs and output gradients of layers, by one forward and one backward pass of a batch."""

    def __init__(self, losses: LossesAsFunctionOfParameters, parameters: Parameters) -> None:
        self.box, self.losses = losses.box, losses
        self.leaves = as_leaves(parameters)
        self.layers = _layers_with_closed_form(self.box, parameters)
        self.names = tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.names.values()))

    def losses_and_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, GradientsByParameter]:
        losses, calls = self.record_layer_calls(len(x), lambda leaves: self.losses(leaves, x, y))
        return losses.detach(), self._gradients_by_parameter(losses, calls)

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, ...), and the derivatives (N, M, P) of all M of an example: one forward and M backward passes."""
        outputs, calls = self.record_layer_calls(len(x), lambda leaves: self.losses.outputs(leaves, x))
        columns = [self._gradients_by_parameter(z, calls, retain_graph=True) for z in outputs.flatten(1).unbind(1)]
        rows = [torch.cat([terms[name].rows() for name in self.leaves], 1) for terms in columns]  # of all parameters
        return outputs.detach(), torch.stack(rows, 1)

    def _gradients_by_parameter(
        self, values: Tensor, calls: Sequence[LayerCall], *, retain_graph: bool = False
    ) -> GradientsByParameter:
        """The gradients of each example's own value (N,)."""
        edges = [call.output for call in calls]
        grads = gradients_of_summed_losses(values, edges, retain_graph=retain_graph) if calls else []
        n, found = len(values), dict[str, list[PerExampleGradients]]()
        for (layer, a, _), d in zip(calls, grads, strict=True):
            if d is not None:
                for local, term in layer.rule.terms(layer.module, n, a, self.drop_padding_rows(d, n)).items():
                    found.setdefault(layer.names.get(local, ""), []).append(term)
        return {
            name: sum_gradients_of_parameter_uses(found[name]) if name in found else self._zero_gradients(name, n)
            for name in self.names
        }

    def drop_padding_rows(self, h: Tensor, n: int) -> Tensor:
        """Without rows of padding, in the box's dtype."""
        h = h[: len(h) * n // max(n, self.box.min_rows)]
        return h.to(self.box.dtype) if h.is_floating_point() else h

    def _zero_gradients(self, name: str, n: int) -> PerExampleGradients:
        zero = torch.zeros((), dtype=self.box.dtype, device=self.box.device)
        return DenseGradients(zero.expand(n, self.leaves[name].numel()))

    def record_layer_calls(self, n: int, run: Callable[[Parameters], Tensor]) -> tuple[Tensor, list[LayerCall]]:
        """What `run` gives for the parameters, and the calls of layers in it, for n examples."""
        calls = list[LayerCall]()

        def record_layer_calls(module: nn.Module, a: Tensor, out: Tensor) -> None:
            layer = self.layers[module]
            calls.append(
                LayerCall(layer, layer.rule.prepare(module, self.drop_padding_rows(a, n)), get_gradient_edge(out))
            )

        with observing_layer_calls(self.layers, record_layer_calls):
            out = run(self.leaves)
        return out, calls


def as_leaves(parameters: Parameters) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}


def _layers_with_closed_form(box: Box, parameters: Parameters) -> dict[nn.Module, LayerWithClosedForm]:
    """The modules that own a chosen parameter and have a closed form; a shared parameter has several."""
    names = {id(p): n for n, p in box.model.named_parameters() if n in parameters}
    layers: dict[nn.Module, LayerWithClosedForm] = {}
    for module in hookable_modules(box.modules).values():
        own = {local: names[id(p)] for local, p in module._parameters.items() if id(p) in names}
        if own and (rule := closed_form_rule_of(module)):
            layers[module] = LayerWithClosedForm(module, rule, own)
    return layers


class VmapRoute:
    """torch.func: vmap of grad, for any op that it knows."""

    def __init__(self, losses: LossesAsFunctionOfParameters, parameters: Parameters) -> None:
        self.box, self.losses, self.names = losses.box, losses, tuple(parameters)
        self.parameters = dict(parameters)

    def losses_and_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, GradientsByParameter]:
        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self.losses(parameters, x[None], y[None]).sum()

        with warnings.catch_warnings():  # of ops that it runs one by one
            warnings.filterwarnings("ignore", "There is a performance drop")
            grads, losses = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(self.parameters, x, y)
        return losses.detach(), {n: DenseGradients(g.detach().flatten(1).to(self.box.dtype)) for n, g in grads.items()}


class OneByOneRoute:
    """Autograd, one example at a time: slow, and the definition of the others."""

    def __init__(self, losses: LossesAsFunctionOfParameters, parameters: Parameters) -> None:
        self.box, self.losses, self.names = losses.box, losses, tuple(parameters)
        self.leaves = as_leaves(parameters)

    def losses_and_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, GradientsByParameter]:
        rows = [self._example_gradients(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        stacked = zip(*(grads for _, grads in rows), strict=True)
        losses = torch.cat([loss for loss, _ in rows])
        return losses, {n: DenseGradients(torch.stack(g)) for n, g in zip(self.names, stacked, strict=True)}

    def _example_gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.box.isolated():  # of its own: each example draws the same noise
            losses = self.losses(self.leaves, x, y)
            grads = gradients_of_summed_losses(losses, list(self.leaves.values()))
        pairs = zip(grads, self.leaves.values(), strict=True)
        return losses.detach(), [
            (torch.zeros_like(p) if g is None else g).flatten().to(self.box.dtype) for g, p in pairs
        ]
