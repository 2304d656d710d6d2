"""The zoo of awkward models, as the tests name it; it is part of the package: users test their own methods on it."""

from unboxed.testing.models import (
    COLOR_INPUTS,
    GRAY_INPUTS,
    MODELS,
    N_CLASSES,
    RELU_LOOKALIKES,
    RELU_SPELLINGS,
    AwkwardModel,
    PlainCNN,
    PlainCNNWithReLU,
    ReLULookalike,
    get_model,
    inductor,
    plain,
    twin_name,
)

__all__ = [
    "COLOR_INPUTS",
    "GRAY_INPUTS",
    "MODELS",
    "N_CLASSES",
    "RELU_LOOKALIKES",
    "RELU_SPELLINGS",
    "AwkwardModel",
    "PlainCNN",
    "PlainCNNWithReLU",
    "ReLULookalike",
    "get_model",
    "inductor",
    "plain",
    "twin_name",
]  # fmt: skip
