"""Models with several inputs: what each of them is, and all of them packed into one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import Inputs, inputs_from_unit_interval

PackedOrParts = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""Several inputs as a user passes them, or packed into one tensor."""


@dataclass(frozen=True)
class MultiInput:
    """Several inputs at once, for a model whose forward takes more than one.

    x is then a dict or a tuple of tensors of the same structure, and so is what a method returns for it. Inside,
    a batch is one packed tensor (N, D), so that every method that takes any input works.

    Args:
        parts: {name: inputs}, passed to the forward by name, or a tuple of inputs, passed by position.

    Raises:
        InputError: when a part is not `Pixels(...)` or `Features(...)`, or there is none.

    Example:
        >>> import torch, unboxed as ub
        >>> inputs = ub.MultiInput({"image": ub.Pixels((1, 8, 8)), "table": ub.Features(("age",))})
        >>> x = {"image": torch.rand(2, 1, 8, 8), "table": torch.tensor([[40.0], [50.0]])}
        >>> inputs.pack(x).shape
        torch.Size([2, 65])
        >>> inputs.unpack(inputs.pack(x))["table"].tolist()
        [[40.0], [50.0]]
    """

    parts: Mapping[str, Inputs] | tuple[Inputs, ...]

    def __post_init__(self) -> None:
        known = isinstance(self.parts, (Mapping, tuple))
        if not known or not all(isinstance(p, Inputs) for _, p in self.keys_and_parts()):
            raise InputError("MultiInput needs a dict {name: Pixels(...) or Features(...)} or a tuple of them")
        if not self.parts:
            raise InputError("MultiInput needs at least one input")
        if isinstance(self.parts, Mapping):
            object.__setattr__(self, "parts", dict(self.parts))

    def __hash__(self) -> int:
        return hash(frozenset(self.keys_and_parts()))

    def keys_and_parts(self) -> list[tuple[str | int, Inputs]]:
        """(name or position, inputs) of each part, in order."""
        return list(self.parts.items() if isinstance(self.parts, Mapping) else enumerate(self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,), the shape of one packed row."""
        return (sum(self.sizes),)

    @property
    def sizes(self) -> list[int]:
        """How many of the D numbers each part has."""
        return [math.prod(part.shape) for _, part in self.keys_and_parts()]

    def check(self, x: PackedOrParts) -> PackedOrParts:
        """x itself, if it is valid, packed or not; else InputError that names the part."""
        is_packed = isinstance(x, Tensor) and tuple(x.shape[1:]) == self.shape
        values = self.split(x) if isinstance(x, Tensor) and is_packed else self.values_of_parts(x)
        for (name, part), value in zip(self.keys_and_parts(), values, strict=True):
            try:
                part.check(value)
            except InputError as error:
                raise InputError(f"input {name!r}: {error}") from None
        if len(rows := {len(v) for v in values}) != 1:
            raise InputError(f"all inputs must have the same number of rows; got {sorted(rows)}")
        return x

    def values_of_parts(self, x: object) -> list[Any]:
        """The values of a structure, in order. Raises InputError."""
        names = [name for name, _ in self.keys_and_parts()]
        if isinstance(self.parts, Mapping):
            if not isinstance(x, Mapping) or set(x) != set(names):
                got = f"keys {sorted(map(str, x))}" if isinstance(x, Mapping) else type(x).__name__
                raise InputError(f"wanted a dict of tensors, {', '.join(map(repr, names))}; got {got}")
            return [x[name] for name in names]
        if not isinstance(x, (tuple, list)) or len(x) != len(names):
            got = f"{len(x)} of them" if isinstance(x, (tuple, list)) else type(x).__name__
            raise InputError(f"wanted a tuple of {len(names)} tensors; got {got}")
        return list(x)

    def has_structure_of_parts(self, x: object) -> bool:
        """Whether x has the structure: a dict with the names of the parts, or a tuple of as many tensors."""
        if isinstance(self.parts, Mapping):
            return isinstance(x, Mapping) and set(x) == set(self.parts)
        return (
            isinstance(x, (tuple, list))
            and len(x) == len(self.parts)
            and all(isinstance(v, Tensor) and v.ndim >= 1 for v in x)
        )

    def pack(self, x: PackedOrParts) -> Tensor:
        """(N, D) of a structure; a tensor is returned as it is."""
        if isinstance(x, Tensor):
            return x
        values = self.values_of_parts(x)
        dtype = max((v.dtype for v in values), key=lambda t: t.itemsize)
        return torch.cat([v.flatten(1).to(dtype) for v in values], 1)

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts (..., *shape) of a packed tensor (..., D): (N, D), or (T, N, D) of frames."""
        pieces = torch.split(x, self.sizes, -1)
        return [
            v.reshape(*x.shape[:-1], *part.shape) for v, (_, part) in zip(pieces, self.keys_and_parts(), strict=True)
        ]

    def unpack(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """The structure of a packed tensor (N, D)."""
        return self._restore_structure(
            [p.unpack(v) for v, (_, p) in zip(self.split(x), self.keys_and_parts(), strict=True)]
        )

    def _restore_structure(self, values: Sequence[Tensor]) -> dict[str, Tensor] | tuple[Tensor, ...]:
        return dict(zip(self.parts, values, strict=True)) if isinstance(self.parts, Mapping) else tuple(values)

    def encode(self, x: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """What the model takes: its arguments, each normalized."""
        return self._restore_structure(self._call_method_on_parts("encode", x))

    def decode(self, z: PackedOrParts) -> Tensor:
        """The inverse of `encode`, packed (N, D)."""
        return self._call_method_on_packed_parts("decode", self.pack(z))

    def clip(self, x: Tensor) -> Tensor:
        """Packed x (N, D), each part moved into its valid range."""
        return self._call_method_on_packed_parts("clip", x)

    def from_unit_interval(self, u: Tensor) -> Tensor:
        """Packed inputs for levels u (N, D) in [0, 1]."""
        pairs = zip(self.split(u), self.keys_and_parts(), strict=True)
        return torch.cat([inputs_from_unit_interval(part, v).flatten(1) for v, (_, part) in pairs], 1)

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """n random valid inputs, packed (n, D)."""
        return torch.cat([part.random_inputs(n, generator).flatten(1) for _, part in self.keys_and_parts()], 1)

    def _call_method_on_parts(self, method: str, x: Tensor) -> list[Tensor]:
        return [getattr(part, method)(v) for v, (_, part) in zip(self.split(x), self.keys_and_parts(), strict=True)]

    def _call_method_on_packed_parts(self, method: str, x: Tensor) -> Tensor:
        return torch.cat([v.flatten(1) for v in self._call_method_on_parts(method, x)], 1)
