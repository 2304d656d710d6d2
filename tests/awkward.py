"""The zoo of awkward models, as the tests name it; it is part of the package: users test their own methods on it."""

from unboxed.testing.models import (
    CLASSES,
    COLOR,
    FAKES,
    GRAY,
    NETS,
    SPELLINGS,
    Awkward,
    FakeReLU,
    Plain,
    Spelled,
    get,
    inductor,
    plain,
    twin,
)

__all__ = [
    "CLASSES", "COLOR", "FAKES", "GRAY", "NETS", "SPELLINGS", "Awkward", "FakeReLU", "Plain", "Spelled", "get",
    "inductor", "plain", "twin",
]  # fmt: skip
