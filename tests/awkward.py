"""The zoo of awkward models, as the tests name it; it is part of the package: users test their own methods on it."""

from unboxed.testing.models import (
    COLOR_INPUTS,
    GRAY_INPUTS,
    MODELS,
    N_CLASSES,
    RELU_FN_BY_SPELLING,
    RELU_LOOKALIKE_FN_BY_NAME,
    AwkwardModel,
    CNNWithReLULookalike,
    PlainCNN,
    PlainCNNWithReLU,
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
    "RELU_FN_BY_SPELLING",
    "RELU_LOOKALIKE_FN_BY_NAME",
    "AwkwardModel",
    "CNNWithReLULookalike",
    "PlainCNN",
    "PlainCNNWithReLU",
    "get_model",
    "inductor",
    "plain",
    "twin_name",
]  # fmt: skip
