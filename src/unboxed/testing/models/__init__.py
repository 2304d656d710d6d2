"""The zoo of awkward models: what people's models do that the obvious code gets wrong. Tiny, seeded, on the CPU.

Most are `Plain` spelled another way: the same weights compute the same function, so every method must give the same
result on both. `Awkward.twin` names the plain spelling where there is one.

A model that broke a method moves in here, into the file of its kind.

>>> from unboxed.testing import models
>>> models.get_model("functional_relu").twin
'plain'
"""

# ruff: noqa: I001  (the imports stand in the order of the zoo)
from .base import (
    N_CLASSES,
    COLOR_INPUTS,
    GRAY_INPUTS,
    MODELS,
    AwkwardModel,
    PlainCNN,
    register_model,
    get_model,
    model_kind,
    plain,
    twin_name,
)
from .relus import RELU_LOOKALIKES, RELU_SPELLINGS, ReLULookalike, ReLUVariant
from . import structures, states, architectures
from .transformed import inductor

__all__ = [
    "COLOR_INPUTS",
    "GRAY_INPUTS",
    "MODELS",
    "N_CLASSES",
    "RELU_LOOKALIKES",
    "RELU_SPELLINGS",
    "AwkwardModel",
    "PlainCNN",
    "ReLULookalike",
    "ReLUVariant",
    "architectures",
    "get_model",
    "inductor",
    "model_kind",
    "plain",
    "register_model",
    "states",
    "structures",
    "twin_name",
]
