"""What a store of gradients was made with: the model, by its weights and what it computes, the loss, the layers."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..box import Box
from ..checkpointing import tensor_digest, weights_digest
from ..engine.example_gradients.gradients import ExampleGradients
from ..engine.example_gradients.losses import ExampleLoss

LOG = logging.getLogger("unboxed")
N_NOISE_INPUTS = 4  # inputs whose losses stand for what weights do not say


def gradient_store_settings(gradients: ExampleGradients, loss: ExampleLoss | None, **others: Any) -> dict[str, Any]:
    """Plain values, those first that determine others.

    Losses of noise tell models of the same weights apart, such as by another activation or mean of the inputs, and
    losses of the same name.
    """
    return {
        "weights": str(weights_digest(gradients.box.model)),
        "parameters": _parameters_summary_text(gradients.parameters),
        "parameter names": str(tensor_digest(*(_name_to_byte_tensor(name) for name in gradients.parameters))),
        "loss": _loss_function_name(loss),
        **others,
        "losses of noise": _losses_on_noise(gradients),
    }


def _losses_on_noise(gradients: ExampleGradients) -> list[float]:
    """Losses of noise at labels that are always the same; where the loss is not of such labels, sums of the outputs."""
    box = gradients.box
    x = box.noise(N_NOISE_INPUTS)
    with box.isolated(grad=False):
        z = gradients.outputs(x)
        try:
            values = gradients.loss(z, _labels_for_noise(box, z))
        except Exception:  # a loss of the user's own may raise anything
            LOG.debug("the loss takes no labels of noise: outputs stand for it", exc_info=True)
            values = z.flatten(1).sum(1)
    return [float(v) for v in values.detach().double().flatten()]


def _labels_for_noise(box: Box, z: Tensor) -> Tensor:
    if box.outputs in ("regression", "multilabel"):
        return torch.zeros_like(z)
    return torch.arange(len(z), device=z.device) % box.n_outputs


def _name_to_byte_tensor(name: str) -> Tensor:
    return torch.tensor(list(name.encode()), dtype=torch.uint8)


def _parameters_summary_text(parameters: dict[str, Tensor]) -> str:
    names = list(parameters)
    return f"{names[0]} to {names[-1]}, {len(names)} tensors of {sum(p.numel() for p in parameters.values())} values"


def _loss_function_name(loss: ExampleLoss | None) -> str:
    return (
        "of the outputs" if loss is None else f"{loss.__module__}.{getattr(loss, '__qualname__', type(loss).__name__)}"
    )
