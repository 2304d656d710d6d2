"""The parameters whose gradients are meant, and a model's outputs as a function of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from ...box import Box
from ...errors import InputError, LayerError, OutputError
from ...model.hooks import Address
from ...validation import address_list
from .losses import ExampleLoss, loss_address

Parameters = Mapping[str, Tensor]


def chosen_parameters(box: Box, layers: Sequence[str] | str | None) -> dict[str, nn.Parameter]:
    """Those of the named modules, or all; of these the ones that require a gradient, or all where none does.

    Raises LayerError where there are none.
    """
    parameters = {n: p for n, p in box.model.named_parameters() if p.is_floating_point()}
    if layers is not None:
        wanted = {id(p) for name in address_list(layers) for p in _module_at(box, name).parameters()}
        parameters = {n: p for n, p in parameters.items() if id(p) in wanted}
    if chosen := {n: p for n, p in parameters.items() if p.requires_grad} or parameters:
        return chosen
    where = "the model has" if layers is None else f"{', '.join(address_list(layers))} have"
    raise LayerError(f"{where} no parameters, so that there are no gradients of them")


def _module_at(box: Box, name: str) -> nn.Module:
    path = Address.parse(name).path
    return box.modules[path if path in box.modules else Address.parse(box.layers.resolve(name)).path]


class LossOfParameters:
    """The losses of examples as a function of parameters, which stand in for the model's own.

    Call it inside `box.isolated()`.
    """

    def __init__(self, box: Box, loss: ExampleLoss) -> None:
        if box.batch_dependent:
            raise OutputError(
                "in this model the examples of a batch depend on one another, so that none has a loss of its own. Open "
                'it with mode="eval", and give a BatchNorm its running statistics'
            )
        self.loss, self._forward = loss, _BoxForward(box)
        self._names = _all_names(self._forward)

    def __call__(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Losses (N,) in the box's dtype."""
        replaced = {name: p for first, p in parameters.items() for name in self._names[f"model.{first}"]}
        losses = self.loss(functional_call(self._forward, replaced, (x,), tie_weights=False), y)
        if losses.shape != (len(x),):
            raise InputError(f"the loss must give a number per example, ({len(x)},); got {tuple(losses.shape)}")
        return losses


def _all_names(model: nn.Module) -> dict[str, list[str]]:
    """{first name of a parameter: one name for each module that has it}.

    `functional_call(tie_weights=True)` does not restore the parameters of a module that has two names.
    """
    names_by_id: dict[int, list[str]] = {}
    for path, module in model.named_modules():  # each once
        for local, p in module.named_parameters(recurse=False, remove_duplicate=False):
            names_by_id.setdefault(id(p), []).append(f"{path}.{local}")
    return {name: names_by_id[id(p)] for name, p in model.named_parameters()}


class _BoxForward(nn.Module):
    """The logits of a box, as a module whose parameters `functional_call` can replace."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.model = box.model
        self._box = [box]  # in a list: no attribute of a module

    def forward(self, x: Tensor) -> Tensor:
        box = self._box[0]
        address = loss_address(box)
        return box.forward(x, [address])[address].to(box.dtype)
