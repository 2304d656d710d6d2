"""The parameters whose gradients are meant, and a model's outputs as a function of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from ...box import Box
from ...errors import LayerError, OutputError
from ...model.hooks import Address
from ...validation import address_list
from .losses import ExampleLoss, check_losses_per_example, loss_input_address

Parameters = Mapping[str, Tensor]
BATCH_DEPENDENT_MESSAGE = (
    "the examples of a batch depend on one another in this model, so that none has a loss of its own that could be "
    "left out; use statistics of the training data in its normalization, as BatchNorm does in eval mode"
)


def parameter_names_of_layers(box: Box, layers: Sequence[str] | str | None) -> list[str]:
    """The names of the parameters of these modules, or of all.

    Of them, those that require a gradient count, or all where none does. Raises LayerError where there are none.
    """
    parameters = {n: p for n, p in box.model.named_parameters() if p.is_floating_point()}
    if layers is not None:
        wanted = {id(p) for name in address_list(layers) for p in _module_of_layer(box, name).parameters()}
        parameters = {n: p for n, p in parameters.items() if id(p) in wanted}
    if chosen := {n: p for n, p in parameters.items() if p.requires_grad} or parameters:
        return list(chosen)
    where = "the model has" if layers is None else f"{', '.join(address_list(layers))} have"
    raise LayerError(f"{where} no parameters, so that there are no gradients of them")


def _module_of_layer(box: Box, name: str) -> nn.Module:
    path = Address.parse(name).path
    return box.modules[path if path and path in box.modules else Address.parse(box.layers.resolve(name)).path]


class LossesAsFunctionOfParameters:
    """The losses of examples as a function of parameters, which stand in for the model's own.

    Call it inside `box.isolated()`.

    Args:
        box: The opened model.
        loss: (outputs, labels) -> losses (N,).
        state: Values of all parameters and buffers, as in `state_dict()`. None: the model's own.

    Raises:
        OutputError: for a model whose examples depend on one another.
    """

    def __init__(self, box: Box, loss: ExampleLoss, state: Parameters | None = None) -> None:
        if box.batch_dependent:
            raise OutputError(BATCH_DEPENDENT_MESSAGE)
        self.box, self.loss, self.state = box, loss, state
        self._forward = _BoxForward(box)
        self._names = _shared_names_by_first_name(self._forward)

    def values(self, names: Iterable[str]) -> dict[str, Tensor]:
        """{name: value} of parameters, without a graph."""
        own = dict(self.box.model.named_parameters())
        return {n: (own[n] if self.state is None else self.state[n].to(own[n])).detach() for n in names}

    def outputs(self, parameters: Parameters, x: Tensor) -> Tensor:
        """What the loss is of, (N, ...), in the box's dtype: logits, or the output of a regression model."""
        replaced = self._detached_parameters()
        replaced |= {name: p for first, p in parameters.items() for name in self._names[f"model.{first}"]}
        outputs: Tensor = functional_call(self._forward, replaced, (x,), tie_weights=False)
        return outputs

    def __call__(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Losses (N,)."""
        return check_losses_per_example(self.loss(self.outputs(parameters, x), y), len(x))

    def _detached_parameters(self) -> dict[str, Tensor]:
        """All parameters, without a graph; of a given state copies, which a forward pass may write to."""
        tensors = dict([*self._forward.named_parameters(), *self._forward.named_buffers()])
        if self.state is None:
            fixed = {n: p.detach() for n, p in tensors.items() if isinstance(p, nn.Parameter)}
        else:
            given = {f"model.{n}": h for n, h in self.state.items()}
            fixed = {n: given[n].to(h, copy=True).detach() for n, h in tensors.items() if n in given}
        return {name: h for first, h in fixed.items() for name in self._names[first]}


def _shared_names_by_first_name(model: nn.Module) -> dict[str, list[str]]:
    """{first name of a parameter or buffer: one name for each module that has it}.

    `functional_call(tie_weights=True)` does not restore the parameters of a module that has two names.
    """
    names_by_id: dict[int, list[str]] = {}
    for path, module in model.named_modules():  # each once
        own = *module.named_parameters(recurse=False, remove_duplicate=False), *module.named_buffers(recurse=False)
        for local, h in own:
            names_by_id.setdefault(id(h), []).append(f"{path}.{local}")
    return {name: names_by_id[id(h)] for name, h in (*model.named_parameters(), *model.named_buffers())}


class _BoxForward(nn.Module):
    """The logits of a box, as a module whose parameters `functional_call` can replace."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.model = box.model
        self._box = [box]  # in a list: no attribute of a module

    def forward(self, x: Tensor) -> Tensor:
        box = self._box[0]
        address = loss_input_address(box)
        return box.forward(x, [address])[address].to(box.dtype)
