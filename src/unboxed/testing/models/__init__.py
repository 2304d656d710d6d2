"""The zoo of awkward models, which do what real models do and simple code gets wrong. Tiny, seeded, on the CPU.

Most are `PlainCNN` written differently: the same weights compute the same function, so every method must give the same
result on both. `AwkwardModel.twin` is the name of the plain version where there is one.

A model that broke a method moves in here, into the file of its kind.

>>> from unboxed.testing import models
>>> models.get_model("functional_relu").twin
'plain'
"""

# ruff: noqa: I001  (the imports are in the order of the zoo)
from .base import (
    N_CLASSES,
    COLOR_INPUTS,
    GRAY_INPUTS,
    MODELS,
    AwkwardModel,
    PlainCNN,
    register_model,
    get_model,
    kind_of_model,
    plain,
    twin_name,
)
from .relus import RELU_LOOKALIKE_FN_BY_NAME, RELU_FN_BY_SPELLING, CNNWithReLULookalike, PlainCNNWithReLU
from . import structures, states, architectures
from .transformed import inductor

__all__ = [
    "COLOR_INPUTS",
    "GRAY_INPUTS",
    "MODELS",
    "N_CLASSES",
    "RELU_FN_BY_SPELLING",
    "RELU_LOOKALIKE_FN_BY_NAME",
    "AwkwardModel",
    "CNNWithReLULookalike",
    "PlainCNN",
    "PlainCNNWithReLU",
    "architectures",
    "get_model",
    "inductor",
    "kind_of_model",
    "plain",
    "register_model",
    "states",
    "structures",
    "twin_name",
]
