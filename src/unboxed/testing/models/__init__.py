"""The zoo of awkward models: what people's models do that the obvious code gets wrong. Tiny, seeded, on the CPU.

Most are `Plain` spelled another way: the same weights compute the same function, so every method must give the same
result on both. `Awkward.twin` names the plain spelling where there is one.

A model that broke a method moves in here, into the file of its kind.

>>> from unboxed.testing import models
>>> models.get("functional_relu").twin
'plain'
"""

# ruff: noqa: I001  (the imports stand in the order of the zoo)
from .base import CLASSES, COLOR, GRAY, NETS, Awkward, Plain, awkward, get, kind, plain, twin
from .relus import FAKES, SPELLINGS, FakeReLU, Spelled
from . import structures, states, architectures
from .transformed import inductor

__all__ = [
    "CLASSES",
    "COLOR",
    "FAKES",
    "GRAY",
    "NETS",
    "SPELLINGS",
    "Awkward",
    "FakeReLU",
    "Plain",
    "Spelled",
    "architectures",
    "awkward",
    "get",
    "inductor",
    "kind",
    "plain",
    "states",
    "structures",
    "twin",
]
